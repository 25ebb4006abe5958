"""Recall of the masking of burned-in text (`--mask-text`), by height, ink and font of planted text.

    python benchmarks/curation/burned_in_text.py IMAGES --images 100

Two lines, a name and a number with a date, are drawn into images at random places. A drawing counts as masked if 99% of
its changed pixels are inside of the masked regions, and as missed if less than 1% are. Images without planted text
give the false regions, so IMAGES should hold none with captions. Heights are shares of the height of the image. Inks
that differ from the image by less than 60 gray levels at half of the drawn pixels are reported as `faint`.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tables import format_table

from dinomed.burned_in_text.mask import text_region
from dinomed.datasets.open import open_dataset
from dinomed.images.read import read_image
from dinomed.pretrain.curation.descriptors.synthetic_copies import draw_text
from dinomed.progress import track

HEIGHTS = (0.02, 0.03, 0.05, 0.08, 0.12)
INKS = {"white": (255, 255, 255), "black": (0, 0, 0), "yellow": (255, 230, 0), "green": (0, 220, 60)}
FAINT = 60  # gray levels


def plant(image: np.ndarray, height: float, ink: tuple[int, ...], font: str, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of an image, uint8 RGB, with two lines of text."""
    name = "".join(rng.choice(list("ABCDEFGHIJKLMNOPRSTUVWZ"), 8))
    date = f"{rng.integers(1, 29):02}.{rng.integers(1, 13):02}.{rng.integers(1950, 2025)}"
    lines = [name, f"{rng.integers(100000, 999999)}  {date}"]
    at = float(rng.uniform(0.02, 0.25)), float(rng.uniform(0.02, 0.6))
    if font == "outline":
        return draw_text(image, lines, height, at, ink)
    out, px = image.copy(), max(round(height * image.shape[0]), 6)
    for place, line in enumerate(lines):
        left, bottom = round(at[0] * image.shape[1]), round(at[1] * image.shape[0]) + round(1.5 * px * (place + 1))
        scale, thick = px / 30, max(1, px // 12)
        cv2.putText(out, line, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thick, cv2.LINE_AA)
    return out


def measure(image: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return a row for each height, ink and font."""
    rows = []
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int)
    for height in HEIGHTS:
        for ink, colour in INKS.items():
            for font in ("outline", "strokes"):
                written = plant(image, height, colour, font, rng)
                changed = np.abs(written.astype(int) - image).max(axis=2) > 40
                if not changed.any():
                    continue
                level = cv2.cvtColor(np.array([[colour]], np.uint8), cv2.COLOR_RGB2GRAY)[0, 0]
                faint = np.median(np.abs(gray[changed] - int(level))) < FAINT
                share = float(text_region(written)[changed].mean())
                rows.append({"height": height, "ink": ink, "font": font, "faint": bool(faint), "share": share})
    return rows


def resize(image: np.ndarray, short_side: int | None) -> np.ndarray:
    """Return an image with this short side, px; unchanged for None."""
    if short_side is None:
        return image
    scale = short_side / min(image.shape[:2])
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))


def summarize(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return for each value of a column how many drawings are masked and missed, and the mean masked share."""
    parts: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        parts[row[key]].append(row["share"])
    return [
        {
            key: str(value), "drawings": len(shares), "masked": float(np.mean(np.array(shares) >= 0.99)),
            "missed": float(np.mean(np.array(shares) < 0.01)), "masked pixels": float(np.mean(shares)),
        }
        for value, shares in parts.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="Folder or manifest of images without text.")
    parser.add_argument("--images", dest="number", type=int, default=100, help="Number of images [100].")
    parser.add_argument("--short-side", type=int, help="Resize images to this short side before planting, px.")
    parser.add_argument("--seed", type=int, default=0, help="Seed [0].")
    parser.add_argument("--json", action="store_true", help="Print the values as JSON.")
    arguments = parser.parse_args()
    manifest = open_dataset(arguments.images)
    rng = np.random.default_rng(arguments.seed)
    chosen = rng.permutation(len(manifest))[: arguments.number].tolist()
    rows: list[dict[str, Any]] = []
    false = []
    for row in track(chosen, "planting"):
        image = resize(read_image(manifest.path(row)), arguments.short_side)
        false.append(float(text_region(image).mean()))
        rows += measure(image, rng)
    clear = [row for row in rows if not row["faint"]]
    tables = {key: summarize(clear, key) for key in ("height", "ink", "font")}
    tables["faint"] = summarize(rows, "faint")
    wrong = {"images": len(false), "with a false region": float(np.mean(np.array(false) > 0)),
             "falsely masked pixels": float(np.mean(false))}  # fmt: skip
    if arguments.json:
        print(json.dumps(tables | {"without text": wrong}))
        return
    for table in tables.values():
        print(format_table(table), end="\n\n")
    print(format_table([wrong]))


if __name__ == "__main__":
    main()
