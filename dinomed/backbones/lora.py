"""Low-rank adaptation (LoRA) of a ViT by PEFT (Hu et al. 2021, "LoRA: low-rank adaptation of large language models").

The product ``B A`` is learned in addition to the weights of chosen linear layers; these weights do not change.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from dinomed.backbones.vit import VisionTransformer
from dinomed.config import Config
from dinomed.errors import UsageError

Target = Literal["qkv", "proj", "fc1", "fc2", "w12", "w3"]
_NAME = "default"  # PEFT's name for an only adapter


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


def check_lora(config: LoraConfig, feed_forward: str, place: str = "tune.lora") -> None:
    """Check that LoRA can be added to a backbone.

    Args:
        place: name of the setting for error messages.

    Raises:
        UsageError: PEFT is not installed, or the backbone has no such layers.
    """
    if find_spec("peft") is None:
        raise UsageError(f"{place} needs the package peft: pip install 'dinomed[lora]'")
    wrong = {"mlp": {"w12", "w3"}, "swiglu": {"fc1", "fc2"}}[feed_forward] & set(config.targets)
    if wrong:
        raise UsageError(f"{place}.targets {', '.join(sorted(wrong))}: the backbone's feed-forward is a {feed_forward}")


def add_lora(backbone: VisionTransformer, config: LoraConfig) -> None:
    """Add LoRA adapters to the chosen layers, in place. Of the other weights only the mask token stays trainable."""
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    inject_adapter_in_model(
        PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # it divides by the rank only
            lora_dropout=config.dropout,
            target_modules=rf"blocks\.\d+\.(attn|mlp)\.({'|'.join(config.targets)})",
        ),
        backbone,
    )
    backbone.mask_token.requires_grad_(True)


def has_lora(names: Any) -> bool:
    """Return whether the names of a state dict include LoRA adapters."""
    return any(".lora_A." in name for name in names)


def plain_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a module with LoRA merged, detached, under the names and in the order of a plain
    module."""
    adapted = {name: layer for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, parameter in module.named_parameters():
        owner, _, parameter_name = name.partition(".base_layer.")
        if not parameter_name:
            if ".lora_" not in name:
                yield name, parameter.detach()
        elif parameter_name == "weight":
            yield f"{owner}.{parameter_name}", parameter.detach() + adapted[owner].get_delta_weight(_NAME).detach()
        else:
            yield f"{owner}.{parameter_name}", parameter.detach()
