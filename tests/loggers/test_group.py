"""All loggers of a run together: names, parameters, missing packages and failures."""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import Field

from dinomed.config import Config, build_config
from dinomed.errors import UsageError
from dinomed.loggers import group, names
from dinomed.loggers.group import LoggerGroup
from dinomed.loggers.logger import LoggedRun, RunLogger
from dinomed.loggers.names import LoggerNames, check_loggers
from dinomed.loggers.parameters import run_parameters


class Settings(Config):
    loggers: LoggerNames = ("jsonl",)
    file: str = ""
    files: tuple[str, ...] = ()
    nested: dict[str, Any] = Field(default_factory=dict)


class ListLogger(RunLogger):
    """Logger that keeps its calls, and fails in a step."""

    calls: list[tuple[Any, ...]]
    rows_of_calls: list[int]
    fails_at = 10**9

    def __init__(self, run: LoggedRun) -> None:
        self.calls, self.rows_of_calls = [], []
        ListLogger.last = self  # type: ignore[attr-defined]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.fails_at:
            raise OSError("disk\nis full")
        self.calls.append((step, dict(values)))

    def fill(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        self.rows_of_calls.append(len(list(rows)))
        super().fill(rows)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self.calls.append((step, name, pixels.shape))

    def close(self) -> None:
        self.calls.append(("closed",))


@pytest.fixture
def list_logger(monkeypatch: pytest.MonkeyPatch) -> type[ListLogger]:
    monkeypatch.setitem(group._CLASSES, "mlflow", (__name__, "ListLogger"))
    monkeypatch.setattr(ListLogger, "fails_at", 10**9)
    return ListLogger


def test_jsonl_is_always_among_the_loggers_and_unknown_names_are_refused() -> None:
    assert build_config(Settings, {"loggers": ["wandb", "mlflow", "wandb"]}, "x").loggers == (
        "jsonl",
        "wandb",
        "mlflow",
    )
    with pytest.raises(UsageError, match=r"loggers\.0: .*'tensorboard'"):
        build_config(Settings, {"loggers": ["tensorbord"]}, "x")


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_is_installed", lambda module: module not in ("wandb", "alembic"))
    check_loggers(["jsonl", "tensorboard"], "run.loggers")
    with pytest.raises(
        UsageError, match=r"^run\.loggers=wandb needs the package wandb: pip install .dinomed\[wandb\].$"
    ):
        check_loggers(["jsonl", "wandb"], "run.loggers")
    with pytest.raises(UsageError, match=r"^fit\.loggers=mlflow needs the package alembic: pip"):
        check_loggers(["mlflow"], "fit.loggers")


def test_a_folder_of_the_name_of_a_package_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UsageError, match="needs the package wandb"):
        check_loggers(["wandb"], "run.loggers")


def test_parameters_hold_names_of_files_but_no_folders() -> None:
    settings = Settings(
        file="/data/Jane Doe/weights.pt",
        files=(r"C:\Jane Doe\a.csv", "/home/jdoe", "~/x", "b", "/", "a/b"),
        nested={"start": {"weights": "data/jane_doe_run/"}, "teacher": {"weights": "dinov2_vits14"}},
    )
    assert run_parameters(settings) == {
        "loggers": ["jsonl"], "file": "weights.pt", "files": ["a.csv", "(folder)", "(folder)", "b", "/", "a/b"],
        "nested.start.weights": "(folder)", "nested.teacher.weights": "dinov2_vits14",
    }  # fmt: skip


def test_a_failing_logger_warns_once_and_does_not_end_the_run(
    list_logger: type[ListLogger], tensorboard_scalars: Callable[[Path, str], list[tuple[int, float]]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ListLogger, "fails_at", 2)
    loggers = LoggerGroup(["mlflow", "tensorboard"], LoggedRun(tmp_path, "a"))
    for step in (1, 2, 3):
        loggers.scalars(step, {"loss": 1.0})
    loggers.image(3, "pca", np.zeros((2, 2, 3), np.uint8))
    loggers.close()
    assert capsys.readouterr().err.count("the logger mlflow failed and is not used any more in this run: disk") == 1
    assert list_logger.last.calls == [(1, {"loss": 1.0}), ("closed",)]  # type: ignore[attr-defined]
    assert tensorboard_scalars(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_a_logger_that_does_not_open_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(group._CLASSES, "mlflow", ("dinomed.no_such_module", "X"))
    loggers = LoggerGroup(["mlflow"], LoggedRun(tmp_path, "a"), [(1, {"loss": 1.0})])
    loggers.scalars(2, {"loss": 1.0})
    loggers.close()
    assert capsys.readouterr().err.count("the logger mlflow failed") == 1


def test_a_resumed_run_passes_on_what_a_logger_lacks_in_the_order_of_the_steps(
    list_logger: type[ListLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "1.png"
    Image.new("L", (3, 2)).save(picture)
    monkeypatch.setattr(ListLogger, "held", frozenset({("loss", 1), ("loss", 3)}))
    rows = [(1, {"loss": 1.0, "lr": None}), (2, {"loss": 2.0}), (2, {"knn_auroc": 0.5})]
    loggers = LoggerGroup(
        ["mlflow"], LoggedRun(tmp_path, "a", first_step=2), rows, [(1, "pca", picture), (2, "pca", tmp_path / "no.png")]
    )
    loggers.scalars(3, {"loss": 3.0, "lr": 0.1})
    assert list_logger.last.calls == [  # type: ignore[attr-defined]
        (1, "pca", (2, 3, 3)), (2, {"loss": 2.0}), (2, {"knn_auroc": 0.5}), (3, {"lr": 0.1})
    ]  # fmt: skip
    assert list_logger.last.rows_of_calls == [2, 1]  # type: ignore[attr-defined]
