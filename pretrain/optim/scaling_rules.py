"""Settings that depend on how many images there are, and how many fit in a batch, by stated rules.

The recipe's numbers are for a batch of 1,024 (`optimizer.reference_batch`) and 142 million images. With
`run.scale_to_data` a run replaces two of them; the learning rate has its own rule (`optimizer.lr_scaling`).
"""

import math

from dinomed.config import build_config, merge
from dinomed.pretrain.config import PretrainConfig

IMAGES_PER_PROTOTYPE = 12
FEWEST, MOST = 256, 65_536


def momentum_for(momentum: float, batch: int, reference: int = 1024) -> float:
    """The teacher's momentum at a batch size: the same half-life in images as `momentum` has at the reference batch
    (Busbridge et al. 2023, "How to scale your EMA").

    >>> round(momentum_for(0.992, 64), 5)
    0.9995
    """
    return momentum ** (batch / reference)


def prototypes_for(images: int) -> int:
    """The power of two nearest to a prototype for every 12 images, from 256 to the recipe's 65,536: prototypes that no
    image fills give targets without information.

    >>> prototypes_for(6096), prototypes_for(142_000_000)
    (512, 65536)
    """
    return min(max(2 ** round(math.log2(max(images, 1) / IMAGES_PER_PROTOTYPE)), FEWEST), MOST)


def scale_to_data(config: PretrainConfig, images: int, *, keep_heads: bool = False) -> PretrainConfig:
    """`config` with the rules applied, if it asks for it; with `keep_heads` the prototypes stay, as heads that come
    from elsewhere have theirs."""
    if not config.run.scale_to_data:
        return config
    momentum = momentum_for(config.teacher.momentum, config.run.batch_size, config.optimizer.reference_batch)
    delta: dict[str, object] = {"teacher": {"momentum": momentum}}
    if not keep_heads:
        head = {"prototypes": prototypes_for(images)}
        delta["objective"] = {"dino_head": head, "ibot_head": head}
    return build_config(PretrainConfig, merge(config.model_dump(), delta), "run.scale_to_data")
