"""Low-rank adaptation of a ViT (Hu et al. 2021, "LoRA"), by PEFT: ``B A`` is learned beside chosen linear layers, whose
own weights stay as they are."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from dinomed.backbones.vit import VisionTransformer
from dinomed.config import Config
from dinomed.errors import UsageError

Target = Literal["qkv", "proj", "fc1", "fc2", "w12", "w3"]
_NAME = "default"  # PEFT's, of the one adapter


class LoraConfig(Config):
    """`W` becomes ``W + (alpha / rank) B A`` with A of `rank` rows; B begins as zero."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into A, in training")
    targets: tuple[Target, ...] = Field(
        ("qkv", "proj"), description="linear layers of each block: qkv and proj of the attention; fc1 and fc2 of an "
        "MLP, w12 and w3 of a SwiGLU"
    )  # fmt: skip

    @model_validator(mode="after")
    def _some(self) -> "LoraConfig":
        if not self.targets:
            raise ValueError("targets: none; without any nothing of the backbone would learn")
        return self


def check_lora(config: LoraConfig, feed_forward: str, place: str = "tune.lora") -> None:
    """Raises a `UsageError` if PEFT is not here, or the backbone has no such layers. `place`: of the setting."""
    if find_spec("peft") is None:
        raise UsageError(f"{place} needs the package peft: pip install 'dinomed[lora]'")
    wrong = {"mlp": {"w12", "w3"}, "swiglu": {"fc1", "fc2"}}[feed_forward] & set(config.targets)
    if wrong:
        raise UsageError(f"{place}.targets {', '.join(sorted(wrong))}: the backbone's feed-forward is a {feed_forward}")


def add_lora(backbone: VisionTransformer, config: LoraConfig) -> None:
    """Adapters beside the chosen layers, in place; all other weights but the mask token no longer learn."""
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
    """Whether names of a state dict are those of a module with adapters."""
    return any(".lora_A." in name for name in names)


def plain_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a module under their own names and in their order, adapters merged into the weights they
    stand beside; without a graph."""
    adapted = {name: layer for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, parameter in module.named_parameters():
        owner, _, rest = name.partition(".base_layer.")
        if not rest:
            if ".lora_" not in name:
                yield name, parameter.detach()
        elif rest == "weight":
            yield f"{owner}.{rest}", parameter.detach() + adapted[owner].get_delta_weight(_NAME).detach()
        else:
            yield f"{owner}.{rest}", parameter.detach()
