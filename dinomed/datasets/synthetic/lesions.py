"""Synthetic dermatoscopic images of lesions with exact masks, generated from a seed.

They replace real images in the quickstart, in examples and in tests. Results on them are not valid for patients. There
are three kinds: `regular` (like a nevus: round, uniform brown), `irregular` (asymmetric, several colours, streaks) and
`vascular` (red to purple lacunae). Skin, hair, light and camera are independent of the kind.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.datasets.splits import make_splits
from dinomed.datasets.synthetic.scene import KINDS, draw_scene
from dinomed.datasets.synthetic.view import take_view
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError
from dinomed.io.prefetch import prefetch
from dinomed.progress import bar

_SHARES = (0.45, 0.30, 0.25)  # shares of the kinds
_VIEWS = (0.72, 0.20, 0.08)  # shares of lesions with 1, 2 and 3 images
_MARGIN = 1.35  # ratio of the sizes of scene and image
_PLAN, _SCENE, _VIEW = 0, 1, 2  # separate streams of random numbers


def write_lesions(
    folder: str | Path, count: int = 600, seed: int = 0, size: tuple[int, int] = (150, 200), broken: int = 3
) -> Path:
    """Write a folder of images for `scan`, and return its path; the same arguments give the same bytes.

    The folder holds ``images/*.jpg``, ``masks/*.png`` (1 bit) and ``labels.csv`` with the columns image, mask, label,
    lesion_id, age, sex and split (by lesion), written last. Some lesions have two or three images, which are
    near-duplicates with the same `lesion_id`.

    Args:
        count: number of images.
        size: (height, width) of the images in pixels.
        broken: number of additional damaged files ``images/broken_*.jpg``, in turn truncated, text and empty; not in
            the CSV.

    Raises:
        UsageError: `folder` is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give a new folder for the synthetic lesions")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lesions = _plan(count, seed)

    def write_lesion(lesion: int) -> int:
        kind, views = lesions[lesion]
        tall, wide = (round(side * _MARGIN) for side in size)
        scene = draw_scene(kind, tall, wide, np.random.default_rng([seed, _SCENE, lesion]))
        for view in range(views):
            pixels, mask = take_view(scene, *size, np.random.default_rng([seed, _VIEW, lesion, view]))
            name = _name(lesion, view)
            Image.fromarray(pixels).save(folder / f"images/{name}.jpg", quality=92)
            Image.fromarray(mask.astype(bool)).save(folder / f"masks/{name}.png")
        return views

    with bar("drawing lesions", count) as progress:
        for views in prefetch(write_lesion, range(len(lesions))):
            progress.advance(views)
    for i in range(broken):
        (folder / f"images/broken_{i}.jpg").write_bytes(_broken(i, size, seed))
    _write_labels(folder, lesions, seed)
    return folder


def _plan(count: int, seed: int) -> list[tuple[str, int]]:
    """Return kind and number of images of each lesion, `count` images in all."""
    rng = np.random.default_rng([seed, _PLAN])
    lesions: list[tuple[str, int]] = []
    remaining = count
    while remaining > 0:
        views = min(remaining, 1 + int(rng.choice(3, p=_VIEWS)))
        lesions.append((KINDS[rng.choice(3, p=_SHARES)], views))
        remaining -= views
    return lesions


def _write_labels(folder: Path, lesions: list[tuple[str, int]], seed: int) -> None:
    rng = np.random.default_rng([seed, _PLAN, 1])
    people = [(5 * int(rng.integers(4, 17)), str(rng.choice(["female", "male"]))) for _ in lesions]
    rows = [
        (f"images/{_name(i, view)}.jpg", f"masks/{_name(i, view)}.png", kind, f"SYN_{i:05}", *people[i])
        for i, (kind, views) in enumerate(lesions)
        for view in range(views)
    ]
    splits = make_splits([row[3] for row in rows], [row[2] for row in rows], seed=seed)
    names = ("image", "mask", "label", "lesion_id", "age", "sex", "split")
    write_csv(folder / "labels.csv", names, [(*row, split) for row, split in zip(rows, splits, strict=True)])


def _name(lesion: int, view: int) -> str:
    return f"SYN_{lesion:05}_{'abc'[view]}"


def _broken(i: int, size: tuple[int, int], seed: int) -> bytes:
    """Return the content of a damaged file, as they occur in real collections."""
    if i % 3 == 0:
        file = io.BytesIO()
        scene = draw_scene(KINDS[0], *size, np.random.default_rng([seed, _SCENE, i]))
        Image.fromarray((scene.pixels * 255).astype(np.uint8)).save(file, "JPEG")
        return file.getvalue()[: file.tell() // 2]
    return b"this is a note, not a picture\n" if i % 3 == 1 else b""
