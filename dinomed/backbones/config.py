"""Settings of LoRA. This module imports no torch, so that the settings of a fit can be read without it."""

from typing import Literal

from pydantic import Field, model_validator

from dinomed.config import Config

Target = Literal["qkv", "proj", "fc1", "fc2", "w12", "w3"]


class LoraConfig(Config):
    """Settings of LoRA: `W` becomes ``W + (alpha / rank) B A``, where A has `rank` rows and B starts at zero."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the input of A, in training")
    targets: tuple[Target, ...] = Field(
        ("qkv", "proj"), description="linear layers of each block: qkv and proj of the attention; fc1 and fc2 of an "
        "MLP, w12 and w3 of a SwiGLU"
    )  # fmt: skip

    @model_validator(mode="after")
    def _some(self) -> "LoraConfig":
        if not self.targets:
            raise ValueError("targets is empty; name at least one linear layer, or remove lora")
        return self
