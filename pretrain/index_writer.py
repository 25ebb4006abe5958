"""Noting what a run is trained on (`dinomed.pretrain.curation.audit.training_index`) while it trains, so that nobody waits for it."""

from pathlib import Path
from threading import Thread

from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.log import logger
from dinomed.pretrain.curation.audit.training_index import SEEN_FILE, read_seen, write_seen

_THREADS = 1  # the others are for the training


class Noting:
    """Writes `seen.parquet` into the run folder `out`, in a thread, unless it is there for these very images.

    A run that is stopped or killed before that is noted when it is resumed.
    """

    def __init__(self, out: Path, train: Manifest) -> None:
        self.failed: Exception | None = None
        self._thread = Thread(target=self._write, args=(out, train), daemon=True)
        if not _is_noted(out, train):
            self._thread.start()

    def _write(self, out: Path, train: Manifest) -> None:
        try:
            write_seen(out, train, workers=_THREADS)
        except Exception as error:  # told by `finish`: no reason to end a training of days
            self.failed = error

    def finish(self) -> None:
        """Wait for it; a failure is a warning, since the weights do not depend on it."""
        if self._thread.ident is not None:
            self._thread.join()
        if self.failed is not None:
            logger.warning(f"{SEEN_FILE} was not written, and `dinomed audit` cannot ask this run ({self.failed})")


def _is_noted(out: Path, train: Manifest) -> bool:
    try:
        return read_seen(out).sha256 == sorted(train.column("sha256"))
    except DinomedError:  # none yet, or a damaged one
        return False
