"""Similarity search: indexes of images."""

from collections.abc import Sequence

import numpy as np
import torch

from dinomed.adapters.retrieval.build import build_index as write_index
from dinomed.adapters.retrieval.engine import parse_kind
from dinomed.adapters.retrieval.filters import choose_rows, parse_conditions
from dinomed.adapters.retrieval.pool import Pooling, parse_pool
from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.adapters.retrieval.search import load_index as read_image_index
from dinomed.apps.api.backbones import BackboneLike, load_backbone
from dinomed.apps.api.inputs import DatasetLike, FolderLike, PathLike, cache_folder, folder_path
from dinomed.datasets.open import open_dataset
from dinomed.log import logger


def build_index(
    backbone: BackboneLike,
    data: DatasetLike,
    out: PathLike,
    *,
    kind: str = "flat",
    pool: str = "cls",
    gem_power: float = 3.0,
    whiten: int | None = None,
    where: Sequence[str] = (),
    weights: PathLike | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: PathLike | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> ImageIndex:
    """Index images for similarity search and write the index to a folder.

    Files that cannot be read are skipped with a warning. The command is ``dinomed index``.

    Args:
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes.
        data: a manifest, or the path of a manifest or a folder.
        out: folder to write.
        kind: flat (exact), hnsw (a graph, for 100,000 images and more) or ivf (cells).
        pool: vector of an image: cls, mean, cls+mean, or gem (generalised mean of the patch tokens).
        gem_power: exponent of gem, 1 to 64; 1 is the mean.
        whiten: number of dimensions after PCA whitening; None for no whitening.
        where: conditions on columns, such as ``"split=train"``; only images that meet all are indexed.
        weights: file with the weights of a backbone that is given by name.
        image_size: side of the square to which images are resized, px.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel, likewise.
        cache: folder of cached features; None for NAME.features beside the manifest or folder.
        overwrite: replace an earlier index in `out`.
        device: device of a backbone that is given by name or path.

    Returns:
        The index with its backbone, as `load_index` returns it. ``index.vector_index.manifest.unreadable`` lists
        (path, reason) of the files that cannot be read.

    Raises:
        UsageError: no images, an option is wrong, or `out` is in use.
        DinomedError: features are not finite, or nothing can be written.

    Example:
        >>> index = dinomed.build_index("runs/ssl", "lesions.parquet", out="runs/new_index")
        >>> len(index)
        60
    """
    conditions = parse_conditions(where)
    index_kind, pooling = parse_kind(kind), Pooling(tokens=parse_pool(pool), gem_power=gem_power)
    manifest = open_dataset(data, allow_unreadable=True)
    allowed = choose_rows(manifest, conditions)
    if allowed is not None:
        manifest = manifest.take(np.flatnonzero(allowed).tolist())
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size, mean=mean, std=std)
    vector_index = write_index(
        frozen, manifest, out, cache=cache_folder(manifest, cache), kind=index_kind, pooling=pooling, whiten=whiten,
        overwrite=overwrite,
    )  # fmt: skip
    unreadable = list(vector_index.manifest.unreadable)
    if unreadable:
        name, reason = unreadable[0]
        if len(unreadable) == 1:
            logger.warning(f"1 image could not be used and is not in the index: {name}: {reason}")
        else:
            logger.warning(
                f"{len(unreadable)} images could not be used and are not in the index (the first: {name}: {reason})"
            )
    return ImageIndex(vector_index, frozen)


def load_index(
    folder: FolderLike, *, backbone: PathLike | None = None, device: str | torch.device = "auto"
) -> ImageIndex:
    """Load an index with the backbone on which it was made.

    The command ``dinomed search`` uses it.

    Args:
        folder: folder of the index.
        backbone: path of its backbone, if that was moved.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        An index whose `search` takes a path, a PIL image, an array (H, W, 3) uint8 or a tensor (3, H, W).

    Raises:
        UsageError: no index is there, or the backbone is not the one on which it was made.
        DinomedError: the index is damaged, or its backbone is missing.

    Example:
        >>> index = dinomed.load_index("runs/index")
        >>> hits = index.search("lesions/images/SYN_00000_a.jpg", k=3)
        >>> [hit.rank for hit in hits], hits[0].image
        ([1, 2, 3], 'images/SYN_00000_a.jpg')
    """
    return read_image_index(folder_path(folder), device, backbone)
