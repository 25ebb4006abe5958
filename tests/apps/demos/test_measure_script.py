"""The script of the page measures diameters and asymmetry as a direct computation does."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from dinomed.apps.demos import launch

SCRIPT = Path(launch.__file__).parent / "static" / "measure.js"
RUN = """
const source = require("fs").readFileSync(process.argv[1], "utf8").split("let settling")[0];
const [diameters, asymmetry] = eval(source + "; [regionDiameters, regionAsymmetry]");
console.log(JSON.stringify(JSON.parse(require("fs").readFileSync(0, "utf8")).map(each => ({
  ...diameters(each.runs, each.width, each.sx, each.sy), asymmetry: asymmetry(each.runs, each.width, each.sx, each.sy),
}))));
"""


def runs_of(mask: np.ndarray) -> list[int]:
    """Start and end of each run of pixels, as positions in the flat mask; runs end at the end of a row."""
    runs: list[int] = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        runs += (edges + row * mask.shape[1]).tolist()
    return runs


def measure(masks: list[np.ndarray], sx: float = 1.0, sy: float = 1.0) -> list[dict[str, Any]]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    cases = [{"runs": runs_of(mask), "width": mask.shape[1], "sx": sx, "sy": sy} for mask in masks]
    done = subprocess.run(
        [node, "-e", RUN, str(SCRIPT)], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def blobs(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(count):
        smooth = ndimage.gaussian_filter(rng.normal(size=(40, 60)), 4)
        labels, _ = ndimage.label(smooth > np.quantile(smooth, 0.7))
        masks.append(labels == np.bincount(labels[labels > 0]).argmax())
    return masks


@pytest.mark.parametrize(("sx", "sy"), [(1.0, 1.0), (0.4, 0.7)])
def test_diameters_are_those_of_all_pairs_of_corners(sx: float, sy: float) -> None:
    masks = blobs(6)
    for mask, result in zip(masks, measure(masks, sx, sy), strict=True):
        rows, columns = np.nonzero(mask)
        corners = np.unique(
            np.concatenate([np.stack([(columns + i) * sx, (rows + j) * sy], 1) for i in (0, 1) for j in (0, 1)]), axis=0
        )
        distances = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
        first, second = np.unravel_index(distances.argmax(), distances.shape)
        assert result["longest"] == pytest.approx(distances.max())
        along = (corners[second] - corners[first]) / distances.max()
        assert result["perpendicular"] == pytest.approx(np.ptp(corners @ np.array([-along[1], along[0]])), rel=1e-6)


def test_a_disc_and_a_rectangle_are_symmetric_and_a_wedge_is_not() -> None:
    rows, columns = np.mgrid[:120, :160]
    disc = np.hypot(rows - 60, columns - 80) < 40
    rectangle = (abs(rows - 60) < 15) & (abs(columns - 80) < 50)
    wedge = (columns > 30) & (columns < 130) & (rows > 20) & (rows < 20 + (columns - 30) * 0.6)
    measured = measure([disc, rectangle, wedge])
    assert measured[0]["longest"] == pytest.approx(80, abs=2)  # corners of pixels
    assert measured[1]["longest"] == pytest.approx(np.hypot(99, 29))
    assert measured[0]["asymmetry"] < 0.03
    assert measured[1]["asymmetry"] == 0
    assert measured[2]["asymmetry"] > 0.15


def test_the_asymmetry_is_the_share_of_mirrored_pixels_outside() -> None:
    for mask, result in zip(blobs(6), measure(blobs(6)), strict=True):
        rows, columns = np.nonzero(mask)
        points = np.stack([columns - columns.mean(), rows - rows.mean()])
        axes = np.linalg.eigh(points @ points.T)[1].T
        shares = []
        for axis in axes:
            mirrored = 2 * np.outer(axis, axis) @ points - points
            x, y = np.round(mirrored + np.array([[columns.mean()], [rows.mean()]])).astype(int)
            inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
            inside[inside] = mask[y[inside], x[inside]]
            shares.append(1 - inside.mean())
        assert result["asymmetry"] == pytest.approx(np.mean(shares), abs=0.01)  # rounding of half pixels
