"""Replacement of an ensemble by a new one: kills at every step, files of the user, damaged records."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomed.adapters.bundle import WEIGHTS_FILE
from dinomed.adapters.folds import replace as folds_replace
from dinomed.adapters.folds import train as folds_train
from dinomed.adapters.folds.plan import PLAN_FILE
from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.io.output_folder import STAGE, open_output_folder

KNN = ClassifyConfig.model_validate({"head": {"name": "knn"}})
Train = Callable[..., Any]


class Killed(BaseException):
    """As SIGKILL: nothing that the code does afterwards has an effect."""


def test_a_kill_at_any_step_of_the_replacement_leaves_one_whole_ensemble(
    out: Path, tmp_path: Path, train: Train, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = [manifest.path(0)]
    old = load_adapter(out).predict(image)
    ready = tmp_path / "ready"  # the moment before the replacement
    swap = folds_train.replace_ensemble
    with monkeypatch.context() as patch:
        patch.setattr(folds_train, "replace_ensemble", lambda folder: shutil.copytree(folder, ready) and swap(folder))
        expected = train(out, KNN, overwrite=True)
    new = load_adapter(out).predict(image)
    assert new != old
    states, step = [], 0
    while True:
        folder, steps = tmp_path / f"killed_{step}", list[str]()
        shutil.copytree(ready, folder)

        def dies(work: Callable[..., Any], name: str, steps: list[str] = steps, last: int = step) -> Callable[..., Any]:
            def call(*given: Any, **options: Any) -> Any:
                if len(steps) >= last:
                    raise Killed
                steps.append(name)
                return work(*given, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(folds_replace.os, "replace", dies(os.replace, "rename"))
            patch.setattr(folds_replace.shutil, "rmtree", dies(shutil.rmtree, "remove folder"))
            patch.setattr(Path, "unlink", dies(Path.unlink, "remove file"))
            try:
                swap(folder)
            except Killed:
                pass
            else:
                break
        if (folder / ENSEMBLE_FILE).is_file():
            states.append("old" if load_adapter(folder).predict(image) == old else "new")
            assert load_adapter(folder).predict(image) == (old if states[-1] == "old" else new)
        else:
            states.append("none")
            with pytest.raises(UsageError, match="its training did not finish, run it again"):
                load_adapter(folder)
        again = shutil.copytree(folder, folder.with_name(f"again_{step}"))
        with monkeypatch.context() as patch:
            patch.setattr(folds_train, "fit_head", lambda *_, **__: pytest.fail("a fold is trained again"))
            result = train(again, KNN, overwrite=True)
        assert (result.table, result.members) == (expected.table, (again / "fold_1", again / "fold_2"))
        assert load_adapter(again).predict(image) == new
        assert not (again / STAGE / PLAN_FILE).exists()
        if (folder / STAGE / folds_replace.READY_FOLDS).is_file():
            with pytest.raises(UsageError, match=r"already holds a result|is now complete"):
                train(folder, KNN)
            if states[-1] != "old":
                assert load_adapter(folder).predict(image) == new
            if states[-1] == "none":
                assert not (folder / STAGE / PLAN_FILE).exists()
        step += 1
    assert load_adapter(folder).predict(image) == new
    assert states == sorted(states, key=["old", "none", "new"].index)
    assert set(states) == {"old", "none", "new"}


def test_a_refused_call_removes_the_plan_that_a_killed_call_left(out: Path, train: Train) -> None:
    (out / STAGE).mkdir()
    (out / STAGE / PLAN_FILE).write_text("{}")
    with pytest.raises(UsageError, match="already holds a result"):
        train(out, KNN)
    assert not (out / STAGE).exists()


def test_a_replacement_keeps_files_of_the_user_and_an_ensemble_whose_successor_is_damaged(
    out: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> None:
        (folder / "fold_2" / "notes.txt").write_text("of the user, added during the training")
        swap(folder)

    swap = folds_train.replace_ensemble
    with monkeypatch.context() as patch:
        patch.setattr(folds_train, "replace_ensemble", interrupt)
        with pytest.raises(UsageError, match=r"it holds other files \(notes.txt\)"):
            train(out, KNN, overwrite=True)
    ready = out / STAGE / folds_replace.READY_FOLDS
    assert not ready.exists()
    ready.write_text("{}")  # killed just after the mark was written
    before = set(out.rglob("*"))
    with pytest.raises(UsageError, match=r"it holds other files \(notes.txt\)"):
        train(out, KNN, overwrite=True)
    assert set(out.rglob("*")) == before
    (out / "fold_2" / "notes.txt").unlink()
    monkeypatch.setattr(folds_train, "fit_head", lambda *_, **__: pytest.fail("a fold is trained again"))
    for marker in ("predictions.json", "export.json", WEIGHTS_FILE):  # another command with this output folder
        with (
            pytest.raises(UsageError, match="holds an unfinished cross-validation"),
            open_output_folder(out, marker=marker, overwrite=True),
        ):
            pass
    (out / STAGE / ENSEMBLE_FILE).write_text("{")
    old = (out / ENSEMBLE_FILE).read_bytes()
    assert not folds_replace.finish_replacing(out)
    assert (out / ENSEMBLE_FILE).read_bytes() == old
    load_adapter(out)
    train(out, KNN, overwrite=True)  # writes the record again
    assert (out / ENSEMBLE_FILE).read_bytes() != old
    load_adapter(out)
