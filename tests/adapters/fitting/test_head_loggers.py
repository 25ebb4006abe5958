"""Loggers of the fit of a head: in the folder of the head, also after an interruption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomed.adapters.bundle import STAGE
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting import loop, resume
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.loggers import names

Scalars = Callable[[Path, str], list[tuple[int, float]]]


def settings(*loggers: str, **fit: Any) -> ClassifyConfig:
    fit = {"epochs": 4, "patience": 4, "optimizer": "lbfgs", **fit}
    return ClassifyConfig.model_validate({"fit": {**fit, "loggers": loggers}})


def test_an_interrupted_fit_continues_its_loggers_and_the_next_head_replaces_them(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tensorboard_scalars: Scalars,
) -> None:  # fmt: skip
    monkeypatch.setattr(resume, "MAX_TIME_SHARE", 1.0)  # the state is saved after every epoch
    backbone, out = load_backbone(tiny_backbone), tmp_path / "head"
    data: dict[str, Any] = {"manifest": read_manifest(lesion_manifest), "out": out, "cache": tmp_path / "cache"}
    keep = loop._Fit.save

    def cut(self: Any) -> None:
        if self.epoch == 3:
            raise KeyboardInterrupt  # epoch 3 is logged, and not saved
        keep(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Fit, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            fit_head(backbone, config=settings("tensorboard"), **data)
    assert [step for step, _ in tensorboard_scalars(out / STAGE, "train_loss")] == [1, 2, 3]
    fit_head(backbone, config=settings("tensorboard"), **data)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for name in ("train_loss", *rows[0].keys() - {"epoch", "train_loss", "seconds"}):
        steps, values = zip(*tensorboard_scalars(out, name), strict=True)
        assert steps == (1, 2, 3, 4)
        assert values == pytest.approx([row[name] for row in rows], rel=1e-6)  # float32 in the file of TensorBoard
    assert not (out / STAGE).exists()
    fit_head(backbone, config=settings(), overwrite=True, **data)
    assert not list(out.rglob("*tfevents*"))


def test_a_failed_fit_and_a_missing_package_leave_nothing(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, out = load_backbone(tiny_backbone), tmp_path / "head"
    data: dict[str, Any] = {"manifest": read_manifest(lesion_manifest), "out": out, "cache": tmp_path / "cache"}
    with monkeypatch.context() as patch:
        patch.setattr(loop._Fit, "train_epoch", lambda *_: float("nan"))
        with pytest.raises(DinomedError, match="the loss is nan"):
            fit_head(backbone, config=settings("tensorboard"), **data)
    assert not out.exists()
    monkeypatch.setattr(names, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=r"fit\.loggers=mlflow needs the package mlflow: pip install"):
        fit_head(backbone, config=settings("mlflow"), **data)
    assert not out.exists()
