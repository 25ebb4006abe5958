"""The heads that come with dinomed, as a table that needs no torch: what `--head` accepts, and where each is from.

A head of one's own needs no row here: an entry point of the group ``dinomed.adapters`` names it (see
`dinomed.adapters.adapter`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """`module` is below `dinomed.adapters.heads`; it registers the head as "TASK.NAME" when it is imported."""

    task: str
    name: str
    module: str
    summary: str
    source: str


BUILT_IN: tuple[Entry, ...] = (
    Entry("classify", "linear", "linear", "one linear layer on pooled tokens", "DINOv2, section 7.1"),
    Entry("classify", "knn", "knn", "k nearest training images vote; k chosen on val", "DINO, section 4.1"),
    Entry(
        "classify",
        "logistic",
        "logistic",
        "logistic regression with an L2 penalty; C chosen on val",
        "DINOv2, B.3",
    ),
    Entry("classify", "grid", "grid", "the paper's 52 linear heads at once; the best on val is kept", "DINOv2, B.3"),
    Entry("classify", "attentive", "attentive", "a learned query pools the patch tokens", "CoCa, section 3.2"),
    Entry("segment", "linear", "linear", "BatchNorm and a 1x1 convolution on patch tokens", "DINOv2, section 7.4"),
    Entry("segment", "multiscale", "linear", "linear on 4 blocks, larger, mirrored, scaled", "DINOv2, section 7.4"),
    Entry(
        "segment",
        "dpt",
        "dpt",
        "DPT: four blocks reassembled and fused",
        "Ranftl et al. 2021; DINOv2, section 7.4",
    ),
    Entry("segment", "unet", "decoders", "SMP: U-Net on a pyramid of blocks", "Ronneberger et al. 2015"),
    Entry("segment", "unetplusplus", "decoders", "SMP: U-Net++ on a pyramid of blocks", "Zhou et al. 2018"),
    Entry("segment", "manet", "decoders", "SMP: MA-Net on a pyramid of blocks", "Fan et al. 2020"),
    Entry("segment", "linknet", "decoders", "SMP: LinkNet on a pyramid of blocks", "Chaurasia et al. 2017"),
    Entry("segment", "fpn", "decoders", "SMP: FPN on a pyramid of blocks", "Kirillov et al. 2019"),
    Entry("segment", "pspnet", "decoders", "SMP: PSPNet on a pyramid of blocks", "Zhao et al. 2017"),
    Entry(
        "segment",
        "segformer",
        "decoders",
        "SMP: SegFormer's decoder on a pyramid of blocks",
        "Xie et al. 2021",
    ),
    Entry("segment", "deeplabv3", "decoders", "SMP: DeepLabV3 on a pyramid of blocks", "Chen et al. 2017"),
    Entry("segment", "deeplabv3plus", "decoders", "SMP: DeepLabV3+ on a pyramid of blocks", "Chen et al. 2018"),
    Entry("segment", "pan", "decoders", "SMP: PAN on a pyramid of blocks", "Li et al. 2018"),
    Entry("segment", "upernet", "decoders", "SMP: UPerNet on a pyramid of blocks", "Xiao et al. 2018"),
    Entry(
        "depth",
        "linear",
        "depth",
        "256 bins, linear on the last block and its class token",
        "DINOv2, section 7.4",
    ),
    Entry("depth", "linear4", "depth", "the same on four blocks", "DINOv2, section 7.4"),
    Entry("depth", "dpt", "depth", "DPT with a depth head", "Ranftl et al. 2021; DINOv2, section 7.4"),
)
