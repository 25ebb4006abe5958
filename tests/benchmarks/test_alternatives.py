"""Parts of the benchmark of alternatives: no network access, and thumbnails."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def alternatives(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("alternatives")


def test_albumentations_does_not_look_for_updates(
    alternatives: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "albumentations.py").write_text(
        "import os\nSETTING = os.environ.get('NO_ALBUMENTATIONS_UPDATE')\n"
        "D4 = ColorJitter = lambda *a, **k: None\nCompose = lambda *a, **k: SETTING\n"
    )
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"})
    for name in [name for name in sys.modules if name.split(".")[0] == "albumentations"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert alternatives.build_augmentation(0) == "1"
    sys.modules.pop("albumentations")


def test_thumbnails_are_area_means(alternatives: ModuleType) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:2, :3] = 200
    assert alternatives.shrink(image, 2)[:, :, 0].tolist() == [[200, 0], [0, 0]]
