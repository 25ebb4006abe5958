"""Backbone tuning: the last blocks of the backbone, or LoRA adapters, are trained with the head.

The base backbone is never changed, neither in memory nor on disk: a copy is trained. The result is a plain backbone
with merged adapters; a bundle holds the weights that differ from the base.

Learning rates: `learning_rate` for LoRA and for the last block, multiplied by `layer_decay` for each block before it
(Clark et al. 2020, ELECTRA; BEiT). They rise from 0 during the first tenth of the fit, because the head starts with
random weights. Gradients are clipped. Stochastic depth is off.
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


class LearningBackbone(FrozenBackbone):
    """A copy of a backbone of which a part is trained; its tokens have gradients."""

    def __init__(self, base: FrozenBackbone, config: BackboneTuneConfig, blocks: Sequence[int], seed: int) -> None:
        """Copy `base` and make a part of it trainable.

        Args:
            blocks: blocks that the head uses, counted from 0.
            seed: of the LoRA adapters.

        Raises:
            UsageError: fewer blocks than `config.last`, unknown layers, or PEFT is not installed.
        """
        super().__init__(deepcopy(base.vit), base.preprocessing, base.name, base.source, base.metadata)
        self.base, self.config, self.top = [base], config, max(blocks)  # in a list, so that it is no submodule
        if config.lora is not None:
            check_lora(config.lora, base.vit.config.feed_forward)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                add_lora(self.vit, config.lora)
            self.vit.mask_token.requires_grad_(False)
        elif config.last is not None:
            if config.last > self.top + 1:
                raise UsageError(f"tune: last:{config.last}, but the head uses only {self.top + 1} blocks")
            for block in self.vit.blocks[self.top + 1 - config.last : self.top + 1]:
                block.requires_grad_(True)
        for block in self.vit.blocks:
            block.drop_path = 0.0  # type: ignore[assignment]

    def forward(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        return self.vit.forward_blocks(images.to(self.device), blocks)

    def groups(self) -> list[ParameterGroup]:
        """Return the trained parameters with their learning rates."""
        c = self.config
        if c.lora is not None:
            parameters = [p for p in self.vit.parameters() if p.requires_grad]
            return [ParameterGroup(parameters, c.learning_rate or RATE_LORA, WARMUP, CLIP)]
        rate = c.learning_rate or RATE_LAST
        return [
            ParameterGroup(
                list(self.vit.blocks[self.top - back].parameters()), rate * c.layer_decay**back, WARMUP, CLIP
            )
            for back in range(c.last or 0)
        ]

    def result(self) -> "Tuned":
        """Return the tuned backbone as a plain backbone."""
        base = self.base[0]
        before = base.vit.state_dict()
        after = {name: tensor.clone() for name, tensor in plain_parameters(self.vit)}
        changed = {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        return Tuned(self.config.word, changed_backbone(base, changed), changed)


@dataclass(frozen=True)
class Tuned:
    """A tuned backbone: how it was tuned (``lora:8``), and by name the weights that differ from its base."""

    how: str
    backbone: FrozenBackbone
    changed: dict[str, Tensor]


def changed_backbone(base: FrozenBackbone, changed: dict[str, Tensor]) -> FrozenBackbone:
    """Return a copy of `base` with some weights replaced; raise a `RuntimeError` if a weight does not fit."""
    vit: VisionTransformer = deepcopy(base.vit)
    vit.load_state_dict({**vit.state_dict(), **changed})
    return FrozenBackbone(vit, base.preprocessing, base.name, base.source, base.metadata)
