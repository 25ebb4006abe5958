"""Plot of values over the time of a video."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dinomed.html.drawing import PALETTE, SOFT, Drawing, Point

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 760, 270, 62, 20, 38, 48, 18  # px
_COLUMNS = 640  # a longer series is drawn by its smallest and largest value in so many parts


def draw_series(
    times_s: Sequence[float], lines: Mapping[str, Sequence[float]], title: str, axis: str, top: float | None = None
) -> Drawing:
    """Draw lines over time, with a gap where a value is nan.

    Args:
        times_s: time of each value, s; nan for a frame without a time.
        lines: name -> values from 0 on, one for each time.
        title: text above the plot.
        axis: name and unit of the values.
        top: value at the upper end; None for the largest value.
    """
    names = list(lines) if len(lines) > 1 else []
    drawing = Drawing(_WIDTH, _HEIGHT + _LINE * len(names), title)
    drawing.text((_LEFT, 20), title, bold=True)
    drawing.text((_WIDTH - _RIGHT, 20), axis, size=12, color=SOFT, anchor="end")
    times = np.array(times_s, np.float64)
    first, last = (np.nanmin(times), np.nanmax(times)) if np.isfinite(times).any() else (0.0, 0.0)
    span = max(last - first, 1e-9)
    values = {name: np.array(series, np.float64) for name, series in lines.items()}
    high = top or max((float(np.nanmax(series, initial=0)) for series in values.values()), default=0) or 1.0
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(time: float, value: float) -> Point:
        return _LEFT + (time - first) / span * (right - _LEFT), bottom - value / high * (bottom - _TOP)

    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - _TOP)
        drawing.line([(_LEFT, y), (right, y)], SOFT, 0.5)
        drawing.text((_LEFT - 6, y + 4), f"{share * high:.3g}", size=12, color=SOFT, anchor="end")
        x = _LEFT + share * (right - _LEFT)
        drawing.text((x, bottom + 18), f"{first + share * (last - first):.1f}", size=12, color=SOFT, anchor="middle")
    drawing.text(((_LEFT + right) / 2, bottom + 36), "time, s", size=12, color=SOFT, anchor="middle")
    for number, (name, series) in enumerate(values.items()):
        color = PALETTE[number % len(PALETTE)]
        for part in _parts(times, series):
            points = [place(time, value) for time, value in _thinned(part)]
            if len(points) == 1:
                drawing.dot(points[0], 1.5, color)
            else:
                drawing.line(points, color, 1.5)
        if names:
            y = _HEIGHT + number * _LINE
            drawing.line([(_LEFT, y - 4), (_LEFT + 22, y - 4)], color, 3)
            drawing.text((_LEFT + 30, y), name, size=12)
    return drawing


def _parts(times: np.ndarray, values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the parts without a nan, each (n, 2) of time and value."""
    points = np.stack([times, values], axis=1)
    known = np.isfinite(points).all(axis=1)
    starts = np.flatnonzero(np.diff(known, prepend=False) != 0)  # of known and of unknown parts in turn
    for start, end in zip(starts[::2], [*starts[1::2], len(points)], strict=False):
        yield points[start:end]


def _thinned(points: np.ndarray) -> np.ndarray:
    """Return the smallest and the largest value of each of `_COLUMNS` parts, in order, so that no peak is lost."""
    if len(points) <= 2 * _COLUMNS:
        return points
    kept: set[int] = {0, len(points) - 1}
    for places in np.array_split(np.arange(len(points)), _COLUMNS):
        values = points[places, 1]
        kept |= {int(places[values.argmin()]), int(places[values.argmax()])}
    return points[sorted(kept)]
