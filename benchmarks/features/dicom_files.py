"""DICOM files read by dinomed, compared with pydicom's own pipeline.

    python benchmarks/features/dicom_files.py FOLDER [--json]

Each file is read as an image, or as a segmentation, and compared with pydicom: pixels, palette, modality LUT, VOI LUT
or window, MONOCHROME1. Gray files are compared in modality units, and as they are shown if they have a window or LUT
that pydicom applies. Padding is compared as black. The output is a table of all files by transfer syntax, in Markdown.
"""

import argparse
import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.images.dicom.pixels import read_dicom
from dinomed.images.dicom.segmentation import read_segmentation
from dinomed.images.read import IntensityConfig, UnreadableImage, read_image

TOLERANCE = 2e-6  # of the range: float32 beside the float64 of pydicom


@dataclass(frozen=True)
class Comparison:
    """A file: its largest difference to pydicom as a share of the range, or the reason why it is refused."""

    file: str
    syntax: str
    kind: str
    frames: int
    difference: float | None = None
    reason: str = ""

    @property
    def equal(self) -> bool:
        return self.difference is not None and self.difference <= TOLERANCE


def compare_with_pydicom(path: Path) -> Comparison:
    """Read a file by dinomed and by pydicom, and compare the values of its first frame (of a segmentation, of all)."""
    elements = read_by_pydicom(path)
    mode, frames = str(elements.get("PhotometricInterpretation", "")), int(elements.get("NumberOfFrames") or 1)
    segmentation = "SegmentSequence" in elements
    kind = f"segmentation, {elements.BitsAllocated} bit" if segmentation else f"{mode}, {bits_of(elements)} bits"
    syntax = elements.file_meta.get("TransferSyntaxUID")
    name = "none" if syntax is None else str(syntax.name)
    try:
        difference = segmentation_difference(path) if segmentation else image_difference(path, elements, mode)
    except UnreadableImage as error:
        return Comparison(path.name, name, kind, frames, reason=error.reason)
    return Comparison(path.name, name, kind, frames, difference=difference)


def read_by_pydicom(path: Path) -> Any:
    """Return the elements of a file without its pixels, with those of the first frame of an enhanced image."""
    from pydicom import dcmread

    elements = dcmread(path, force=True, stop_before_pixels=True)
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (elements.get(groups) or [])[:1]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in (group.get(name) or [])[:1]:
                    elements.update(item)
    return elements


def bits_of(elements: Any) -> int:
    return int(elements.get("BitsStored") or elements.get("BitsAllocated") or 0)


def image_difference(path: Path, elements: Any, mode: str) -> float:
    """Return the largest difference of the first frame, as a share of the range."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    assert read_image(path).dtype == np.uint8
    ours = read_dicom(path, IntensityConfig(bits=16))[1]
    stored = pixel_array(path, index=0)
    if ours.shape[2] == 3:
        palette = mode == "PALETTE COLOR"
        colours = apply_color_lut(stored, elements) if palette else stored
        bits = int(elements.RedPaletteColorLookupTableDescriptor[2]) if palette else bits_of(elements)
        return float(np.abs(ours - colours / (2.0**bits - 1)).max())
    padding = np.zeros(stored.shape, bool)
    if "PixelPaddingValue" in elements:
        padding = stored == elements.PixelPaddingValue
    values = apply_modality_lut(stored, elements).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    in_unit = read_dicom(path, IntensityConfig(bits=16, window=(low, high)))[1]
    differences = [difference(in_unit, (values - low) / (high - low), padding, mode)]
    if stored.dtype.kind in "ui" and ("VOILUTSequence" in elements or "WindowCenter" in elements):
        low, high = voi_range(elements)
        shown = apply_voi_lut(apply_modality_lut(stored, elements), elements, index=0)
        differences.append(difference(ours, (shown - low) / (high - low), padding, mode))
    return max(differences)


def difference(ours: np.ndarray, expected: np.ndarray, padding: np.ndarray, mode: str) -> float:
    """Return the largest difference of a gray frame (H, W, 1) to the values of pydicom, (H, W), both 0 to 1."""
    shown = 1 - expected if mode == "MONOCHROME1" else expected
    return float(np.abs(ours[..., 0] - np.where(padding, 0, shown)).max())


def voi_range(elements: Any) -> tuple[float, float]:
    """Return the values that pydicom writes for black and for white."""
    if "VOILUTSequence" in elements:
        return 0.0, 2.0 ** int(elements.VOILUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = bits_of(elements), int(elements.PixelRepresentation) == 1
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = float(elements.get("RescaleSlope", 1)), float(elements.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def segmentation_difference(path: Path) -> float:
    """Return the largest difference of the frames of a segmentation: 0 or 1."""
    from pydicom.pixels import pixel_array

    ours, theirs = read_segmentation(path).frames, pixel_array(path)
    return float(np.abs(ours.astype(int) - theirs.astype(int).reshape(ours.shape)).max())


def table(results: list[Comparison]) -> list[str]:
    """Return the lines of the table in Markdown, one for each transfer syntax, kind and outcome."""
    lines = ["| transfer syntax | kind | files | read | equal to pydicom |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for result in sorted(results, key=lambda result: (result.syntax, result.kind, result.reason)):
        groups.setdefault((result.syntax, result.kind, result.reason, str(result.equal)), []).append(result)
    for (syntax, kind, reason, _), members in groups.items():
        names = ", ".join(f"`{member.file.removesuffix('.dcm')}`" for member in members)
        equal = "yes" if members[0].equal else "no"
        lines.append(
            f"| {syntax} | {kind} | {names} | {f'no: {reason}' if reason else 'yes'} | {'' if reason else equal} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print one object for each file")
    arguments = parser.parse_args()
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    results = [compare_with_pydicom(path) for path in sorted(arguments.folder.rglob("*.dcm"))]
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    print("\n".join(table(results)))
    read, equal = sum(not result.reason for result in results), sum(result.equal for result in results)
    print(f"\n{len(results)} files: {read} read, {equal} equal to pydicom, {len(results) - read} refused")


if __name__ == "__main__":
    main()
