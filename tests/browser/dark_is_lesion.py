"""Serves the segmentation demo over a predictor without a network: the darker, the more probable."""

import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.apps.demos.serve import private_environment, serve


class Dark:
    """A predictor by its contract (probability, threshold), countable by the test."""

    threshold = 0.5

    def probability(self, image: np.ndarray) -> np.ndarray:
        print("model called", file=sys.stderr, flush=True)
        return (1 - image.mean(axis=-1) / 255).astype(np.float32)


def stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    with private_environment() as folder:
        from dinomed.apps.demos.segment import build_segment_demo

        example = Path(folder) / "example.png"
        Image.new("RGB", (64, 48), (200, 150, 140)).save(example)
        serve(lambda: build_segment_demo(Dark(), [example], "a stand-in"), browser=False)
