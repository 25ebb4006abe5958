"""Settings of the copy-detection descriptor."""

from typing import Annotated, Literal

from pydantic import Field

from dinomed.config import Config

MIN_FIT_IMAGES = 8
"""Minimum number of images to fit a descriptor; fewer do not show how images differ."""


class ComposedConfig(Config):
    """Handcrafted features. There are no settings."""

    kind: Literal["composed"] = "composed"


class BackboneConfig(Config):
    """A frozen ViT: a run folder, or the name of released weights with their file."""

    kind: Literal["backbone"] = "backbone"
    backbone: str
    weights: str | None = None
    image_size: int | None = Field(None, ge=8, description="px; null: the image size of the backbone")
    power: float = Field(4.0, gt=0, description="power of the generalised mean of patch tokens")


class SSCDConfig(Config):
    """A file with the SSCD network; see `load_sscd`."""

    kind: Literal["sscd"] = "sscd"
    weights: str
    allow_code: bool = Field(False, description="run the program in a TorchScript file")


SourceConfig = Annotated[ComposedConfig | BackboneConfig | SSCDConfig, Field(discriminator="kind")]


class DescriptorConfig(Config):
    """The raw features, and the projection that is fitted to the images."""

    source: SourceConfig = ComposedConfig()
    fit: Literal["copies", "whitening", "none"] = Field(
        "copies", description="copies: learn from synthetic copies which changes to ignore; whitening; or no fit"
    )
    dimension: int = Field(512, ge=2)
    fit_images: int = Field(1000, ge=MIN_FIT_IMAGES, description="number of images, drawn at random, for the fit")
    whitening_power: float = Field(0.5, ge=0, le=1)
    seed: int = Field(0, ge=0)
