"""`dinomed probe`: evaluation of the frozen features of a backbone."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import (
    BACKBONE_HELP,
    Aspect,
    Cache,
    Data,
    Device,
    ImageSize,
    Json,
    Mean,
    Overwrite,
    Quiet,
    Seed,
    Std,
    Weights,
    output_place,
)


def probe(
    backbone: Annotated[str, Argument(help=BACKBONE_HELP)],
    data: Data,
    task: Annotated[
        str, Option("--task", help="classify, or segment: Dice of a head by the number of images with masks.")
    ] = "classify",
    untrained: Annotated[
        bool, Option("--untrained", help="Use the backbone before its pretraining, for comparison.")
    ] = False,
    weights: Weights = None,
    label: Annotated[str, Option("--label", help="Column of the classes.")] = "label",
    split: Annotated[str, Option("--split", help="Split for the metrics: test or val.")] = "test",
    shots: Annotated[
        str | None,
        Option(
            "--few-shot",
            help="Evaluate by the number of labelled groups of each class, such as 1,2,4,8,16,all; with --task segment "
            "by the number of images with masks [10,25,50,100,200,all].",
        ),
    ] = None,
    head: Annotated[str | None, Option("--head", help="Head of --task segment [linear].")] = None,
    settings: Annotated[
        list[str] | None, Option("--set", help="Setting of the fits of --task segment: a.b=value.")
    ] = None,
    seeds: Annotated[int, Option("--seeds", help="Number of draws for each number of --few-shot.", min=1, max=100)] = 5,
    out: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="Folder for few_shot.json and report.html.",
            show_default=False,
            callback=output_place,
        ),
    ] = None,
    overwrite: Overwrite = False,
    image_size: ImageSize = None,
    aspect: Aspect = None,
    mean: Mean = None,
    std: Std = None,
    cache: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate frozen features by k-NN and logistic regression.

    Both are fitted on the split train and the class token of the last block. k and the penalty are chosen on val by
    macro AUROC, and the metrics are computed on test.

    With --few-shot, logistic regressions with a fixed penalty are fitted on few labelled groups (patients, lesions) of
    each class, with several draws of each number; -o writes a page with curves.

    With --task segment, a segmentation head is fitted on few images with masks, drawn by group from train and val, and
    measured by Dice beside Otsu's threshold and the mean mask. For research use only.
    """
    arguments = locals()
    from dinomed.apps.api.backbones import probe as probe_backbone
    from dinomed.apps.ending import print_end, train_step
    from dinomed.apps.output import api_arguments, emit

    report = probe_backbone(**api_arguments(arguments))
    build = _few_mask_table if task == "segment" else _table if shots is None else _few_shot_table
    emit(report, as_json, None if as_json else build(report))
    head_options = {"weights": weights, "mean": mean, "std": std, "head": head}
    head_options |= {"label": label} if task == "classify" else {}
    step = None if untrained else train_step(task, backbone, data, **head_options)
    print_end([out], step, as_json=as_json)


def _table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table
    from dinomed.notice import RESEARCH_USE

    knn, logistic, split = report["knn"], report["logistic"], report["split"]
    columns = ("", f"n ({split})", f"k-NN, k = {knn['k']}", f"logistic regression, C = {logistic['C']:g}")
    rows: list[tuple[Any, ...]] = [
        (label, knn["n"], knn[key], logistic[key])
        for key, label in (
            ("auroc", "AUROC (macro, one vs rest)"),
            ("balanced_accuracy", "balanced accuracy"),
            ("accuracy", "accuracy"),
        )
    ]
    rows += [
        (f"AUROC of {name}", row["n"], row["auroc"], logistic["per_class"][name]["auroc"])
        for name, row in knn["per_class"].items()
    ]
    table = build_table(columns, rows, title=f"Frozen features of {report['backbone']['name']}")
    table.caption = f"k and C: best {report['chosen_by']}; {RESEARCH_USE}"
    return table


def _few_shot_table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table
    from dinomed.apps.pages.few_shot import advice, shots_word
    from dinomed.notice import RESEARCH_USE

    rows = [
        (shots_word(row["shots"]), round(row["images"]), row["auroc"]["mean"], row["auroc"]["sd"],
         row["balanced_accuracy"]["mean"], row["balanced_accuracy"]["sd"])
        for row in report["shots"]
    ]  # fmt: skip
    columns = (f"labelled {report['unit']} a class", "images", "AUROC (macro)", "sd", "balanced accuracy", "sd")
    table = build_table(columns, rows, title=f"Few labels on features of {report['backbone']['name']}")
    table.caption = f"{advice(report)} {report['split']}, {report['seeds']} draws; {RESEARCH_USE}"
    return table


def _few_mask_table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table
    from dinomed.apps.pages.few_shot import MASK_COLUMNS, advice, mask_rows
    from dinomed.notice import RESEARCH_USE

    title = f"Few masks: head {report['head']['name']} on features of {report['backbone']['name']}"
    table = build_table(MASK_COLUMNS, mask_rows(report), title=title)
    table.caption = f"{advice(report, 'dice')} {report['split']}, {report['n']} images; {RESEARCH_USE}"
    return table
