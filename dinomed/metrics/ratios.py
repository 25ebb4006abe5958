"""Divisions and means that are nan where they are undefined."""

from collections.abc import Sequence

import numpy as np


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide two arrays of the same shape; nan where the denominator is not above 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def defined_mean(values: Sequence[float] | np.ndarray) -> float:
    """Compute the mean of the values that are not nan; nan if there is none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def row_means(values: np.ndarray) -> np.ndarray:
    """Compute the mean of the defined values of each row, (R,), of values (R, K); nan for a row without one."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(float))
