"""State after an interrupted or failed run, and the training index of a run."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.io.checkpoint import list_checkpoints, read_whole
from dinomed.pretrain import trainer
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.curation.audit.training_index import read_training_index
from dinomed.pretrain.data.select_images import select_images
from dinomed.pretrain.monitoring.online_knn import OnlineKNN
from dinomed.pretrain.run_folder import open_run, write_record
from dinomed.pretrain.train_step import StepReport, TrainStep
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


def assert_backbone_is_of_the_checkpoint(run: Path) -> None:
    newest = list_checkpoints(run / "checkpoints")[-1]
    teacher = read_whole(newest, "model.teacher.backbone.")
    saved = load_backbone(run)
    assert saved.metadata["step"] == int(newest.name.removeprefix("step_"))
    state = saved.vit.state_dict()
    assert teacher.keys() == state.keys()
    for name, tensor in teacher.items():
        assert torch.equal(state[name], tensor), name


def test_the_training_index_holds_the_training_images_and_no_others(
    finished_copy: Path, tiny: Tiny, pictures: Path
) -> None:
    manifest = read_manifest(pictures)
    train, _ = select_images(manifest, 4, 2)
    assert 0 < len(train) < len(manifest)
    seen = read_training_index(finished_copy)
    assert seen.sha256 == sorted(train.column("sha256"))
    assert seen.readable.all()


def test_a_resume_writes_a_missing_or_damaged_training_index(finished_copy: Path, tiny: Tiny, pictures: Path) -> None:
    whole = (finished_copy / "seen.parquet").read_bytes()
    before = (finished_copy / "seen.parquet").stat().st_mtime_ns
    pretrain(tiny(), pictures, finished_copy, device="cpu", resume=True)
    assert (finished_copy / "seen.parquet").stat().st_mtime_ns == before  # not written again
    for harm in (b"", whole[:100]):
        (finished_copy / "seen.parquet").write_bytes(harm)
        pretrain(tiny(), pictures, finished_copy, device="cpu", resume=True)
        assert (finished_copy / "seen.parquet").read_bytes() == whole


def test_a_training_index_that_cannot_be_written_does_not_end_the_run(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dinomed.pretrain import training_index_writer

    def full(*_: object, **__: object) -> None:
        raise DinomedError("disk full")

    monkeypatch.setattr(training_index_writer, "write_training_index", full)
    assert pretrain(tiny(run={"steps": 1}), pictures, tmp_path / "run", device="cpu").steps == 1
    assert "seen.parquet was not written" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("harm", ["missing", "older", "cut off"])
def test_a_resume_writes_the_backbone_of_the_checkpoint(
    finished_copy: Path, tiny: Tiny, pictures: Path, harm: str
) -> None:
    """A kill between writing the two leaves the new checkpoint and the old backbone."""
    backbone = finished_copy / "backbone"
    if harm == "cut off":
        weights = backbone / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        shutil.rmtree(backbone)
    if harm == "older":
        shutil.copytree(finished_copy / "untrained", backbone)
    pretrain(tiny(), pictures, finished_copy, device="cpu", resume=True)
    assert_backbone_is_of_the_checkpoint(finished_copy)


def test_a_resume_completes_a_run_killed_between_checkpoint_and_backbone(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_write_outputs", kill)
        with pytest.raises(Killed):
            pretrain(tiny(run={"steps": 2}), pictures, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "backbone").exists()
    pretrain(tiny(run={"steps": 2}), pictures, tmp_path / "run", device="cpu", resume=True)
    assert_backbone_is_of_the_checkpoint(tmp_path / "run")


def test_a_resume_writes_a_missing_best_backbone(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = count(0.1, 0.1)
    monkeypatch.setattr(OnlineKNN, "measure", lambda *_: {"knn_auroc": next(rising)})  # every checkpoint is the best
    pretrain(tiny(), pictures, tmp_path / "run", device="cpu")
    shutil.rmtree(tmp_path / "run" / "best")
    pretrain(tiny(), pictures, tmp_path / "run", device="cpu", resume=True)
    assert load_backbone(tmp_path / "run" / "best").metadata["step"] == 6


def test_a_run_that_diverges_keeps_its_last_good_state(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update of step 3 destroys the weights although its loss is finite; these weights must not be saved."""
    whole = TrainStep.run

    def destroy(self: TrainStep, raw: object, step: int) -> StepReport:
        if step == 3:
            for group in self.optimizer.adamw.param_groups:
                group["lr"] = 1e30
            self.optimizer.set_schedules = lambda _: 1e30  # type: ignore[method-assign]
        return whole(self, raw, step)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainStep, "run", destroy)
    with pytest.raises(DinomedError, match=r"diverged: after step 4 .*last good state is kept \(.*step_00000002\)"):
        pretrain(tiny(run={"keep_checkpoints": 1}), pictures, tmp_path / "run", device="cpu")
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000002"]
    assert_backbone_is_of_the_checkpoint(tmp_path / "run")
    assert all(bool(t.isfinite().all()) for t in load_backbone(tmp_path / "run").vit.state_dict().values())


def test_a_learning_rate_that_destroys_the_weights_ends_the_run_with_an_error(
    tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    """This also holds between checkpoints, where the metrics get values that are not finite."""
    config = tiny(optimizer={"lr": 1e8}, run={"checkpoint_every": 100, "steps": 40, "max_bad_steps": 2})
    with pytest.raises(DinomedError, match="there is no checkpoint yet"):
        pretrain(config, pictures, tmp_path / "run", device="cpu")


def test_a_run_takes_a_folder_of_images(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    config = tiny(run={"steps": 2, "pca_images": 0})
    images = read_manifest(pictures).root / "images"
    result = pretrain(config, images, tmp_path / "run", device="cpu")
    assert result.images == len(read_manifest(pictures)) == len(read_training_index(tmp_path / "run"))
    assert pretrain(config, images, tmp_path / "run", device="cpu", resume=True).steps == 2


def test_images_changed_since_the_scan_are_skipped_and_named(
    tiny: Tiny, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures.parent, tmp_path / "data")
    data = tmp_path / "data" / pictures.name
    train, _ = select_images(read_manifest(data), 4, 2)
    whole = pretrain(tiny(run={"steps": 10}), data, tmp_path / "whole", device="cpu")
    train.path(0).write_bytes(train.path(1).read_bytes())  # a readable image with other content
    capsys.readouterr()
    result = pretrain(tiny(run={"steps": 10}), data, tmp_path / "one", device="cpu")
    messages = " ".join(capsys.readouterr().err.split())
    assert f"{train.column('image')[0]}: changed since the scan; scan again; another image takes its place" in messages
    assert result.losses != whole.losses
    for i in range(len(train)):
        train.path(i).write_bytes(train.path(i).read_bytes() + b"\0")
    with pytest.raises(DinomedError, match="scan"):
        pretrain(tiny(run={"steps": 10}), data, tmp_path / "all", device="cpu")


def test_a_run_that_was_killed_before_its_config_was_written_starts_again(
    tiny: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    def prepare(names: tuple[str, ...]) -> None:
        folder = tmp_path / "_".join(names)
        (folder / "tensorboard").mkdir(parents=True)
        for name in names:
            (folder / name).touch()
        open_run(folder, tiny(), {}, resume=True, overwrite=False)

    prepare((".lock", "seen.parquet", "log.jsonl", ".tmp-a.parquet"))
    with pytest.raises(UsageError, match="not empty and holds no config"):
        prepare((".lock", "log.jsonl", "notes.txt"))  # a file of the user
    with pytest.raises(UsageError, match="not empty and holds no config"):
        prepare(("log.jsonl",))  # no run was started here
    (tmp_path / ".lock_run.json" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="not empty and holds no config"):
        prepare((".lock", "run.json"))  # the config was lost later, and the checkpoints are worth keeping
    assert (tmp_path / ".lock_run.json" / "checkpoints").is_dir()


@pytest.mark.parametrize(
    ("changes", "data", "continues"),
    [
        ({"optimizer": {"lr": 2e-3}}, {}, True),
        ({"backbone": {"depth": 3}}, {}, False),  # the weights decide the architecture
        ({"optimizer": {"lr": 2e-3}}, {"teacher": "runs/teacher"}, False),  # `pretrain --from` has no teacher
    ],
    ids=["learning rate", "architecture", "distillation"],
)
def test_a_run_with_other_settings_is_continued_from_its_weights_only_where_that_works(
    changes: dict[str, Any], data: dict[str, str], continues: bool, tiny: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    write_record(tmp_path, tiny(), data)
    with pytest.raises(UsageError, match=r"other settings .*resume it with its own settings, or start") as error:
        open_run(tmp_path, tiny(**changes), data, resume=True, overwrite=False)
    assert ("--from" in str(error.value)) == continues
