"""Interface of the loggers that copy the log of a run to other formats."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LoggedRun:
    """A run whose values are logged.

    Attributes:
        folder: where each logger has a folder of its own.
        name: title of the run.
        parameters: settings, see `dinomed.loggers.parameters.run_parameters`.
        first_step: last step of the state from which the run continues; 0 for a new run.
    """

    folder: Path
    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    first_step: int = 0


class RunLogger(ABC):
    """A copy of the log of a run in the format of a library, in a folder of the run. Nothing is sent anywhere.

    `held` has the name and the step of each value that the logger already holds when a run is resumed.
    `dinomed.loggers.group.LoggerGroup` leaves these values out, so that no step is repeated.
    """

    held: frozenset[tuple[str, int]] = frozenset()

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite values of a step."""

    def fill(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log finite values of several steps."""
        for step, values in rows:
            self.scalars(step, values)

    @abstractmethod
    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Log an image (rows, columns, 3), uint8."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not yet written, and end the logging."""
