"""`dinomed search`: the images of an index that are most similar to query images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from dinomed.apps.commands.index import Where
from dinomed.apps.options import Device, Json, Overwrite, Quiet

RESULTS_FILE = "results.json"

if TYPE_CHECKING:
    from dinomed.adapters.retrieval.filters import Condition
    from dinomed.adapters.retrieval.search import ImageIndex, QueryResult


def search(
    images: Annotated[Path, Argument(help="One image, a folder of images, or a manifest.")],
    index: Annotated[Path, Option("--index", "-i", help="Folder that `dinomed index` wrote.")],
    k: Annotated[int, Option("-k", help="Number of results for each image.", min=1)] = 10,
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
        bool, Option("--evidence", help="Also report which regions of query and result match.")
    ] = False,
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="Folder for results.json and, with --evidence, pictures of the matches."),
    ] = None,
    evaluate: Annotated[
        bool,
        Option("--evaluate", help="Report mAP, recall and precision on a manifest with labels, instead of results."),
    ] = False,
    split: Annotated[str, Option("--split", help="With --evaluate: split whose images are the queries.")] = "test",
    label: Annotated[str, Option("--label", help="With --evaluate: column of the labels.")] = "label",
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
    cannot be read are named, the others are searched, and the exit code is then 1.

    With --evaluate each labelled image of a split is a query, and images with its label are relevant; the group of the
    query is left out. Add --where split=train to search among training images only. For research use only, not for
    diagnosis.
    """
    from dinomed.adapters.retrieval.filters import parse_conditions
    from dinomed.apps.api.retrieval import load_index
    from dinomed.apps.output import emit
    from dinomed.datasets.open import open_dataset
    from dinomed.errors import DinomedError, UsageError
    from dinomed.io.files import write_json
    from dinomed.io.output_folder import locked, prepare_output
    from dinomed.log import logger
    from dinomed.notice import RESEARCH_USE

    conditions = parse_conditions(where or [])
    if evaluate:
        if evidence or exact or output is not None:
            raise UsageError("--evaluate gives metrics alone: leave out --evidence, --exact and -o")
        _evaluate(load_index(index, backbone=backbone, device=device), images, split, label, conditions, as_json)
        return
    image_index = load_index(index, backbone=backbone, device=device)
    manifest = open_dataset(images, allow_unreadable=True)
    failed = [{"image": name, "reason": reason} for name, reason in manifest.unreadable]
    notes = []
    if k > len(image_index):
        notes.append(f"-k {k}: the index holds {len(image_index)} images; no more results are possible")
        logger.warning(notes[-1])
    queries: list[dict[str, Any]] = []
    results = image_index.search_manifest(
        manifest, k, conditions=conditions, exclude_same_group=exclude_same_group, exact=exact
    )
    if output is not None:  # only now, so that a refused search leaves no empty folder
        prepare_output(output, overwrite=overwrite, marker=RESULTS_FILE)
        _remove_pictures(output)
    for row, result in enumerate(results):
        if result.error is not None:
            failed.append({"image": result.image, "reason": result.error})
            continue
        hits = [image_index.hit(neighbor, rank).to_json() for rank, neighbor in enumerate(result.neighbors, 1)]
        if evidence:
            _add_evidence(image_index, manifest.path(row), row, result, hits, output)
        exclusion = {"kept_out": result.num_excluded, "group_known": result.group_known} if exclude_same_group else {}
        queries.append({"image": result.image, **exclusion, "results": hits})
    unknown = sum(exclude_same_group and not query["group_known"] for query in queries)
    if unknown:
        notes.append(
            f"the group of {unknown} of {len(queries)} images is not known, so only the image itself is left out; give "
            "a manifest with groups"
        )
        logger.warning(notes[-1])
    report = {
        "purpose": RESEARCH_USE,
        "index": {
            "path": str(index),
            "images": len(image_index),
            "kind": image_index.vector_index.record.kind,
            "backbone": image_index.backbone.name,
            "fingerprint": image_index.backbone.fingerprint,
        },
        "k": k,
        "where": [str(condition) for condition in conditions],
        "exclude_same_group": exclude_same_group,
        "queries": queries,
        "unreadable": failed,
        "notes": notes,
    }
    if output is not None:
        with locked(output):
            write_json(output / RESULTS_FILE, report)
    emit(report, as_json, None if as_json else _table(report))
    if failed:
        raise DinomedError(
            f"{len(failed)} files could not be read (the first: {failed[0]['image']}: {failed[0]['reason']}); "
            f"the other {len(queries)} are searched"
        )


def _evaluate(
    image_index: "ImageIndex", images: Path, split: str, label: str, conditions: "list[Condition]", as_json: bool
) -> None:
    from dinomed.adapters.retrieval.evaluate import evaluate_index
    from dinomed.apps.output import build_table, emit
    from dinomed.datasets.open import open_dataset

    report = evaluate_index(image_index, open_dataset(images), split, label=label, conditions=conditions)
    columns = ("n", "map", "recall@10", "precision@1", "precision@5", "precision@10")
    rows = [(name, *(row[key] for key in columns), "") for name, row in report["per_class"].items()]
    metrics = report["metrics"]
    low, high = metrics["intervals"]["map"]
    rows.append(("all", *(metrics[key] for key in columns), f"mAP {low:.3f} to {high:.3f}"))
    rows.append((report["purpose"], *[None] * len(columns), ""))
    emit(report, as_json, build_table((label, *columns, "95% interval"), rows, title=f"queries of split {split}"))


def _remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier search, recognised by their names; other files stay."""
    for path in folder.glob("*_*.jpg"):
        if path.stem.replace("_", "").isdigit() and path.is_file():
            path.unlink()


def _add_evidence(
    image_index: "ImageIndex",
    query: Path,
    row: int,
    result: "QueryResult",
    hits: list[dict[str, Any]],
    output: Path | None,
) -> None:
    """Add the matching regions to each of `hits`; with `output` also draw them, to ``QUERY_RANK.jpg``."""
    from PIL import Image

    from dinomed.apps.pages.matches import draw_matches
    from dinomed.images.read import UnreadableImage, read_image
    from dinomed.io.files import replacing

    all_evidence = image_index.evidence(image_index.backbone.preprocessing.read(query), result.neighbors)
    for hit, neighbor, evidence in zip(hits, result.neighbors, all_evidence, strict=True):
        hit["evidence"] = None if evidence is None else evidence.to_json()
        if evidence is None:
            hit["evidence_missing"] = "the indexed image can no longer be read"
        elif output is not None:
            name = f"{row + 1:04d}_{hit['rank']:02d}.jpg"
            try:
                drawn = draw_matches(read_image(query), image_index.read_image(neighbor.row), evidence)
            except UnreadableImage:  # arrays and images of several bands cannot be drawn
                continue
            with replacing(output / name) as temporary:
                Image.fromarray(drawn).save(temporary, format="JPEG", quality=92)
            hit["evidence"]["picture"] = name


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
    rows.append((report["purpose"], None, None, None, None))
    return build_table(("query", "rank", "similarity", "label", "image"), rows)
