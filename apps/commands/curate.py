"""`dinomed curate`: selection of a clean, balanced collection without test images from a pool of raw images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from dinomed.apps.options import Device, Json, MaskText, Mean, Overwrite, Quiet, Std, Weights, output_place

if TYPE_CHECKING:
    from dinomed.pretrain.curation.config import CurationConfig
    from dinomed.pretrain.curation.output.read import CurationResult
    from dinomed.pretrain.curation.pool import Pool


def curate(
    pool: Annotated[Path, Option("--pool", help="Manifest or folder of the raw images.", show_default=False)],
    out: Annotated[
        Path,
        Option(
            "--output", "-o", help="Manifest to write: .parquet or .csv.", show_default=False, callback=output_place
        ),
    ],
    query_sets: Annotated[
        list[Path] | None,
        Option(
            "--trusted",
            help="Query set: a trusted manifest. Its images are kept, and similar images are retrieved. Repeatable.",
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        Option(
            "--exclude",
            help="Evaluation set: a manifest. Its images, near-duplicates and groups are excluded. Repeatable.",
        ),
    ] = None,
    config: Annotated[Path | None, Option("--config", help="YAML file, such as configs/curation/default.yaml.")] = None,
    settings: Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")] = None,
    backbone: Annotated[
        str | None,
        Option(
            "--backbone", "-b", help="Frozen backbone that computes the features of images: a run folder or a name."
        ),
    ] = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    embeddings: Annotated[
        list[Path] | None,
        Option(
            "--embeddings",
            help="Table of features of the pool by the same backbone, from `dinomed features`. Repeatable.",
        ),
    ] = None,
    executor: Annotated[str, Option("--engine", help="local or ray.")] = "local",
    ray_address: Annotated[
        str | None, Option("--ray-address", help="Address of a running Ray cluster [a new one on this machine].")
    ] = None,
    workers: Annotated[
        int | None, Option("--workers", help="Number of threads; with Ray, of processes.", min=1)
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print the settings and the number of images, and stop.")
    ] = False,
    overwrite: Overwrite = False,
    names: Annotated[bool, Option("--names", help="Show the paths of images in the report.")] = False,
    mask_text: MaskText = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Curate a pool for pretraining: clean, without near-duplicates, without test images, similar to the query sets.

    No image is deleted: the output is the manifest of the pool (and of query images that are not in it) with the
    columns `keep` and `reason`; `dinomed pretrain --data` uses the images with keep = true. Results of the stages are
    cached in OUT.stages, and the same command continues an interrupted run. For research use only.
    """
    arguments = locals()
    from dinomed.apps.api import curation
    from dinomed.apps.ending import after_dry_run, print_end
    from dinomed.apps.output import api_arguments

    if dry_run:
        run_alone = ["dry_run", "workers", "names", "mask_text"]
        resolved, images = curation.plan_curation(**api_arguments(arguments, without=run_alone))
        _show(images, resolved, out, as_json)
        print_end([], after_dry_run(["curate"], arguments), as_json=as_json, mark="# ")
        return
    _report(curation.curate(**api_arguments(arguments, without=["dry_run"])), as_json)


def _show(pool: "Pool", settings: "CurationConfig", output: Path, as_json: bool) -> None:
    """Print the settings that the curation would use, and the number of images."""
    from dinomed.apps.output import emit
    from dinomed.config import to_yaml

    sets = {
        "output": str(output), "pool": pool.pool_size,
        "trusted": {queries.name: len(queries.rows) for queries in pool.query_sets},
        "excluded": {name: pool.reference_sets.count(name) for name in dict.fromkeys(pool.reference_sets)},
        "images_to_read": len(pool) + len(pool.reference_sets),
    }  # fmt: skip
    if as_json:
        emit({**sets, "config": settings.model_dump(mode="json")}, as_json)
    else:
        print(to_yaml(settings), end="")
        print("# " + ", ".join(f"{name}: {value}" for name, value in sets.items()))


def _report(result: "CurationResult", as_json: bool) -> None:
    from dinomed.apps.ending import after_images, print_end
    from dinomed.apps.output import build_table, emit
    from dinomed.log import logger

    page = result.path.with_suffix(".html")
    summary = result.summary
    report: dict[str, Any] = {"output": str(result.path), "report": str(page), **summary}
    if as_json:
        emit(report, as_json)
        return
    kept = result.counts["kept"]
    rows = [(reason, count, count / summary["images"]) for reason, count in result.counts.items()]
    emit(report, False, build_table(("images", "count", "share"), rows, f"{kept:,} of {summary['images']:,} are kept"))
    sources = [(row.name, row.mode, row.images, row.retrieved, row.kept) for row in result.sources]
    if sources:
        emit(report, False, build_table(("source", "mode", "images", "retrieved", "kept"), sources))
    logger.info(summary["purpose"])
    print_end([result.path, page], after_images(result.path))
