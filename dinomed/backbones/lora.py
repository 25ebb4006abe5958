"""Low-rank adaptation (LoRA) of a ViT by PEFT (Hu et al. 2021, "LoRA: low-rank adaptation of large language models").

The product ``B A`` is learned in addition to the weights of chosen linear layers; these weights do not change.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from dinomed.backbones.config import LoraConfig
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError

_NAME = "default"  # PEFT's name for a single adapter


def check_lora(config: LoraConfig, feed_forward: str) -> None:
    """Check that LoRA can be added to a backbone.

    Raises:
        UsageError: PEFT is not installed, or the backbone has no such layers.
    """
    if find_spec("peft") is None:
        raise UsageError("tune.lora needs the package peft: pip install 'dinomed[lora]'")
    wrong = {"mlp": {"w12", "w3"}, "swiglu": {"fc1", "fc2"}}[feed_forward] & set(config.targets)
    if wrong:
        raise UsageError(
            f"tune.lora.targets {', '.join(sorted(wrong))}: the backbone's feed-forward is a {feed_forward}"
        )


def add_lora(backbone: VisionTransformer, config: LoraConfig) -> None:
    """Add LoRA adapters to the chosen layers, in place. Of the other weights only the mask token stays trainable."""
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    backbone.requires_grad_(False)
    # Into the blocks, not the backbone: PEFT 0.18 takes its attribute `config` for one of transformers.
    inject_adapter_in_model(
        PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # it divides by the rank only
            lora_dropout=config.dropout,
            target_modules=rf"\d+\.(attn|mlp)\.({'|'.join(config.targets)})",
        ),
        backbone.blocks,
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
