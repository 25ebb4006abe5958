"""Decoders of segmentation-models-pytorch (SMP) as heads, by name: `--head unet`, `--head fpn`, ...

DPT is not among them: the DPT of SMP does not support a plain ViT with patches of 14 px. See
`dinomed.adapters.heads.dpt`.
"""

import inspect
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from dinomed.adapters.adapter import ADAPTERS
from dinomed.adapters.heads.detail import DETAIL_STRIDES, DetailBranch, Fusion
from dinomed.adapters.heads.dpt import PyramidAdapter, PyramidConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.errors import UsageError, first_line
from dinomed.features.compute import Features

DECODERS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "segformer": "Segformer",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "upernet": "UPerNet",
}
"""Name of the head -> class of SMP."""
_SET_HERE = ("encoder_name", "encoder_depth", "encoder_weights", "in_channels", "classes", "activation", "aux_params")


_MAX_OPTION, _MAX_LENGTH = 4096, 16  # far above any decoder; a record from elsewhere must not build without end


def _is_bounded(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        values = list(value.values()) if isinstance(value, dict) else value
        return len(values) <= _MAX_LENGTH and all(_is_bounded(item) for item in values)
    return not isinstance(value, int | float) or abs(value) <= _MAX_OPTION


class DecoderConfig(PyramidConfig):
    """Settings: `channels` of the pyramid levels at 1/2 to 1/32; `stride` of a patch, px; `options`, further arguments
    of the SMP class, such as `decoder_channels`; `detail` adds a convolutional branch on the image
    (`dinomed.adapters.heads.detail`) to the levels at 1/2 to 1/8, for outlines finer than a patch."""

    name: str
    channels: tuple[int, int, int, int, int] = Field(
        (32, 64, 128, 256, 256),
        description="channels of the pyramid levels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image",
    )
    stride: int | None = Field(None, description="8 or 16 px; null: the nearer one to the patch size")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="further arguments of the decoder in segmentation-models-pytorch, such as decoder_channels",
    )
    detail: bool = Field(False, description="a convolutional branch on the image for details finer than a patch")
    image_channels: int | None = Field(None, ge=1, description="channels of the images; null: of the backbone")

    @model_validator(mode="after")
    def _known(self) -> "DecoderConfig":
        if self.stride not in (None, 8, 16):
            raise ValueError("stride: 8, 16 or null")
        if not _is_bounded(self.options):
            raise ValueError(f"options: a number over {_MAX_OPTION}, or a list of more than {_MAX_LENGTH} values")
        if self.options and self.name in DECODERS:
            import segmentation_models_pytorch as smp

            known = set(inspect.signature(getattr(smp, DECODERS[self.name])).parameters) - {*_SET_HERE, "kwargs"}
            if unknown := sorted(set(self.options) - known):
                raise ValueError(
                    f"options: {unknown[0]!r} is not an option of {self.name}; options: {', '.join(sorted(known))}"
                )
        return self


class SMPSegmenter(PyramidAdapter):
    """A decoder of SMP on a pyramid made of the blocks of the ViT (`dinomed.adapters.heads.smp_encoder`)."""

    task, Config = "segment", DecoderConfig

    @classmethod
    def resolve_config(cls, config: Any, backbone: FrozenBackbone) -> Any:
        from dinomed.adapters.heads.smp_encoder import nearest_stride

        config = super().resolve_config(config, backbone)
        stride = config.stride or nearest_stride(backbone.patch_size)
        return config.model_copy(update={"stride": stride, "image_channels": backbone.preprocessing.channels})

    def __init__(self, config: DecoderConfig, embed_dim: int, num_classes: int) -> None:
        from dinomed.adapters.heads.smp_encoder import build_model

        super().__init__(config, embed_dim, num_classes)
        try:
            model: Any = build_model(
                DECODERS[config.name], num_classes, config.options, embed_dim=embed_dim, blocks=config.blocks,
                stride=config.stride or 16, channels=config.channels,
            )  # fmt: skip
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"head.options: {config.name} does not accept them: {first_line(error)}") from None
        self.model = model
        self.uses_images = config.detail
        if config.detail:
            self.detail = DetailBranch(config.image_channels or 3)
            self.strides: tuple[int, ...] = tuple(model.encoder.strides)
            self.fusions = nn.ModuleDict(
                {
                    str(level): Fusion(config.channels[level], self.detail.widths[DETAIL_STRIDES.index(stride)])
                    for level, stride in enumerate(self.strides)
                    if stride in DETAIL_STRIDES
                }
            )

    def _add_detail(self, levels: list[Tensor], images: Tensor, grid: tuple[int, int], padded: Tensor) -> None:
        """Add the branch on the image to the levels, in place. Images are padded as the grid of patches was."""
        rows, columns = grid
        bottom = (padded.shape[-2] - rows) * (images.shape[-2] // rows)
        right = (padded.shape[-1] - columns) * (images.shape[-1] // columns)
        maps = dict(zip(DETAIL_STRIDES, self.detail(pad(images, (0, right, 0, bottom), mode="replicate")), strict=True))
        for name, fusion in self.fusions.items():
            level = int(name)
            levels[level + 1] = fusion(levels[level + 1], maps[self.strides[level]])

    def forward(self, features: Features) -> Tensor:
        from dinomed.adapters.heads.smp_encoder import pad_grid

        assert features.patches is not None
        rows, columns = features.patches.shape[-2:]
        padded = pad_grid(features.patches, self.model.encoder.multiple)
        levels = self.model.encoder(Features(features.cls, features.mean, padded))
        if self.config.detail:
            assert features.images is not None
            self._add_detail(levels, features.images, (rows, columns), padded)
        try:
            out = self.model.segmentation_head(self.model.decoder(levels))
        except RuntimeError as error:
            if "too small" not in str(error):
                raise
            raise UsageError(
                f"{self.config.name} reduces {rows}x{columns} patches to nothing; set a larger image_size"
            ) from None
        height, width = out.shape[-2] * rows // padded.shape[-2], out.shape[-1] * columns // padded.shape[-1]
        return out[..., :height, :width]


for _name in DECODERS:
    ADAPTERS.register(f"segment.{_name}")(SMPSegmenter)
