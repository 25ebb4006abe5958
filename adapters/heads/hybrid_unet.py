"""A U-Net on the image that also reads frozen features: for outlines finer than a patch from few masks.

The encoder is a ResNet on the image, trained from random weights with the head. At 1/8 of the image the tokens of the
frozen blocks join it. They are first standardised over the patches of an image, and reduced to their first principal
directions in the training images (`principal_directions`): a network of this size would otherwise overfit the channels
of four blocks, which identify each of a few training images. In training the tokens of a share of the images are left
out, so that the ResNet learns the outlines as well as the context. The directions are those of the backbone before it
is tuned.

The idea of a convolutional network beside frozen features is that of the ViT-Adapter (Chen et al. 2023, section 3) and
of Dino U-Net (arXiv 2508.20909); the principal directions and the tokens that are left out are new here. Results:
docs/results.md, "Label efficiency".
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from dinomed.adapters.adapter import ADAPTERS
from dinomed.adapters.heads.detail import standardise_tokens
from dinomed.adapters.heads.dpt import PyramidAdapter, PyramidConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features

DEPTH = 4
"""Levels of the encoder: 1/2, 1/4, 1/8 and 1/16 of the image. Wider context comes from the tokens."""
DECODER_CHANNELS = (128, 64, 32, 16)
"""Channels of the decoder at 1/8, 1/4, 1/2 and 1 of the image."""
EPSILON = 1e-6
"""Variances up to this are 0; the tokens have the variance 1 in each channel and image."""
MOST_DENSE = 512
"""Channels up to which all directions are computed; of more channels only the first ones (Lanczos), which is faster."""


class HybridUNetConfig(PyramidConfig):
    """Settings: the `encoder` on the image; the number of principal `directions` of the tokens; the share
    `token_dropout` of training images whose tokens are left out; `image_channels`, set by the backbone."""

    name: str = "hybrid_unet"
    encoder: Literal["resnet18", "resnet34"] = Field("resnet18", description="convolutional network on the image")
    directions: int = Field(16, ge=1, le=256, description="principal directions of the tokens that are read")
    token_dropout: float = Field(0.2, ge=0, lt=1, description="share of training images whose tokens are left out")
    image_channels: int | None = Field(None, ge=1, description="channels of the images; null: of the backbone")


@ADAPTERS.register("segment.hybrid_unet")
class HybridUNet(PyramidAdapter):
    """A ResNet on the image and principal directions of frozen tokens, joined at 1/8, with a U-Net decoder to 1/1."""

    task, Config = "segment", HybridUNetConfig
    uses_images = calibrates_patches = True
    fit_defaults: ClassVar = {"warmup": 0.3, "average": 0.98, "precision": "auto"}
    least_steps = 600
    directions: Tensor

    @classmethod
    def resolve_config(cls, config: Any, backbone: FrozenBackbone) -> Any:
        config = super().resolve_config(config, backbone)
        directions = min(config.directions, len(config.blocks) * backbone.embed_dim)
        channels = backbone.preprocessing.channels
        return config.model_copy(update={"image_channels": channels, "directions": directions})

    def __init__(self, config: HybridUNetConfig, embed_dim: int, num_classes: int) -> None:
        import segmentation_models_pytorch as smp

        super().__init__(config, embed_dim, num_classes)
        network = smp.Unet(
            config.encoder, DEPTH, encoder_weights=None, decoder_channels=DECODER_CHANNELS,
            in_channels=config.image_channels or 3, classes=num_classes,
        )  # fmt: skip
        self.encoder, self.decoder, self.last = network.encoder, network.decoder, network.segmentation_head
        self.encoder.layer4 = nn.Identity()  # SMP builds it also where it is not read
        eighth, read = self.encoder.out_channels[3], config.directions
        self.standardise = standardise_tokens(len(config.blocks) * embed_dim)
        self.register_buffer("directions", torch.zeros(read, len(config.blocks) * embed_dim))
        self.tokens = nn.Sequential(nn.Conv2d(read, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.join = nn.Sequential(
            nn.Conv2d(eighth + 64, eighth, 3, padding=1, bias=False), nn.BatchNorm2d(eighth), nn.ReLU()
        )

    def calibrate_patches(self, grids: Iterable[np.ndarray]) -> None:
        tokens = (self.standardise(torch.from_numpy(grid)[None])[0].flatten(1).T for grid in grids)
        self.directions.copy_(principal_directions(tokens, len(self.directions)))

    def forward(self, features: Features) -> Tensor:
        assert features.images is not None
        assert features.patches is not None
        encoder = self.encoder
        images = features.images.contiguous(memory_format=torch.channels_last)  # a quarter less time on a CPU
        half = encoder.relu(encoder.bn1(encoder.conv1(images)))
        quarter = encoder.layer1(encoder.maxpool(half))
        eighth = encoder.layer2(quarter)
        tokens = self.tokens(conv2d(self.standardise(features.patches), self.directions[:, :, None, None]))
        tokens = interpolate(tokens, (eighth.shape[-2], eighth.shape[-1]), mode="bilinear")
        if self.training and self.config.token_dropout:
            kept = torch.rand(len(tokens), 1, 1, 1, device=tokens.device) >= self.config.token_dropout
            tokens = tokens * kept
        eighth = self.join(torch.cat([eighth, tokens], dim=1))
        return self.last(self.decoder([images, half, quarter, eighth, encoder.layer3(eighth)]))


def principal_directions(parts: Iterable[Tensor], count: int) -> Tensor:
    """Return the first principal directions of tokens, scaled so that the tokens have the variance 1 along each.

    The sign is that of the largest entry, so that it does not depend on the linear algebra library.

    Args:
        parts: tokens, float32 (N, channels) each; one part is in memory at a time.
        count: number of directions, at most `channels`.

    Returns:
        float32 (count, channels). Directions in which the tokens do not vary are zero.
    """
    total, sums, products = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        tokens = part.double()
        total, sums, products = total + len(tokens), sums + tokens.sum(dim=0), products + tokens.T @ tokens
    mean = sums / total
    covariance = (products / total - torch.outer(mean, mean)).numpy()
    width = len(covariance)
    if width <= MOST_DENSE or count >= width:
        values, vectors = np.linalg.eigh(covariance)
    else:
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).normal(size=width)  # ARPACK would draw one
        values, vectors = eigsh(covariance, k=count, v0=start)
    order = np.argsort(values)[::-1][:count]
    variances, directions = torch.from_numpy(values[order].copy()), torch.from_numpy(vectors[:, order].T.copy())
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    scale = torch.where(variances > EPSILON, variances.clamp_min(EPSILON).rsqrt(), 0.0)
    return (directions * largest.sign() * scale[:, None]).float()
