"""The curation pipeline: from a pool of raw images to a clean, leak-free, balanced collection (docs/curation.md).

Stages, in order: allow and deny lists; image pass (readable, quality, hashes); faces; descriptors; near-duplicates of
excluded images and within the pool; embeddings; retrieval or balanced sampling; output. The results of the stages are
cached, and a second run continues after the last cached result.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import write_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.io.output_folder import locked
from dinomed.log import logger
from dinomed.pretrain.curation.config import CurationConfig
from dinomed.pretrain.curation.decisions import DENIED, FACE, NOT_ALLOWED, UNREADABLE, Decisions, is_none
from dinomed.pretrain.curation.deduplication.stage import link_duplicates
from dinomed.pretrain.curation.descriptors.sources import check_source
from dinomed.pretrain.curation.filters.allow_deny import find_allowed, find_denied
from dinomed.pretrain.curation.filters.config import FacesConfig, QualityConfig, RulesConfig
from dinomed.pretrain.curation.filters.faces import FindFaces, check_detector
from dinomed.pretrain.curation.filters.quality import MEASURES, judge_all
from dinomed.pretrain.curation.image_pass import VERSION, ImagePass
from dinomed.pretrain.curation.output.read import CurationResult, load_result, result_of, stages_path
from dinomed.pretrain.curation.output.write import Boxes, write_result
from dinomed.pretrain.curation.pool import Pool
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.runtime.executor import Executor, LocalExecutor
from dinomed.pretrain.curation.selection.embedding import (
    Embedder,
    check_embedder,
    find_misfits,
    find_preprocessing,
)
from dinomed.pretrain.curation.selection.stage import check_query_sets, select_images


def curate(
    pool: Pool,
    output: str | Path,
    config: CurationConfig | None = None,
    *,
    executor: Executor | None = None,
    embedder: Embedder | None = None,
    device: str = "auto",
    workers: int | None = None,
    mask: TextMask | None = None,
    report: Callable[[CurationResult], None] | None = None,
) -> CurationResult:
    """Curate a pool and write the resulting manifest.

    An interrupted run continues where it stopped; its result is the same, byte for byte.

    Args:
        pool: from `pool.build_pool`.
        output: manifest to write, .parquet or .csv; the summary, the report and the cache lie beside it.
        executor: computes the stages; None for this process.
        embedder: vectors for retrieval and sampling; None for the copy-detection descriptor.
        device: of networks: auto, cpu, cuda.
        workers: threads, or processes of the executor; None for one per processor.
        mask: masks burned-in text in the copies with blurred faces.
        report: writes the report; it is called before the manifest is written.

    Raises:
        UsageError: settings that do not match the pool.
        DinomedError: too few images are left, or the result cannot be written.
    """
    config, output, embedder = config or CurationConfig(), Path(output), embedder or Embedder()
    check_query_sets(pool, config.retrieval)
    check_embedder(embedder, device, pool.manifest)
    check_source(config.descriptor.source, device)
    if config.faces.action != "off":
        check_detector()
    folder = stages_path(output)
    with locked(folder):
        context = CurationContext(
            pool=pool, folder=folder, executor=executor or LocalExecutor(), device=device, workers=workers,
            shard_size=config.shard_size, memory_gib=config.memory_gib, seed=config.seed,
        )  # fmt: skip
        decisions = Decisions(len(pool))
        _apply_rules(pool, config.rules, decisions)
        _drop_misfits(context, embedder, decisions)
        images, reference_images = _read_images(context, decisions, find_preprocessing(embedder, device))
        _apply_quality(pool, images, config.quality, decisions)
        faces = _find_faces(context, config.faces, decisions)
        links = link_duplicates(
            context, images, reference_images, decisions, config.descriptor, config.duplicates, config.search
        )
        selection = select_images(
            context, decisions, links.vectors, embedder, config.retrieval, config.balance, config.search
        )
        if not decisions.kept.any():
            context.notes.append("no image is kept")
            logger.warning("no image is kept: see the column 'reason'")
        manifest = write_result(output, context, config, decisions, links, selection, faces, mask)
        if report is not None:
            report(result_of(output, manifest))
        write_manifest(manifest, output)  # last: it shows that the curation is complete
        context.remove_unused()
    return load_result(output)


def _apply_rules(pool: Pool, config: RulesConfig, decisions: Decisions) -> None:
    """Apply the allow and deny lists to the pool; query images are exempt."""
    is_pool = ~pool.is_query
    decisions.drop(find_denied(pool.manifest, pool.paths, config.deny) & is_pool, DENIED)
    decisions.drop(~find_allowed(pool.manifest, pool.paths, config.allow) & is_pool, NOT_ALLOWED)


def _drop_misfits(context: CurationContext, embedder: Embedder, decisions: Decisions) -> None:
    """Drop the images whose channels do not fit the backbone of the embeddings; query images too."""
    images = context.pool.manifest
    misfits = decisions.kept & find_misfits(embedder, context.device, images)
    if not misfits.any():
        return
    context.warn(f"images without the channels that `backbone` takes: {misfits.sum():,} are left out")
    decisions.drop(misfits, UNREADABLE)
    if not decisions.kept[: context.pool.pool_size].any():
        raise UsageError("no image of the pool that the rules keep has the channels that `backbone` takes")


def _read_images(
    context: CurationContext, decisions: Decisions, preprocessing: Preprocessing | None
) -> tuple[pa.Table, pa.Table | None]:
    """Run the image pass over the images that the rules keep, and over the excluded images.

    Args:
        preprocessing: of the backbone of the embeddings, which must read the images of the pool too; None without one.

    Returns:
        A table with one row per image of the pool (rows of dropped images are arbitrary), and one with a row per
        excluded image (None if there are none).
    """
    pool = context.pool
    work = ImagePass(workers=context.workers, isolated=not pool.manifest.decoded, preprocessing=preprocessing)
    settings: list[Any] = [VERSION]
    if preprocessing is not None:
        settings += [preprocessing.channels, preprocessing.intensity.model_dump(mode="json")]
    rows = np.flatnonzero(decisions.kept)
    if not decisions.kept[: pool.pool_size].any():
        raise UsageError("the rules leave no image of the pool; loosen rules.allow or rules.deny")
    images = context.map_images("images", settings, pool.manifest, rows, work, description="reading images")
    if len(rows) < len(pool):
        place = np.zeros(len(pool), np.int64)  # dropped images have no row; the first one fills their place
        place[rows] = np.arange(len(rows))
        images = images.take(pa.array(place))
    readable = is_none(images["problem"].to_pylist())
    decisions.drop(~readable, UNREADABLE)
    if not (readable & decisions.kept).any():
        reader = "" if preprocessing is None else " as `backbone` reads them"
        problem = images["problem"][int(rows[0])].as_py()
        raise DinomedError(f"none of {len(rows)} images can be read{reader} ({problem})")
    if pool.references is None:
        return images, None
    work = ImagePass(workers=context.workers, isolated=not pool.references.decoded)
    reference_images = context.map_images(
        "images", [VERSION], pool.references, np.arange(len(pool.references)), work, prefix="excluded-",
        description="reading excluded images",
    )  # fmt: skip
    if unreadable := len(reference_images) - reference_images["problem"].null_count:
        context.warn(f"{unreadable} excluded images cannot be read: only equal files of them are found")
    return images, reference_images


def _apply_quality(pool: Pool, images: pa.Table, config: QualityConfig, decisions: Decisions) -> None:
    """Apply the quality filters to the pool; query images are exempt."""
    reasons = np.array(judge_all({name: images[name].to_numpy() for name in MEASURES}, config), object)
    is_pool = ~pool.is_query
    for reason in {reason for reason in reasons.tolist() if reason is not None}:
        decisions.drop(np.equal(reasons, reason) & is_pool, reason)


def _find_faces(context: CurationContext, config: FacesConfig, decisions: Decisions) -> Boxes:
    """Find faces, in query images too, and drop the images that have any if the action is ``drop``."""
    rows = np.flatnonzero(decisions.kept)
    if config.action == "off" or not len(rows):
        return {}
    table = context.map_images(
        "faces", config.model_dump(exclude={"action"}), context.pool.manifest, rows, FindFaces(config, context.workers),
        description="finding faces",
    )  # fmt: skip
    faces: Boxes = {
        row: [(box[0], box[1], box[2], box[3]) for box in boxes]
        for row, boxes in zip(rows.tolist(), table["boxes"].to_pylist(), strict=True)
        if boxes
    }
    if config.action == "drop":
        decisions.drop(np.array(list(faces), np.int64), FACE)
    return faces
