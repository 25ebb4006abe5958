"""Logger for MLflow: an SQLite store in ``mlflow/`` of a run."""

import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.loggers.logger import LoggedRun, RunLogger

DATABASE = "mlflow.db"
_EXPERIMENT = "dinomed"
_openings = itertools.count()
_MAX_PARAMETERS = 100  # of one call
_MAX_CHARACTERS = 500  # of a parameter; the limit of older versions


class MlflowStore(RunLogger):
    """Metrics, parameters and images in a local MLflow store; no server, and no name of a user or a machine.

    A resumed run continues the same MLflow run. MLflow cannot remove values. So the values of the steps that the
    interrupted run has done after its last checkpoint are kept, and not logged again.
    """

    def __init__(self, run: LoggedRun) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read at the import
        from mlflow import MlflowClient

        for module in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(module).setLevel(logging.WARNING)
        folder = (run.folder / "mlflow").resolve()
        if not run.first_step:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        # MLflow keeps an engine for each address, also when its file was replaced: a second run here needs another one
        address = f"sqlite:///{folder.as_posix()}/{'./' * next(_openings)}{DATABASE}"
        self._client = MlflowClient(tracking_uri=address, registry_uri=address)
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        if experiment is None:
            place = (folder / "artifacts").as_uri()
            identifier = self._client.create_experiment(_EXPERIMENT, artifact_location=place)
        else:
            identifier = experiment.experiment_id
        runs = self._client.search_runs([identifier])
        self._id = runs[0].info.run_id if runs else self._client.create_run(identifier, run_name=run.name).info.run_id
        if runs:
            self._client.update_run(self._id, status="RUNNING")
            names = runs[0].data.metrics
            histories = {name: self._client.get_metric_history(self._id, name) for name in names}
            self.held = frozenset((name, metric.step) for name, history in histories.items() for metric in history)
        self._log_parameters({} if runs and runs[0].data.params else run.parameters)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite values of a step."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Store an image (rows, columns, 3), uint8, as the artifact ``NAME/STEP.png``; an older one is replaced."""
        self._client.log_image(self._id, pixels, artifact_file=f"{name}/{step:08d}.png")

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}
        entries = [Param(name, text[:_MAX_CHARACTERS]) for name, text in texts.items()]
        for start in range(0, len(entries), _MAX_PARAMETERS):
            self._client.log_batch(self._id, params=entries[start : start + _MAX_PARAMETERS])
