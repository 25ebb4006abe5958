"""Settings of the optimiser. This module imports no torch."""

import math
from typing import Literal

from pydantic import Field

from dinomed.config import Config


class OptimizerConfig(Config):
    """Settings of the optimiser. The learning rate has a linear warm-up, then a cosine to `lr_end`."""

    matrices: Literal["adamw", "muon"] = Field(
        "adamw", description="optimiser of the weight matrices of blocks and of the MLPs of heads: AdamW as in the "
        "recipe, or Muon (orthogonalised momentum), scaled to the step size of AdamW; AdamW for all other weights"
    )  # fmt: skip
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="for matrices: muon")

    lr: float = Field(4e-3, gt=0, description="at a batch of `reference_batch`; 4e-3 in the paper's short run")
    lr_end: float = Field(1e-6, ge=0, description="learning rate at the end of the run; not scaled with the batch")
    lr_scaling: Literal["sqrt", "linear", "none"] = Field(
        "sqrt", description="learning-rate scaling rule: how lr grows with the batch"
    )
    reference_batch: int = Field(1024, ge=1, description="batch size, in images, for which lr is meant")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the run in which the learning rate rises to lr")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay rates of the two moments of AdamW")
    weight_decay: float = Field(0.04, ge=0, description="weight decay at the start of the run")
    weight_decay_end: float = Field(0.4, ge=0, description="weight decay at the end of the run")
    clip_norm: float = Field(3.0, gt=0, description="largest gradient norm of each submodule (backbone, each head)")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate from a block to the one before"
    )
    patch_embed_lr: float = Field(0.2, gt=0, description="factor on the learning rate of the patch embedding")
    freeze_prototypes: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="fraction of the run in which prototypes do not learn; 1,250 of 125,000 iterations",
    )

    def peak_lr(self, batch: int) -> float:
        """Return the peak learning rate at a batch size, by the scaling rule."""
        ratio = batch / self.reference_batch
        return self.lr * {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[self.lr_scaling]
