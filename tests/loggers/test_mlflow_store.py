"""The MLflow store of a run, read by MLflow's own client."""

import getpass
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.loggers.group import LoggerGroup
from dinomed.loggers.logger import LoggedRun

PACKAGES = ("mlflow", "sqlalchemy", "alembic")
pytestmark = pytest.mark.skipif(not all(map(find_spec, PACKAGES)), reason=f"one of {PACKAGES} is not installed")


def open_store(folder: Path, opening: int) -> tuple[Any, Any]:
    """Return a client and the only run of the store. MLflow keeps an engine for each address, so each is new."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow/{'/' * opening}mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("dinomed").experiment_id])
    return client, run


def test_a_resume_fills_the_store_in_few_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    sizes = []
    log_batch = SqlAlchemyStore.log_batch

    def count(self: Any, run_id: str, metrics: list[Any], *others: Any) -> None:
        sizes.append(len(metrics))
        log_batch(self, run_id, metrics, *others)

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", count)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")  # not used: a step is stored before the next one
    rows = [(step, {"loss": 1.0 / step, "rank": 3.0}) for step in range(1, 621)]
    before = dict(os.environ)
    loggers = LoggerGroup(["mlflow"], LoggedRun(tmp_path, "a", first_step=620), rows)
    assert sizes == [1000, 240]
    client, run = open_store(tmp_path, 1)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, 621))
    loggers.close()
    assert dict(os.environ) == before


def test_a_killed_and_resumed_run_is_one_run_of_mlflow_without_a_repeated_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://203.0.113.1:5000")  # not used: the store is local
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    monkeypatch.setattr(socket, "gethostname", lambda: "machine-of-jdoe")
    pixels = np.full((4, 6, 3), 7, np.uint8)
    parameters = {"run.steps": 6, "start.file": "w.pt", **{f"x.{i}": None for i in range(150)}, "long": "y" * 2000}
    loggers = LoggerGroup(["mlflow"], LoggedRun(tmp_path, "lesions", parameters))
    for step in range(1, 6):
        loggers.scalars(step, {"loss": 10.0 + step, "gradient_norm/backbone": 0.5})
    loggers.image(4, "pca", pixels)
    client, first = open_store(tmp_path, 1)  # not closed: the process was killed
    assert (first.info.status, first.info.run_name, first.info.user_id) == ("RUNNING", "lesions", "unknown")
    assert first.data.tags == {"mlflow.runName": "lesions"}
    assert (first.data.params["run.steps"], first.data.params["start.file"]) == ("6", "w.pt")
    assert len(first.data.params) == 153
    rows = [(step, {"loss": 10.0 + step, "rank": 3.0}) for step in (1, 2, 3, 4)]
    loggers = LoggerGroup(
        ["mlflow"], LoggedRun(tmp_path, "lesions", {**parameters, "run.steps": 7}, first_step=4), rows
    )
    loggers.image(4, "pca", pixels)
    for step in (5, 6):
        loggers.scalars(step, {"loss": 10.0 + step})
    loggers.close()
    client, run = open_store(tmp_path, 2)
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    history = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in ("loss", "rank")
    }
    assert history["loss"] == [(step, 10.0 + step) for step in range(1, 7)]
    assert history["rank"] == [(step, 3.0) for step in range(1, 5)]
    assert run.info.artifact_uri == f"mlflow-artifacts:/{run.info.run_id}/artifacts"
    assert (tmp_path / "mlflow" / "artifacts" / run.info.run_id / "artifacts" / "pca" / "00000004.png").is_file()
    with closing(sqlite3.connect(tmp_path / "mlflow" / "mlflow.db")) as database:
        rows_of_database = "\n".join(database.iterdump())
    folders = (tmp_path, Path.cwd(), tmp_path.resolve())
    assert not [folder for folder in folders if str(folder) in rows_of_database]
    assert not [name for name in ("jdoe", "machine-of-jdoe") if name in rows_of_database]
    loggers = LoggerGroup(["mlflow"], LoggedRun(tmp_path, "lesions"))  # a new run in the folder
    loggers.close()
    assert open_store(tmp_path, 3)[1].info.run_id != first.info.run_id
    assert "failed" not in capsys.readouterr().err


def test_dinomed_itself_switches_telemetry_off(tmp_path: Path) -> None:
    """In a process without the variables of the tests and of a CI, by which MLflow switches it off as well."""
    program = (
        "import sys; from pathlib import Path\n"
        "from dinomed.loggers.logger import LoggedRun\nfrom dinomed.loggers.mlflow_store import MlflowStore\n"
        "MlflowStore(LoggedRun(Path(sys.argv[1]), 'a')).close()\n"
        "from mlflow.telemetry import get_telemetry_client\nprint(get_telemetry_client())"
    )
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "SYSTEMROOT") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False,
        env=environment | {"HOME": str(tmp_path)}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "None\n", done.stderr[-2000:]
