"""All loggers of a run: opened together, filled from the log of a resumed run, and dropped if they fail."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import first_line
from dinomed.log import logger
from dinomed.loggers.logger import LoggedRun, RunLogger

_CLASSES = {
    "tensorboard": ("dinomed.loggers.tensorboard_files", "TensorBoardFiles"),
    "mlflow": ("dinomed.loggers.mlflow_store", "MlflowStore"),
    "wandb": ("dinomed.loggers.wandb_files", "WandbFiles"),
}


class LoggerGroup:
    """The loggers of a run, beside ``log.jsonl``. A logger that fails is dropped with a warning; the run goes on.

    Args:
        names: names of loggers; ``jsonl`` is written by the run itself.
        run: the run.
        rows: step and values of each line of ``log.jsonl`` up to `run.first_step`. They are logged where a logger does
            not hold them: because it was added on the resume, or because the process was killed.
        pictures: step, name and file of each picture up to `run.first_step`.
    """

    def __init__(
        self,
        names: Iterable[str],
        run: LoggedRun,
        rows: Iterable[tuple[int, Mapping[str, Any]]] = (),
        pictures: Iterable[tuple[int, str, Path]] = (),
    ) -> None:
        self._loggers: dict[str, RunLogger] = {}
        for name in names:
            if name in _CLASSES:
                self._open(name, run)
        if not self._loggers:
            return
        waiting = sorted(rows, key=itemgetter(0))
        for step, name, path in sorted(pictures, key=itemgetter(0)):
            count = bisect_right(waiting, step, key=itemgetter(0))
            self._fill(waiting[:count])  # before the picture: wandb refuses a step that is smaller than the last one
            self.picture(step, name, path)
            del waiting[:count]
        self._fill(waiting)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the finite numbers among the values of a step."""
        self._fill([(step, values)])

    def _fill(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        numbers = [(step, _finite_numbers(values)) for step, values in rows]
        for name, member in list(self._loggers.items()):
            new = [
                (step, {key: v for key, v in of_step.items() if (key, step) not in member.held})
                for step, of_step in numbers
            ]
            new = [(step, of_step) for step, of_step in new if of_step]
            if new:
                self._guard(name, partial(member.fill, new))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Log the image of a file."""
        if self._loggers:
            try:
                self.image(step, name, _read_pixels(path))
            except OSError as error:
                logger.warning(f"{path} was not logged: {first_line(error)}")

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Log an image (rows, columns, 3), uint8."""
        for key, member in list(self._loggers.items()):
            if (name, step) not in member.held:
                self._guard(key, lambda member=member: member.image(step, name, pixels))  # type: ignore[misc]

    def close(self) -> None:
        """Close all loggers. A second call has no effect."""
        for name, member in list(self._loggers.items()):
            self._guard(name, member.close)
        self._loggers.clear()

    def _open(self, name: str, run: LoggedRun) -> None:
        module, kind = _CLASSES[name]
        try:
            self._loggers[name] = getattr(import_module(module), kind)(run)
        except Exception as error:  # libraries raise errors of any kind, and the log is no reason to end a run
            _warn(name, error)

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        """Make a call; after an error close and drop the logger with a warning."""
        try:
            call()
        except Exception as error:  # as in `_open`
            _warn(name, error)
            with suppress(Exception):
                self._loggers.pop(name).close()


def _finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if isinstance(v, int | float) and isfinite(v)}


def _warn(name: str, error: Exception) -> None:
    logger.warning(
        f"the logger {name} failed and is not used any more in this run: {first_line(error)}; log.jsonl goes on, and a "
        "resumed run fills the gap"
    )


def _read_pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
