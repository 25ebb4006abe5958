"""Splits, classes by folder, and identical images in a scan (reliability row 24)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.apps.api.inputs import select_splits
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.splits import check_splits
from dinomed.errors import UsageError
from dinomed.pretrain.data.select_images import select_images


def test_folder_names_give_classes_and_splits(
    tmp_path: Path, paint: Callable[..., Any], cells: Callable[..., Any]
) -> None:
    for i, place in enumerate(["train/nv", "train/mel", "valid/nv", "test/mel", "extra"]):
        paint(tmp_path / place / "a.png", i)
    result = scan(tmp_path, "folders")
    assert cells(result, "label") == {
        "extra/a.png": "extra", "test/mel/a.png": "mel", "train/mel/a.png": "mel", "train/nv/a.png": "nv",
        "valid/nv/a.png": "nv",
    }  # fmt: skip
    assert cells(result, "split")["valid/nv/a.png"] == "val"
    assert cells(result, "split")["extra/a.png"] is None
    assert result.notes[0] == "splits: folder names; `split=none` makes new ones"
    assert "1 image without a split; training and evaluation ignore them" in result.notes
    paint(tmp_path / "flat" / "a.png")
    with pytest.raises(UsageError, match="has no class folders"):
        scan(tmp_path / "flat", "folders")


def test_given_splits_are_normalised_and_held_to_the_groups(
    folder: Path, edit: Callable[..., Any], with_splits: Callable[..., Any]
) -> None:
    with_splits(folder, ["Training"] * 6 + ["validation"] * 2 + ["TEST", ""])
    result = scan(folder, "labels.csv", group="lesion_id")
    assert result.manifest.column("split") == ["train"] * 6 + ["val"] * 2 + ["test", None]
    edit(folder, "L4,08,TEST", "L0,08,TEST")
    with pytest.raises(UsageError, match=r"images/0.png in train and images/8.png in test: .*`split=none`"):
        scan(folder, "labels.csv", group="lesion_id")
    made = scan(folder, "labels.csv", group="lesion_id", split="none").manifest
    check_splits(made.column("group"), made.column("split"), made.column("image"))
    assert None not in made.column("split")
    edit(folder, "TEST", "fold3")
    with pytest.raises(UsageError, match="row 10: split 'fold3' is not train, val or test"):
        scan(folder, "labels.csv")


def test_identical_images_share_a_made_split_and_are_one_unit(folder: Path, cells: Callable[..., Any]) -> None:
    for copy in ("11", "12", "2"):  # 2.png is of another lesion, 11.png and 12.png of none
        (folder / f"images/{copy}.png").write_bytes((folder / "images/0.png").read_bytes())
    for seed in range(8):
        result = scan(folder, "labels.csv", group="lesion_id", label="none", seed=seed)
        split = cells(result, "split")
        assert len({split[f"images/{name}.png"] for name in (0, 1, 2, 3, 11, 12)}) == 1
    assert result.duplicates == [["images/0.png", "images/11.png", "images/12.png", "images/2.png"]]
    assert any("1 set of identical images in different groups" in line for line in result.warnings)
    ungrouped = scan(folder)
    assert set(ungrouped.manifest.groups()) == {None}
    units = dict(zip(ungrouped.manifest.column("image"), ungrouped.manifest.units(), strict=True))
    assert units["images/12.png"] == "images/0.png"
    assert units["images/5.png"] == "images/5.png"
    assert ungrouped.warnings == []


def test_identical_images_in_different_given_splits_or_classes_are_named(
    folder: Path, with_splits: Callable[..., Any]
) -> None:
    (folder / "images/8.png").write_bytes((folder / "images/2.png").read_bytes())
    with_splits(folder, ["train"] * 8 + ["test"] * 2)
    result = scan(folder, "labels.csv")
    assert result.warnings[0] == (
        "1 set of identical images in different splits (the test set contains training images): "
        "images/2.png = images/8.png"
    )
    assert any("different classes (one of the labels is wrong)" in line for line in result.warnings)
    check_splits(*map(result.manifest.column, ("group", "split", "image")))  # as later steps do


def test_a_class_with_one_sample_gives_a_warning(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "masks/9.png,nv", "masks/9.png,df")
    assert any(line.startswith("class 'df' (1 group) is not in") for line in scan(folder, "labels.csv").warnings)


def test_the_origin_of_given_splits_is_named_with_the_option_that_makes_new_ones(
    folder: Path, with_splits: Callable[..., Any]
) -> None:
    with_splits(folder, ["train", "train", "train", "train", "train", "train", "val", "val", "test", "test"])
    result = scan(folder, "labels.csv", group="lesion_id")
    assert result.notes[0] == "splits: column split of labels.csv; `split=none` makes new ones"
    # nv has 0, 1, 4, 5, 8, 9 in the groups L0, L2, L4; mel has the groups L1 and L3, too few for three splits
    assert result.warnings == [
        "class 'mel' (2 groups) is not in test",
        "class 'nv' (3 groups) is not in val; `split=none` makes new splits",
    ]
    made = scan(folder, "labels.csv", group="lesion_id", split="none")
    assert not [line for line in [*made.notes, *made.warnings] if "split=none" in line]


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"mask": "none"}, False),  # a raw pool
        ({"mask": "none", "ratios": (0.5, 0.2, 0.3)}, True),
        ({"mask": "none", "ratios": np.array([0.5, 0.2, 0.3])}, True),
        ({"mask": "none", "split": "none"}, True),
        ({}, True),  # masks
        ({"labels": "patients.csv", "group": "patient", "mask": "none"}, False),
        ({"labels": "patients.csv", "group": "patient", "mask": "none", "keep": ["age"]}, True),
        ({"labels": "labels.csv", "mask": "none"}, True),
    ],
)
def test_a_pool_without_anything_to_learn_has_no_splits_unless_they_are_asked_for(
    folder: Path, options: dict[str, Any], made: bool
) -> None:
    rows = "".join(f"images/{i}.png,P{i // 2},{40 + i}\n" for i in range(10))
    (folder / "patients.csv").write_text("image,patient,age\n" + rows)
    result = scan(folder, options.pop("labels", None), **options)
    assert result.manifest.has("split") == made
    assert any(line.startswith("no splits are made, since there are no labels") for line in result.notes) != made
    if "ratios" in options:
        assert result.manifest.column("split").count("train") == 5


def test_a_choice_by_split_of_a_pool_names_the_scan_that_makes_them(folder: Path) -> None:
    pool = scan(folder, mask="none").manifest
    with pytest.raises(
        UsageError, match=r"has no splits; scan makes them, by group: dinomed scan .* --ratios 0.7,0.1,0.2"
    ):
        select_splits(pool, pool, "train")
    assert select_splits(pool, pool, None) is pool


def test_pretraining_uses_every_image_of_a_pool(folder: Path) -> None:
    pool = scan(folder, mask="none").manifest
    train, held_aside = select_images(pool, 2, 0)
    assert (len(train), len(held_aside)) == (10, 0)
