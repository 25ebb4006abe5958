"""The comparison of image loaders: equal kinds of views, and the contents of the report."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(find_spec("albumentations") is None, reason="albumentations is not installed")
SIZE = "96x72"


@pytest.fixture(scope="module")
def loading(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("loading")


def test_all_loaders_give_views_of_the_same_kind(loading: ModuleType, tmp_path: Path) -> None:
    (path,) = loading.write_images(tmp_path, SIZE, 1)
    for name, build in loading.LOADERS.items():
        large, small = build()(path, 3)
        assert (large.shape, small.shape) == ((2, 224, 224, 3), (8, 98, 98, 3)), name
        assert large.dtype == small.dtype == np.uint8, name
        assert large[0].std() > 1, name
        assert (large[0] != large[1]).any(), name


def test_the_report_holds_all_comparisons(
    loading: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"loading.py --size {SIZE} --workers 0 --rounds 1 --images 4 --distribution-passes 2 --draws 400"
    monkeypatch.setattr(sys, "argv", words.split())
    loading.main()
    report = json.loads(capsys.readouterr().out)
    counted = report["shares"]
    # 400 draws: 4 standard errors of a share of 0.5 are 0.1, of 0.2 or 0.1 they are 0.08
    assert counted["flipped"] == pytest.approx(0.5, abs=0.1)
    assert counted["gray"] == pytest.approx(0.2, abs=0.08)
    assert counted["blurred, paper"] == pytest.approx([1.0, 0.1], abs=0.08)
    assert counted["blurred, released"] == pytest.approx([0.0, 0.9], abs=0.08)
    comparisons = report[SIZE]
    bound = comparisons["windows"]["at p = 0.01"]
    for kind in ("global", "local"):  # of 8 distances one in 100 is beyond the bound by chance, and none far
        assert max(comparisons["windows"][kind].values()) < 1.5 * bound
    for unit in ("clock", "core"):
        assert all(speed["median"] > 0 for speed in comparisons[f"images per second, {unit}"].values())
        times = comparisons[f"times the reference, {unit}"]
        assert times["reference (PIL)"] == {"median": 1.0, "min": 1.0, "max": 1.0}
        assert times.keys() == loading.LOADERS.keys()
    assert set(comparisons["distributions"]) == {"ours", "ours, whole JPEG"}


def test_differences_between_loaders_are_detected(loading: ModuleType) -> None:
    """The figures that distributions are compared by tell a gray view, and a blurred one, from another."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), np.uint8)
    gray = np.repeat(noise[..., :1], 3, axis=3)
    assert loading.describe_gray(np.concatenate([noise, gray])).tolist() == [False] * 5 + [True] * 5
    assert loading.describe(gray)["colourfulness"].max() < 1e-3 < loading.describe(noise)["colourfulness"].min()
    flat = np.full_like(noise, 100)
    assert loading.describe(flat)["sharpness"].max() < loading.describe(noise)["sharpness"].min()
    assert loading.describe(noise)["mean R"] == pytest.approx(noise[..., 0].mean((1, 2)), rel=1e-5)
