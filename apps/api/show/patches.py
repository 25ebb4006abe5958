"""Pictures of the patches of images: PCA and attention."""

from collections.abc import Sequence

import numpy as np

from dinomed.apps.api.backbones import BackboneLike, load_backbone
from dinomed.apps.api.inputs import PathLike, text_mask
from dinomed.apps.api.show.results import (
    Images,
    ShownAttention,
    ShownPca,
    check_out,
    choose_sources,
    source_names,
    write_picture,
)
from dinomed.errors import UsageError
from dinomed.explore.attention import last_attention, mass_mask
from dinomed.explore.images import PatchImage, embed_images, read_sources, reduce_shown
from dinomed.explore.pca import find_foreground, pca_colours
from dinomed.explore.pictures import draw_attention, draw_pca
from dinomed.images.in_memory import ImageSource

MOST_PCA = 8


def show_pca(
    backbone: BackboneLike,
    images: Images,
    *,
    out: PathLike | None = None,
    whole: bool = False,
    threshold: float = 0.0,
    flip: bool = False,
    weights: PathLike | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mask_text: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> ShownPca:
    """Show the principal components of the patch features of 1 to 8 images as colours (DINOv2, figure 1).

    A first PCA of all patches separates the foreground; its sign is chosen so that the border of the images scores low.
    A second PCA of the foreground gives red, green and blue. Equal colours mean similar features in all images of the
    call. The command is ``dinomed show pca``.

    Args:
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes.
        images: 1 to 8 images (paths, PIL images, arrays, tensors); or a manifest or a folder, of which up to 8 images
            are taken, evenly spaced.
        out: file to write, .png, .svg or .html; None writes nothing.
        whole: colour all patches, without a foreground.
        threshold: of the first component, in standard deviations; a larger value gives a smaller foreground.
        flip: take the other side of the first component.
        weights: file with the weights of a backbone that is given by name.
        image_size: side of the square to which images are resized, px. A larger one gives more patches.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel.
        mask_text: mask burned-in text that the detector finds in the picture; it misses text.
        overwrite: replace an earlier picture in `out`.
        device: device of a backbone that is given by name or path.

    Returns:
        The colours, the foreground and the drawing.

    Raises:
        UsageError: too many images, too little foreground, or `out` exists.
        DinomedError: an image cannot be read.

    Example:
        >>> shown = dinomed.show_pca("runs/ssl", "lesions/images", out="pca.png")
        >>> shown.colours.shape
        (8, 4, 4, 3)
    """
    check_out(out, overwrite)
    masker = text_mask(mask_text, True, "")
    sources = choose_sources(images, MOST_PCA, "pca")
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size, mean=mean, std=std)
    embedded = embed_images(frozen, sources, masker)
    patches = np.stack([image.tokens for image in embedded])
    mask = None if whole else find_foreground(patches, threshold=threshold, flip=flip)
    colours = pca_colours(patches, mask)
    drawing = draw_pca(embedded, colours, mask)
    note = "Equal colours mean similar features, in all images of this picture."
    write_picture(drawing, out, "PCA of patch features", frozen, note)
    return ShownPca(drawing, source_names(sources), colours, mask)


def show_attention(
    backbone: BackboneLike,
    image: ImageSource,
    *,
    out: PathLike | None = None,
    mass: float = 0.6,
    weights: PathLike | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mask_text: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> ShownAttention:
    """Show the attention of the class token in the last block, by head (DINO, figure 3).

    Besides the maps it shows the fewest patches that hold the share `mass` of the attention, and the attention of each
    register. The command is ``dinomed show attention``.

    Args:
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes; a ViT of dinomed.
        image: a path, a PIL image, an array or a tensor.
        out: file to write, .png, .svg or .html; None writes nothing.
        mass: share of the attention that a mask holds, 0 to 1.
        weights: file with the weights of a backbone that is given by name.
        image_size: side of the square to which the image is resized, px. A larger one gives more patches.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel.
        mask_text: mask burned-in text that the detector finds in the picture; it misses text.
        overwrite: replace an earlier picture in `out`.
        device: device of a backbone that is given by name or path.

    Returns:
        The attention weights, the masks and the drawing.

    Raises:
        UsageError: the backbone has another kind of attention, `mass` is out of range, or `out` exists.
        DinomedError: the image cannot be read.

    Example:
        >>> shown = dinomed.show_attention("runs/ssl", "lesions/images/SYN_00000_a.jpg")
        >>> shown.attention.maps().shape, shown.masks.shape
        ((1, 2, 4, 4), (2, 4, 4))
    """
    if not 0 < mass <= 1:
        raise UsageError(f"`mass={mass:g}` is out of range; give a share above 0, up to 1")
    check_out(out, overwrite)
    masker = text_mask(mask_text, True, "")
    sources = choose_sources(image, 1, "attention")
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size, mean=mean, std=std)
    ((pixels, shown),) = read_sources(frozen, sources, masker)
    attention = last_attention(frozen, frozen.preprocessing.squashed(pixels)[None])
    picture = PatchImage("image 1", reduce_shown(shown), pixels.shape[:2], np.empty((*attention.grid, 0), np.float32))
    drawing = draw_attention(picture, attention, mass)
    note = "Each map shows where the class token attends, scaled from its lowest to its highest value."
    write_picture(drawing, out, "Attention of the last block", frozen, note)
    return ShownAttention(drawing, source_names(sources), attention, mass_mask(attention.maps()[0], mass))
