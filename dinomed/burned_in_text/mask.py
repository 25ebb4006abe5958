"""Masking of burned-in text: each region is filled with one colour, the median of its surroundings."""

from dataclasses import dataclass

import numpy as np

from dinomed.burned_in_text.find import find_text

MASKED_COLUMN = "masked_text"
"""Column of manifests: number of masked regions of each picture."""
_MARGIN = (0.7, 0.35)  # of the height of a line: to its left and right (a letter that was missed), above and below
_SIDES = (480, 900)  # short sides in px at which text is searched: small letters are found at the larger one
_CONTRASTS = (45, 25)  # the second one is too sensitive for the quality filter of a curation, which drops images
_RING = 3  # px around a region, whose median fills it


@dataclass
class TextMask:
    """A masker of burned-in text that counts what it did.

    Attributes:
        images: number of pictures that it was given.
        images_with_text: number of those in which it masked a region.
        regions: number of masked regions.
    """

    images: int = 0
    images_with_text: int = 0
    regions: int = 0

    def __call__(self, pixels: np.ndarray, *, separate: bool = False) -> np.ndarray:
        """Return a picture with its text masked, as `mask_text` does, and count its regions."""
        return self.count(pixels, separate=separate)[0]

    def count(self, pixels: np.ndarray, *, separate: bool = False) -> tuple[np.ndarray, int]:
        """Return the same, and the number of regions of this picture."""
        masked, regions = mask_text(pixels, separate=separate)
        self.images += 1
        self.images_with_text += regions > 0
        self.regions += regions
        return masked, regions

    def record(self) -> dict[str, int]:
        """Return the counts, for a record or a report."""
        return {"images": self.images, "images_with_text": self.images_with_text, "regions": self.regions}

    def describe(self) -> str:
        """Return a sentence for a page."""
        return (
            f"Burned-in text was masked where the detector found it: {self.regions:,} regions in "
            f"{self.images_with_text:,} of {self.images:,} pictures. It misses text, so this is no de-identification."
        )


def mask_text(pixels: np.ndarray, *, separate: bool = False) -> tuple[np.ndarray, int]:
    """Fill the regions of a picture that hold burned-in text.

    The lines that `dinomed.burned_in_text.find.find_text` finds at two sizes and two contrasts are enlarged by 0.7 of
    their height at the left and right and 0.35 above and below. Boxes that overlap are one region. A region gets the
    median of the 3 px around it, of each channel (black if it has no surroundings).

    Args:
        pixels: uint8, RGB (H, W, 3) or gray (H, W) or (H, W, 1).
        separate: the channels are pictures of their own, such as windows; text is searched in each of them.

    Returns:
        A new array, and the number of regions; without text `pixels` itself and 0.
    """
    region = text_region(pixels, separate=separate)
    if not region.any():
        return pixels, 0
    import cv2

    count, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    kernel, masked = np.ones((2 * _RING + 1, 2 * _RING + 1), np.uint8), pixels.copy()
    for number in range(1, count):
        part = labels == number
        ring = cv2.dilate(part.astype(np.uint8), kernel).astype(bool) & ~region
        masked[part] = np.median(pixels[ring], axis=0).astype(np.uint8) if ring.any() else 0
    return masked, count - 1


def text_region(pixels: np.ndarray, *, separate: bool = False) -> np.ndarray:
    """Return where the text of a picture is, with the margins of `mask_text`, bool (H, W)."""
    height, width = pixels.shape[:2]
    region = np.zeros((height, width), bool)
    if separate and pixels.ndim == 3:
        views = [np.ascontiguousarray(pixels[..., channel]) for channel in range(pixels.shape[2])]
    else:
        views = [pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels]
    for view in views:
        searches = [find_text(view, side, _CONTRASTS) for side in _SIDES]
        for (left, top, right, bottom), (rows, columns) in [(box, size) for boxes, size in searches for box in boxes]:
            across, along = _MARGIN[0] * (bottom - top), _MARGIN[1] * (bottom - top)
            first_row, last_row = (top - along) * height / rows, (bottom + along) * height / rows
            first_column, last_column = (left - across) * width / columns, (right + across) * width / columns
            region[
                max(int(first_row), 0) : int(np.ceil(last_row)), max(int(first_column), 0) : int(np.ceil(last_column))
            ] = True
    return region
