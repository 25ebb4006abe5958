"""Few-shot masks: nested draws by group, fits that use only their draw, and scores that follow the masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dinomed.adapters.evaluation import few_masks
from dinomed.adapters.evaluation.draws import draw_images, interval_over_draws
from dinomed.adapters.evaluation.few_masks import few_shot_config, few_shot_masks
from dinomed.adapters.evaluation.mask_baselines import otsu_mask
from dinomed.adapters.fit import fit_head
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.segment.evaluate import evaluate_segmenter
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.masks import dice_of_targets
from dinomed.apps.pages.few_shot import build_few_mask_page
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.images.read import read_image

FIT = {"epochs": 2, "min_steps": 4, "batch_size": 8}


@pytest.fixture(scope="module")
def report(tiny_backbone: Path, lesion_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = few_shot_config({"image_size": 64, "fit": FIT})
    cache = tmp_path_factory.mktemp("cache")
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    return few_shot_masks(backbone, manifest, config, cache=cache, shots=(10, None), seeds=2)


def test_draws_are_nested_by_group_with_a_fifth_for_validation(lesion_manifest: Path) -> None:
    pool = read_manifest(lesion_manifest)
    small, large = (draw_images(pool, count, 0) for count in (10, 25))
    assert (len(small), len(large)) == (10, 25)
    assert set(small.column("image")) < set(large.column("image"))
    split_of = dict(zip(large.column("image"), large.column("split"), strict=True))
    assert [split_of[name] for name in small.column("image")] == small.column("split")
    assert 3 <= large.column("split").count("val") <= 7
    assert not {*large.select(split="train").units()} & {*large.select(split="val").units()}
    assert set(draw_images(pool, 10, 1).column("image")) != set(small.column("image"))
    assert len(draw_images(pool, None, 0)) == len(pool)


def test_small_draws_of_classes_hold_every_class(lesion_manifest: Path) -> None:
    pool = read_manifest(lesion_manifest)
    drawn = draw_images(pool, 10, 0, "label")
    assert set(drawn.select(split="train").column("label")) == set(pool.column("label"))


def test_the_interval_covers_draws_and_groups() -> None:
    groups = [str(number) for number in range(50)]
    values = np.random.default_rng(0).uniform(0.5, 1, (1, 50))
    low, high = interval_over_draws(values, groups)
    assert low < values.mean() < high
    wide = interval_over_draws(np.concatenate([values + step for step in (-0.2, 0.0, 0.2)]), groups)
    assert wide[1] - wide[0] > high - low
    # two images of each group with equal values hold no more than one of them
    twice = interval_over_draws(np.repeat(values, 2, axis=1), [group for group in groups for _ in range(2)])
    assert twice == pytest.approx((low, high))


def test_the_report_has_a_row_for_each_number_and_baselines(report: dict[str, Any], lesion_manifest: Path) -> None:
    manifest = read_manifest(lesion_manifest)
    test = manifest.select(split="test")
    assert [(row["shots"], row["draws"]) for row in report["shots"]] == [(10, 2), (None, 1)]
    assert report["aspect"] == "square"
    assert [row["images"] for row in report["shots"]] == [10, len(manifest) - len(test)]
    for row in (*report["shots"], *report["baselines"]):
        dice = row["dice"]
        assert 0 <= dice["low"] <= dice["mean"] <= dice["high"] <= 1
    baselines = {row["name"]: row["dice"]["mean"] for row in report["baselines"]}
    scores = [
        dice_of_targets(otsu_mask(read_image(test.path(row)))[None], BINARY.read(test, row), BINARY)
        for row in range(len(test))
    ]
    assert baselines["Otsu's threshold"] == pytest.approx(np.mean(scores))
    assert 0 < baselines["mean mask"] < 1
    page = build_few_mask_page(report)
    assert "<svg" in page
    assert "mean mask" in page
    assert not any(value in page for column in ("image", "group") for value in manifest.column(column))


def test_a_draw_of_all_images_equals_an_ordinary_fit_on_them(
    report: dict[str, Any], tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    manifest, backbone = read_manifest(lesion_manifest), load_backbone(tiny_backbone)
    labelled = manifest.take([i for i, split in enumerate(manifest.column("split")) if split != "test"])
    drawn = draw_images(labelled, None, 0)
    config = few_shot_config({"image_size": 64, "fit": FIT})
    folder = fit_head(backbone, drawn, tmp_path / "seg", config, cache=tmp_path / "cache").folder
    dice = evaluate_segmenter(load_adapter(folder), manifest.select(split="test")).columns["dice"]  # type: ignore[arg-type]
    # float16 features of the cache against float32 features of the prediction move single pixels at the threshold
    assert report["shots"][-1]["dice"]["mean"] == pytest.approx(dice.mean(), abs=2e-3)


def test_the_test_split_is_not_used_for_a_fit(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(lesion_manifest)
    drawn_of: list[set[str]] = []
    real = few_masks.open_pool

    def noted(backbone: Any, schema: Any, images: Manifest, *arguments: Any) -> Any:
        drawn_of.append(set(images.units()))
        return real(backbone, schema, images, *arguments)

    monkeypatch.setattr(few_masks, "open_pool", noted)
    for split in ("test", "val"):
        config = few_shot_config({"image_size": 32, "fit": {**FIT, "min_steps": 0, "epochs": 1}})
        few_shot_masks(
            load_backbone(tiny_backbone), manifest, config, cache=tmp_path, shots=(12,), seeds=1, split=split
        )
        assert not drawn_of[-1] & set(manifest.select(split="test").units())
        assert not drawn_of[-1] & set(manifest.select(split=split).units())


def test_augmented_copies_are_those_of_the_drawn_images(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(lesion_manifest).select(split="train")
    config = few_shot_config({"image_size": 32, "augment": "light", "augment_copies": 2, "fit": FIT})
    backbone = load_backbone(tiny_backbone)
    pool = few_masks.open_pool(backbone, BINARY, manifest, manifest, config, tmp_path)
    source = few_masks.DrawnFeatureSource(pool.features, [5, 9], [3])
    batch = few_masks.BatchIndices(torch.tensor([1, 0]), 0)
    (drawn,), (whole,) = (
        list(s.train([few_masks.BatchIndices(rows, 0)]))
        for s, rows in ((source, batch.indices), (pool.features, torch.tensor([9, 5])))
    )
    assert torch.equal(drawn.features.patches, whole.features.patches)
    assert torch.equal(drawn.targets, whole.targets)
    assert torch.equal(source.val([0]).patches, pool.features.val([3]).patches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune": "last:1"}, "tune: few-shot"),
        ({"scales": [1.0, 2.0]}, "scales: few-shot"),
        ({"flips": True}, "flips: few-shot"),
        ({"augment": "light", "augment_copies": 0}, "augment_copies=0: few-shot"),
        ({"fit": {"epochz": 3}}, "unknown key 'fit.epochz'"),
    ],
)
def test_settings_that_need_several_passes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        few_shot_config(settings)


def test_a_choice_among_heads_is_refused(tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path) -> None:
    manifest, backbone = read_manifest(lesion_manifest), load_backbone(tiny_backbone)
    with pytest.raises(UsageError, match="head auto is a choice among heads"):
        few_shot_masks(backbone, manifest, few_shot_config({"head": {"name": "auto"}}), cache=tmp_path, shots=(10,))


def test_numbers_that_cannot_be_drawn_are_refused(tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path) -> None:
    manifest, backbone = read_manifest(lesion_manifest), load_backbone(tiny_backbone)
    config = few_shot_config({"image_size": 32, "fit": FIT})
    with pytest.raises(UsageError, match="give smaller numbers"):
        few_shot_masks(backbone, manifest, config, cache=tmp_path, shots=(1000,))
    video = build_manifest(
        {name: manifest.column(name) for name in manifest.columns}
        | {"group": [f"video-{split}" for split in manifest.column("split")]},
        manifest.root,
    )
    with pytest.raises(UsageError, match="10 images with masks, drawn by group, are of 1 groups"):
        few_shot_masks(backbone, video, config, cache=tmp_path, shots=(10,))
    table = manifest.table.set_column(
        manifest.columns.index("mask"), "mask", pa.array([None] * len(manifest), pa.string())
    )
    with pytest.raises(UsageError, match="no masks"):
        few_shot_masks(backbone, Manifest(table, manifest.root), config, cache=tmp_path, shots=(10,))


def test_a_diverged_fit_names_an_image(tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path) -> None:
    config = few_shot_config({"image_size": 32, "fit": {"epochs": 1, "min_steps": 0, "learning_rate": 1e300}})
    with pytest.raises(DinomedError, match=r"^images/SYN_\w+\.jpg: .* not finite .* for this and 11 more images"):
        few_shot_masks(
            load_backbone(tiny_backbone), read_manifest(lesion_manifest), config, cache=tmp_path, shots=(12,), seeds=1
        )


def test_the_command_writes_a_page_and_a_record_and_refuses_options_of_the_other_task(
    run: Any, tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    shared = (tiny_backbone, "--data", lesion_manifest, "--cache", tmp_path / "cache", "--device", "cpu")
    short = ("--set", "fit.epochs=1", "--set", "fit.min_steps=0", "--image-size", 32, "--few-shot", "12", "--seeds", 1)
    code, out, err = run("probe", *shared, "--task", "segment", *short, "-o", tmp_path / "out")
    assert (code, "mean mask" in out) == (0, True), err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["few_shot.json", "report.html"]
    for words, message in (
        (("--task", "segment", "--aspect", "keep"), "take squares; leave --aspect keep out, or give pad"),
        (("--head", "dpt"), "--head and --set are for the fits of --task segment"),
        (("--task", "depth"), "give classify or segment"),
    ):
        code, _, err = run("probe", *shared, *words)
        assert code == 2
        assert message in err
