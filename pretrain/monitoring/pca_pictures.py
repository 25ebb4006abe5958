"""PCA pictures of a run: held-aside images and the principal components of their patch features."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest
from dinomed.explore.images import to_rgb
from dinomed.explore.pca import pca_colours
from dinomed.io.files import replacing

_CELL = 160  # px
_MIN_GRID = 24  # patches per side; the 6 patches of a small global view are too few to show a shape


@torch.no_grad()
def write_pca_picture(
    path: Path, backbone: VisionTransformer, preprocessing: Preprocessing, images: Manifest, device: torch.device
) -> None:
    """Write a PNG: the images in the upper row, the joint PCA of their patch features in the lower row.

    All patches are shown, without a foreground mask: in images of skin the first component is often the skin tone,
    and does not separate the foreground from the background.

    Raises:
        UnreadableImage: an image cannot be read.
    """
    pixels = [preprocessing.read_row(images, row) for row in range(len(images))]
    side = max(preprocessing.image_size, _MIN_GRID * backbone.config.patch_size)
    resize = preprocessing.model_copy(update={"image_size": side})
    batch = resize.stack(pixels).to(device)
    was_training = backbone.training
    patches = backbone.eval()(batch).patches
    backbone.train(was_training)
    rows = side // backbone.config.patch_size
    colours = pca_colours(patches.float().cpu().numpy().reshape(len(pixels), rows, rows, -1))
    upper = [
        np.asarray(Image.fromarray(to_rgb(image)).resize((_CELL, _CELL), Image.Resampling.BICUBIC)) for image in pixels
    ]
    lower = [np.asarray(Image.fromarray(image).resize((_CELL, _CELL), Image.Resampling.NEAREST)) for image in colours]
    with replacing(path) as temporary:
        Image.fromarray(np.vstack([np.hstack(upper), np.hstack(lower)])).save(temporary)
