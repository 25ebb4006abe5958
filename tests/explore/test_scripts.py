"""The scripts of pages compute what Python computes."""

import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from dinomed.explore.live_page import STATIC, encode_features
from dinomed.explore.map_page import colour_groups
from dinomed.explore.similarity import compact_tokens, similarity_maps

SIMILARITY = """
const { text, rows, columns, components, patch } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const images = text.map((each) => takeFeatures(each, rows, columns, components));
console.log(JSON.stringify(images.map((each) => [...similarityTo(images[0], patch, each)])));
"""
LASSO = """
const { polygon, points } = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(points.map(([x, y]) => inside(x, y, polygon))));
"""


def run_script(script: str, data: dict[str, Any]) -> Any:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    done = subprocess.run([node, "-e", script], input=json.dumps(data), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_similarity_of_the_page_is_that_of_the_features() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(5, 7, 40)).astype(np.float32) for _ in range(2)]
    reduced = compact_tokens(images)
    data = {
        "text": [encode_features(values) for values in reduced],
        "rows": 5, "columns": 7, "components": reduced[0].shape[-1], "patch": 2 * 7 + 3,
    }  # fmt: skip
    answers = run_script((STATIC / "similarity.js").read_text() + SIMILARITY, data)
    for values, exact in zip(answers, similarity_maps(images, 0, (2, 3)), strict=True):
        assert np.abs(np.array(values).reshape(5, 7) - exact).max() < 0.02  # rounding to int8


def test_the_lasso_selects_the_points_inside() -> None:
    source = (STATIC / "map_plane.js").read_text()
    polygon = [[0, 0], [10, 0], [10, 10], [5, 4], [0, 10]]  # not convex
    points = [[5, 2], [5, 9], [1, 8], [9, 8], [11, 5], [-1, 5]]
    assert run_script(source + LASSO, {"polygon": polygon, "points": points}) == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]


def test_frequent_values_have_colours_and_the_rest_is_other_or_unknown() -> None:
    values = ["a"] * 3 + ["b"] * 5 + [None] + [f"rare {number}" for number in range(7)]
    names, groups = colour_groups(values)
    assert names[:2] == ["b", "a"]
    assert names[-2:] == ["other", "unknown"]
    assert len(names) == 9
    assert [names[group] for group in groups[:9]] == ["a"] * 3 + ["b"] * 5 + ["unknown"]
    assert colour_groups([None, None]) == (["unknown"], pytest.approx(np.zeros(2)))
