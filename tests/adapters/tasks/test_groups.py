"""Groups: the frames that are used, their order, and features pooled over them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinomed.adapters.tasks.classify.groups import evenly_spaced, group_images, label_groups
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.errors import UsageError


def collection(images: list[str], groups: list[str | None], **columns: list[str | None]) -> Manifest:
    n = len(images)
    fixed = {"width": [8] * n, "height": [8] * n, "bytes": [1] * n, "mode": ["RGB"] * n, "format": ["PNG"] * n}
    shas = [f"{i:064x}" for i in range(n)]
    return build_manifest({"image": images, "sha256": shas, **fixed, "group": groups, **columns}, Path("."))


@given(st.integers(1, 400), st.integers(1, 20))
def test_places_are_in_order_within_the_row_and_evenly_spread(count: int, wanted: int) -> None:
    places = evenly_spaced(count, wanted)
    assert len(places) == wanted
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] < count
    steps = np.diff(places)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
    assert abs(places[0] - (count - 1 - places[-1])) <= 1  # as much is left out before as after


def test_frames_are_ordered_by_the_numbers_in_their_names_or_by_a_column() -> None:
    images = ["v/10.png", "v/9.png", "v/1.png", "w.png", "v/2.png"]
    groups = ["v", "v", "v", None, "v"]
    grouped = group_images(collection(images, groups))
    names = grouped.manifest.column("image")
    assert [[names[i] for i in members] for members in grouped.members] == [
        ["v/1.png", "v/2.png", "v/9.png", "v/10.png"],
        ["w.png"],
    ]
    assert grouped.names == ("v", None)
    by_column = group_images(collection(images, groups, frame=["1", "2", "3", None, "0.5"]), frames=2)
    names = by_column.manifest.column("image")
    assert [names[i] for i in by_column.members[0]] == ["v/10.png", "v/1.png"]  # the 2nd and 4th of 4
    with pytest.raises(UsageError, match="'frame' holds 'last'"):
        group_images(collection(images, groups, frame=["1", "last", "3", None, "2"]))


def test_features_are_averaged_or_concatenated_block_by_block() -> None:
    grouped = group_images(collection(["a1", "a2", "b1"], ["a", "a", "b"]), 2, fill=True)
    features = np.array([[1, 2, 10, 20], [3, 4, 30, 40], [5, 6, 50, 60]], np.float32)  # two blocks of two channels
    assert grouped.pool(features, "mean", 2).tolist() == [[2, 3, 20, 30], [5, 6, 50, 60]]
    assert grouped.pool(features, "concat", 2).tolist() == [[1, 2, 3, 4, 10, 20, 30, 40], [5, 6, 5, 6, 50, 60, 50, 60]]


def test_only_frames_that_are_used_are_kept_and_a_group_shares_one_row() -> None:
    images = [f"v{i}.png" for i in range(100)] + ["x.png"]
    grouped = group_images(collection(images, ["v"] * 100 + ["x"], label=["1"] * 100 + ["0"]), 8)
    assert [len(members) for members in grouped.members] == [8, 1]
    assert len(grouped.manifest) == 9
    assert grouped.first().column("label") == ["1", "0"]


def test_missing_groups_and_mixed_labels_raise_an_error() -> None:
    with pytest.raises(UsageError, match="column 'group'"):
        group_images(collection(["a.png"], [None]))
    manifest = collection(["a1", "a2", "b1"], ["a", "a", "b"], label=["x", "y", "x"])
    with pytest.raises(UsageError, match="1 of 2 groups hold images of different labels in column 'label'"):
        label_groups(group_images(manifest), manifest, LabelColumns(("label",)))


def test_a_group_has_the_labels_that_are_known_of_any_of_its_images() -> None:
    images, groups = ["a1.png", "a2.png", "a3.png", "b1.png", "c.png"], ["a", "a", "a", "b", None]
    columns = LabelColumns(("round", "dark"))
    manifest = collection(images, groups, round=[None, "1", "1.0", None, "0"], dark=["0", None, "false", None, None])
    grouped = group_images(manifest, frames=1)
    assert grouped.manifest.column("image")[0] == "a2.png"
    targets, _ = columns.read_targets(label_groups(grouped, manifest, columns), ["round", "dark"], "train")
    np.testing.assert_array_equal(targets, [[1, 0], [np.nan, np.nan], [0, np.nan]])


def test_labels_of_a_group_are_compared_by_what_they_say() -> None:
    images, groups = ["a1.png", "a2.png", "b1.png"], ["a", "a", "b"]
    several = LabelColumns(("label",), separator="|")
    manifest = collection(images, groups, label=["x|y", "y| x|", "x"])
    assert label_groups(group_images(manifest), manifest, several).column("label") == ["x|y", "x"]
    with pytest.raises(UsageError, match="1 of 2 groups hold images of different labels in column 'label'"):
        label_groups(group_images(manifest), manifest, LabelColumns(("label",)))
    columns = LabelColumns(("round", "dark"))
    manifest = collection(images, groups, round=["1", "True", "0"], dark=["0.0", "false", "1"])
    assert len(label_groups(group_images(manifest), manifest, columns)) == 2
    manifest = collection(images, groups, round=["1", "True", "0"], dark=["0", "1", "1"])
    with pytest.raises(UsageError, match="in column 'dark'"):
        label_groups(group_images(manifest), manifest, columns)
