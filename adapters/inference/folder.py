"""Predicting whole collections: a file for each image, or one table of probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinomed.adapters.inference.loader import AnyPredictor
from dinomed.adapters.inference.outputs import Writer, build_writer
from dinomed.adapters.inference.plan import FAILED_FILE, PLAN_FILE, TABLE_FILE, PredictionPlan, add_rows, begin, finish
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.io.output_folder import locked, prepare_output
from dinomed.log import logger
from dinomed.progress import bar


@dataclass(frozen=True)
class PredictionResult:
    """How a prediction ended: images done (`kept` of them by an interrupted run before), and (path, reason) of those
    that could not be read."""

    folder: Path
    images: int
    kept: int
    unreadable: list[tuple[str, str]]


def predict_collection(
    predictor: AnyPredictor,
    manifest: Manifest,
    out: str | Path,
    *,
    unreadable: Sequence[tuple[str, str]] = (),
    overwrite: bool = False,
) -> PredictionResult:
    """Predict every image of a manifest.

    A segmenter writes masks (PNG, of each image's own size) under the images' relative names, and a depth estimator
    depth maps (see `dinomed.adapters.inference.outputs`); `predictions.csv` has a row an image. `predictions.json` says
    what makes them and lists the files; it is there first, and says ``"complete": true`` at the end. Called again after
    an interruption, with the same images and adapter, what is done is kept and the rest is made. An image that cannot
    be read is listed in `unreadable.csv`, and the rest goes on.

    Args:
        unreadable: (path, reason) of files that were refused earlier; they are listed too.
        overwrite: begin anew, and remove what an earlier prediction in `out` wrote (only that).

    Raises:
        UsageError: `out` is in use, or the folder of the images itself.
    """
    out = Path(out)
    if out.resolve() == manifest.root.resolve():
        raise UsageError(f"output {out} is the folder of the images; give a folder for the results alone")
    names = manifest.column("image")
    writer = build_writer(predictor, names)
    plan = PredictionPlan(_settings(predictor, manifest, writer), (*writer.files, *writer.beside))
    prepare_output(out, overwrite=True, marker=PLAN_FILE)  # an earlier result: `begin` decides
    with locked(out):
        done = begin(out, plan, overwrite=overwrite)
        writer.begin(out)
        todo = [i for i, name in enumerate(names) if name not in done]
        kept = len(done)
        if kept:
            logger.info(f"{kept} of {len(names)} images are done already")
        failed = list(unreadable)
        with bar("predicting", len(names), kept) as progress:
            for loaded in load_batches(manifest.take(todo), predictor.preprocessing, predictor.batch_size):
                good = [one for one in loaded if one.pixels is not None]
                failed += [(names[todo[one.index]], one.error.reason) for one in loaded if one.error]
                if good:
                    indices, sizes = [todo[one.index] for one in good], [one.size for one in good]
                    rows = writer.rows(indices, stack_pixels(good), sizes, out)
                    add_rows(out, rows)
                    done |= {row[0]: row for row in rows}
                progress.advance(len(loaded))
        write_csv(out / TABLE_FILE, ["image", *writer.columns], [done[name] for name in names if name in done])
        if failed:
            write_csv(out / FAILED_FILE, ["image", "reason"], failed)
        else:
            (out / FAILED_FILE).unlink(missing_ok=True)
        finish(out, plan)
    return PredictionResult(out, len(done), kept, failed)


def _settings(predictor: AnyPredictor, manifest: Manifest, writer: Writer) -> dict[str, object]:
    return {
        "task": predictor.task,
        "classes": list(predictor.classes),
        **writer.settings,
        "adapter": predictor.metadata["weights_sha256"],
        "backbone": predictor.backbone.fingerprint,
        "images": manifest.fingerprint,
    }
