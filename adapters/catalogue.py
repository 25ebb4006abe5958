"""Settings that every head has, and the table of the built-in heads: the values of `--head`, with the source of each.

This module imports no torch.

Heads of plug-ins are not listed here: entry points of the group ``dinomed.adapters`` name them (see
`dinomed.adapters.adapter`).
"""

from dataclasses import dataclass

from pydantic import Field

from dinomed.config import Config


class HeadConfig(Config):
    """Settings of a head; subclasses add those of one head."""

    name: str = Field("linear", description="name of the head")
    blocks: tuple[int, ...] = Field(
        (-1,), min_length=1, description="blocks whose tokens the head reads; -1 is the last"
    )


@dataclass(frozen=True)
class HeadEntry:
    """A head. `module` in `dinomed.adapters.heads` registers it as "TASK.NAME" when it is imported."""

    task: str
    name: str
    module: str
    summary: str
    source: str


BUILT_IN: tuple[HeadEntry, ...] = (
    HeadEntry("classify", "linear", "linear", "one linear layer on pooled tokens", "DINOv2, section 7.1"),
    HeadEntry("classify", "knn", "solved.knn", "k nearest training images vote; k chosen on val", "DINO, section 4.1"),
    HeadEntry(
        "classify",
        "logistic",
        "solved.logistic",
        "logistic regression with an L2 penalty; C chosen on val",
        "DINOv2, B.3",
    ),
    HeadEntry(
        "classify", "grid", "solved.grid", "the paper's 52 linear heads at once; the best on val is kept", "DINOv2, B.3"
    ),
    HeadEntry("classify", "attentive", "attentive", "a learned query pools the patch tokens", "CoCa, section 3.2"),
    HeadEntry("classify", "auto", "auto", "tries heads and read-outs; the best on val is kept", "DINOv2, B.3"),
    HeadEntry("segment", "linear", "linear", "BatchNorm and a 1x1 convolution on patch tokens", "DINOv2, section 7.4"),
    HeadEntry("segment", "multiscale", "linear", "linear on 4 blocks, larger, mirrored, scaled", "DINOv2, section 7.4"),
    HeadEntry("segment", "auto", "auto", "tries blocks of the linear head; the best on val is kept", "DINOv2, B.3"),
    HeadEntry(
        "segment",
        "dpt",
        "dpt",
        "DPT: four blocks reassembled and fused",
        "Ranftl et al. 2021; DINOv2, section 7.4",
    ),
    HeadEntry(
        "segment",
        "dino_unet",
        "dino_unet",
        "U-Net on four blocks, and convolutions on the image for fine outlines",
        "Gao et al. 2025, arXiv 2508.20909",
    ),
    HeadEntry(
        "segment",
        "hybrid_unet",
        "hybrid_unet",
        "U-Net on the image that also reads frozen blocks; strong with few masks",
        "Chen et al. 2023, section 3; docs/results.md",
    ),
    HeadEntry(
        "segment",
        "multi_view",
        "multi_view",
        "an MLP on each of the last three blocks; sizes and mirror images fused by entropy",
        "Jiang et al. 2026, arXiv 2605.07221",
    ),
    HeadEntry("segment", "unet", "decoders", "SMP: U-Net on a pyramid of blocks", "Ronneberger et al. 2015"),
    HeadEntry("segment", "unetplusplus", "decoders", "SMP: U-Net++ on a pyramid of blocks", "Zhou et al. 2018"),
    HeadEntry("segment", "manet", "decoders", "SMP: MA-Net on a pyramid of blocks", "Fan et al. 2020"),
    HeadEntry("segment", "linknet", "decoders", "SMP: LinkNet on a pyramid of blocks", "Chaurasia et al. 2017"),
    HeadEntry("segment", "fpn", "decoders", "SMP: FPN on a pyramid of blocks", "Kirillov et al. 2019"),
    HeadEntry("segment", "pspnet", "decoders", "SMP: PSPNet on a pyramid of blocks", "Zhao et al. 2017"),
    HeadEntry(
        "segment",
        "segformer",
        "decoders",
        "SMP: SegFormer's decoder on a pyramid of blocks",
        "Xie et al. 2021",
    ),
    HeadEntry("segment", "deeplabv3", "decoders", "SMP: DeepLabV3 on a pyramid of blocks", "Chen et al. 2017"),
    HeadEntry("segment", "deeplabv3plus", "decoders", "SMP: DeepLabV3+ on a pyramid of blocks", "Chen et al. 2018"),
    HeadEntry("segment", "pan", "decoders", "SMP: PAN on a pyramid of blocks", "Li et al. 2018"),
    HeadEntry("segment", "upernet", "decoders", "SMP: UPerNet on a pyramid of blocks", "Xiao et al. 2018"),
    HeadEntry(
        "depth",
        "linear",
        "depth",
        "256 bins, linear on the last block and its class token",
        "DINOv2, section 7.4",
    ),
    HeadEntry("depth", "linear4", "depth", "the same on four blocks", "DINOv2, section 7.4"),
    HeadEntry("depth", "dpt", "depth", "DPT with a depth head", "Ranftl et al. 2021; DINOv2, section 7.4"),
)
