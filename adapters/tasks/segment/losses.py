"""Losses of segmenters, computed by MONAI.

dice: Milletari et al. 2016; dice_ce adds cross-entropy, dice_focal the focal loss (Lin et al. 2017, gamma 2); tversky
(Salehi et al. 2017) has separate weights for false positives and false negatives.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

LossName = Literal["dice", "dice_ce", "dice_focal", "tversky"]
TVERSKY_ALPHA = 0.3  # weight of false positives; 0.5 is Dice, less finds more small lesions (Salehi et al., section 3)


def build_loss(name: LossName, exclusive: bool, alpha: float = TVERSKY_ALPHA) -> "Callable[[Tensor, Tensor], Tensor]":
    """Return a function of logits (B, classes, H, W) and targets (B, planes, H, W) that computes the mean loss.

    Exclusive classes have one plane of class indices and a softmax. Other classes have one mask each and separate
    losses, of which the mean is taken.

    Args:
        name: name of the loss.
        exclusive: whether every pixel has exactly one class.
        alpha: for tversky, the weight of false positives, in (0, 1); that of false negatives is 1 - alpha.
    """
    from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, TverskyLoss

    options: dict[str, Any] = {"softmax": True, "to_onehot_y": True} if exclusive else {"sigmoid": True}
    if name == "dice_focal" and exclusive:  # the focal part of MONAI's DiceFocalLoss always uses a sigmoid
        dice, focal = DiceLoss(**options), FocalLoss(to_onehot_y=True, use_softmax=True)
        return lambda logits, targets: dice(logits, targets) + focal(logits, targets)
    if name == "tversky":
        loss: Callable[[Tensor, Tensor], Tensor] = TverskyLoss(**options, alpha=alpha, beta=1 - alpha)
    else:
        loss = {"dice": DiceLoss, "dice_ce": DiceCELoss, "dice_focal": DiceFocalLoss}[name](**options)
    if exclusive:
        return loss
    # classes become images, because the cross-entropy of several channels is a softmax over them
    return lambda logits, targets: loss(logits.flatten(0, 1)[:, None], targets.to(logits).flatten(0, 1)[:, None])
