"""Scaling rules: number of prototypes from the number of images, teacher momentum from the batch size.

The numbers of the recipe are for a batch of 1,024 (`optimizer.reference_batch`) and 142 million images. With
`run.scale_to_data` these rules replace two of them. The learning rate has its own rule (`optimizer.lr_scaling`).
"""

import math

IMAGES_PER_PROTOTYPE = 12
MIN_PROTOTYPES, MAX_PROTOTYPES = 256, 65_536


def scale_momentum(momentum: float, batch: int, reference: int = 1024) -> float:
    """Return the teacher momentum at a batch size, with the same half-life in images as `momentum` at the reference
    batch (Busbridge et al. 2023, "How to scale your EMA").

    >>> round(scale_momentum(0.992, 64), 5)
    0.9995
    """
    return momentum ** (batch / reference)


def scale_prototypes(num_images: int) -> int:
    """Return the power of two nearest to one prototype for every 12 images, from 256 to the recipe's 65,536.

    Prototypes to which no image belongs give targets without information.

    >>> scale_prototypes(6096), scale_prototypes(142_000_000)
    (512, 65536)
    """
    prototypes = 2 ** round(math.log2(max(num_images, 1) / IMAGES_PER_PROTOTYPE))
    return min(max(prototypes, MIN_PROTOTYPES), MAX_PROTOTYPES)
