"""What the images allow, and that what is promised is what the steps accept."""

from pathlib import Path

import pytest

from dinomed.apps.quickstart.scope import find_scope
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.errors import UsageError


def manifest(*rows: tuple[str | None, str | None, bool], groups: list[str] | None = None) -> Manifest:
    """A row an image: (split, label, has a mask)."""
    count = len(rows)
    images = [f"{i:03}.png" for i in range(count)]
    return build_manifest(
        {
            "image": images, "sha256": [f"{i:064x}" for i in range(count)], "width": [8] * count,
            "height": [8] * count, "mode": ["RGB"] * count, "format": ["PNG"] * count, "bytes": [9] * count,
            "group": groups or [None] * count,
            "split": [row[0] for row in rows],
            "label": [row[1] for row in rows],
            "mask": [f"masks/{name}" if row[2] else None for name, row in zip(images, rows, strict=True)],
        },
        Path("x"),
    )  # fmt: skip


def of(split: str | None, labels: str, mask: bool = False) -> list[tuple[str | None, str | None, bool]]:
    """A row for each letter; ``-`` is no label."""
    return [(split, None if letter == "-" else letter, mask) for letter in labels]


@pytest.mark.parametrize(
    ("rows", "classify", "judged", "why"),
    [
        ([*of("train", "aabb"), *of("val", "ab"), *of("test", "ab")], True, True, None),
        ([*of("train", "aabb"), *of("val", "ab"), *of("test", "aa")], True, False, "metrics of"),
        ([*of("train", "aabb"), *of("val", "ab")], True, False, "metrics of"),
        ([*of("train", "aabb"), *of("val", "ab"), *of("test", "xy")], True, False, "metrics of"),  # unknown to train
        ([*of("train", "aaaa"), *of("val", "ab"), *of("test", "ab")], False, False, "one class"),
        ([*of("train", "aabb"), *of("val", "cc"), *of("test", "ab")], False, False, "occurs in train"),
        ([*of("train", "----"), *of("test", "ab")], False, False, "no usable image in split 'train'"),
        ([*of("train", "aaaabbbb"), *of("test", "ab")], True, True, None),  # val is cut out of train
        ([*of("train", "-----")], False, False, "no labels"),
    ],
)
def test_classes(rows: list, classify: bool, judged: bool, why: str | None) -> None:
    scope = find_scope(manifest(*rows), Path("pictures"), 0)
    assert scope.tasks == ({"classify": judged} if classify else {})
    of_classes = [line for line in scope.refused if "segment" not in line]
    assert (why in of_classes[0]) if why else not of_classes


@pytest.mark.parametrize(
    ("rows", "segment", "judged", "why"),
    [
        ([*of("train", "----", True), *of("val", "-", True), *of("test", "-", True)], True, True, None),
        ([*of("train", "----", True), *of("val", "-"), *of("test", "-")], True, False, "no mask in test"),
        ([*of("train", "----"), *of("test", "--", True)], False, False, "no usable image in split 'train'"),
        ([*of("train", "---"), *of("train", "-", True), *of("test", "-", True)], False, False, "too few groups"),
        ([*of("train", "----")], False, False, "no masks"),
    ],
)
def test_masks(rows: list, segment: bool, judged: bool, why: str | None) -> None:
    scope = find_scope(manifest(*rows), Path("pictures"), 0)
    assert scope.tasks == ({"segment": judged} if segment else {})
    of_masks = [line for line in scope.refused if "segment" in line]
    assert (why in of_masks[0]) if why else not of_masks
    assert all(line in scope.sentence() for line in of_masks)


def test_empty_masks_teach_nothing() -> None:
    rows = [*of("train", "----", True), *of("val", "-", True), *of("test", "-", True)]
    scope = find_scope(manifest(*rows), Path("pictures"), 0, all_empty=True)
    assert not scope.tasks
    assert "every mask is empty" in scope.sentence()


def test_images_to_pretrain_on_are_counted_as_pretraining_does() -> None:
    rows = [*of("train", "----"), *of(None, "---"), *of("test", "--")]
    groups = [*"abcd", "e", "f", "x", "x", "y"]  # the image without a split of group x has another in test
    assert find_scope(manifest(*rows, groups=groups), Path("pictures"), 0).images == 6


def test_too_few_images_name_the_folder() -> None:
    with pytest.raises(UsageError, match=r"^pictures: 5 readable images, 3 of them for training"):
        find_scope(manifest(*of("train", "---"), *of("test", "--")), Path("pictures"), 0)


def test_what_a_step_would_warn_of_is_left_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    find_scope(manifest(*of("train", "aaaabbbb", True), *of("test", "ab")), Path("pictures"), 0)
    assert capsys.readouterr().err == ""
