"""Logger for MLflow: an SQLite store in ``mlflow/`` of a run."""

import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dinomed.environment import environment_variable
from dinomed.io.files import replacing
from dinomed.loggers.logger import LoggedRun, RunLogger

DATABASE = "mlflow.db"
_EXPERIMENT = "dinomed"
_IMAGES = "mlflow-artifacts:/"
_openings = itertools.count()
_MAX_METRICS, _MAX_PARAMETERS = 1000, 100  # of one call
_MAX_CHARACTERS = 500  # of a parameter; the limit of older versions


class MlflowStore(RunLogger):
    """Metrics, parameters and images in a local MLflow store; no server, and no path or name of a user or a machine.

    The place of images is ``mlflow-artifacts:/``: a server of MLflow looks for them in its ``--artifacts-destination``.
    So the store has no absolute path, and the folder can be moved. A resumed run continues the same MLflow run. MLflow
    cannot remove values. So the values of the steps that the interrupted run has done after its last checkpoint are
    kept, and not logged again.
    """

    def __init__(self, run: LoggedRun) -> None:
        with environment_variable("MLFLOW_DISABLE_TELEMETRY", "true"):  # read at the import
            from mlflow.entities import RunStatus, ViewType
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        for module in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(module).setLevel(logging.WARNING)
        folder = (run.folder / "mlflow").resolve()
        if not run.first_step:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        # MLflow keeps an engine for each address, also when its file was replaced: a second run here needs another one
        address = f"sqlite:///{folder.as_posix()}/{'./' * next(_openings)}{DATABASE}"
        # the store itself: a client would write the current folder into it
        self._store = SqlAlchemyStore(address, _IMAGES)
        experiment = self._store.get_experiment_by_name(_EXPERIMENT)
        identifier = (
            self._store.create_experiment(_EXPERIMENT, artifact_location=_IMAGES, tags=[])
            if experiment is None
            else experiment.experiment_id
        )
        runs = self._store.search_runs([identifier], "", ViewType.ACTIVE_ONLY)
        self._id = (
            runs[0] if runs else self._store.create_run(identifier, "unknown", _now(), [], run.name)
        ).info.run_id
        self._images = folder / "artifacts" / self._id / "artifacts"
        if runs:
            self._store.update_run_info(self._id, RunStatus.RUNNING, None, None)
            names = runs[0].data.metrics
            histories = {name: self._store.get_metric_history(self._id, name) for name in names}
            self.held = frozenset((name, metric.step) for name, history in histories.items() for metric in history)
        self._log_parameters({} if runs and runs[0].data.params else run.parameters)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite values of a step."""
        self.fill([(step, values)])

    def fill(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log finite values of several steps, by 1000 in one transaction."""
        from mlflow.entities import Metric

        now = _now()
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._store.log_batch(self._id, metrics[start : start + _MAX_METRICS], [], [])

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Store an image (rows, columns, 3), uint8, as the artifact ``NAME/STEP.png``; an older one is replaced."""
        from PIL import Image

        path = self._images / name / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            Image.fromarray(pixels).save(temporary, "PNG")

    def close(self) -> None:
        """Mark the run as finished."""
        from mlflow.entities import RunStatus

        self._store.update_run_info(self._id, RunStatus.FINISHED, _now(), None)

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}
        entries = [Param(name, text[:_MAX_CHARACTERS]) for name, text in texts.items()]
        for start in range(0, len(entries), _MAX_PARAMETERS):
            self._store.log_batch(self._id, [], entries[start : start + _MAX_PARAMETERS], [])


def _now() -> int:
    """Return the time, ms."""
    return time.time_ns() // 1_000_000
