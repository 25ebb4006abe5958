"""Beyond frozen, by choice: the last blocks of the backbone learn with the head, or low-rank adapters do.

The base is never changed, neither in memory nor on the disk: a copy learns. What comes out is a plain backbone again,
adapters merged; a bundle holds the weights by which it differs from its base.

Learning rates: `learning_rate` for LoRA and for the last block, `layer_decay` times less for each block before it
(Clark et al. 2020, ELECTRA; BEiT). They rise from 0 during the first tenth of the fit, while the head, which begins at
random, finds its way; gradients are clipped. Stochastic depth is off.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from dinomed.adapters.fitting.config_tune import RATE_LAST, RATE_LORA, TuneConfig
from dinomed.adapters.fitting.loop import Group
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.lora import add_lora, check_lora, plain_parameters
from dinomed.backbones.vit import Tokens, VisionTransformer
from dinomed.errors import UsageError

WARMUP, CLIP = 0.1, 1.0


class LearningBackbone(FrozenBackbone):
    """A copy of a backbone whose chosen weights learn; its tokens have gradients."""

    def __init__(self, base: FrozenBackbone, config: TuneConfig, blocks: Sequence[int], seed: int) -> None:
        """`blocks`: those that the head looks at, counted from 0.

        Raises:
            UsageError: fewer blocks than are to learn, no such layers, or PEFT is not here.
        """
        super().__init__(deepcopy(base.vit), base.preprocessing, base.name, base.source, base.metadata)
        self.base, self.config, self.top = [base], config, max(blocks)  # a list: no part of this module
        if config.lora is not None:
            check_lora(config.lora, base.vit.config.feed_forward)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                add_lora(self.vit, config.lora)
            self.vit.mask_token.requires_grad_(False)
        elif config.last is not None:
            if config.last > self.top + 1:
                raise UsageError(f"tune: last:{config.last}, and the head looks at {self.top + 1} blocks only")
            for block in self.vit.blocks[self.top + 1 - config.last : self.top + 1]:
                block.requires_grad_(True)
        for block in self.vit.blocks:
            block.drop_path = 0.0  # type: ignore[assignment]

    def forward(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        return self.vit.forward_blocks(images.to(self.device), blocks)

    def groups(self) -> list[Group]:
        """What learns, with its learning rates."""
        c = self.config
        if c.lora is not None:
            parameters = [p for p in self.vit.parameters() if p.requires_grad]
            return [Group(parameters, c.learning_rate or RATE_LORA, WARMUP, CLIP)]
        rate = c.learning_rate or RATE_LAST
        return [
            Group(list(self.vit.blocks[self.top - back].parameters()), rate * c.layer_decay**back, WARMUP, CLIP)
            for back in range(c.last or 0)
        ]

    def result(self) -> "Tuned":
        """What has been learned, as a plain backbone."""
        base = self.base[0]
        before = base.vit.state_dict()
        after = {name: tensor.clone() for name, tensor in plain_parameters(self.vit)}
        changed = {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        return Tuned(self.config.word, changed_backbone(base, changed), changed)


@dataclass(frozen=True)
class Tuned:
    """A backbone that has learned with its head: how, and the weights (by name) by which it differs from its base."""

    how: str
    backbone: FrozenBackbone
    changed: dict[str, Tensor]


def changed_backbone(base: FrozenBackbone, changed: dict[str, Tensor]) -> FrozenBackbone:
    """`base` with some of its weights replaced; `base` itself stays as it is. Raises a `RuntimeError` if one does not
    fit."""
    vit: VisionTransformer = deepcopy(base.vit)
    vit.load_state_dict({**vit.state_dict(), **changed})
    return FrozenBackbone(vit, base.preprocessing, base.name, base.source, base.metadata)
