"""Depth metrics: RMSE, AbsRel and the delta accuracies (Eigen et al. 2014, section 4.3) over the pixels of known depth.

Policy: a pixel counts if its true depth is finite, above `low` and at most `high`. The prediction must be finite there,
and is clipped to the range, as in the DINOv2 evaluation. The errors of an image without such a pixel are nan, and are
left out of the means.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

NAMES = ("rmse", "abs_rel", "delta1", "delta2", "delta3")


def depth_errors(
    target: np.ndarray, prediction: np.ndarray, low: float = 1e-3, high: float = float("inf")
) -> dict[str, float]:
    """Compute the errors of one depth map.

    Args:
        target, prediction: (H, W), in the same unit; the RMSE is in this unit.
        low, high: range of depths that count, above `low` and up to `high`.

    Returns:
        `rmse`; `abs_rel`, the mean of error / target; `delta1` to `delta3`, the shares of pixels whose ratio to the
        target, or its inverse, is below 1.25, 1.25^2, 1.25^3; `pixels`, the number of pixels that count.

    Raises:
        ValueError: the prediction is not finite at a pixel that counts.
    """
    assert target.shape == prediction.shape, (target.shape, prediction.shape)
    assert 0 < low < high, (low, high)
    valid = np.isfinite(target) & (target > low) & (target <= high)
    y, p = target[valid].astype(np.float64), prediction[valid].astype(np.float64)
    if not np.isfinite(p).all():
        raise ValueError("predicted depths that are not finite")
    if not len(y):
        return dict.fromkeys(NAMES, float("nan")) | {"pixels": 0}
    p = np.clip(p, low, high)
    ratio = np.maximum(p / y, y / p)
    return {
        "rmse": float(np.sqrt(np.square(p - y).mean())),
        "abs_rel": float((np.abs(p - y) / y).mean()),
        **{f"delta{power}": float((ratio < 1.25**power).mean()) for power in (1, 2, 3)},
        "pixels": int(valid.sum()),
    }


def depth_metrics(errors: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Compute means over images; `undefined` of the `n` images have no pixel that counts."""
    defined = [image for image in errors if image["pixels"]]
    means = {name: float(np.mean([image[name] for image in defined])) if defined else float("nan") for name in NAMES}
    return {"n": len(errors), **means, "undefined": len(errors) - len(defined)}
