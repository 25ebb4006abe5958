"""`dinomed train --dry-run`: what a training would use is what it uses, and nothing is written."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dinomed
from dinomed.datasets.manifest import read_manifest

Run = Callable[..., tuple[int, str, str]]
SHORT = ["fit.epochs=1", "fit.min_steps=0", "image_size=32"]


@pytest.mark.parametrize(
    ("task", "settings", "folds"),
    [
        ("classify", ["head.name=linear"], None),
        pytest.param("classify", ["head.name=auto", "head.heads=[knn, logistic]"], None, marks=pytest.mark.long),
        ("classify", ["head.name=logistic"], 2),
        pytest.param("segment", ["augment=light", "augment_copies=2"], None, marks=pytest.mark.long),
        pytest.param("segment", ["augment=none", "aspect=keep"], None, marks=pytest.mark.long),
        ("classify", ["head.name=logistic", "aspect=keep"], None),
    ],
    ids=["linear", "auto", "folds", "copies", "rectangles", "rectangles without patches"],
)
def test_the_planned_features_and_parameters_are_those_of_the_training(
    task: str, settings: list[str], folds: int | None, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    options = {"settings": SHORT + settings, "folds": folds, "cache": tmp_path / "cache", "device": "cpu"}
    plan = dinomed.plan_training(task, tiny_backbone, lesion_manifest, **options)
    assert list(tmp_path.iterdir()) == []
    result = dinomed.train(task, tiny_backbone, lesion_manifest, tmp_path / "out", **options)
    arrays = [np.load(file) for file in (tmp_path / "cache").rglob("*.npy")]
    second = plan.features.second
    assert plan.features.bytes + (second.bytes if second else 0) == sum(array.nbytes for array in arrays)
    classes = [np.load(file) for file in (tmp_path / "cache").rglob("*.cls.npy")]
    assert plan.features.images + (second.images if second else 0) == sum(len(array) for array in classes)
    if "head.name=linear" in settings:
        adapter = dinomed.load_adapter(result.folder, device="cpu")
        assert plan.heads[0].parameters == sum(weight.numel() for weight in adapter.adapter.parameters())
    assert [head.name for head in plan.heads] == ([row["head"] for row in result.tried] or [plan.heads[0].name])
    if folds:
        assert len(plan.folds) == folds
        assert sum(rows.images for rows in plan.folds) == plan.splits["train and val"].images


@pytest.mark.parametrize(("tune", "parts"), [("none", ["train"]), ("last:1", ["train", "val"])])
def test_images_of_every_epoch_are_planned_as_such(
    tune: str, parts: list[str], lesion_manifest: Path, tiny_backbone: Path
) -> None:
    settings = [*SHORT, "augment=light", "augment_copies=0", f"tune={tune}"]
    plan = dinomed.plan_training("segment", tiny_backbone, lesion_manifest, settings=settings, device="cpu")
    assert plan.features.images_per_epoch == sum(plan.splits[name].images for name in parts)


def test_the_time_decides_the_images_of_a_fit_with_seconds(lesion_manifest: Path, tiny_backbone: Path) -> None:
    settings = [*SHORT, "augment=light", "augment_copies=0", "fit.seconds=20", "fit.refit=always"]
    features = dinomed.plan_training(
        "segment", tiny_backbone, lesion_manifest, settings=settings, device="cpu"
    ).features
    assert features.second is not None
    assert (features.images_per_epoch, features.second.images_per_epoch) == (None, None)
    settings[4] = "augment_copies=2"
    plan = dinomed.plan_training("segment", tiny_backbone, lesion_manifest, settings=settings, device="cpu")
    assert plan.features.images_per_epoch == 0


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        (["augment=none"], "frozen backbone: {once} images pass through it once", "the training of the head reads"),
        (
            ["augment=light", "augment_copies=3"],
            "frozen backbone: {once} images (3 augmented copies of each one of train among them) pass through it once",
            "the training of the head reads",
        ),
        (
            ["augment=light", "augment_copies=0"],
            "frozen backbone: {every} images pass through it in every epoch, those of train, augmented anew each time",
            "before the first epoch, {once} images pass through it once (unchanged images of train, to initialise the "
            "head, and val)",
        ),
        (
            ["tune=last:1"],
            "backbone trained too (last:1): {every} images pass through it in every epoch, those of train and of val",
            "before the first epoch, {once} images pass through it once (unchanged images of train, to initialise the "
            "head)",
        ),
        (
            ["tune=last:1", "fit.seconds=20"],
            "backbone trained too (last:1): images pass through it until the processor seconds of fit.seconds are "
            "spent, those of train and of val",
            "before the first epoch, {once} images pass through it once",
        ),
    ],
    ids=["cached", "copies", "augmented", "tuned", "timed"],
)
def test_the_plan_says_when_images_pass_through_the_backbone(
    settings: list[str], first: str, second: str, run: Run, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    words = ["train", "segment", "--data", lesion_manifest, "-b", tiny_backbone, "-o", tmp_path / "out", "--dry-run"]
    sets = [word for setting in [*SHORT, "fit.refit=never", *settings] for word in ("--set", setting)]
    code, text, error = run(*words, *sets)
    assert code == 0, error
    parts = [len(read_manifest(lesion_manifest).select(split=name)) for name in ("train", "val")]
    copies = 3 if "augment_copies=3" in settings else 0
    once = parts[0] * (copies + 1) + (0 if "tune=last:1" in settings else parts[1])
    every = sum(parts) if "tune=last:1" in settings else parts[0]
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    place = next(i for i, line in enumerate(lines) if line.startswith(first.format(once=once, every=every)))
    assert lines[place + 1].startswith(second.format(once=once, every=every))


@pytest.mark.parametrize(
    ("settings", "copies"),
    [(["augment_copies=0"], 0), (["augment_copies=3"], 3), (["tune=last:1"], 0)],
    ids=["augmented", "copies", "tuned"],
)
def test_the_passes_of_the_second_training_are_in_its_line(
    settings: list[str], copies: int, run: Run, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    words = ["train", "segment", "--data", lesion_manifest, "-b", tiny_backbone, "-o", tmp_path / "out", "--dry-run"]
    sets = [word for setting in [*SHORT, "augment=light", *settings] for word in ("--set", setting)]
    code, text, error = run(*words, *sets)
    assert code == 0, error
    train, val = (len(read_manifest(lesion_manifest).select(split=name)) for name in ("train", "val"))
    both, tuned = train + val, "tune=last:1" in settings
    once, every = train * (copies + 1) + (0 if tuned else val), train + (val if tuned else 0)
    second = next(line for line in text.splitlines() if line.startswith("# second training"))
    again = f"on all {both} images of train and val; before it, {both * (copies + 1)} more images pass through the"
    assert again in second
    assert (f"in every epoch, {both} images" in second) == (not copies)  # nothing is measured on val
    assert f" {once} images" in text.partition("# second training")[0]
    assert (f" {every} images pass through it in every epoch" in text) == (not copies)


def test_the_second_training_of_the_head_auto_is_that_of_its_largest_candidate(
    lesion_manifest: Path, tiny_backbone: Path
) -> None:
    settings = [*SHORT, "augment=light", "augment_copies=2"]
    two, three, auto = (
        dinomed.plan_training("segment", tiny_backbone, lesion_manifest, settings=[*settings, *head], device="cpu")
        for head in (["head.blocks=[-2, -1]"], ["head.blocks=[-3, -2, -1]"], ["head.name=auto"])
    )
    assert two.features.second is not None
    assert three.features.second is not None
    assert two.features.second.bytes < three.features.second.bytes
    assert auto.features.second == three.features.second


def test_the_counts_of_folds_are_those_of_all_folds(
    run: Run, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    words = ["train", "segment", "--data", lesion_manifest, "-b", tiny_backbone, "-o", tmp_path / "out", "--dry-run"]
    sets = [word for name in [*SHORT, "augment=light", "augment_copies=0"] for word in ("--set", name)]
    code, text, error = run(*words, *sets, "--folds", 3)
    assert code == 0, error
    both = sum(len(read_manifest(lesion_manifest).select(split=name)) for name in ("train", "val"))
    every = f"frozen backbone: {2 * both} images of the 3 folds together pass through it in every epoch"
    assert every in text
    assert f"before the first epoch, {3 * both} images of the 3 folds together pass through it once" in text


def test_the_head_of_a_depth_plan_has_the_parameters_of_any_range(lesion_manifest: Path, tiny_backbone: Path) -> None:
    settings = {"column": "mask", "image_size": 32, "augment": "none"}
    options = {"low": {"head.low": 0.5}, "high": {"head.high": 0.2}, "both": {"head.low": 0.1, "head.high": 30.0}}
    plans = {
        name: dinomed.plan_training(
            "depth", tiny_backbone, lesion_manifest, device="cpu", settings=settings | limits,
        )
        for name, limits in options.items()
    }  # fmt: skip
    assert len({plan.heads[0].parameters for plan in plans.values()}) == 1
    assert plans["low"].heads[0].parameters > 0


def test_the_command_prints_the_plan_and_writes_nothing(
    run: Run, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    common = ["--data", lesion_manifest, "-b", tiny_backbone, "-o", tmp_path / "out", "--cache", tmp_path / "cache"]
    words = ["train", "classify", *common, "--set", "fit.epochs=3", "--dry-run"]
    code, text, _ = run(*words, "--json")
    assert code == 0
    plan = json.loads(text)
    assert plan["config"]["fit"]["epochs"] == 3
    train = read_manifest(lesion_manifest).select(split="train")
    assert plan["splits"]["train"]["classes"] == dict(sorted(Counter(train.column("label")).items()))
    assert plan["splits"]["train"]["groups"] == len(set(train.column("group")))
    code, text, _ = run(*words)
    assert code == 0
    assert f"# train: {len(train)} images of" in text
    assert "MB of features on disk" in text
    assert list(tmp_path.iterdir()) == []
    config = tmp_path / "plan.yaml"
    config.write_text(text)  # the settings read back
    code, again, _ = run("train", "classify", *common, "--config", config, "--dry-run")
    assert code == 0
    assert again.partition("# Next: ")[0] == text.partition("# Next: ")[0]  # which has the options of this call


@pytest.mark.parametrize("folds", [0, 1, 1000])
def test_a_wrong_number_of_folds_is_refused_before_the_backbone_is_loaded(
    folds: int, run: Run, lesion_manifest: Path, tmp_path: Path
) -> None:
    words = ["--data", lesion_manifest, "-b", tmp_path / "nothing", "-o", tmp_path / "out", "--folds", folds]
    code, _, error = run("train", "classify", *words)
    assert code == 2
    assert f"--folds {folds}" in error
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_the_output_that_the_training_refuses(run: Run, user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fold_1").mkdir()
    words = ("train", "classify", "--data", user_folder / "derm.parquet", "-b", user_folder / "ssl", "--dry-run")
    for out, options, message in (
        (user_folder / "cls", (), "already holds a result"),
        (user_folder / "cls", ("--folds", "2"), "holds an adapter"),
        (user_folder / "lesions", ("--overwrite",), "is not empty and holds no adapter.safetensors"),
        (tmp_path, (), "holds folds of a cross-validation"),
    ):
        code, text, error = run(*words, "-o", out, *options)
        assert (code, text) == (2, ""), error
        assert message in error
    code, _, error = run(*words, "-o", user_folder / "cls", "--overwrite")
    assert code == 0, error
