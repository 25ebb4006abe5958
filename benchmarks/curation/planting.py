"""A pool of real images in which copies, junk and test images are planted, and the record of what each image is.

The written folder has `pool/`, `pool.parquet`, `trusted.parquet`, `exclude.parquet` and `planted.json`. Images
keep their bytes but get new names, so that a name reveals nothing.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinomed.datasets.manifest import Manifest, build_manifest, write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.images.read import read_image
from dinomed.io.files import read_json, write_json
from dinomed.pretrain.curation.descriptors.synthetic_copies import KINDS, make_copy
from dinomed.progress import track

JUNK = ("black", "blank", "over-exposed", "blurred", "tiny", "text page", "noise", "chart", "landscape")
_WORDS = "patient seen again after six weeks and the lesion had not changed in size or colour".split()  # noqa: SIM905


@dataclass
class Planted:
    """Origin of an image of the pool."""

    kind: str  # "lesion", "unlabelled", "other", "copy", "test copy", "test group" or "junk"
    how: str = ""  # kind of copy ("exact" too) or of junk
    of: str = ""  # original of a copy: name in the pool, or in the excluded set
    group: str = ""


def draw_junk(kind: str, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a junk image, uint8 RGB, made from a real image where its kind needs one."""
    height, width = image.shape[:2]
    if kind == "black":
        return rng.integers(0, 8, image.shape, np.uint8)
    if kind == "blank":
        return np.full(image.shape, rng.integers(40, 220, 3), np.uint8)
    if kind == "over-exposed":
        return np.clip(image.astype(float) * 2.5 + 90, 0, 255).astype(np.uint8)
    if kind == "blurred":
        return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.08 * min(height, width)))
    if kind == "tiny":
        return np.asarray(cv2.resize(image, (40, 30), interpolation=cv2.INTER_AREA))
    if kind == "noise":
        return rng.integers(0, 256, image.shape, np.uint8)
    draw_it = {"text page": _text_page, "chart": _chart, "landscape": _landscape}[kind]
    return draw_it(rng)


def _text_page(rng: np.random.Generator) -> np.ndarray:
    page = Image.new("RGB", (480, 600), (250, 250, 248))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for line in range(28):
        pen.text((30, 20 + 20 * line), " ".join(rng.choice(_WORDS, rng.integers(5, 9))), fill=(20, 20, 20), font=font)
    return np.asarray(page)


def _chart(rng: np.random.Generator) -> np.ndarray:
    page = Image.new("RGB", (400, 300), (255, 255, 255))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    pen.line((40, 20, 40, 260), fill=(0, 0, 0))
    pen.line((40, 260, 380, 260), fill=(0, 0, 0))
    for bar in range(int(rng.integers(4, 9))):
        left, top = 50 + 40 * bar, int(rng.integers(40, 240))
        pen.rectangle((left, top, left + 26, 260), fill=tuple(int(c) for c in rng.integers(30, 220, 3)))
        pen.text((left, 266), f"Q{bar + 1}", fill=(0, 0, 0), font=font)
    pen.text((130, 4), "Sales by quarter", fill=(0, 0, 0), font=font)
    return np.asarray(page)


def _landscape(rng: np.random.Generator) -> np.ndarray:
    height, width = 300, 400
    rows = np.linspace(0, 1, height)[:, None, None]
    picture = (1 - rows) * rng.integers((40, 100, 180), (110, 170, 256)) + rows * np.array([235, 225, 210])
    picture = np.repeat(picture, width, axis=1)
    across = np.arange(width)
    for hill in range(4):
        waves = rng.uniform(8, 30, 3) @ np.sin(across / rng.uniform(15, 90, (3, 1)) + rng.uniform(0, 6, (3, 1)))
        line = 140 + 35 * hill + waves
        picture[np.arange(height)[:, None] > line] = rng.integers((20, 70, 20), (120, 150, 80)) * (1 - 0.15 * hill)
    picture += rng.normal(0, 6, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def plant(
    lesions: Manifest,
    other_sets: Sequence[Manifest],
    unlabelled: Sequence[Manifest],
    folder: Path,
    images: int,
    seed: int,
) -> None:
    """Write the pool: about `images` images, of which two fifths are planted.

    Args:
        lesions: with groups and splits; training images are the query set and part of the pool, test images are the
            evaluation set.
        other_sets: images of other modalities, which the query set does not contain.
    """
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    pool = folder / "pool"
    pool.mkdir(parents=True)
    planted_images: dict[str, Planted] = {}

    def name(suffix: str = ".png") -> str:
        return f"{len(planted_images):06d}{suffix}"

    def copy_file(source: Path, planted: Planted) -> str:
        file_name = name(source.suffix.lower())
        shutil.copyfile(source, pool / file_name)
        planted_images[file_name] = planted
        return file_name

    def save(picture: np.ndarray, planted: Planted) -> None:
        file_name = name()
        Image.fromarray(picture).save(pool / file_name)
        planted_images[file_name] = planted

    group = lesions.units()
    train, test = _groups(lesions, "train", rng), _groups(lesions, "test", rng)
    asking, filling = train[: images // 6], train[images // 6 :]
    held = sorted(test, key=lambda rows: len(rows) < 2)[
        : images // 8
    ]  # half of them with another image of the group to plant
    write_manifest(lesions.take([rows[0] for rows in asking]), folder / "trusted.parquet")
    write_manifest(lesions.take([rows[0] for rows in held]), folder / "exclude.parquet")

    taken = {group[rows[0]] for rows in (*asking, *held)}
    wanted = [*_twins(lesions), *(row for rows in filling for row in rows[:2])]
    wanted = [row for row in dict.fromkeys(wanted) if group[row] not in taken][: int(0.3 * images)]
    real = [copy_file(lesions.path(row), Planted("lesion", group=group[row])) for row in wanted]
    for kind, sets, share in (("unlabelled", unlabelled, 0.15), ("other", other_sets, 0.1)):
        for dataset in sets:
            rows = dict.fromkeys([*_twins(dataset), *rng.permutation(len(dataset)).tolist()])
            set_groups = dataset.groups()
            for row in list(rows)[: int(share * images / len(sets))]:
                copy_file(dataset.path(row), Planted(kind, group=set_groups[row] or ""))
    each = max(images // 150, 2)
    sources = rng.permutation(len(real)).tolist()
    for how in track(("exact", *KINDS), "copies"):
        for _ in range(each):
            original = real[sources.pop()]
            planted = Planted("copy", how, original)
            if how == "exact":
                copy_file(pool / original, planted)
            else:
                save(make_copy(read_image(pool / original), how, rng), planted)
    excluded = [rows[0] for rows in held]
    picked = rng.permutation(len(excluded)).tolist()
    for how in track(("exact", *KINDS), "test images"):
        for _ in range(max(each // 2, 1)):
            row = excluded[picked.pop()]
            of = lesions.table["image"][row].as_py()
            if how == "exact":
                copy_file(lesions.path(row), Planted("test copy", how, of))
            else:
                save(make_copy(read_image(lesions.path(row)), how, rng), Planted("test copy", how, of))
    for row in [row for rows in held[: images // 16] for row in rows[1:2]]:
        copy_file(lesions.path(row), Planted("test group", group=group[row]))
    for kind in JUNK:
        for _ in range(each):
            image = read_image(pool / real[int(rng.integers(len(real)))])
            save(draw_junk(kind, image, rng), Planted("junk", kind))
    manifest = scan(pool, make_split=False).manifest
    columns = {column: manifest.column(column) for column in manifest.columns if column != "group"}
    columns["group"] = [planted_images[image].group or None for image in columns["image"]]
    columns["planted"] = [planted_images[image].kind for image in columns["image"]]
    write_manifest(build_manifest(columns, pool), folder / "pool.parquet")
    write_json(folder / "planted.json", {image: asdict(planted) for image, planted in planted_images.items()})


def read_planted(folder: Path) -> dict[str, Planted]:
    return {image: Planted(**planted) for image, planted in read_json(folder / "planted.json").items()}


def _groups(manifest: Manifest, split: str, rng: np.random.Generator) -> list[list[int]]:
    """Return the rows of each group of a split, with the groups in random order."""
    rows: dict[str, list[int]] = {}
    for row, (group, row_split) in enumerate(zip(manifest.units(), manifest.column("split"), strict=True)):
        if row_split == split:
            rows.setdefault(group, []).append(row)
    group_rows = list(rows.values())
    return [group_rows[place] for place in rng.permutation(len(group_rows))]


def _twins(manifest: Manifest) -> list[int]:
    """Return the rows with the same content as another row: the exact copies in the original data."""
    digests = manifest.column("sha256")
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(digests):
        rows.setdefault(digest, []).append(row)
    return [row for same in rows.values() if len(same) > 1 for row in same]
