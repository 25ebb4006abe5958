"""The objective of DINOv2, a file for each loss."""

from dinomed.pretrain.losses.cross_entropy import dino_loss, ibot_loss
from dinomed.pretrain.losses.koleo import koleo
from dinomed.pretrain.losses.targets import Center, sinkhorn_knopp

__all__ = ["Center", "dino_loss", "ibot_loss", "koleo", "sinkhorn_knopp"]
