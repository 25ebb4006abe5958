"""Conditions on the manifest, and the images of the same group."""

from pathlib import Path

import numpy as np
import pytest

from dinomed.adapters.retrieval.filters import GroupLookup, choose_rows, parse_conditions
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.errors import UsageError


@pytest.fixture
def manifest() -> Manifest:
    count = 6
    return build_manifest(
        {
            "image": [f"{i}.png" for i in range(count)],
            "sha256": ["aa", "bb", "cc", "dd", "ee", "aa"],
            "width": [8] * count, "height": [8] * count, "mode": ["RGB"] * count, "format": ["PNG"] * count,
            "bytes": [1] * count,
            "group": ["p1", "p1", "p2", None, None, "p3"],
            "sex": ["male", "female", "male", None, "female", "male"],
            "age": ["50", "9", "70.5", None, "nan", "old"],
            "site": ["Ha\u0308nde", "H\u00e4nde", "Arm", None, "Arm", "Arm"],
            "mm": ["3", "4,5", "6", None, "7", "8"],
        },
        Path("."),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (["sex=male"], [0, 2, 5]),
        (["sex!=male"], [1, 4]),  # an empty cell meets no condition
        (["age>=50"], [0, 2]),  # as numbers: "9" is not beyond "50"; what is no number meets none
        (["age<50"], [1]),
        ([" sex = male ", "age > 50"], [2]),
        (["image=1.png"], [1]),
        (["site=H\u00e4nde"], [0, 1]),  # in both Unicode forms
        (["site!=Ha\u0308nde"], [2, 4, 5]),
    ],
)
def test_conditions(manifest: Manifest, texts: list[str], rows: list[int]) -> None:
    assert np.flatnonzero(choose_rows(manifest, parse_conditions(texts))).tolist() == rows


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["sax=male"], "did you mean 'sex'"),
        (["sex=mael"], "did you mean 'male'"),
        (["sex=m", ], "known: female, male"),
        (["age>old"], "'old' is no number"),
        (["sex>1"], "holds no numbers"),
        (["mm>4"], "column 'mm' holds '4,5'; write its numbers with a point"),
        (["sex"], "expected COLUMN=VALUE"),
        (["=male"], "expected COLUMN=VALUE"),
        (["sex="], "expected COLUMN=VALUE"),
        (["sex=female", "age>=70"], "`where`: no image meets all conditions: sex=female, age>=70; leave one out"),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be_met_are_named(manifest: Manifest, texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_rows(manifest, parse_conditions(texts))


def test_no_condition_chooses_every_row(manifest: Manifest) -> None:
    assert choose_rows(manifest, []) is None


def test_rows_of_a_query_are_the_same_bytes_and_the_same_group(manifest: Manifest) -> None:
    lookup = GroupLookup(manifest)
    assert lookup.rows("zz").tolist() == []
    assert lookup.rows("cc").tolist() == [2]
    # the same picture is in the index twice, under two patients: neither they nor their other pictures are shown
    assert lookup.rows("aa").tolist() == [0, 1, 5]
    assert lookup.rows("zz", "p1").tolist() == [0, 1]
    assert lookup.rows("dd").tolist() == [3]
    assert [lookup.is_known(*query) for query in (("zz", None), ("zz", "p9"), ("cc", None), ("dd", None))] == [
        False, True, True, False,
    ]  # fmt: skip


def test_an_unknown_group_has_no_other_images(manifest: Manifest) -> None:
    assert GroupLookup(manifest).rows("zz", manifest.groups()[3]).tolist() == []
