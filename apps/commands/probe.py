"""`dinomed probe`: evaluation of the frozen features of a backbone."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Cache, Data, Device, ImageSize, Json, Overwrite, Quiet, Seed, Weights

FEW_SHOT_FILE, REPORT_FILE = "few_shot.json", "report.html"


def probe(
    backbone: Annotated[str, Argument(help="Run folder, backbone folder, or a name such as dinov2_vits14.")],
    data: Data,
    untrained: Annotated[
        bool, Option("--untrained", help="Use the backbone before its pretraining, for comparison.")
    ] = False,
    weights: Weights = None,
    label: Annotated[str, Option("--label", help="Column of the classes.")] = "label",
    split: Annotated[str, Option("--split", help="Split for the metrics: test or val.")] = "test",
    shots: Annotated[
        str | None,
        Option("--few-shot", help="Evaluate by the number of labelled groups of each class, such as 1,2,4,8,16,all."),
    ] = None,
    seeds: Annotated[int, Option("--seeds", help="Number of draws for each number of --few-shot.", min=1, max=100)] = 5,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for few_shot.json and report.html.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    image_size: ImageSize = None,
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
    each class, with several draws of each number; -o writes a page with curves. For research use only.
    """
    from dinomed.adapters.evaluation.probe import check_split
    from dinomed.adapters.evaluation.probe import probe as run
    from dinomed.apps.output import emit
    from dinomed.backbones.load import load_backbone
    from dinomed.datasets.open import open_dataset
    from dinomed.errors import UsageError
    from dinomed.features.extract import default_cache
    from dinomed.io.files import write_json, write_text
    from dinomed.io.output_folder import prepare_output

    check_split(split)  # before a backbone is fetched
    numbers = None
    if shots is not None:
        from dinomed.adapters.evaluation.few_shot import parse_shots

        numbers = parse_shots(shots)
    if output is not None:
        if numbers is None:
            raise UsageError("--output is for the page of --few-shot; give --few-shot 1,2,4,8,16,all, or --json")
        prepare_output(output, overwrite=overwrite, marker=FEW_SHOT_FILE)
    path: str | Path = backbone
    if untrained:
        from dinomed.pretrain.run_folder import UNTRAINED

        path = Path(backbone) / UNTRAINED
        if not path.is_dir():
            raise UsageError(f"--untrained: {backbone} keeps no untrained backbone; it has to be a run of pretrain")
    manifest = open_dataset(data)
    found = load_backbone(path, weights=weights, device=device, image_size=image_size)
    cache = cache or default_cache(data)
    if numbers is not None:
        from dinomed.adapters.evaluation.few_shot import few_shot

        curve = few_shot(found, manifest, cache=cache, shots=numbers, seeds=seeds, label=label, split=split, seed=seed)
        if output is not None:
            from dinomed.apps.pages.few_shot import build_few_shot_page

            write_text(output / REPORT_FILE, build_few_shot_page(curve))
            write_json(output / FEW_SHOT_FILE, curve)
        emit(curve, as_json, None if as_json else _few_shot_table(curve))
        return
    report = run(found, manifest, cache=cache, label=label, split=split, seed=seed)
    emit(report, as_json, None if as_json else _table(report))


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
