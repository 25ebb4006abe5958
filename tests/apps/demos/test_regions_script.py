"""The script of the page finds the same regions as `select_lesions`, and its outline encloses exactly their pixels."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from dinomed.adapters.tasks.segment.lesions import LesionRules, select_lesions
from dinomed.apps.demos import launch

SCRIPT = Path(launch.__file__).parent / "static" / "regions.js"
RUN = """
global.Path2D = class {
  constructor() { this.lines = []; }
  moveTo(x, y) { this.lines.push([[x, y]]); }
  lineTo(x, y) { this.lines[this.lines.length - 1].push([x, y]); }
  closePath() {}
};
const fs = require("fs");
const [find, trace] = eval(fs.readFileSync(process.argv[1], "utf8") + "; [findRegions, traceOutline]");
console.log(JSON.stringify(JSON.parse(fs.readFileSync(0, "utf8")).map(each => {
  const levels = Uint8Array.from(each.levels), { width, height, level } = each;
  const found = find(levels, width, height, level, each.min, each.largest);
  return { regions: found.regions, outline: trace(levels, found, width, height, level).lines };
})));
"""


def run_script(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    command = [node, "-e", RUN, str(SCRIPT)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def enclosed(outline: list[list[list[float]]], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres are inside the outline, by the even-odd rule."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for polygon in map(np.array, outline):
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 != y1:
                inside ^= ((y0 > rows) != (y1 > rows)) & (columns < (x1 - x0) * (rows - y0) / (y1 - y0) + x0)
    return inside


def test_regions_and_outlines_are_those_of_python() -> None:
    rng = np.random.default_rng(0)
    maps, cases = [], []
    for number in range(40):
        levels = rng.integers(0, 201, rng.integers(1, 40, 2))
        levels = ndimage.uniform_filter(levels, 3) if number % 2 else levels
        maps.append(levels)
        cases.append({
            "levels": levels.ravel().tolist(), "height": levels.shape[0], "width": levels.shape[1],
            "level": int(rng.integers(1, 200)), "min": 3, "largest": number % 5 == 0,
        })  # fmt: skip
    for levels, case, result in zip(maps, cases, run_script(cases), strict=True):
        rules = LesionRules(min_share=3 / levels.size, largest_only=case["largest"])
        mask, lesions = select_lesions(levels >= case["level"], rules)
        assert [region["area"] for region in result["regions"]] == [lesion.area_px for lesion in lesions]
        if not case["largest"]:  # of equal regions, any may be the largest
            boxes = [(each["left"], each["top"], each["right"] + 1, each["bottom"] + 1) for each in result["regions"]]
            assert sorted(boxes) == sorted(lesion.box for lesion in lesions)
            assert (enclosed(result["outline"], levels.shape) == mask).all()
