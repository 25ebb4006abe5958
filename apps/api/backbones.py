"""Backbones: loading, frozen features, and their evaluation by probes."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from dinomed.adapters.evaluation.probe import check_split
from dinomed.adapters.evaluation.probe import probe as probe_features
from dinomed.apps.api.inputs import (
    DatasetLike,
    FolderLike,
    HasFolder,
    PathLike,
    Settings,
    cache_folder,
    override_list,
)  # fmt: skip
from dinomed.backbones import load
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Aspect
from dinomed.config import parse_overrides
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.open import open_dataset
from dinomed.errors import UsageError
from dinomed.features.compute import compute_features
from dinomed.features.extract import check_usable, extract_usable
from dinomed.features.finite import naming
from dinomed.features.loading import preprocess_batches
from dinomed.features.table import TOKENS, FeatureTable, check_table_output, write_feature_table
from dinomed.images.in_memory import ImageSource
from dinomed.pretrain.run_folder import UNTRAINED

BackboneLike = FrozenBackbone | FolderLike


def load_backbone(
    name_or_path: BackboneLike,
    *,
    weights: PathLike | None = None,
    device: str | torch.device = "auto",
    image_size: int | None = None,
    aspect: Aspect | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> FrozenBackbone:
    """Load a frozen backbone with its preprocessing.

    Args:
        name_or_path: a name such as ``"dinov2_vits14"`` (its released weights are downloaded once and cached), a model
            of the Hugging Face hub (``"timm/NAME"``, ``"hf-hub:ORG/NAME"``), a run folder or the result of
            `dinomed.pretrain`, a backbone folder, a folder in the format of timm or transformers, or a file of weights
            (.safetensors, .pth) whose architecture is inferred. A loaded backbone is returned as it is.
        weights: with a name, a file with its weights: official .pth, timm, transformers or safetensors.
        device: auto, cpu, cuda, cuda:N or mps.
        image_size: side of the square to which images are resized, px; a multiple of the patch size.
        aspect: square (resize images to the square), pad (keep their proportions and pad to the square), keep (resize
            to rectangles whose shorter side is `image_size`), or None for the backbone's.
        mean: mean of each channel in 0 to 1, for weights whose files name none; without it ImageNet's is assumed, and a
            warning says so.
        std: standard deviation of each channel.

    Returns:
        A module that maps preprocessed images (B, channels, height, width) to tokens. It has `embed_dim`, `patch_size`,
        `preprocessing` and a `fingerprint`, and it stays in eval mode without gradients.

    Raises:
        UsageError: the name or path is unknown, the weights have another architecture, or the size does not fit.
        DinomedError: a file is damaged or cannot be downloaded.

    Example:
        >>> backbone = dinomed.load_backbone("runs/ssl")
        >>> backbone.embed_dim, backbone.patch_size
        (32, 8)
    """
    if isinstance(name_or_path, FrozenBackbone):
        if any(value is not None for value in (weights, image_size, aspect, mean, std)):
            raise UsageError(
                "`weights`, `image_size`, `aspect`, `mean` and `std` are for a backbone that is given by name or path"
            )
        return name_or_path
    place = name_or_path.folder if isinstance(name_or_path, HasFolder) else name_or_path
    return load.load_backbone(
        place, weights=weights, device=device, image_size=image_size, aspect=aspect, mean=mean, std=std
    )


@dataclass(frozen=True)
class ImageFeatures:
    """Features of N images, of the last block of a backbone with C channels.

    Attributes:
        names: N paths relative to the root of the manifest; ``image_0``, ... for images in memory.
        cls: class tokens, float32 (N, C).
        mean: means of the patch tokens, float32 (N, C).
        unreadable: (path, reason) of files that were skipped.
    """

    names: list[str]
    cls: np.ndarray
    mean: np.ndarray
    unreadable: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.names)


@overload
def extract_features(
    backbone: BackboneLike,
    images: DatasetLike | ImageSource | Sequence[ImageSource],
    *,
    out: None = None,
    tokens: str = ...,
    weights: PathLike | None = ...,
    image_size: int | None = ...,
    aspect: Aspect | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    cache: PathLike | None = ...,
    overwrite: bool = ...,
    device: str = ...,
) -> ImageFeatures: ...
@overload
def extract_features(
    backbone: BackboneLike,
    images: DatasetLike,
    *,
    out: PathLike,
    tokens: str = ...,
    weights: PathLike | None = ...,
    image_size: int | None = ...,
    aspect: Aspect | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    cache: PathLike | None = ...,
    overwrite: bool = ...,
    device: str = ...,
) -> FeatureTable: ...
def extract_features(
    backbone: BackboneLike,
    images: Any,
    *,
    out: PathLike | None = None,
    tokens: str = "cls",
    weights: PathLike | None = None,
    image_size: int | None = None,
    aspect: Aspect | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: PathLike | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> ImageFeatures | FeatureTable:
    """Compute the features of images with a frozen backbone.

    Features of a manifest or a folder are cached and computed once. With `out` they are written as a table and not kept
    in memory; the command is ``dinomed features``. An interrupted call continues where it stopped.

    Args:
        backbone: a loaded backbone, or what `load_backbone` takes.
        images: a manifest, or the path of a manifest, a folder or an image; or images in memory: one or a sequence of
            PIL images, arrays (H, W, 3) uint8, tensors (3, H, W) and paths.
        out: Parquet file to write, with the columns ``image``, ``sha256`` and ``feature``. Files that cannot be read
            are listed in NAME.unreadable.csv beside it.
        tokens: feature of the table: cls, mean (of the patch tokens) or cls+mean.
        weights: file with the weights of a backbone that is given by name.
        image_size: side of the square to which images are resized, px.
        aspect: square, pad or keep; see `load_backbone`.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel, likewise.
        cache: folder of cached features; None for NAME.features beside the manifest or folder.
        overwrite: replace `out` if it is a table of features.
        device: device of a backbone that is given by name or path; a loaded backbone stays on its own.

    Returns:
        The features as arrays; with `out` a short description of the table.

    Raises:
        UsageError: there are no images, an option is wrong, or `out` exists.
        DinomedError: the backbone is damaged, or nothing can be written.

    Example:
        >>> features = dinomed.extract_features("runs/ssl", "lesions.parquet")
        >>> features.cls.shape, features.names[0]
        ((60, 32), 'images/SYN_00000_a.jpg')
        >>> dinomed.extract_features("runs/ssl", [np.zeros((64, 48, 3), np.uint8)]).cls.shape
        (1, 32)
    """
    if out is not None:
        check_table_output(out, tokens, overwrite=overwrite)
    elif tokens not in TOKENS:
        raise UsageError(f"`tokens={tokens!r}` is unknown; use {', '.join(TOKENS)}")
    frozen = load_backbone(
        backbone, weights=weights, device=device, image_size=image_size, aspect=aspect, mean=mean, std=std
    )
    if not isinstance(images, Manifest | str | Path):
        if out is not None:
            raise UsageError("a table is written of image files; leave `out` out for images in memory")
        return _features_in_memory(frozen, images)
    manifest = open_dataset(images, allow_unreadable=True)
    if out is not None:
        return write_feature_table(frozen, manifest, out, tokens=tokens, unreadable=manifest.unreadable)
    features, manifest = extract_usable(frozen, manifest, cache=cache_folder(manifest, cache))
    check_usable(manifest)
    return ImageFeatures(manifest.column("image"), features.cls, features.mean, list(manifest.unreadable))


def _features_in_memory(backbone: FrozenBackbone, images: Any) -> ImageFeatures:
    sources = list(images) if isinstance(images, Iterable) and getattr(images, "ndim", 4) > 3 else [images]
    if not sources:
        raise UsageError("no images to compute features of")
    cls, mean = list[np.ndarray](), list[np.ndarray]()
    names = [str(image) if isinstance(image, str | Path) else f"image_{i}" for i, image in enumerate(sources)]
    for pixels, _ in preprocess_batches(sources, backbone.preprocessing):
        with naming(names, sum(len(part) for part in cls)):
            features = compute_features(backbone, pixels, (-1,), False)
        cls.append(features.cls.cpu().numpy())
        mean.append(features.mean.cpu().numpy())
    return ImageFeatures(names, np.concatenate(cls), np.concatenate(mean), [])


def probe(
    backbone: BackboneLike,
    data: DatasetLike,
    *,
    task: str = "classify",
    untrained: bool = False,
    weights: PathLike | None = None,
    label: str = "label",
    split: str = "test",
    head: str | None = None,
    settings: Settings | None = None,
    shots: Sequence[int | None] | str | None = None,
    seeds: int = 5,
    out: PathLike | None = None,
    overwrite: bool = False,
    image_size: int | None = None,
    aspect: Aspect | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: PathLike | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure frozen features by k-NN and logistic regression on the class token of the last block.

    Both are fitted on train; k and the strength of the penalty are chosen on val by macro AUROC. With `shots`, logistic
    regression is fitted on few labelled groups per class. With ``task="segment"`` a segmentation head is fitted on few
    images with masks. The command is ``dinomed probe``.

    Args:
        backbone: a loaded backbone, or what `load_backbone` takes.
        data: a manifest with labels or masks.
        task: classify, or segment for Dice by the number of masks.
        untrained: use the backbone as it was before its pretraining; `backbone` is then a run folder.
        weights: file with the weights of a backbone that is given by name.
        label: column of the classes.
        split: split to report on, test or val.
        head: for segment, name of the head; None for linear.
        settings: for segment, settings of the fits, such as ``{"augment": "dermoscopy"}``; by default they are short
            and without augmentation (`dinomed.adapters.evaluation.few_masks.QUICK`).
        shots: numbers of labelled groups per class, such as ``"1,2,4,8,all"``; for segment numbers of images with
            masks, by default ``"10,25,50,100,200,all"``.
        seeds: draws of each number of `shots`.
        out: folder for few_shot.json and report.html; with `shots` or ``task="segment"`` only.
        overwrite: replace an earlier result in `out`.
        image_size: side of the square to which images are resized, px.
        aspect: square, pad or keep; see `load_backbone`.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel, likewise.
        cache: folder of cached features; None for NAME.features beside the manifest.
        seed: seed of a val split made from train, and of the draws.
        device: device of a backbone that is given by name or path.

    Returns:
        The report that ``dinomed probe --json`` prints: ``knn`` and ``logistic`` with ``auroc``, ``balanced_accuracy``
        and ``per_class``; with `shots` means and standard deviations; for segment also intervals and ``baselines``.

    Raises:
        UsageError: no labels or masks, one class only, an empty split, or a group in two splits.
        DinomedError: an image cannot be read.

    Example:
        >>> report = dinomed.probe("runs/ssl", "lesions.parquet")
        >>> 0 <= report["knn"]["auroc"] <= 1
        True
    """
    from dinomed.adapters.evaluation.few_masks import COUNTS, few_shot_config, few_shot_masks
    from dinomed.adapters.evaluation.few_shot import few_shot, parse_shots
    from dinomed.apps.pages.few_shot import build_few_mask_page, build_few_shot_page
    from dinomed.io.files import write_json, write_text
    from dinomed.io.output_folder import claimed_folder

    check_split(split)
    if task not in PROBED_TASKS:
        raise UsageError(f"`task={task}`: give {' or '.join(PROBED_TASKS)}")
    if task != "segment" and (head is not None or settings):
        raise UsageError("`head` and `settings` are for the fits of `task=segment`; leave them out, or give the task")
    numbers = None if shots is None else parse_shots(shots if isinstance(shots, str) else _shots_text(shots))
    if out is not None and numbers is None and task != "segment":
        raise UsageError("`out` is for the page of `shots`; give `shots=1,2,4,8,16,all`, or leave `out` out")
    with nullcontext() if out is None else claimed_folder(out, marker=FEW_SHOT_FILE, overwrite=overwrite) as folder:
        if untrained:
            backbone = _untrained(backbone)
        manifest = open_dataset(data)
        frozen = load_backbone(
            backbone, weights=weights, device=device, image_size=image_size, aspect=aspect, mean=mean, std=std
        )
        cache = cache_folder(manifest, cache)
        if task == "segment":
            changes = override_list(settings, head__name=head, seed=seed, image_size=image_size)
            report = few_shot_masks(
                frozen, manifest, few_shot_config(parse_overrides(changes)), cache=cache, shots=numbers or COUNTS,
                seeds=seeds, split=split,
            )  # fmt: skip
        elif numbers is None:
            return probe_features(frozen, manifest, cache=cache, label=label, split=split, seed=seed)
        else:
            report = few_shot(
                frozen, manifest, cache=cache, shots=numbers, seeds=seeds, label=label, split=split, seed=seed
            )
        if folder is not None:
            (folder / FEW_SHOT_FILE).unlink(missing_ok=True)  # it marks the folder as complete
            build = build_few_mask_page if task == "segment" else build_few_shot_page
            write_text(folder / "report.html", build(report))
            write_json(folder / FEW_SHOT_FILE, report)
    return report


PROBED_TASKS = ("classify", "segment")
FEW_SHOT_FILE = "few_shot.json"


def _shots_text(shots: Sequence[int | None]) -> str:
    return ",".join("all" if count is None else str(count) for count in shots)


def _untrained(backbone: BackboneLike) -> Path:
    """Return the folder of the backbone of a run before its pretraining."""
    if isinstance(backbone, FrozenBackbone):
        raise UsageError("`untrained` needs the run folder of the backbone; give its path")
    path = (backbone.folder if isinstance(backbone, HasFolder) else Path(backbone)) / UNTRAINED
    if not path.is_dir():
        raise UsageError(f"`untrained`: {path.parent} keeps no untrained backbone; it has to be a run of pretrain")
    return path
