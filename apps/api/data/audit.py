"""Audits: training images against test images, and the labels of a set."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.apps.api.inputs import (
    DatasetLike,
    FolderLike,
    HasFolder,
    PathLike,
    Settings,
    cache_folder,
    check_backbone_options,
    config_path,
    dataset_name,
    override_list,
    select_splits,
    text_mask,
)  # fmt: skip
from dinomed.burned_in_text.mask import TextMask
from dinomed.config import load_config, to_yaml
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.open import open_dataset
from dinomed.datasets.splits import make_folds
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError
from dinomed.io.files import write_json, write_text
from dinomed.io.output_folder import check_writable, claimed_file
from dinomed.notice import RESEARCH_USE

if TYPE_CHECKING:
    from dinomed.pretrain.curation.audit.audit import Audit, AuditConfig, LeakedPair
    from dinomed.pretrain.curation.audit.training_index import TrainingIndex

FOLDS = 5


def audit(
    train: DatasetLike | FolderLike,
    test: DatasetLike | None = None,
    *,
    out: PathLike | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    backbone: PathLike | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    config: PathLike | None = None,
    settings: Settings | None = None,
    labels: str | None = None,
    table: PathLike | None = None,
    folds: int | None = None,
    cache: PathLike | None = None,
    mask_text: bool = False,
    workers: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Find test images that are among the training images: exact copies, near-duplicates and shared groups.

    Near-duplicates are cropped, rotated, mirrored, recompressed, recoloured or annotated copies. Of a run folder, the
    hashes of the images on which it was trained are compared. With `labels`, the labels of `train` are examined
    instead: images are ranked whose label disagrees with their neighbours and with out-of-fold predictions. The command
    is ``dinomed audit``.

    Args:
        train: training images: a manifest or a folder; or a run folder, or its result.
        test: test images; None for the splits val and test of `train`.
        out: page (.html) to write, with the pairs side by side.
        train_split: splits of `train`, such as ``"train,val"``; None for all.
        test_split: splits of `test`.
        backbone: compare features of this backbone in place of the copy-detection descriptor.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel.
        config: YAML file of settings.
        settings: settings that override the config.
        labels: column of classes whose errors are searched, in place of copies; needs `backbone`.
        table: with `labels`, file (.csv or .json) with all images, the most doubtful first.
        folds: with `labels`, number of folds by group; None for 5.
        cache: folder of cached results, with which an interrupted audit continues; with `labels`, of features.
        mask_text: mask burned-in text that the detector finds in the images of the page; it misses text.
        workers: threads; None for one per processor.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The report of ``dinomed audit --json``: ``leaked_test_images``, ``counts`` by kind, ``pairs``; with `labels` the
        number of ``suspects``, ``ranked``, ``confident_joint``, ``out_of_fold`` (quality of predictions), ``warnings``.

    Raises:
        UsageError: both sides are the same images, or an option is wrong.
        DinomedError: no image can be read.

    Example:
        >>> report = dinomed.audit("lesions.parquet")       # its split train against val and test
        >>> report["test_images"], "exact" in report["counts"]
        (18, True)
    """
    from dinomed.pretrain.curation.audit.audit import audit as audit_images
    from dinomed.pretrain.curation.audit.audit import audit_training_index

    check_backbone_options(backbone, mean=mean, std=std)
    mask = text_mask(mask_text, out is not None, "add `out`, or leave it out")
    if labels is not None:
        if test is not None or test_split is not None or config is not None or settings:
            raise UsageError(f"`labels={labels}`: the labels of one set are examined; leave out `test` and settings")
        manifest = select_splits(
            _open_side(train.folder if isinstance(train, HasFolder) else train), str(train), train_split
        )
        return audit_labels(
            manifest, labels, backbone, out=out, table=table, folds=FOLDS if folds is None else folds, cache=cache,
            device=device, mean=mean, std=std, mask=mask,
        )  # fmt: skip
    if table is not None or folds is not None:
        raise UsageError("`table` and `folds` are of the search for label errors; name the column with `labels`")
    if out is not None:
        if Path(out).suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"output {out}: the page is an .html file")
        check_writable(Path(out).parent)
    with nullcontext() if out is None else claimed_file(out):
        resolved = _audit_config(config, settings, backbone, mean=mean, std=std)
        seen, train_images, test_images, names = _open_sides(train, test, train_split, test_split)
        if seen is not None:
            result = audit_training_index(seen, test_images, resolved, workers=workers)
        else:
            assert train_images is not None
            folder = None if cache is None else Path(cache)
            result = audit_images(train_images, test_images, resolved, device=device, workers=workers, cache=folder)
        result = replace(result, unreadable=result.unreadable + len(test_images.unreadable))
        if out is not None:
            from dinomed.apps.pages.audit import build_audit_page

            write_text(out, build_audit_page(result, train_images, test_images, names, to_yaml(resolved), mask))
    return _audit_report(result, train_images, test_images, names, out)


def _audit_config(
    config: PathLike | None, settings: Settings | None, backbone: PathLike | None, **statistics: Sequence[float] | None
) -> "AuditConfig":
    from dinomed.pretrain.curation.audit.audit import AuditConfig

    resolved = load_config(AuditConfig, config_path(config, "curation"), override_list(settings))
    if backbone is None:
        return resolved
    if resolved.descriptor.source.kind != "composed":
        raise UsageError(f"`backbone={backbone}`: the config names a descriptor already; give one of the two")
    source = {"kind": "backbone", "backbone": str(backbone), **statistics}
    descriptor = resolved.descriptor.model_dump() | {"source": source}
    return AuditConfig.model_validate(resolved.model_dump() | {"descriptor": descriptor})


def _open_sides(
    train: Any, test: DatasetLike | None, train_split: str | None, test_split: str | None
) -> "tuple[TrainingIndex | None, Manifest | None, Manifest, tuple[str, str]]":
    """Return the hashes of a run or None, the training images or None, the test images, and the names of both sides."""
    from dinomed.pretrain.curation.audit.training_index import read_training_index
    from dinomed.pretrain.run_folder import CHECKPOINTS, RECORD_FILE, SEEN_FILE

    place = train.folder if isinstance(train, HasFolder) else train
    folder = None if isinstance(place, Manifest) else Path(place)
    if folder is not None and any((folder / name).exists() for name in (SEEN_FILE, RECORD_FILE, CHECKPOINTS)):
        if test is None:
            raise UsageError(f"{folder} is a run; name the test images too, with `test`")
        if train_split is not None:
            raise UsageError(f"`train_split={train_split}`: {folder} is a run, which knows what it was trained on")
        images = _open_side(test)
        return (
            read_training_index(folder),
            None,
            select_splits(images, test, test_split),
            (str(folder), dataset_name(test, test_split)),
        )
    images = _open_side(place)
    tests = images if test is None else _open_side(test)
    if tests.fingerprint == images.fingerprint and train_split is None and test_split is None:
        splits = set(images.column("split")) if images.has("split") else set()
        if "train" not in splits or not splits & {"val", "test"}:
            raise UsageError(
                f"{dataset_name(place, None)} is compared with itself, and every image is a copy of itself; give two "
                "sets of images, or one manifest with splits"
            )
        train_split, test_split = "train", ",".join(name for name in ("val", "test") if name in splits)
    test_place = place if test is None else test
    sides = (select_splits(images, place, train_split), select_splits(tests, test_place, test_split))
    if sides[0].fingerprint == sides[1].fingerprint:
        raise UsageError(f"the two sides are the same {len(sides[0])} images: every image is a copy of itself")
    return None, *sides, (dataset_name(place, train_split), dataset_name(test_place, test_split))


def _open_side(data: DatasetLike) -> Manifest:
    return open_dataset(data, allow_unreadable=True)


def _audit_report(
    result: "Audit", train: Manifest | None, test: Manifest, names: tuple[str, str], page: PathLike | None
) -> dict[str, Any]:
    train_paths, test_paths = None if train is None else train.column("image"), test.column("image")

    def row(pair: "LeakedPair") -> dict[str, Any]:
        path = None if train_paths is None or pair.train is None else train_paths[pair.train]
        return {
            "kind": pair.kind, "train": path, "test": test_paths[pair.test], "similarity": pair.similarity,
            "distance_bits": pair.distance, "matching_points": pair.matches, "group": pair.group,
        }  # fmt: skip

    return {
        "train": names[0],
        "test": names[1],
        "train_images": result.train_images,
        "test_images": result.test_images,
        "leaked_test_images": result.leaked,
        "counts": result.counts,
        "unreadable": result.unreadable,
        "page": None if page is None else str(page),
        "notes": [*result.notes, RESEARCH_USE],
        "pairs": [row(pair) for pair in result.pairs],
    }


def audit_labels(
    manifest: Manifest,
    column: str,
    backbone: PathLike | None,
    *,
    out: PathLike | None = None,
    table: PathLike | None = None,
    folds: int = FOLDS,
    cache: PathLike | None = None,
    mask: TextMask | None = None,
    device: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Rank the images of a manifest by the doubt about their labels; `dinomed.audit` with `labels` calls it.

    Raises:
        UsageError: the column is missing or holds no classes, there are fewer groups than folds, or no backbone is
            given.
    """
    from dinomed.adapters.evaluation.label_errors import RANKED_COLUMNS, find_label_errors
    from dinomed.apps.api.backbones import load_backbone
    from dinomed.apps.pages.label_errors import build_label_page
    from dinomed.features.extract import extract_usable

    if backbone is None:
        raise UsageError(f"`labels={column}`: neighbours and predictions need features; name a backbone: `backbone`")
    for place, suffixes in ((out, (".html", ".htm")), (table, (".csv", ".json"))):
        if place is not None:
            if Path(place).suffix.lower() not in suffixes:
                raise UsageError(f"output {place}: its name ends in {' or '.join(suffixes)}")
            check_writable(Path(place).parent)
    labelled = [row for row, label in enumerate(manifest.column(column)) if label is not None]
    if not labelled:
        raise UsageError(f"column {column!r} of {manifest.called} is empty; name the column of the classes")
    images = manifest.take(labelled)
    make_folds(images.units(), images.column(column), folds)  # raises before the features are computed
    with ExitStack() as stack:
        for place in (out, table):
            if place is not None:
                stack.enter_context(claimed_file(place))
        frozen = load_backbone(backbone, device=device, mean=mean, std=std)
        computed, images = extract_usable(frozen, images, cache=cache_folder(manifest, cache))
        errors = find_label_errors(computed.cls, images.column(column), images.units(), folds=folds)
        ranked = errors.ranked(images.column("image"))
        report = {
            "data": str(manifest.source or manifest.root),
            "column": column,
            "images": len(errors.rows),
            "not_judged": len(errors.not_judged),
            "unreadable": len(labelled) - len(images),
            "classes": {name: int((errors.labels == i).sum()) for i, name in enumerate(errors.classes)},
            "folds": folds,
            "suspects": int(errors.suspects.sum()),
            "out_of_fold": errors.quality(),
            "other_class_by_prediction": int(errors.by_prediction.sum()),
            "other_class_by_neighbors": int(errors.by_neighbors.sum()),
            "confident_joint": {
                label: dict(zip(errors.classes, map(int, row), strict=True))
                for label, row in zip(errors.classes, errors.joint, strict=True)
            },
            "backbone": {"name": frozen.name, "fingerprint": frozen.fingerprint},
            "page": None if out is None else str(out),
            "table": None if table is None else str(table),
            "warnings": errors.warnings(),
            "notes": ["a suspect is a label to look at again, not an error for certain", RESEARCH_USE],
        }
        if out is not None:
            write_text(out, build_label_page(errors, images, report, mask))
        if table is not None and Path(table).suffix.lower() == ".json":
            write_json(table, {**report, "ranked": ranked})
        elif table is not None:
            write_csv(table, RANKED_COLUMNS, [list(entry.values()) for entry in ranked])
    return report | {"ranked": [entry for entry in ranked if entry["suspect"]]}
