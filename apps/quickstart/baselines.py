"""A baseline without training: Otsu's threshold as a segmenter."""

import cv2
import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.images.read import read_image, read_mask
from dinomed.metrics.segmentation import Overlap, overlap, segmentation_metrics
from dinomed.progress import track


def otsu_mask(image: np.ndarray) -> np.ndarray:
    """Return the pixels on the dark side of Otsu's threshold: uint8 (H, W, 3) to uint8 (H, W) of 0 and 1.

    Otsu 1979, "A threshold selection method from gray-level histograms", equation 18.
    """
    gray = image.mean(axis=-1).round().astype(np.uint8)
    return np.asarray(cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1])


def otsu_dice(images: Manifest) -> float:
    """Return the mean Dice of Otsu's threshold on the images that have a mask."""
    overlaps: list[Overlap] = []
    for row in track(range(len(images)), "Otsu's threshold"):
        if path := images.mask_path(row):
            image = read_image(images.path(row))
            overlaps.append(overlap(read_mask(path, size=(image.shape[0], image.shape[1])), otsu_mask(image)))
    return segmentation_metrics(overlaps)["dice"]
