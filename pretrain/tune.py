"""Low-rank adaptation (Hu et al. 2021, "LoRA") of a trained backbone while it is pretrained further, by PEFT.

The student's own weights stay as they are, but for the mask token; learned are ``B A`` beside chosen linear layers, and
the heads. The teacher stays a plain ViT: it follows the student's *merged* weights ``W + (alpha / rank) B A``. Averages
of A and of B apart would be those of no network (the mean of products is not the product of means), and a plain teacher
is saved, resumed, distilled from and loaded like any other. Its price is one small product for each layer and step.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from dinomed.backbones.vit import VisionTransformer
from dinomed.config import Config
from dinomed.distributed import world_size
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


class TuneConfig(Config):
    """What of the student's backbone learns; by default all of it."""

    lora: LoraConfig | None = Field(None, description="low-rank adaptation of the weights that the run starts from")


def check_tune(config: TuneConfig, feed_forward: str, *, has_start: bool) -> None:
    """Raises a `UsageError` if a run so tuned cannot be made here."""
    if config.lora is None:
        return
    if find_spec("peft") is None:
        raise UsageError("tune.lora needs the package peft: pip install 'dinomed[lora]'")
    if not has_start:
        raise UsageError("tune.lora adapts trained weights, and the run starts from none; name them with --from")
    if world_size() > 1:
        raise UsageError("tune.lora is for one process: FSDP2 cannot spread a layer whose adapter alone learns")
    wrong = {"mlp": {"w12", "w3"}, "swiglu": {"fc1", "fc2"}}[feed_forward] & set(config.lora.targets)
    if wrong:
        raise UsageError(
            f"tune.lora.targets {', '.join(sorted(wrong))}: the backbone's feed-forward is a {feed_forward}"
        )


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
