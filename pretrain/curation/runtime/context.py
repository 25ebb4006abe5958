"""Shared context of a curation run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomed.io.files import append_text, to_json
from dinomed.log import logger
from dinomed.pretrain.curation.pool import Pool
from dinomed.pretrain.curation.runtime.stage import StageRunner

VECTORS = "vectors.npy"
TIMINGS = "timings.jsonl"


@dataclass(kw_only=True)
class CurationContext(StageRunner):
    """What every stage of a curation needs.

    Args:
        memory_gib: memory for data that is not memory-mapped.
        notes: warnings for the report, in order.
        searches: measured recall of each approximate search, for the report.
    """

    folder: Path
    pool: Pool
    memory_gib: float
    seed: int
    notes: list[str] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)

    def warn(self, note: str) -> None:
        """Log a warning and keep it for the report."""
        self.notes.append(note)
        logger.warning(note)

    def warn_clipped(self, name: str, requested: int, available: int) -> None:
        """Warn that a setting is larger than the number of images that are left."""
        self.warn(f"{name} is {requested:,}, but only {available:,} images are left: {available:,} are used")

    @contextmanager
    def timed(self, stage: str, images: int) -> Iterator[None]:
        """Append the time of a computation to ``timings.jsonl``."""
        began = time.monotonic()
        yield
        line = {"stage": stage, "seconds": round(time.monotonic() - began, 3), "images": images}
        self.folder.mkdir(parents=True, exist_ok=True)
        append_text(self.folder / TIMINGS, to_json(line) + "\n")
