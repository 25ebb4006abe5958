"""Corrections of a reviewer: images, masks and a manifest from which `dinomed train segment` learns.

A folder holds `images/`, `masks/` and `corrections.parquet`. An image is saved as PNG with the pixels that the adapter
reads, without the name, the patient data and the other metadata of its file. Beside the columns of every manifest a row
has `source_sha256` (hash of the file that was opened), `frame` (its number, from 0, in a file of several frames,
which then are one `group`), `adapter` (hash of its weights), `threshold`, `decision`
(accepted, corrected or rejected), `reviewer` and `time` (UTC). Rejected images have no mask, so no fit uses them. A
later decision about the same file and frame replaces the earlier one.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dinomed.apps.demos.look import text
from dinomed.apps.demos.parts import Picture
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.burned_in_text.mask import MASKED_COLUMN, TextMask
from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest
from dinomed.errors import UsageError
from dinomed.images.intensity import SEPARATE_CHANNELS
from dinomed.images.read import write_mask
from dinomed.io.files import replacing, sha256_file

MANIFEST_FILE = "corrections.parquet"
DECISIONS = ("accepted", "corrected", "rejected")
SET, CLEARED = 1, 2  # values of an edited pixel
SIMILARITY = 0.6  # of patches that are added or removed with a clicked one, at first
_MAX_REVIEWER = 80  # characters


class Corrections:
    """The saved decisions of a folder.

    Args:
        folder: folder of the corrections; it is created, and an earlier one is continued.
        adapter: hash of the weights of the segmenter.

    Raises:
        UsageError: another program wrote the manifest of the folder.
        DinomedError: it is damaged.
    """

    def __init__(self, folder: Path, adapter: str) -> None:
        self.folder, self.adapter = folder, adapter
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        path = folder / MANIFEST_FILE
        rows = read_manifest(path).table.to_pylist() if path.exists() else []
        if rows and "source_sha256" not in rows[0]:
            raise UsageError(f"{path} was not written by the demo (no column source_sha256); give another folder")
        self._rows = {(row["source_sha256"], row.get("frame")): row for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    def has_decision(self, sha256: str) -> bool:
        """Return whether a decision about a file, or about a frame of it, is saved."""
        return any(source == sha256 for source, _ in self._rows)

    def save(
        self,
        picture: Picture,
        mask: np.ndarray | None,
        decision: str,
        threshold: float,
        reviewer: str,
        text_mask: TextMask | None = None,
    ) -> dict[str, Any]:
        """Save a decision, and return the row of the manifest.

        Args:
            picture: the picture that was opened.
            mask: bool (H, W); None for a rejected picture.
            decision: one of `DECISIONS`.
            threshold: probability at which the mask was outlined.
            reviewer: name of the reviewer, which the visitor typed.
            text_mask: masks burned-in text in the saved picture; the column `masked_text` has the number of regions.

        Raises:
            DinomedError: a file cannot be written, for example because the disk is full.
        """
        if decision not in DECISIONS or (mask is None) != (decision == "rejected"):
            raise ValueError("no such decision")
        frame = str(picture.frame) if picture.frames > 1 else None
        name = picture.sha256[:32] if frame is None else f"{picture.sha256[:32]}_{frame}"
        image, mask_name = f"images/{name}.png", f"masks/{name}.png"
        pixels = picture.pixels[..., 0] if picture.pixels.shape[-1] == 1 else picture.pixels
        masked: dict[str, str | None] = {}
        if text_mask is not None:
            pixels, regions = text_mask.count(pixels)
            masked = {MASKED_COLUMN: str(regions)}
        info = PngInfo()
        if picture.separate_channels and pixels.ndim == 3:
            info.add_text(SEPARATE_CHANNELS, "1")  # so that a backbone of one channel refuses to mix them
        with replacing(self.folder / image) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)
        if mask is not None:
            write_mask(self.folder / mask_name, mask)
        row = {
            "image": image,
            "sha256": sha256_file(self.folder / image),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "mode": "L" if pixels.ndim == 2 else "RGB",
            "format": "PNG",
            "bytes": (self.folder / image).stat().st_size,
            "split": "train",
            "mask": None if mask is None else mask_name,
            "group": None if frame is None else picture.sha256,
            "source_sha256": picture.sha256,
            "frame": frame,
            "adapter": self.adapter,
            "threshold": f"{threshold:g}",
            "decision": decision,
            "reviewer": reviewer.strip()[:_MAX_REVIEWER] or None,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **masked,
        }
        rows = {**self._rows, (picture.sha256, frame): row}
        names = dict.fromkeys(name for each in rows.values() for name in each)
        columns = {column: [each.get(column) for each in rows.values()] for column in names}
        write_manifest(build_manifest(columns, self.folder), self.folder / MANIFEST_FILE)
        self._rows = rows
        if mask is None:  # after the manifest, which names it until then
            (self.folder / mask_name).unlink(missing_ok=True)
        return row


def check_savable(preprocessing: Preprocessing | None, classes: Sequence[str]) -> None:
    """Raise a `UsageError` if pictures and masks of a segmenter cannot be saved as 8-bit PNG."""
    if len(classes) != 1:
        raise UsageError(f"--save is for segmenters of one class, and this one has {len(classes)}; leave it out")
    if preprocessing is not None and (
        preprocessing.channels not in (1, 3) or preprocessing.intensity.bits not in (None, 8)
    ):
        raise UsageError(
            f"--save writes images of 8 bits with 1 or 3 channels, and the backbone reads {preprocessing.channels} "
            f"channels of {preprocessing.intensity.bits or 8} bits; leave it out"
        )


def apply_edits(mask: np.ndarray, runs: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Return a mask, bool (H, W), with the pixels that a visitor has set or cleared.

    Args:
        mask: bool (H, W).
        runs: start, end and value (`SET` or `CLEARED`) of runs of pixels, one after the other, as positions in the map
            that the page has.
        shape: (rows, columns) of this map; a pixel of it covers one or several of the mask.

    Raises:
        ValueError: a run is not one of this map.
    """
    if not runs:
        return mask
    table = np.array(runs, np.int64).reshape(-1, 3)
    count = shape[0] * shape[1]
    starts, ends, values = table.T
    if starts.min() < 0 or ends.max() > count or (starts >= ends).any() or not np.isin(values, (SET, CLEARED)).all():
        raise ValueError("edits out of range")
    if (starts[1:] < ends[:-1]).any():  # many long runs would take minutes
        raise ValueError("edits that are not one after the other")
    edits = np.zeros(count, np.uint8)
    for start, end, value in table:
        edits[start:end] = value
    rows, columns = (np.arange(full) * part // full for full, part in zip(mask.shape, shape, strict=True))
    large = edits.reshape(shape)[np.ix_(rows, columns)]
    return (mask | (large == SET)) & (large != CLEARED)


def correction_controls(has_patches: bool = False) -> str:
    """Return the HTML of the tools and decisions; with tools for similar patches if answers have their features."""
    names = {"brush": "", "eraser": "", "fill": ""} | dict.fromkeys(("grow", "shrink"), " data-patches")
    tools = "".join(
        f'<button type="button" class="dm-tool" data-tool="{tool}"{mark} aria-pressed="false" disabled>'
        f"{text(tool)}</button>"
        for tool, mark in names.items()
        if has_patches or not mark
    )
    similarity = (
        f'<div class="dm-field"><label for="grow-similarity">{text("grow_similarity")}</label>'
        f'<input id="grow-similarity" type="range" min="0" max="0.99" step="0.01" value="{SIMILARITY}" '
        f'aria-describedby="grow-hint"><output for="grow-similarity"></output></div>'
        f'<p class="dm-hint" id="grow-hint">{text("grow_hint")}</p>'
    )
    decisions = "".join(
        f'<button type="button" data-decision="{decision}" disabled>{text(decision)}</button>' for decision in DECISIONS
    )
    return (
        f'<section class="dm-correct" aria-label="{text("correct")}"><h3>{text("correct")}</h3>'
        f'<div class="dm-bar dm-tools" role="group" aria-label="{text("tools")}">{tools}'
        f'<button type="button" id="undo" disabled>{text("undo")}</button></div>'
        f'<div class="dm-field"><label for="brush-size">{text("brush_size")}</label>'
        '<input id="brush-size" type="range" min="2" max="80" value="16"><output for="brush-size"></output></div>'
        f"{similarity if has_patches else ''}"
        f'<p class="dm-hint">{text("correct_hint")}</p>'
        f'<div class="dm-field"><label for="reviewer">{text("reviewer")}</label>'
        f'<input id="reviewer" type="text" maxlength="{_MAX_REVIEWER}" autocomplete="off"></div>'
        f'<div class="dm-bar dm-decisions" role="group" aria-label="{text("decisions")}">{decisions}'
        f'<button type="button" id="next-case">{text("next_case")}</button></div>'
        '<output id="saved" class="dm-hint" aria-live="polite"></output>'
        '<p id="next-rule" class="dm-hint" hidden></p></section>'
    )
