"""Parts of the benchmarks of left-out centres and of masked text, whose runs take minutes."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dinomed.datasets.manifest import build_manifest

Script = Callable[[str], ModuleType]


def test_halves_and_removed_rows_keep_groups_whole(script: Script) -> None:
    centre = script("left_out_centre")
    groups = np.array(list("aaabbcdddd"))
    parts = centre.shuffled_groups(groups, np.arange(10), np.random.default_rng(0))
    assert sorted("".join(groups[part][0] for part in parts)) == list("abcd")
    first, second = centre.halves(parts)
    assert sorted([*first, *second]) == list(range(10))
    assert not set(groups[first]) & set(groups[second])
    assert abs(len(first) - len(second)) <= 2
    rest = centre.without_rows(parts, 4)
    assert len(rest) <= 6
    assert all(np.isin(np.flatnonzero(groups == name), rest).all() for name in set(groups[rest]))


def test_a_centre_of_one_group_ends_the_program_with_a_remedy(script: Script) -> None:
    centre = script("left_out_centre")
    groups = np.array(list("aabbccdd"))
    centre.check_groups(np.array(list("xxxxyyyy")).repeat(2), np.arange(16))
    with pytest.raises(SystemExit, match=r"centre x: 3 groups, the other centres 1; .* --column or --group"):
        centre.check_groups(np.array(list("xxxxxxyy")), groups)
    first, second = centre.halves([np.arange(3)])
    assert (len(first), len(second), second.dtype.kind) == (3, 0, "i")


def test_the_gap_between_centres_is_that_of_the_predictions_without_them(script: Script) -> None:
    count = 60
    columns = {
        "image": [f"{row}.png" for row in range(count)], "sha256": [f"{row:064x}" for row in range(count)],
        "width": [8] * count, "height": [8] * count, "bytes": [1] * count, "mode": ["RGB"] * count,
        "format": ["PNG"] * count, "centre": ["C1"] * 25 + ["C2"] * 25 + ["C3"] * 10,
        "group": [f"g{row}" for row in range(count)],
    }  # fmt: skip
    dice = np.array([0.2, 0.4] * 12 + [0.3] + [0.7] * 25 + [0.0] * 10)
    summary = script("left_out_centre").summarize_gap(build_manifest(columns, Path(".")), "centre", dice)
    gap = summary["gap"]
    assert (gap["worst"], gap["best"], gap["too_small"]) == ("C1", "C2", ["C3"])  # C3 has 10 groups
    assert gap["gap"] == pytest.approx(0.4)
    assert gap["low"] < 0.4 < gap["high"]
    assert summary["all"]["value"] == pytest.approx(dice.mean())


def test_planted_text_changes_the_picture_and_the_table_counts_it(script: Script) -> None:
    text = script("burned_in_text")
    picture = np.full((120, 160, 3), 90, np.uint8)
    for font in ("outline", "strokes"):
        written = text.plant(picture, 0.08, (255, 255, 255), font, np.random.default_rng(0))
        assert 50 < (written != picture).any(axis=2).sum() < 6000
        assert (picture == 90).all()
    rows = [{"height": 0.1, "share": share} for share in (1.0, 0.995, 0.5, 0.0)]
    (row,) = text.summarize(rows, "height")
    assert (row["drawings"], row["masked"], row["missed"]) == (4, 0.5, 0.25)
    assert text.resize(picture, 60).shape == (60, 80, 3)
    assert text.resize(picture, None) is picture
