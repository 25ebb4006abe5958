"""`dinomed audit`: test images that are among the training images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from dinomed.apps.options import Device, Json, MaskText, Mean, Quiet, Std, output_place

if TYPE_CHECKING:
    from dinomed.apps.ending import Step

_SHOWN = 20  # pairs on the terminal
_COLUMNS = "similarity: cosine of the descriptors, 1 for the same file; points: keypoints that align in both images"


def audit(
    train: Annotated[
        Path, Argument(help="Manifest or folder of training images, or a run folder of `dinomed pretrain`.")
    ],
    test: Annotated[
        Path | None, Argument(help="Manifest or folder of test images [splits val and test of TRAIN].")
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="Page to write (.html), with the pairs side by side.",
            show_default=False,
            callback=output_place,
        ),
    ] = None,
    train_split: Annotated[
        str | None, Option("--train-split", help="Only these splits of TRAIN, such as train,val.")
    ] = None,
    test_split: Annotated[str | None, Option("--test-split", help="Only these splits of TEST, such as test.")] = None,
    backbone: Annotated[
        str | None,
        Option("--backbone", "-b", help="Compare features of this backbone in place of the copy-detection descriptor."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    config: Annotated[Path | None, Option("--config", help="YAML file of settings.")] = None,
    settings: Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")] = None,
    labels: Annotated[
        str | None,
        Option("--labels", help="Search for errors among the labels of this column of TRAIN; needs --backbone."),
    ] = None,
    table: Annotated[
        Path | None,
        Option(
            "--table",
            help="With --labels: file (.csv, .json) with all images, the most doubtful first.",
            callback=output_place,
        ),
    ] = None,
    folds: Annotated[int | None, Option("--folds", help="With --labels: number of folds by group [5].", min=2)] = None,
    cache: Annotated[
        Path | None, Option("--cache", help="Folder of cached results, with which an interrupted audit continues.")
    ] = None,
    mask_text: MaskText = False,
    workers: Annotated[int | None, Option("--workers", help="Number of threads [one per processor].", min=1)] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find test images that are in the training set: exact copies, near-duplicates, and shared patients or lesions.

    Near-duplicates are cropped, rotated, mirrored, recompressed, recoloured or annotated copies. Of a run folder, the
    hashes of its training images are compared. The exit code is 1 if there are such images or if a test image cannot be
    read, else 0. With --labels, the labels of TRAIN are examined instead: images are ranked whose label disagrees with
    their neighbours and with predictions of a model that has not seen them. For research use only.
    """
    arguments = locals()
    from dinomed.apps.api.data.audit import audit as audit_images
    from dinomed.apps.ending import print_end
    from dinomed.apps.output import api_arguments, emit
    from dinomed.errors import DinomedError

    report = audit_images(**api_arguments(arguments))
    if labels is not None:
        emit(report, as_json, None if as_json else _label_table(report))
        print_end([out, table], _map_of_labels(train, labels, backbone=backbone, mean=mean, std=std), as_json=as_json)
        return
    emit(report, as_json, None if as_json else _table(report))
    whole = train_split is None and test_split is None
    print_end([out], _curation_without(train, test) if report["pairs"] and whole else None, as_json=as_json)
    if report["unreadable"]:
        raise DinomedError(
            f"{report['unreadable']} test images cannot be read, so that copies of them may not be found; repair them, "
            "or leave them out"
        )
    if report["pairs"]:
        raise typer.Exit(1)


def _curation_without(train: Path, test: Path | None) -> "Step | None":
    """Return the curation of the training images without the test images; None for a run or splits of one manifest."""
    from dinomed.apps.ending import free_path
    from dinomed.pretrain.run_folder import CHECKPOINTS, RECORD_FILE, SEEN_FILE

    if (
        test is None
        or test.resolve() == train.resolve()
        or any((train / name).exists() for name in (SEEN_FILE, RECORD_FILE, CHECKPOINTS))
    ):
        return None
    return ["curate"], {"pool": train, "exclude": [test], "out": free_path("curated.parquet")}


def _map_of_labels(train: Path, column: str, **backbone_options: Any) -> "Step":
    """Return the map of the images, coloured by their labels."""
    from dinomed.apps.ending import free_path

    return ["show", "map"], {"data": train, **backbone_options, "out": free_path("map.html"), "color": column}


def _table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table

    conclusion = "LEAK" if report["pairs"] else "no leak found"
    conclusion += " (not all images can be read)" if report["unreadable"] else ""
    title = f"{conclusion}: {report['leaked_test_images']} of {report['test_images']} images of {report['test']}"
    if not report["pairs"]:
        rows: list[tuple[Any, ...]] = [
            (f"training images: {report['train']}", report["train_images"]),
            (f"compared images: {report['test']}", report["test_images"]),
            *((f"pairs: {kind}", count) for kind, count in report["counts"].items()),
        ]
        table = build_table(("", "number"), rows, title=title)
        table.caption = "; ".join(report["notes"])
        return table
    title += f" ({', '.join(f'{kind} {count}' for kind, count in report['counts'].items())})"
    rows = [
        (pair["kind"], pair["train"] or "(by its hash)", pair["test"], pair["similarity"], pair["matching_points"])
        for pair in report["pairs"][:_SHOWN]
    ]
    num_hidden = len(report["pairs"]) - len(rows)
    if num_hidden:
        rows.append(("...", f"and {num_hidden} more pairs: --json lists all, -o PAGE.html shows them", "", None, None))
    table = build_table(("kind", "training image", "compared image", "similarity", "points"), rows, title=title)
    table.caption = "; ".join([_COLUMNS, *report["notes"]])
    return table


def _label_table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table

    rows: list[tuple[Any, ...]] = [
        (entry["image"], entry["label"], entry["predicted"], entry["suggested"], entry["label_probability"],
         entry["predicted_probability"], entry["neighbors_with_label"], entry["neighbors_with_predicted"])
        for entry in report["ranked"][:_SHOWN]
    ]  # fmt: skip
    num_hidden = len(report["ranked"]) - len(rows)
    if num_hidden:
        rows.append((f"... and {num_hidden} more: --json, --table FILE.csv", "", "", "", *[None] * 4))
    columns = (
        "image", "label", "predicted", "suggested", "p(label)", "p(predicted)", "neighbours label",
        "neighbours predicted",
    )  # fmt: skip
    quality = report["out_of_fold"]
    measured = (
        "out-of-fold predictions not measured"
        if quality["auroc"] is None
        else f"out-of-fold balanced accuracy {quality['balanced_accuracy']:.2f}, AUROC {quality['auroc']:.2f}"
    )
    title = "\n".join(
        [
            f"{report['suspects']} suspects among {report['images']} labels of {report['column']}; {measured}",
            *(f"warning: {text}" for text in report["warnings"]),
        ]
    )
    table = build_table(columns, rows, title=title)
    table.caption = "; ".join([*(report[name] for name in ("page", "table") if report[name]), *report["notes"]])
    return table
