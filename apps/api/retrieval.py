"""Similarity search: indexes of images, search with images, and evaluation of an index."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dinomed.adapters.retrieval import evaluate
from dinomed.adapters.retrieval.build import build_index as write_index
from dinomed.adapters.retrieval.engine import parse_kind
from dinomed.adapters.retrieval.filters import choose_rows, parse_conditions
from dinomed.adapters.retrieval.pool import Pooling, parse_pool
from dinomed.adapters.retrieval.search import ImageIndex, QueryResult
from dinomed.adapters.retrieval.search import load_index as read_image_index
from dinomed.apps.api.backbones import BackboneLike, load_backbone
from dinomed.apps.api.inputs import DatasetLike, FolderLike, PathLike, cache_folder, folder_path, text_mask
from dinomed.apps.pages.matches import draw_matches
from dinomed.backbones.preprocessing import Aspect
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.open import open_dataset
from dinomed.errors import UsageError
from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.files import replacing, write_json
from dinomed.io.output_folder import claimed_folder
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE

RESULTS_FILE = "results.json"

IndexLike = ImageIndex | FolderLike


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
    aspect: Aspect | None = None,
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
        aspect: square, pad or keep; see `load_backbone`.
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
    if not 1 <= gem_power <= 64:
        raise UsageError(f"`gem_power={gem_power}`: give 1 to 64")
    index_kind, pooling = parse_kind(kind), Pooling(tokens=parse_pool(pool), gem_power=gem_power)
    manifest = open_dataset(data, allow_unreadable=True)
    allowed = choose_rows(manifest, conditions)
    if allowed is not None:
        manifest = manifest.take(np.flatnonzero(allowed).tolist())
    frozen = load_backbone(
        backbone, weights=weights, device=device, image_size=image_size, aspect=aspect, mean=mean, std=std
    )
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


def search(
    images: DatasetLike,
    index: IndexLike,
    *,
    k: int = 10,
    exclude_same_group: bool = False,
    where: Sequence[str] = (),
    exact: bool = False,
    evidence: bool = False,
    mask_text: bool = False,
    out: PathLike | None = None,
    backbone: PathLike | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Find the most similar images of an index for each image of a folder or a manifest.

    Similarity is the cosine similarity of backbone features (1 for the same image), not of diagnoses. For images in
    memory use ``dinomed.load_index(folder).search(images)``. The command is ``dinomed search``.

    Args:
        images: a manifest, or the path of a manifest, a folder or an image.
        index: a loaded index, the folder of an index, or the result of `dinomed.build_index`.
        k: results for each image.
        exclude_same_group: leave out the query image itself, and images of its patient, lesion or video.
        where: conditions on the index, such as ``"split=train"``; only images that meet all are results.
        exact: compare with every image, even if the index is approximate.
        evidence: report too which patches of the query and of each result match.
        mask_text: mask burned-in text that the detector finds in these pictures; it misses text.
        out: folder for results.json and, with `evidence`, pictures of the matches; None writes nothing.
        backbone: path of the backbone of the index, if that was moved.
        overwrite: replace an earlier search in `out`.
        device: device of an index that is given by its folder.

    Returns:
        The report that ``dinomed search --json`` prints: ``queries``, each with its ``image`` and ``results``;
        ``unreadable`` with the reason for each image that cannot be read; and ``notes``.

    Raises:
        UsageError: no images, a condition that no image meets, `k` below 1, or `out` is in use.
        DinomedError: the index is damaged, or its backbone is missing.

    Example:
        >>> report = dinomed.search("lesions/images", "runs/index", k=3, exclude_same_group=True)
        >>> len(report["queries"]), [hit["rank"] for hit in report["queries"][0]["results"]]
        (60, [1, 2, 3])
    """
    mask = text_mask(mask_text, evidence and out is not None, "add `evidence=True` and `out`, or leave it out")
    conditions = parse_conditions(where)
    image_index = _open_index(index, backbone, device)
    manifest = open_dataset(images, allow_unreadable=True)
    failed = [{"image": name, "reason": reason} for name, reason in manifest.unreadable]
    notes = []
    if k > len(image_index):
        notes.append(f"`k={k}`: the index holds {len(image_index)} images; no more results are possible")
    results = image_index.search_manifest(
        manifest, k, conditions=conditions, exclude_same_group=exclude_same_group, exact=exact
    )
    # only now, so that a refused search leaves no empty folder
    claim = nullcontext() if out is None else claimed_folder(out, marker=RESULTS_FILE, overwrite=overwrite)
    with claim as folder:
        if folder is not None:
            _remove_earlier(folder)
        queries: list[dict[str, Any]] = []
        for row, result in enumerate(results):
            if result.error is not None:
                failed.append({"image": result.image, "reason": result.error})
                continue
            hits = [image_index.hit(neighbor, rank).to_json() for rank, neighbor in enumerate(result.neighbors, 1)]
            if evidence:
                _add_evidence(image_index, manifest.path(row), row, result, hits, folder, mask)
            exclusion = (
                {"kept_out": result.num_excluded, "group_known": result.group_known} if exclude_same_group else {}
            )
            queries.append({"image": result.image, **exclusion, "results": hits})
        unknown = sum(exclude_same_group and not query["group_known"] for query in queries)
        if unknown:
            notes.append(
                f"the group of {unknown} of {len(queries)} images is not known, so only the image itself is left out; "
                "give a manifest with groups"
            )
        for note in notes:
            logger.warning(note)
        report = {
            "purpose": RESEARCH_USE,
            "index": {
                "path": "" if isinstance(index, ImageIndex) else str(index),
                "images": len(image_index),
                "kind": image_index.vector_index.record.kind,
                "backbone": image_index.backbone.name,
                "fingerprint": image_index.backbone.fingerprint,
            },
            "k": k,
            "where": [str(condition) for condition in conditions],
            "exclude_same_group": exclude_same_group,
            "queries": queries,
            "unreadable": failed,
            "notes": notes,
        }
        if folder is not None:
            write_json(folder / RESULTS_FILE, report)
    return report


def evaluate_index(
    index: IndexLike,
    data: DatasetLike,
    *,
    split: str = "test",
    label: str = "label",
    where: Sequence[str] = (),
    backbone: PathLike | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure an index by labels: mAP, recall and precision among the first k results.

    Each labelled image of the split is a query, and images of the index with its label are relevant. The query itself
    and its group are left out. Intervals (95%) are from a bootstrap over groups. The command is
    ``dinomed search --evaluate``.

    Args:
        index: a loaded index, the folder of an index, or the result of `dinomed.build_index`.
        data: a manifest with labels.
        split: split whose images are the queries.
        label: column of the labels, in `data` and in the index.
        where: conditions on the index, such as ``"split=train"`` to search among training images only.
        backbone: path of the backbone of the index, if that was moved.
        device: device of an index that is given by its folder.

    Returns:
        The report that ``dinomed search --evaluate --json`` prints: ``metrics`` with ``map``, ``recall@k`` and
        ``precision@k`` for k = 1, 5 and 10, and the same in ``per_class``.

    Raises:
        UsageError: no labels, an empty split, or a condition that no image meets.
        DinomedError: an image cannot be read, or the index is damaged.

    Example:
        >>> report = dinomed.evaluate_index("runs/index", "lesions.parquet", where=["split=train"])
        >>> 0 < report["metrics"]["map"] < 1, sorted(report["per_class"])
        (True, ['irregular', 'regular', 'vascular'])
    """
    image_index = _open_index(index, backbone, device)
    return evaluate.evaluate_index(
        image_index, open_dataset(data), split, label=label, conditions=parse_conditions(where)
    )


def _open_index(index: IndexLike, backbone: PathLike | None, device: str) -> ImageIndex:
    return index if isinstance(index, ImageIndex) else load_index(index, backbone=backbone, device=device)


def _remove_earlier(folder: Path) -> None:
    """Remove an earlier search: its results, which mark it as complete, then its pictures, recognised by their names.

    Other files stay.
    """
    (folder / RESULTS_FILE).unlink(missing_ok=True)
    for path in folder.glob("*_*.jpg"):
        if path.stem.replace("_", "").isdigit() and path.is_file():
            path.unlink()


def _add_evidence(
    image_index: ImageIndex,
    query: Path,
    row: int,
    result: QueryResult,
    hits: list[dict[str, Any]],
    out: Path | None,
    mask: TextMask | None = None,
) -> None:
    """Add the matching patches to each of `hits`; with `out` also draw them, to ``QUERY_RANK.jpg``."""
    all_evidence = image_index.evidence(image_index.backbone.preprocessing.read(query), result.neighbors)
    for hit, neighbor, evidence in zip(hits, result.neighbors, all_evidence, strict=True):
        hit["evidence"] = None if evidence is None else evidence.to_json()
        if evidence is None:
            hit["evidence_missing"] = "the indexed image can no longer be read"
        elif out is not None:
            name = f"{row + 1:04d}_{hit['rank']:02d}.jpg"
            try:
                pair = [read_image(query), image_index.read_image(neighbor.row)]
                first, second = pair if mask is None else map(mask, pair)
                drawn = draw_matches(first, second, evidence)
            except UnreadableImage:  # arrays and images of several bands cannot be drawn
                continue
            with replacing(out / name) as temporary:
                Image.fromarray(drawn).save(temporary, format="JPEG", quality=92)
            hit["evidence"]["picture"] = name
