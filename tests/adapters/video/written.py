"""A stand-in for a segmenter, and reading of what `predict` wrote for videos, for the tests of this folder."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.adapters.tasks.segment.predict import MaskPrediction, SegmentPredictor
from dinomed.images.intensity import IntensityConfig
from dinomed.video.video import Video

BACKBONE = SimpleNamespace(fingerprint="dark", preprocessing=SimpleNamespace(intensity=IntensityConfig()))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def masks_in(path: Path) -> list[np.ndarray]:
    """The values of a mask video; all channels of a gray video are equal."""
    frames = [frame.pixels for frame in Video(path).stream()]
    assert all((frame == frame[..., :1]).all() for frame in frames)
    return [frame[..., 0] for frame in frames]


def only(out: Path) -> Path:
    """The folder of the only video of a result."""
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


class Dark(SegmentPredictor):
    """A stand-in with a known rule: dark pixels are the lesion."""

    def __init__(self, *classes: str) -> None:
        self.task, names = "segment", classes or ("lesion",)
        self.classes, self.backbone = names, BACKBONE  # type: ignore[assignment]
        self.schema = MaskSchema("multilabel" if classes else "binary", names, tuple(range(len(names))))
        self.metadata = {"weights_sha256": "0" * 64}
        self.check = self.abstention = None
        self.seen = 0

    def predict(self, images: Iterable[Any]) -> list[MaskPrediction]:
        results = []
        for image in images:
            self.seen += 1
            probability = 1 - image.mean(axis=-1).astype(np.float32) / 255
            planes = np.stack([probability / (k + 1) for k in range(len(self.classes))])
            masks = {name: (planes[0] >= 0.5).astype(np.uint8) for name in self.classes}
            results.append(MaskPrediction(masks[self.classes[0]], masks, planes))
        return results
