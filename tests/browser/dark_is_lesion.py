"""Serves the segmentation demo over a predictor without a network: the darker, the more probable.

A picture whose first pixel is red takes three seconds, with two red pixels eight.

With --save the features of a patch, 12 x 12 of them, are its mean colour.

python dark_is_lesion.py [--sweep SECONDS] [--login FILE] [--save FOLDER] [--batch]
"""

import argparse
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.apps.demos import serve as server
from dinomed.apps.demos.serve import choose_address, private_environment, serve

SLOW = (255, 0, 0)


class Dark:
    """A predictor by its contract (probability, threshold), countable by the test."""

    threshold = 0.5

    def probability(self, image: np.ndarray) -> np.ndarray:
        print("model called", file=sys.stderr, flush=True)
        if tuple(image[0, 0]) == SLOW:
            time.sleep(8 if tuple(image[0, 1]) == SLOW else 3)
        return (1 - image.mean(axis=-1) / 255).astype(np.float32)


def stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep", type=float, help="remove uploads after so many seconds")
    parser.add_argument("--login", type=Path)
    parser.add_argument("--save", type=Path, help="folder for the decisions of the reviewer")
    parser.add_argument("--batch", action="store_true", help="with the tab of a batch")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    if options.sweep:
        server.SWEEP_S, server.KEPT_S = 0.5, options.sweep
    with private_environment() as folder:
        from dinomed.apps.demos import page
        from dinomed.apps.demos.batch.panel import BatchPanel
        from dinomed.apps.demos.corrections import Corrections
        from dinomed.apps.demos.parts import Picture
        from dinomed.apps.demos.segment import SegmentPanel

        example = Path(folder) / "example.png"
        Image.new("RGB", (64, 48), (200, 150, 140)).save(example)
        address = choose_address(login_file=options.login)

        class ColourPanel(SegmentPanel):
            def patch_tokens(self, picture: Picture, answers: object) -> np.ndarray:
                small = Image.fromarray(picture.shown).resize((12, 12), Image.Resampling.BOX)
                return np.asarray(small).astype(np.float32) - 128

        panel = ColourPanel(Dark())
        if options.save:
            panel.save_decisions(Corrections(options.save, "the hash of its weights"))
            panel.has_patches = True
        panels = [panel, BatchPanel([panel])] if options.batch else [panel]
        serve(lambda: page.build_page(panels, [example], "a stand-in"), address, browser=False)
