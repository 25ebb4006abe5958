"""How values are written for a person to read: on the terminal and on pages."""

from typing import Any


def cell(value: Any) -> str:
    """One value as a person reads it.

    >>> cell(0.81234), cell(None), cell(float("nan")), cell(1200)
    ('0.812', '–', '–', '1,200')
    """
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
