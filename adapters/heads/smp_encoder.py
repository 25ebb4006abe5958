"""A frozen ViT as an encoder of segmentation-models-pytorch: a pyramid out of blocks that all have one resolution.

A patch counts as `stride` px (8 or 16, whichever is nearer to the patch size: the decoders are made for powers of two,
and what comes out is resized to the image anyway). Of the blocks, the early ones give the fine levels and the late ones
the coarse: each level is a 1x1 convolution to its width, BatchNorm, ReLU, then a transposed convolution with a kernel
as large as its stride (one token draws what lies under it) or a mean over tokens. These layers belong to the head and
are trained; the ViT is not.

Features that were computed before are taken in place of images, so that a head is trained without the ViT.
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
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features, compute_features

CHANNELS = (32, 64, 128, 256, 256)
"""Widths of the levels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image."""


class ViTEncoder(nn.Module, EncoderMixin):
    """Images (B, 3, H, W) or features -> levels at 1, 1/2, ..., 1/32 of the image's size, as SMP's decoders take them.

    Args:
        embed_dim: channels of one block. blocks: those of the ViT that are used, early ones first.
        stride: px that a patch counts for.
        backbone: needed for images only; never a part of the state, and never trained.
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
        self.scales = [_ratio(min(2**level, output_stride), stride) for level in range(1, depth + 1)]
        self.levels = nn.ModuleList(_level(embed_dim, channels[k], scale) for k, scale in enumerate(self.scales))

    def make_dilated(self, output_stride: int) -> None:
        """Nothing to do: the coarse levels were made at `output_stride` from the start."""
        self._output_stride = output_stride

    def source(self, level: int) -> int:
        """Which of the blocks gives a level (0 is the finest)."""
        return min(len(self.blocks) - 1, level * len(self.blocks) // max(len(self.levels), 1))

    def forward(self, x: Tensor | Features) -> list[Tensor]:
        if isinstance(x, Tensor):
            image, features = x, self._features(x)
        else:
            image, features = None, x
        grids = [one.patches for one in split_blocks(features, len(self.blocks))]
        assert grids[0] is not None
        rows, columns = grids[0].shape[-2:]
        found = []
        for k, (layer, scale) in enumerate(zip(self.levels, self.scales, strict=True)):
            level = layer(grids[self.source(k)])
            found.append(avg_pool2d(level, -scale) if scale < 0 else level)
        if image is None:  # no decoder looks at the pixels, but they ask for their size
            batch = found[0].shape[0]  # not len, which a traced graph keeps as a number
            image = found[0].new_zeros(()).expand(batch, 3, rows * self.stride, columns * self.stride)
        return [image, *found]

    def _features(self, images: Tensor) -> Features:
        backbone = self.backbone[0]
        if backbone is None:
            raise ValueError("this encoder has no backbone: give it features")
        features = compute_features(backbone, images, self.blocks, patches=True)
        assert features.patches is not None
        return Features(features.cls, features.mean, pad_grid(features.patches, self.multiple))

    @property
    def multiple(self) -> int:
        """What the rows and the columns of patches have to be a multiple of."""
        return max([-scale for scale in self.scales if scale < 0], default=1)


def pad_grid(patches: Tensor, multiple: int) -> Tensor:
    """(B, C, rows, columns) with the last row and column repeated, up to the next multiple."""
    rows, columns = patches.shape[-2:]
    return pad(patches, (0, -columns % multiple, 0, -rows % multiple), mode="replicate")


def _ratio(target: int, stride: int) -> int:
    """How many times finer than the patches a level is; minus how many times coarser."""
    return stride // target if target <= stride else -(target // stride)


def _level(embed_dim: int, width: int, scale: int) -> nn.Module:
    parts: list[nn.Module] = [nn.Conv2d(embed_dim, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    if scale > 1:
        parts.append(nn.ConvTranspose2d(width, width, scale, stride=scale))
    return nn.Sequential(*parts)


@contextmanager
def registered(**params: Any) -> Iterator[str]:
    """A name under which SMP finds a `ViTEncoder` of these parameters, while the block lasts."""
    name = f"dinomed-{uuid4().hex}"
    table: dict[str, Any] = smp_encoders.encoders
    table[name] = {"encoder": _with(params), "pretrained_settings": {}, "params": {}}
    try:
        yield name
    finally:
        del table[name]


def register_encoder(name: str, backbone: FrozenBackbone, blocks: Sequence[int], **params: Any) -> None:
    """Give `backbone` to SMP under `name`, for as long as the process lives: ``smp.Unet(name, encoder_weights=None)``.

    Images have to be normalised as the backbone takes them, and their sides multiples of its patch size. Only the head
    and the pyramid are in the state and in ``parameters()`` of what SMP builds.
    """
    params = {"embed_dim": backbone.embed_dim, "blocks": tuple(blocks), "backbone": backbone} | params
    smp_encoders.encoders[name] = {"encoder": _with(params), "pretrained_settings": {}, "params": {}}


def _with(params: dict[str, Any]) -> Any:
    """SMP copies the parameters in its table deeply, which would copy the backbone: here they are bound instead."""
    return lambda **given: ViTEncoder(**params, **given)


def nearest_stride(patch_size: int) -> int:
    """
    >>> [nearest_stride(size) for size in (4, 8, 14, 16)]
    [8, 8, 16, 16]
    """
    return 8 if patch_size < 12 else 16


def build_model(architecture: str, classes: int, options: dict[str, Any], **params: Any) -> nn.Module:
    """An SMP model (``"Unet"``) on a `ViTEncoder` of `params`, with `options` of its own."""
    import segmentation_models_pytorch as smp

    with registered(**params) as name:
        model: nn.Module = getattr(smp, architecture)(name, encoder_weights=None, classes=classes, **options)
    return model
