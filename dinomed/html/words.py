"""How values are written for a person to read: on the terminal and on pages."""

from typing import Any


def cell(value: Any) -> str:
    """One value as a person reads it.

    >>> cell(0.81234), cell(None), cell(float("nan")), cell(1200), cell(0.0), cell(0.00005)
    ('0.812', '–', '–', '1,200', '0.000', '5e-05')
    """
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"  # a learning rate of 5e-5 is not 0
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
