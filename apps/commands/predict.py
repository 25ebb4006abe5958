"""`dinomed predict`: masks or probabilities for new images."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import Device, Json, Output, Overwrite, Quiet


def predict(
    adapter: Annotated[Path, Argument(help="Adapter folder, as `dinomed train` writes it.")],
    images: Annotated[Path, Argument(help="Folder of images, one image, or a manifest.")],
    output: Output,
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Where its backbone is now, if moved.")] = None,
    unit: Annotated[
        str | None,
        Option("--unit", help="Of a classifier and a manifest with groups: group, for one row for all images of one."),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Outline or classify every image of a folder.

    A segmenter writes a mask (PNG, 0 and 255) of each image's own size under its relative name; where two images
    would share one, as a.jpg and a.png, both keep their whole name: a.jpg.png, a.png.png. `predictions.csv` lists
    areas, or the probabilities of a classifier, calibrated on val; with --unit group it has a row for each group.
    Images that cannot be read are listed in `unreadable.csv` while the rest goes on; the exit code is then 1. The same
    command after an interruption goes on where it stopped. For research use only.
    """
    from dinomed.adapters.inference.folder import predict_collection
    from dinomed.adapters.inference.loader import load_adapter
    from dinomed.adapters.inference.plan import FAILED_FILE, TABLE_FILE
    from dinomed.apps.output import emit
    from dinomed.datasets.open import open_dataset
    from dinomed.errors import DinomedError, UsageError
    from dinomed.notice import RESEARCH_USE

    if unit not in (None, "image", "group"):
        raise UsageError(f"--unit {unit}: give image or group")
    predictor = load_adapter(adapter, device, backbone)
    manifest = open_dataset(images, allow_unreadable=True)
    if unit == "group":
        from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
        from dinomed.adapters.tasks.classify.predict_groups import predict_group_table

        if not isinstance(predictor, ClassifyPredictor):
            raise UsageError("--unit group: one answer for a group is what classifiers give; leave it out")
        made = predict_group_table(predictor, manifest, output, overwrite=overwrite)
        told = {"output": str(output), "table": str(output / TABLE_FILE), "groups": made.groups, "kept": made.kept}
        emit({**told, "note": RESEARCH_USE}, as_json)
        return
    done = predict_collection(predictor, manifest, output, unreadable=manifest.unreadable, overwrite=overwrite)
    report = {
        "output": str(done.folder),
        "table": str(done.folder / TABLE_FILE),
        "images": done.images,
        "kept": done.kept,
        "unreadable": len(done.unreadable),
        "note": RESEARCH_USE,
    }
    emit(report, as_json)
    if done.unreadable:
        first, reason = done.unreadable[0]
        raise DinomedError(
            f"{len(done.unreadable)} files could not be read, listed in {done.folder / FAILED_FILE} "
            f"(the first: {first}: {reason}); the other {done.images} are done"
        )
