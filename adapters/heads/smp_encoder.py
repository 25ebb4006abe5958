"""A ViT as an encoder of segmentation-models-pytorch (SMP): a feature pyramid made of several blocks.

A patch counts as `stride` px: 8 or 16, the nearer one to the patch size. Decoders need powers of two, and their output
is resized to the image afterwards. Early blocks give fine levels, late blocks give coarse levels. In each level the
channels of the tokens are standardised over the patches of an image, which removes light and colour of the device.
Then follow a 1x1 convolution to its width, BatchNorm, ReLU, and a transposed convolution with a kernel of the size of
its stride, or a mean over tokens. These layers are part of the head and are trained; the ViT is not.

The encoder also accepts features instead of images, so a head can be trained without running the ViT.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from segmentation_models_pytorch import encoders as smp_encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from dinomed.adapters.adapter import split_blocks
from dinomed.adapters.heads.detail import standardise_tokens
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features, compute_features

CHANNELS = (32, 64, 128, 256, 256)
"""Channels of the levels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image."""


class ViTEncoder(nn.Module, EncoderMixin):
    """Encoder from images (B, 3, H, W) or features to levels at 1, 1/2, ..., 1/32 of the image size.

    Args:
        embed_dim: channels of one block.
        blocks: blocks of the ViT, early ones first.
        stride: size of a patch for the decoder, px.
        backbone: needed only for images; it is not part of the state and is not trained.
        depth, output_stride: set by SMP.
    """

    def __init__(
        self,
        embed_dim: int,
        blocks: Sequence[int],
        stride: int = 16,
        channels: Sequence[int] = CHANNELS,
        backbone: FrozenBackbone | None = None,
        depth: int = 5,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        self.blocks, self.stride, self.backbone = tuple(blocks), stride, [backbone]  # a list hides it from the state
        self._depth, self._in_channels, self._output_stride = depth, 3, 32
        self._out_channels = [3, *channels]
        self.strides = [min(2**level, output_stride) for level in range(1, depth + 1)]
        self.scales = [_ratio(target, stride) for target in self.strides]
        self.levels = nn.ModuleList(_level(embed_dim, channels[k], scale) for k, scale in enumerate(self.scales))

    def make_dilated(self, output_stride: int) -> None:
        """Set the output stride; the coarse levels already have it."""
        self._output_stride = output_stride

    def block_of_level(self, level: int) -> int:
        """Return the index of the block that gives a level (0 is the finest)."""
        return min(len(self.blocks) - 1, level * len(self.blocks) // max(len(self.levels), 1))

    def forward(self, x: Tensor | Features) -> list[Tensor]:
        if isinstance(x, Tensor):
            image, features = x, self._features(x)
        else:
            image, features = None, x
        grids = [block.patches for block in split_blocks(features, len(self.blocks))]
        assert grids[0] is not None
        rows, columns = grids[0].shape[-2:]
        levels = []
        for k, (layer, scale) in enumerate(zip(self.levels, self.scales, strict=True)):
            level = layer(grids[self.block_of_level(k)])
            levels.append(avg_pool2d(level, -scale) if scale < 0 else level)
        if image is None:  # decoders use only the size of the image
            batch = levels[0].shape[0]  # not len(), which tracing would fix
            image = levels[0].new_zeros(()).expand(batch, 3, rows * self.stride, columns * self.stride)
        return [image, *levels]

    def _features(self, images: Tensor) -> Features:
        backbone = self.backbone[0]
        if backbone is None:
            raise ValueError("this encoder has no backbone; call it with features")
        features = compute_features(backbone, images, self.blocks, patches=True, check=False)  # may be traced
        assert features.patches is not None
        return Features(features.cls, features.mean, pad_grid(features.patches, self.multiple))

    @property
    def multiple(self) -> int:
        """Number of which the rows and columns of patches must be multiples."""
        return max([-scale for scale in self.scales if scale < 0], default=1)


def pad_grid(patches: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (B, C, rows, columns) up to the next multiple."""
    rows, columns = patches.shape[-2:]
    return pad(patches, (0, -columns % multiple, 0, -rows % multiple), mode="replicate")


def _ratio(target: int, stride: int) -> int:
    """Return how many times finer than the patches a level is; a negative number for coarser levels."""
    return stride // target if target <= stride else -(target // stride)


def _level(embed_dim: int, width: int, scale: int) -> nn.Module:
    parts: list[nn.Module] = [
        standardise_tokens(embed_dim), nn.Conv2d(embed_dim, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    ]  # fmt: skip
    if scale > 1:
        parts.append(nn.ConvTranspose2d(width, width, scale, stride=scale))
    return nn.Sequential(*parts)


@contextmanager
def registered(**params: Any) -> Iterator[str]:
    """Register a `ViTEncoder` with these parameters in SMP, and yield its name; remove it at the end."""
    name = f"dinomed-{uuid4().hex}"
    table: dict[str, Any] = smp_encoders.encoders
    table[name] = {"encoder": _with(params), "pretrained_settings": {}, "params": {}}
    try:
        yield name
    finally:
        del table[name]


def register_encoder(name: str, backbone: FrozenBackbone, blocks: Sequence[int], **params: Any) -> None:
    """Register a backbone as an encoder of SMP, for example for ``smp.Unet(name, encoder_weights=None)``.

    Images must be normalised for the backbone, and their sides must be multiples of its patch size. Only the head and
    the pyramid are in the state and in ``parameters()`` of the SMP model.
    """
    params = {"embed_dim": backbone.embed_dim, "blocks": tuple(blocks), "backbone": backbone} | params
    smp_encoders.encoders[name] = {"encoder": _with(params), "pretrained_settings": {}, "params": {}}


def _with(params: dict[str, Any]) -> Any:
    """Bind the parameters: SMP makes deep copies of the parameters in its table, which would copy the backbone."""
    return lambda **arguments: ViTEncoder(**params, **arguments)


def nearest_stride(patch_size: int) -> int:
    """Return the stride, 8 or 16, that is nearer to a patch size.

    >>> [nearest_stride(size) for size in (4, 8, 14, 16)]
    [8, 8, 16, 16]
    """
    return 8 if patch_size < 12 else 16


def build_model(architecture: str, classes: int, options: dict[str, Any], **params: Any) -> nn.Module:
    """Build an SMP model, such as ``Unet``, on a `ViTEncoder` with `params`; `options` are arguments of the model."""
    import segmentation_models_pytorch as smp

    with registered(**params) as name:
        model: nn.Module = getattr(smp, architecture)(name, encoder_weights=None, classes=classes, **options)
    return model
