"""Formatting of values for terminals and pages."""

from typing import Any


def format_value(value: Any) -> str:
    """Format a value for a person.

    >>> [format_value(value) for value in (0.81234, None, float("nan"), 1200, 0.0, 0.00005)]
    ['0.812', '–', '–', '1,200', '0.000', '5e-05']
    """
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"  # a learning rate of 5e-5 is not 0
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def format_interval(low: float, high: float) -> str:
    """Format an interval for a person; a dash if both ends are undefined.

    >>> format_interval(0.5, 0.75).replace(chr(0xA0), " "), format_interval(float("nan"), float("nan"))
    ('0.500 to 0.750', '–')
    """
    first, last = format_value(float(low)), format_value(float(high))
    return first if first == last == format_value(None) else f"{first}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{last}"
