"""`dinomed search`: the images of an index that are most similar to query images."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.commands.index import Where
from dinomed.apps.options import Device, Json, MaskText, Overwrite, Quiet, output_place

RESULTS, EVALUATED, LABEL = 10, "test", "label"
"""Defaults: results for each image; with --evaluate, the split of the queries and the column of the labels."""


def search(
    images: Annotated[Path, Argument(help="One image, a folder of images, or a manifest.")],
    index: Annotated[Path, Option("--index", "-i", help="Folder that `dinomed index` wrote.")],
    k: Annotated[int, Option("-k", help="Number of results for each image.", min=1)] = RESULTS,
    exclude_same_group: Annotated[
        bool,
        Option(
            "--exclude-same-group", help="Leave out the query image itself and images of its patient, lesion or video."
        ),
    ] = False,
    where: Where = None,
    exact: Annotated[
        bool, Option("--exact", help="Compare with every image, even if the index is approximate.")
    ] = False,
    evidence: Annotated[
        bool, Option("--evidence", help="Also report which patches of query and result match.")
    ] = False,
    mask_text: MaskText = False,
    out: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="Folder for results.json and, with --evidence, pictures of the matches.",
            callback=output_place,
        ),
    ] = None,
    evaluate: Annotated[
        bool,
        Option("--evaluate", help="Report mAP, recall and precision on a manifest with labels, instead of results."),
    ] = False,
    split: Annotated[str, Option("--split", help="With --evaluate: split whose images are the queries.")] = EVALUATED,
    label: Annotated[str, Option("--label", help="With --evaluate: column of the labels.")] = LABEL,
    backbone: Annotated[
        str | None, Option("--backbone", "-b", help="Where the backbone of the index is now, if it was moved.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the most similar images of an index.

    Similarity is the cosine similarity of backbone features (1 for the same image), not of diagnoses. Images that
    cannot be used are named, the others are searched, and the exit code is then 1.

    With --evaluate each labelled image of a split is a query, and images with its label are relevant; the group of the
    query is left out. Add --where split=train to search among training images only. For research use only, not for
    diagnosis.
    """
    arguments = locals()
    from dinomed.apps.api.retrieval import evaluate_index, search
    from dinomed.apps.ending import Step, print_end
    from dinomed.apps.output import api_arguments, emit
    from dinomed.errors import DinomedError, UsageError

    step: Step = (["demo", "retrieve"], {"index": index, "backbone": backbone})
    if evaluate:
        if evidence or exact or mask_text or out is not None or k != RESULTS:
            raise UsageError("--evaluate gives metrics alone: leave out --evidence, --exact, --mask-text, -k and -o")
        metrics = evaluate_index(
            index, images, split=split, label=label, where=where or (), backbone=backbone, device=device
        )
        emit(metrics, as_json, None if as_json else _metrics_table(metrics))
        print_end([], step, as_json=as_json)
        return
    if (split, label) != (EVALUATED, LABEL):
        raise UsageError("--split and --label are for --evaluate; add it, or leave them out")
    report = search(**api_arguments(arguments, without=["evaluate", "split", "label"]))
    emit(report, as_json, None if as_json else _table(report))
    print_end([out], step, as_json=as_json)
    failed = report["unreadable"]
    if failed:
        raise DinomedError(
            f"{len(failed)} images could not be used (the first: {failed[0]['image']}: {failed[0]['reason']}); "
            f"the other {len(report['queries'])} are searched"
        )


def _metrics_table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table

    columns = ("n", "map", "recall@10", "precision@1", "precision@5", "precision@10")
    rows = [(name, *(row[key] for key in columns), "") for name, row in report["per_class"].items()]
    metrics = report["metrics"]
    low, high = metrics["intervals"]["map"]
    rows.append(("all", *(metrics[key] for key in columns), f"mAP {low:.3f} to {high:.3f}"))
    table = build_table((report["label"], *columns, "95% interval"), rows, title=f"queries of split {report['split']}")
    table.caption = report["purpose"]
    return table


def _table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table

    rows = [
        (
            query["image"] if result["rank"] == 1 else "",
            *(result[key] for key in ("rank", "similarity", "label", "image")),
        )
        for query in report["queries"]
        for result in query["results"]
    ]
    table = build_table(("query", "rank", "similarity", "label", "image"), rows)
    table.caption = report["purpose"]
    return table
