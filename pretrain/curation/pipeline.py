"""From a raw pile to a clean, leak-free, balanced collection: the stages, in their order (docs/curation.md).

rules -> look -> exact copies, quality -> faces -> descriptors -> copies of excluded images, copies within the pile ->
embeddings -> retrieval or balancing -> write. What a stage computes is kept, and a second run starts where it ends.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from dinomed.errors import DinomedError, UsageError
from dinomed.io.output_folder import locked
from dinomed.log import logger
from dinomed.pretrain.curation import reasons
from dinomed.pretrain.curation.config import CurationConfig
from dinomed.pretrain.curation.decisions import Verdicts, judge_all, missing
from dinomed.pretrain.curation.deduplication.stage import link
from dinomed.pretrain.curation.filters.allow_deny import allowed, denied
from dinomed.pretrain.curation.filters.faces import check_detector
from dinomed.pretrain.curation.output.read import Outcome, load_outcome, stages_path
from dinomed.pretrain.curation.output.write import Boxes, write_result
from dinomed.pretrain.curation.pool import Pile
from dinomed.pretrain.curation.runtime.context import Job
from dinomed.pretrain.curation.runtime.executor import Engine, LocalEngine
from dinomed.pretrain.curation.selection.embedding import Embedder
from dinomed.pretrain.curation.selection.stage import check_sets, choose
from dinomed.pretrain.curation.stages import FACTS, FindFaces, Look


def curate(
    pile: Pile,
    output: str | Path,
    config: CurationConfig | None = None,
    *,
    engine: Engine | None = None,
    embedder: Embedder | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Outcome:
    """Curate a pile (`pile.build_pile`) into `output`, a manifest (.parquet or .csv), and say what became of it.

    A run that was interrupted goes on where it stopped; its result is the same, byte for byte.

    Raises:
        UsageError: settings that do not fit the pile.
        DinomedError: too few images to work with, or what was computed cannot be written.
    """
    config, output, embedder = config or CurationConfig(), Path(output), embedder or Embedder()
    check_sets(pile, config)
    if embedder.tables and embedder.backbone is None:
        raise UsageError("--embeddings: name the backbone that made them with --backbone")
    if config.faces.action != "off":
        check_detector()
    folder = stages_path(output)
    with locked(folder):
        job = Job(pile, config, folder, engine or LocalEngine(), device, workers)
        verdicts = Verdicts(len(pile))
        _apply_rules(job, verdicts)
        looks, reference_looks = _look(job, verdicts)
        _judge(job, looks, verdicts)
        faces = _find_faces(job, verdicts)
        links = link(job, looks, reference_looks, verdicts)
        chosen = choose(job, verdicts, links.vectors, embedder)
        if not verdicts.alive.any():
            job.notes.append("no image is kept")
            logger.warning("no image is kept: see the column `reason`")
        write_result(output, job, verdicts, links, chosen, faces)
        job.tidy()
    return load_outcome(output)


def _apply_rules(job: Job, verdicts: Verdicts) -> None:
    """Allow and deny lists; they are for the pool, and trusted images are what they are."""
    own = ~job.pile.is_trusted
    verdicts.drop(denied(job.pile, job.config.rules.deny) & own, reasons.DENIED)
    verdicts.drop(~allowed(job.pile, job.config.rules.allow) & own, reasons.NOT_ALLOWED)


def _look(job: Job, verdicts: Verdicts) -> tuple[pa.Table, pa.Table | None]:
    """Every image that the rules leave is read once; the table has a row for each of the pile."""
    pile, work = job.pile, Look(job.workers)
    rows = np.flatnonzero(verdicts.alive)
    if not verdicts.alive[: pile.pool].any():
        raise UsageError("the rules leave no image of the pool; loosen rules.allow or rules.deny")
    looks = job.over_images("look", 1, pile.manifest, rows, work, description="looking at images")
    if len(rows) < len(pile):
        place = np.full(len(pile), -1, np.int64)
        place[rows] = np.arange(len(rows))
        looks = looks.take(pa.array(np.maximum(place, 0)))  # rows that nobody looked at are out, and never asked for
    readable = missing(looks["problem"].to_pylist())
    verdicts.drop(~readable, reasons.UNREADABLE)
    if not (readable & verdicts.alive).any():
        raise DinomedError(f"none of {len(rows)} images can be read ({looks['problem'][int(rows[0])].as_py()})")
    if pile.references is None:
        return looks, None
    every = np.arange(len(pile.references))
    found = job.over_images(
        "look", 1, pile.references, every, work, prefix="excluded-", description="looking at excluded images"
    )
    if lost := len(found) - found["problem"].null_count:
        job.warn(f"{lost} excluded images cannot be read: only equal files of them are found")
    return looks, found


def _judge(job: Job, looks: pa.Table, verdicts: Verdicts) -> None:
    """Quality filters; not on trusted images."""
    answers = np.array(judge_all({name: looks[name].to_numpy() for name in FACTS}, job.config.quality), object)
    own = ~job.pile.is_trusted
    for reason in {answer for answer in answers.tolist() if answer is not None}:
        verdicts.drop(np.equal(answers, reason) & own, reason)


def _find_faces(job: Job, verdicts: Verdicts) -> Boxes:
    """The images with faces, and where; dropped if that is asked for. Trusted images too: a face is a face."""
    config = job.config.faces
    if config.action == "off":
        return {}
    rows = np.flatnonzero(verdicts.alive)
    table = job.over_images(
        "faces", config.model_dump(exclude={"action"}), job.pile.manifest, rows, FindFaces(config, job.workers),
        description="finding faces",
    )  # fmt: skip
    found: Boxes = {
        row: [(box[0], box[1], box[2], box[3]) for box in boxes]
        for row, boxes in zip(rows.tolist(), table["boxes"].to_pylist(), strict=True)
        if boxes
    }
    if config.action == "drop":
        verdicts.drop(np.array(list(found), np.int64), reasons.FACE)
    return found
