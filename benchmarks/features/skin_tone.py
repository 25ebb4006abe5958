"""A column of estimated skin tone for a manifest of dermoscopic images with lesion masks.

    python benchmarks/features/skin_tone.py derm.parquet -o derm_tone.parquet

The new manifest has the columns `typology_angle` (degrees) and `skin_tone` (category), empty where no skin is seen.
Use them with ``dinomed evaluate --by skin_tone``. `dinomed.datasets.skin_tone` has the method and its limits: the value
is a property of the picture, not of the person.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.datasets.skin_tone import tone_category, typology_angle
from dinomed.errors import UsageError
from dinomed.images.read import read_image, read_mask
from dinomed.progress import bar

ANGLE, TONE = "typology_angle", "skin_tone"


def add_skin_tone(manifest: Manifest) -> Manifest:
    """Return the manifest with both columns; rows without a mask have no value."""
    if not manifest.has("mask"):
        raise UsageError(f"{manifest.called} has no masks; the lesion must be left out: scan with masks")
    angles: list[float | None] = []
    with bar("estimating", len(manifest)) as progress:
        for row, mask in enumerate(manifest.column("mask")):
            angles.append(None if mask is None else measure_angle(manifest, row, mask))
            progress.advance()
    columns: dict[str, list[Any]] = {name: manifest.column(name) for name in manifest.columns}
    columns[ANGLE] = [None if angle is None else f"{angle:.1f}" for angle in angles]
    columns[TONE] = [None if angle is None else tone_category(angle) for angle in angles]
    return build_manifest(columns, manifest.root)


def measure_angle(manifest: Manifest, row: int, mask: str) -> float | None:
    """Return the angle of the image of a row."""
    image = read_image(manifest.path(row))
    return typology_angle(image, read_mask(manifest.root / mask, size=image.shape[:2]).astype(bool))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="Manifest with images and masks.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Manifest to write.")
    arguments = parser.parse_args()
    manifest = add_skin_tone(read_manifest(arguments.manifest))
    write_manifest(manifest, arguments.output)
    angles = np.array([np.nan if value is None else float(value) for value in manifest.column(ANGLE)])
    counts = Counter("not known" if tone is None else tone for tone in manifest.column(TONE))
    report: dict[str, Any] = {"output": str(arguments.output), "images": dict(counts.most_common())}
    if np.isfinite(angles).any():
        report["angle_quantiles"] = np.nanquantile(angles, [0.05, 0.25, 0.5, 0.75, 0.95]).round(1).tolist()
    report["within_group_deviation"] = deviation_within_groups(manifest, angles)
    print(json.dumps(report, indent=2))


def deviation_within_groups(manifest: Manifest, angles: np.ndarray) -> float | None:
    """Return the standard deviation of the angle within a group (lesion, patient), degrees; None without pairs.

    It is the root of the pooled variance: how far pictures of the same skin are apart.
    """
    members: dict[str, list[float]] = {}
    for unit, angle in zip(manifest.units(), angles, strict=True):
        if np.isfinite(angle):
            members.setdefault(unit, []).append(float(angle))
    pairs = [np.array(values) for values in members.values() if len(values) > 1]
    if not pairs:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in pairs)
    return round(float(np.sqrt(squares / sum(len(values) - 1 for values in pairs))), 2)


if __name__ == "__main__":
    main()
