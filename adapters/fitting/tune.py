"""Backbone tuning: training of the last blocks, or of LoRA adapters, together with the head.

The base backbone is never changed, neither in memory nor on disk: a copy is trained. The result is a plain backbone,
into which LoRA adapters are merged; a bundle holds the weights that differ from the base.

Learning rates: LoRA and the last block use `learning_rate`. Each earlier block uses `layer_decay` times the rate of the
next block (Clark et al. 2020, ELECTRA; BEiT). The rates rise from 0 during the first tenth of the fit, or as long as
that of the head (``fit.warmup``) if this is longer, because the head starts with random weights. Gradients are clipped.
Stochastic depth is off.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from dinomed.adapters.fitting.config import RATE_LAST, RATE_LORA, BackboneTuneConfig
from dinomed.adapters.fitting.optimizers import ParameterGroup
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.lora import add_lora, check_lora, plain_parameters
from dinomed.backbones.vit import Tokens, VisionTransformer
from dinomed.errors import UsageError

WARMUP, CLIP = 0.1, 1.0


def check_tune(config: BackboneTuneConfig, backbone: FrozenBackbone, top: int) -> None:
    """Check that a part of a backbone can be trained.

    Args:
        config: which weights are trained.
        backbone: the base backbone.
        top: last block that the head uses, counted from 0.

    Raises:
        UsageError: the backbone is no ViT of dinomed, the head uses fewer blocks than `config.last`, a layer is
            unknown, or PEFT is not installed.
    """
    if config.lora is None and config.last is None:
        return
    vit = backbone.vit
    if config.lora is not None:
        check_lora(config.lora, vit.config.feed_forward)
    elif config.last is not None and config.last > top + 1:
        raise UsageError(f"tune: last:{config.last}, but the head uses only {top + 1} blocks; use a smaller number")


class LearningBackbone(FrozenBackbone):
    """Copy of a backbone with some trainable weights; gradients flow through its tokens."""

    def __init__(self, base: FrozenBackbone, config: BackboneTuneConfig, blocks: Sequence[int], seed: int) -> None:
        """Copy `base` and make a part of it trainable.

        Args:
            base: the backbone to copy.
            config: which weights are trained.
            blocks: blocks that the head uses, counted from 0.
            seed: seed for the initialisation of the LoRA adapters.

        Raises:
            UsageError: see `check_tune`.
        """
        super().__init__(deepcopy(base.vit), base.preprocessing, base.name, base.source, base.metadata)
        self.base, self.config, self.top = [base], config, max(blocks)  # in a list, so that it is not a submodule
        check_tune(config, base, self.top)
        if config.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                add_lora(self.vit, config.lora)
            self.vit.mask_token.requires_grad_(False)
        elif config.last is not None:
            for block in self.vit.blocks[self.top + 1 - config.last : self.top + 1]:
                block.requires_grad_(True)
        for block in self.vit.blocks:
            block.drop_path = 0.0  # type: ignore[assignment]

    def forward(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        return self.vit.forward_blocks(images.to(self.device), blocks)

    def groups(self, head_warmup: float = 0.0) -> list[ParameterGroup]:
        """Return the trained parameters with their learning rates.

        Args:
            head_warmup: share of the fit in which the learning rate of the head rises; that of the backbone does not
                end its own rise before.
        """
        c, warmup = self.config, max(WARMUP, head_warmup)
        if c.lora is not None:
            parameters = [p for p in self.vit.parameters() if p.requires_grad]
            return [ParameterGroup(parameters, c.learning_rate or RATE_LORA, warmup, CLIP)]
        rate = c.learning_rate or RATE_LAST
        return [
            ParameterGroup(
                list(self.vit.blocks[self.top - back].parameters()), rate * c.layer_decay**back, warmup, CLIP
            )
            for back in range(c.last or 0)
        ]

    def freeze(self) -> "TunedBackbone":
        """Return the backbone with its present weights, frozen, and the weights that differ from the base."""
        base = self.base[0]
        before = base.vit.state_dict()
        after = {name: tensor.clone() for name, tensor in plain_parameters(self.vit)}
        changed = {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        return TunedBackbone(self.config.word, changed_backbone(base, changed), changed)


@dataclass(frozen=True)
class TunedBackbone:
    """A tuned backbone.

    Attributes:
        how: method of the tuning, such as ``lora:8``.
        backbone: the tuned backbone.
        changed: name -> weights that differ from the base.
    """

    how: str
    backbone: FrozenBackbone
    changed: dict[str, Tensor]


def changed_backbone(base: FrozenBackbone, changed: dict[str, Tensor]) -> FrozenBackbone:
    """Return a copy of `base` with some weights replaced; raise a `RuntimeError` if a weight does not fit."""
    vit: VisionTransformer = deepcopy(base.vit)
    vit.load_state_dict({**vit.state_dict(), **changed})
    return FrozenBackbone(vit, base.preprocessing, base.name, base.source, base.metadata)
