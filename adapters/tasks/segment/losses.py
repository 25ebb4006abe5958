"""Losses of segmenters, by name; MONAI computes them.

dice: Milletari et al. 2016; dice_ce adds cross-entropy, dice_focal the focal loss (Lin et al. 2017, gamma 2); tversky
(Salehi et al. 2017) weighs false positives and false negatives apart.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

LossName = Literal["dice", "dice_ce", "dice_focal", "tversky"]
TVERSKY_ALPHA = 0.3  # of false positives; 0.5 is Dice, less finds more of small lesions (Salehi et al., section 3)


def build_loss(name: LossName, exclusive: bool, alpha: float = TVERSKY_ALPHA) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of logits (B, classes, H, W) and targets (B, planes, H, W) that gives the mean loss.

    Where classes exclude each other the targets is one plane of class indices and a softmax is taken; else it is a mask
    a class, and each class is a problem of its own: the loss is the mean over them.

    Args:
        alpha: for tversky, the weight of false positives, in (0, 1); false negatives have the rest.
    """
    from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, TverskyLoss

    options: dict[str, Any] = {"softmax": True, "to_onehot_y": True} if exclusive else {"sigmoid": True}
    if name == "dice_focal" and exclusive:  # MONAI's DiceFocalLoss takes a sigmoid for its focal part all the same
        dice, focal = DiceLoss(**options), FocalLoss(to_onehot_y=True, use_softmax=True)
        return lambda logits, targets: dice(logits, targets) + focal(logits, targets)
    if name == "tversky":
        loss: Callable[[Tensor, Tensor], Tensor] = TverskyLoss(**options, alpha=alpha, beta=1 - alpha)
    else:
        loss = {"dice": DiceLoss, "dice_ce": DiceCELoss, "dice_focal": DiceFocalLoss}[name](**options)
    if exclusive:
        return loss
    # folded, since the cross-entropy of several channels would be a softmax over them
    return lambda logits, targets: loss(logits.flatten(0, 1)[:, None], targets.to(logits).flatten(0, 1)[:, None])
