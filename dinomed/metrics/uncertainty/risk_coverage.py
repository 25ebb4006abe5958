"""Risk-coverage curves: the mean loss of the predictions that are kept, if the least confident ones are left out.

The risk at a coverage is the mean loss of the predictions whose confidence reaches a threshold (Geifman and El-Yaniv
2017, "Selective classification for deep neural networks", section 2). The area under the curve (AURC) is the mean, over
all predictions, of the risk at the threshold of their own confidence (Geifman, Uziel and El-Yaniv 2019, "Bias-reduced
uncertainty estimation"). A confidence without information has the area of the risk at full coverage; the
smallest possible area is that of the losses themselves as the order.
"""

from typing import Any

import numpy as np

from dinomed.metrics.ranking import Steps
from dinomed.metrics.ratios import divide


class RiskCoverage(Steps):
    """N predictions, sorted from the most confident; equal confidences are one step.

    Args:
        confidence: float (N,), finite; high for a prediction that is expected to be good.
        losses: float (N,), 0 or more.

    >>> curve = RiskCoverage(np.array([0.9, 0.8, 0.6, 0.5]), np.array([0.0, 0.0, 1.0, 1.0]))
    >>> curve.points()[1].tolist(), round(float(curve.area()[0]), 4)
    ([0.0, 0.0, 0.3333333333333333, 0.5], 0.2083)
    """

    def __init__(self, confidence: np.ndarray, losses: np.ndarray) -> None:
        super().__init__(confidence, losses)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the coverage (rising, up to 1) and the risk at each distinct confidence."""
        number, loss = (part[0].cumsum() for part in self.sums())
        return number / max(number[-1] if len(number) else 0.0, 1e-300), divide(loss, number)

    def area(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Compute the area under the curve, float64 (R,); nan without predictions."""
        number, loss = self.sums(counts)
        risk = divide(loss.cumsum(axis=1), number.cumsum(axis=1))
        return divide((np.nan_to_num(risk) * number).sum(axis=1), number.sum(axis=1))


def summarize_curve(curve: RiskCoverage) -> dict[str, Any]:
    """Return `aurc`, `aurc_uninformed` (the risk at full coverage), `aurc_best` (the smallest possible area), and
    `risk`: the risk of the most confident 100, 95, 90, 80, 70 and 50 percent (name to value).

    A share that falls into a step of equal confidences is filled up with the whole step.
    """
    coverage, risk = curve.points()
    losses = curve.values
    shares = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
    places = [min(int(np.searchsorted(coverage, share - 1e-12)), len(risk) - 1) for share in shares]
    return {
        "aurc": float(curve.area()[0]),
        "aurc_uninformed": float(losses.mean()),
        "aurc_best": float(RiskCoverage(-losses, losses).area()[0]),
        "risk": {f"{share:g}": float(risk[place]) for share, place in zip(shares, places, strict=True)},
    }
