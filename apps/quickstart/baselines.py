"""A baseline without training: Otsu's threshold as a segmenter."""

from dinomed.adapters.evaluation.mask_baselines import otsu_mask
from dinomed.datasets.manifest import Manifest
from dinomed.images.read import read_image, read_mask
from dinomed.metrics.segmentation import Overlap, overlap, segmentation_metrics
from dinomed.progress import track


def otsu_dice(images: Manifest) -> float:
    """Return the mean Dice of Otsu's threshold on the images that have a mask."""
    overlaps: list[Overlap] = []
    for row in track(range(len(images)), "Otsu's threshold"):
        if path := images.mask_path(row):
            image = read_image(images.path(row))
            overlaps.append(overlap(read_mask(path, size=(image.shape[0], image.shape[1])), otsu_mask(image)))
    return segmentation_metrics(overlaps)["dice"]
