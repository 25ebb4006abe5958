"""KoLeo loss, which spreads features evenly over the sphere.

It is from Sablayrolles et al. 2018, "Spreading vectors for similarity search". DINOv2 applies it to the class tokens of
the global views with weight 0.1.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def koleo_loss(features: Tensor, queue: Tensor | None = None, epsilon: float = 1e-8) -> Tensor:
    """Compute minus the mean log distance of each L2-normalised row of (B, C) to its nearest neighbour in the batch.

    The rows of `queue` (Q, C), earlier images, are neighbours too, but have no loss and no gradient.

    The computation is in float32: in half precision 1e-8 is zero, and one exact duplicate makes the loss infinite. A
    batch of one row has no neighbour; its loss is 0, with zero gradient.
    """
    if len(features) + (0 if queue is None else len(queue)) < 2:
        return features.sum() * 0.0
    with torch.autocast(features.device.type, enabled=False):
        x = normalize(features.float(), dim=-1)
        with torch.no_grad():
            similarity = x @ x.T
            similarity.fill_diagonal_(-2.0)
        neighbours = x
        if queue is not None and len(queue):
            neighbours = torch.cat([x, normalize(queue.float(), dim=-1)])
            with torch.no_grad():
                similarity = torch.cat([similarity, x @ neighbours[len(x) :].T], dim=1)
        nearest = similarity.argmax(dim=1)
        distance = (x - neighbours[nearest] + epsilon).norm(dim=-1)
        return -torch.log(distance + epsilon).mean()
