"""Settings of the copy-detection descriptor."""

from typing import Annotated, Literal

from pydantic import Field

from dinomed.config import Config

MIN_FIT_IMAGES = 8
"""Minimum number of images to fit a descriptor; fewer do not show how images differ."""


class ComposedConfig(Config):
    """Handcrafted features. There are no settings."""

    kind: Literal["composed"] = Field("composed", description="handcrafted features, without settings")


class BackboneConfig(Config):
    """A frozen ViT: a run folder, or the name of released weights with their file."""

    kind: Literal["backbone"] = Field("backbone", description="features of a frozen ViT")
    backbone: str = Field(description="a run folder, a backbone folder, or the name of released weights")
    weights: str | None = Field(None, description="a file with the weights of that name, instead of a download")
    image_size: int | None = Field(None, ge=8, description="px; null: the image size of the backbone")
    mean: tuple[float, ...] | None = Field(
        None, description="mean of each channel in 0 to 1, for weights that name none; null: from the files"
    )
    std: tuple[float, ...] | None = Field(
        None, description="standard deviation of each channel, for weights that name none; null: from the files"
    )
    power: float = Field(4.0, gt=0, description="power of the generalised mean of patch tokens")


class SSCDConfig(Config):
    """A file with the SSCD network; see `load_sscd`."""

    kind: Literal["sscd"] = Field("sscd", description="descriptors of the SSCD network")
    weights: str = Field(description="file of the network")
    allow_code: bool = Field(False, description="run the program in a TorchScript file")


SourceConfig = Annotated[ComposedConfig | BackboneConfig | SSCDConfig, Field(discriminator="kind")]


class DescriptorConfig(Config):
    """The raw features, and the projection that is fitted to the images."""

    source: SourceConfig = Field(ComposedConfig(), description="raw features, by their kind")
    fit: Literal["copies", "whitening", "none"] = Field(
        "copies", description="copies: learn from synthetic copies which changes to ignore; whitening; or no fit"
    )
    dimension: int = Field(512, ge=2, description="length of a descriptor")
    fit_images: int = Field(1000, ge=MIN_FIT_IMAGES, description="number of images, drawn at random, for the fit")
    whitening_power: float = Field(0.5, ge=0, le=1, description="strength of the whitening: 0 none, 1 full")
    seed: int = Field(0, ge=0, description="seed of the drawn images and of their synthetic copies")
