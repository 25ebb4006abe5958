"""`dinomed search`: the images of an index that are most similar to others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from dinomed.apps.commands.index import Where
from dinomed.apps.options import Device, Json, Overwrite, Quiet

if TYPE_CHECKING:
    from dinomed.adapters.retrieval.filters import Condition
    from dinomed.adapters.retrieval.search import Answer, Retriever
    from dinomed.datasets.manifest import Manifest


def search(
    images: Annotated[Path, Argument(help="One image, a folder of images, or a manifest.")],
    index: Annotated[Path, Option("--index", "-i", help="Folder, as `dinomed index` writes it.")],
    k: Annotated[int, Option("-k", help="Results for each image.", min=1)] = 10,
    exclude_same_group: Annotated[
        bool, Option("--exclude-same-group", help="Not the image itself, nor others of its patient, lesion or video.")
    ] = False,
    where: Where = None,
    exact: Annotated[bool, Option("--exact", help="Compare with every image, whatever the index is.")] = False,
    evidence: Annotated[bool, Option("--evidence", help="Also which regions of query and result match.")] = False,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for results.json and, with --evidence, pictures.")
    ] = None,
    evaluate: Annotated[
        bool, Option("--evaluate", help="Of a manifest with labels: mAP, recall and precision, in place of results.")
    ] = False,
    split: Annotated[str, Option("--split", help="With --evaluate: whose images are the queries.")] = "test",
    label: Annotated[str, Option("--label", help="With --evaluate: the column that says what is relevant.")] = "label",
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Where its backbone is now, if moved.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the most similar images.

    Similarity is that of the backbone's features (cosine, 1 for the same), not of diagnoses. Images that cannot be
    read are named, and the rest goes on; the exit code is then 1.

    With --evaluate each labelled image of a split is a query, and images of its label are what it should find; its
    own group never counts. Add --where split=train to search among those only. For research use only, not for
    diagnosis.
    """
    from dinomed.adapters.retrieval.filters import parse_conditions
    from dinomed.adapters.retrieval.search import load_retriever
    from dinomed.apps.output import emit
    from dinomed.datasets.open import collect
    from dinomed.errors import DinomedError, UsageError
    from dinomed.io.files import write_json
    from dinomed.io.output_folder import locked, prepare_output
    from dinomed.log import logger
    from dinomed.notice import RESEARCH_USE

    conditions = parse_conditions(where or [])
    if evaluate:
        if evidence or exact or output is not None:
            raise UsageError("--evaluate gives metrics alone: leave out --evidence, --exact and -o")
        _evaluate(load_retriever(index, device, backbone), images, split, label, conditions, as_json)
        return
    if output is not None:
        prepare_output(output, overwrite=overwrite, marker=RESULTS_FILE)
        _remove_pictures(output)
    retriever = load_retriever(index, device, backbone)
    manifest, unreadable = collect(images)
    failed = [{"image": name, "reason": reason} for name, reason in unreadable]
    notes = _notes(retriever, k)
    for note in notes:
        logger.warning(note)
    queries: list[dict[str, Any]] = []
    answers = retriever.search(manifest, k, conditions=conditions, exclude_same_group=exclude_same_group, exact=exact)
    for row, answer in enumerate(answers):
        if answer.error is not None:
            failed.append({"image": answer.image, "reason": answer.error})
            continue
        results = [retriever.describe(found, rank) for rank, found in enumerate(answer.found, 1)]
        if evidence:
            _add_evidence(retriever, manifest, row, answer, results, output)
        queries.append({"image": answer.image, **_exclusion(answer, exclude_same_group), "results": results})
    unknown = sum(exclude_same_group and not query["group_known"] for query in queries)
    if unknown:
        notes.append(
            f"the group of {unknown} of {len(queries)} images is not known (a manifest would tell it): of these only "
            "the image itself is kept out"
        )
        logger.warning(notes[-1])
    report = {
        "purpose": RESEARCH_USE,
        "index": {
            "path": str(index),
            "images": len(retriever.index),
            "kind": retriever.index.record.kind,
            "backbone": retriever.backbone.name,
            "fingerprint": retriever.backbone.fingerprint,
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
        first = failed[0]
        raise DinomedError(
            f"{len(failed)} files could not be read (the first: {first['image']}: {first['reason']}); "
            f"the other {len(queries)} are searched"
        )


RESULTS_FILE = "results.json"


def _evaluate(
    retriever: "Retriever", images: Path, split: str, label: str, conditions: "list[Condition]", as_json: bool
) -> None:
    from dinomed.adapters.retrieval.evaluate import evaluate_index
    from dinomed.apps.output import build_table, emit
    from dinomed.datasets.manifest import open_collection

    report = evaluate_index(retriever, open_collection(images), split, label=label, conditions=conditions)
    columns = ("n", "map", "recall@10", "precision@1", "precision@5", "precision@10")
    rows = [(name, *(row[key] for key in columns), "") for name, row in report["per_class"].items()]
    low, high = report["metrics"]["intervals"]["map"]
    means = report["metrics"]
    rows.append(("all", *(means[key] for key in columns), f"mAP {low:.3f} to {high:.3f}"))
    rows.append((report["purpose"], *[None] * len(columns), ""))
    emit(report, as_json, build_table((label, *columns, "95% interval"), rows, title=f"queries of split {split}"))


def _remove_pictures(folder: Path) -> None:
    """Those of an earlier search, by their names; anything else stays."""
    for path in folder.glob("*_*.jpg"):
        if path.stem.replace("_", "").isdigit() and path.is_file():
            path.unlink()


def _notes(retriever: "Retriever", k: int) -> list[str]:
    count = len(retriever.index)
    return [f"-k {k}: the index holds {count} images; there are no more results than that"] if k > count else []


def _exclusion(answer: "Answer", asked: bool) -> dict[str, Any]:
    return {"kept_out": answer.related, "group_known": answer.group_known} if asked else {}


def _add_evidence(
    retriever: "Retriever",
    manifest: "Manifest",
    row: int,
    answer: "Answer",
    results: list[dict[str, Any]],
    output: Path | None,
) -> None:
    """What matches, into each of `results`; with `output` also as pictures, QUERY_RANK.jpg."""
    from PIL import Image

    from dinomed.apps.pages.matches import draw_matches
    from dinomed.images.read import UnreadableImage, read_image
    from dinomed.io.files import replacing

    path = manifest.path(row)
    evidence = retriever.evidence(retriever.backbone.preprocessing.read(path), answer.found)
    for result, one, found in zip(results, answer.found, evidence, strict=True):
        result["evidence"] = None if found is None else found.to_json()
        if found is None:
            result["evidence_missing"] = "the indexed image can no longer be read"
        elif output is not None:
            name = f"{row + 1:04d}_{result['rank']:02d}.jpg"
            try:
                drawn = draw_matches(read_image(path), retriever.read(one.row), found)
            except UnreadableImage:  # arrays and bands have no picture
                continue
            with replacing(output / name) as temporary:
                Image.fromarray(drawn).save(temporary, format="JPEG", quality=92)
            result["evidence"]["picture"] = name


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
