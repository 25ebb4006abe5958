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
    Entry("segment", "linear", "linear", "BatchNorm and a 1x1 convolution on patch tokens", "DINOv2, section 7.4"),
)
