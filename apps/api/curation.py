"""Curation of image collections."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomed.apps.api.inputs import (
    DatasetLike,
    FolderLike,
    HasFolder,
    PathLike,
    Settings,
    check_backbone_options,
    config_path,
    override_list,
    text_mask,
)  # fmt: skip
from dinomed.config import load_config
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.open import open_dataset
from dinomed.errors import UsageError, did_you_mean
from dinomed.io.output_folder import check_writable
from dinomed.pretrain.curation.output.read import CurationResult, stages_path, summary_path
from dinomed.pretrain.curation.output.report import write_report
from dinomed.pretrain.curation.pool import NamedManifest, Pool, build_pool

if TYPE_CHECKING:
    from dinomed.pretrain.curation.config import CurationConfig
    from dinomed.pretrain.curation.selection.embedding import Embedder

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

    out = Path(out)
    check_curation_options(out, executor, ray_address, overwrite=overwrite)
    check_backbone_options(backbone, weights=weights, mean=mean, std=std)
    resolved, images = open_pool(pool, query_sets, exclude, config, settings)
    embedder = _embedder(backbone, weights, embeddings, mean, std)
    copies, shown = (text_mask(mask_text, True, "") for _ in range(2))
    runner = build_executor(executor, address=ray_address, workers=workers)
    try:
        return run_pipeline(
            images, out, resolved, executor=runner, embedder=embedder, device=device, workers=workers, mask=copies,
            report=lambda result: write_report(result, out.with_suffix(".html"), names=names, mask=shown),
        )  # fmt: skip
    finally:
        runner.close()


def plan_curation(
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
    overwrite: bool = False,
    device: str = "auto",
) -> "tuple[CurationConfig, Pool]":
    """Check the arguments as `curate` does; return the settings and the pool. Nothing is written or downloaded."""
    from dinomed.pretrain.curation.descriptors.config import BackboneConfig
    from dinomed.pretrain.curation.descriptors.sources import check_source
    from dinomed.pretrain.curation.selection.embedding import check_embedder

    check_curation_options(Path(out), executor, ray_address, overwrite=overwrite)
    check_backbone_options(backbone, weights=weights, mean=mean, std=std)
    planned = open_pool(pool, query_sets, exclude, config, settings)
    embedder = _embedder(backbone, weights, embeddings, mean, std)
    if embedder.backbone is None or Path(embedder.backbone).exists():
        check_embedder(embedder, device, planned[1].manifest)
    source = planned[0].descriptor.source
    if not isinstance(source, BackboneConfig) or Path(source.backbone).exists():
        check_source(source, device)
    return planned


def _embedder(
    backbone: FolderLike | None,
    weights: PathLike | None,
    embeddings: Sequence[PathLike],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> "Embedder":
    from dinomed.pretrain.curation.selection.embedding import Embedder

    place = backbone.folder if isinstance(backbone, HasFolder) else backbone
    return Embedder(
        None if place is None else str(place),
        None if weights is None else str(weights),
        [Path(table) for table in embeddings],
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
    )


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
    for place in (out.with_suffix(".html"), summary_path(out)):
        if place.is_dir():
            raise UsageError(f"{place} is a folder, but {out} needs a file there; choose another name for the output")
    for place in (out.with_suffix(".faces"), stages_path(out)):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file, but {out} needs a folder there; choose another name for the output")
    check_writable(out.parent)


def _open_set(data: DatasetLike, argument: str) -> NamedManifest:
    """Return a manifest with its name: that of its file or folder, without the suffix."""
    try:
        manifest = open_dataset(data)
    except UsageError as error:
        raise UsageError(f"`{argument}`: {error}") from None
    path = (manifest.source or manifest.root) if isinstance(data, Manifest) else Path(data)
    return NamedManifest(path.stem if path.is_file() else path.resolve().name, manifest)
