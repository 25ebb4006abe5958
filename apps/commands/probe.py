"""`dinomed probe`: how good are the frozen features of a backbone?"""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Cache, Data, Device, ImageSize, Json, Quiet, Seed, Weights


def probe(
    backbone: Annotated[str, Argument(help="Run folder, backbone folder, or a name such as dinov2_vits14.")],
    data: Data,
    untrained: Annotated[
        bool, Option("--untrained", help="The same backbone before its pretraining, to compare with.")
    ] = False,
    weights: Weights = None,
    label: Annotated[str, Option("--label", help="Column of classes in the manifest.")] = "label",
    split: Annotated[str, Option("--split", help="Split to report on: test or val.")] = "test",
    image_size: ImageSize = None,
    cache: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge frozen features by k-NN and logistic regression.

    Both learn from the split train and the class token of the last block. k and the strength of the penalty are chosen
    on val by macro AUROC, and the result is reported on test. For research use only.
    """
    from dinomed.adapters.probe import check_split
    from dinomed.adapters.probe import probe as run
    from dinomed.apps.output import emit
    from dinomed.backbones.load import load_backbone
    from dinomed.datasets.manifest import open_collection
    from dinomed.errors import UsageError
    from dinomed.features.extract import default_store

    check_split(split)  # before a backbone is fetched
    path: str | Path = backbone
    if untrained:
        path = Path(backbone) / "untrained"
        if not path.is_dir():
            raise UsageError(f"--untrained: {backbone} keeps no untrained backbone; it has to be a run of pretrain")
    manifest = open_collection(data)
    found = load_backbone(path, weights=weights, device=device, image_size=image_size)
    report = run(found, manifest, store=cache or default_store(data), label=label, split=split, seed=seed)
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
