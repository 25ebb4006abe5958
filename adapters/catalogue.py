"""The heads that come with dinomed, as a table that needs no torch: what `--head` accepts, and where each is from.

A head of one's own needs no row here: an entry point of the group ``dinomed.adapters`` names it (see
`dinomed.adapters.contract`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """`module` is below `dinomed.adapters`; it registers the head as "TASK.NAME" when it is imported."""

    task: str
    name: str
    module: str
    summary: str
    source: str


BUILT_IN: tuple[Entry, ...] = (
    Entry("classify", "linear", "linear", "one linear layer on pooled tokens", "DINOv2, section 7.1"),
    Entry("classify", "knn", "knn", "k nearest training images vote; k chosen on val", "DINO, section 4.1"),
    Entry("classify", "logistic", "logistic", "logistic regression with an L2 penalty; C chosen on val", "DINOv2, B.3"),
    Entry("classify", "grid", "grid", "the paper's 52 linear heads at once; the best on val is kept", "DINOv2, B.3"),
    Entry("classify", "attentive", "attentive", "a learned query pools the patch tokens", "CoCa, section 3.2"),
    Entry("segment", "linear", "linear", "BatchNorm and a 1x1 convolution on patch tokens", "DINOv2, section 7.4"),
    Entry("segment", "multiscale", "linear", "linear on 4 blocks, larger, mirrored, scaled", "DINOv2, section 7.4"),
)
