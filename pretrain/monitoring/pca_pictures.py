"""The picture that shows whether a backbone sees anything: held-aside images above their PCA colours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.features.projection import pca_colours
from dinomed.io.files import replacing

_CELL = 160  # px
_MIN_GRID = 24  # patches a side: the 6 of a small global view show no shape


@torch.no_grad()
def write_pca_picture(
    path: Path, backbone: VisionTransformer, preprocessing: Preprocessing, images: Sequence[Path], device: torch.device
) -> None:
    """A PNG: the images in the upper row, the PCA of their patch features (all together) in the lower one.

    The first component would not find the foreground here: between skins it is the tone. So all patches are shown.
    """
    pixels = [preprocessing.read(image) for image in images]
    side = max(preprocessing.image_size, _MIN_GRID * backbone.config.patch_size)
    resize = preprocessing.model_copy(update={"image_size": side})
    batch = resize.stack(pixels).to(device)
    was_training = backbone.training
    patches = backbone.eval()(batch).patches
    backbone.train(was_training)
    rows = side // backbone.config.patch_size
    colours = pca_colours(patches.float().cpu().numpy().reshape(len(pixels), rows, rows, -1), foreground_only=False)
    upper = [
        np.asarray(Image.fromarray(_rgb(image)).resize((_CELL, _CELL), Image.Resampling.BICUBIC)) for image in pixels
    ]
    lower = [np.asarray(Image.fromarray(image).resize((_CELL, _CELL), Image.Resampling.NEAREST)) for image in colours]
    with replacing(path) as temporary:
        Image.fromarray(np.vstack([np.hstack(upper), np.hstack(lower)])).save(temporary)


def _rgb(image: np.ndarray) -> np.ndarray:
    """For the eye: RGB as it is, of other channels the first as gray; uint8."""
    shown = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)
    return shown if shown.dtype == np.uint8 else (shown * 255).round().astype(np.uint8)
