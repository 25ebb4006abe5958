"""Curation of image collections, and the audit of training images against test images."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.apps.api.inputs import (
    DatasetLike,
    FolderLike,
    HasFolder,
    PathLike,
    Settings,
    check_backbone_options,
    config_path,
    dataset_name,
    override_list,
    select_splits,
    text_mask,
)  # fmt: skip
from dinomed.config import load_config, to_yaml
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.open import open_dataset
from dinomed.errors import UsageError, did_you_mean
from dinomed.io.files import write_text
from dinomed.io.output_folder import check_writable, claimed_file
from dinomed.notice import RESEARCH_USE
from dinomed.pretrain.curation.output.read import CurationResult, summary_path
from dinomed.pretrain.curation.output.report import write_report
from dinomed.pretrain.curation.pool import NamedManifest, Pool, build_pool

if TYPE_CHECKING:
    from dinomed.pretrain.curation.audit.audit import Audit, AuditConfig, LeakedPair
    from dinomed.pretrain.curation.audit.training_index import TrainingIndex
    from dinomed.pretrain.curation.config import CurationConfig

EXECUTORS = ("local", "ray")


def curate(
    pool: DatasetLike,
    out: PathLike,
    *,
    query_sets: Sequence[DatasetLike] = (),
    exclude: Sequence[DatasetLike] = (),
    config: PathLike | None = None,
    settings: Settings | None = None,
    backbone: FolderLike | None = None,
    weights: PathLike | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    embeddings: Sequence[PathLike] = (),
    executor: str = "local",
    ray_address: str | None = None,
    workers: int | None = None,
    names: bool = False,
    mask_text: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> CurationResult:
    """Curate a pool of images for pretraining: clean, without near-duplicates, without test images, and balanced.

    No image is deleted: `out` is the manifest of the pool (and of query images that are not in it) with the columns
    ``keep`` and ``reason``. A report is written beside it. An interrupted call continues where it stopped. The command
    is ``dinomed curate``.

    Args:
        pool: a manifest, or the path of a manifest or a folder of raw images.
        out: manifest to write, .parquet or .csv.
        query_sets: trusted sets: their images are kept, and similar images of the pool are retrieved.
        exclude: evaluation sets, which stay out with their near-duplicates and their groups.
        config: YAML file, or a name in configs/curation such as ``"video"``.
        settings: settings that override the config, such as ``{"faces.action": "off"}``.
        backbone: frozen backbone for the comparison of contents: a run folder, a backbone folder or a name.
        weights: file with the weights of a backbone that is given by name.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel.
        embeddings: tables of features of the pool by that backbone, as `dinomed.extract_features` writes them.
        executor: local, or ray for many machines.
        ray_address: address of a running Ray cluster; None starts Ray on this machine.
        workers: threads, or processes of Ray.
        names: show the paths of images in the report.
        mask_text: mask burned-in text that the detector finds, in the report and in copies with blurred faces.
        overwrite: replace `out` if a curation wrote it.
        device: device of the networks: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The result, with ``path``, ``counts`` by reason, and ``summary``.

    Raises:
        UsageError: a set is empty, an option is wrong, or `out` exists.
        DinomedError: too few images are readable, or nothing can be written.

    Example:
        >>> settings = {"balance.share": 0.5, "quality.min_short_side_px": 32}      # the images have 36 x 48 px
        >>> result = dinomed.curate("lesions.parquet", out="curated.parquet", settings=settings)
        >>> len(dinomed.open_dataset(result.path)) == result.counts["kept"]
        True
    """
    from dinomed.pretrain.curation.pipeline import curate as run_pipeline
    from dinomed.pretrain.curation.runtime.ray_executor import build_executor
    from dinomed.pretrain.curation.selection.embedding import Embedder

    out = Path(out)
    check_curation_options(out, executor, ray_address, overwrite=overwrite)
    check_backbone_options(backbone, weights=weights, mean=mean, std=std)
    resolved, images = open_pool(pool, query_sets, exclude, config, settings)
    place = backbone.folder if isinstance(backbone, HasFolder) else backbone
    embedder = Embedder(
        None if place is None else str(place),
        None if weights is None else str(weights),
        [Path(table) for table in embeddings],
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
    )
    copies, shown = (text_mask(mask_text, True, "") for _ in range(2))
    runner = build_executor(executor, address=ray_address, workers=workers)
    try:
        return run_pipeline(
            images, out, resolved, executor=runner, embedder=embedder, device=device, workers=workers, mask=copies,
            report=lambda result: write_report(result, out.with_suffix(".html"), names=names, mask=shown),
        )  # fmt: skip
    finally:
        runner.close()


def open_pool(
    pool: DatasetLike,
    query_sets: Sequence[DatasetLike],
    exclude: Sequence[DatasetLike],
    config: PathLike | None,
    settings: Settings | None,
) -> "tuple[CurationConfig, Pool]":
    """Return the settings of a curation, and its pool, query sets and evaluation sets as one table."""
    from dinomed.pretrain.curation.config import CurationConfig

    resolved = load_config(CurationConfig, config_path(config, "curation"), override_list(settings))
    named_pool = _open_set(pool, "pool")
    queries = [_open_set(data, "query_sets") for data in query_sets]
    excluded = [_open_set(data, "exclude") for data in exclude]
    return resolved, build_pool(named_pool, queries, excluded, hold_out=resolved.hold_out)


def check_curation_options(out: Path, executor: str, ray_address: str | None, *, overwrite: bool) -> None:
    """Raise if the executor is unknown, or `out` cannot be written or is not the result of a curation."""
    if executor not in EXECUTORS:
        raise UsageError(f"`executor={executor!r}`{did_you_mean(executor, EXECUTORS)}")
    if ray_address is not None and executor != "ray":
        raise UsageError(f"`ray_address={ray_address}`: add `executor=ray`")
    if out.suffix.lower() not in (".parquet", ".csv") or out.is_dir():
        raise UsageError(f"output {out}: a curation is written to a .parquet or .csv file")
    if out.exists():
        if not overwrite:
            raise UsageError(f"output {out} exists already; add `overwrite=True` to replace it")
        if not summary_path(out).is_file():
            raise UsageError(f"output {out} is not overwritten, since no curation wrote it")
    check_writable(out.parent)


def _open_set(data: DatasetLike, argument: str) -> NamedManifest:
    """Return a manifest with its name: that of its file or folder, without the suffix."""
    try:
        manifest = open_dataset(data)
    except UsageError as error:
        raise UsageError(f"`{argument}`: {error}") from None
    path = (manifest.source or manifest.root) if isinstance(data, Manifest) else Path(data)
    return NamedManifest(path.stem if path.is_file() else path.resolve().name, manifest)


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
        from dinomed.apps.api.data.datasets import FOLDS, audit_labels

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
