"""Writing of the training index (`dinomed.pretrain.curation.audit.training_index`) in the background of a run."""

from pathlib import Path
from threading import Thread

from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.log import logger
from dinomed.pretrain.curation.audit.training_index import read_training_index, write_training_index
from dinomed.pretrain.run_folder import SEEN_FILE

_THREADS = 1  # the other threads are for the training


class TrainingIndexWriter:
    """Thread that writes ``seen.parquet`` into a run folder, unless the folder already has the index of these images.

    If a run is stopped or killed before the file is complete, the resumed run writes it.
    """

    def __init__(self, run_folder: Path, train: Manifest) -> None:
        self.error: Exception | None = None
        self._thread = Thread(target=self._write, args=(run_folder, train), daemon=True)
        if not _has_index(run_folder, train):
            self._thread.start()

    def _write(self, run_folder: Path, train: Manifest) -> None:
        try:
            write_training_index(run_folder, train, workers=_THREADS)
        except Exception as error:  # reported by `finish`; it must not end a training of days
            self.error = error

    def finish(self) -> None:
        """Wait for the thread. An error is a warning only, because the weights do not depend on the index."""
        if self._thread.ident is not None:
            self._thread.join()
        if self.error is not None:
            logger.warning(f"{SEEN_FILE} was not written ({self.error}); `dinomed audit` cannot use this run")


def _has_index(run_folder: Path, train: Manifest) -> bool:
    try:
        return read_training_index(run_folder).sha256 == sorted(train.column("sha256"))
    except DinomedError:  # no index yet, or a damaged one
        return False
