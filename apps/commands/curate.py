"""`dinomed curate`: from a raw pool of images to a clean, leak-free, balanced collection."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from dinomed.apps.options import Device, Json, Overwrite, Quiet, Weights

if TYPE_CHECKING:
    from dinomed.pretrain.curation.config import CurationConfig
    from dinomed.pretrain.curation.output.read import CurationResult
    from dinomed.pretrain.curation.pool import NamedManifest, Pool


def curate(
    pool: Annotated[Path, Option("--pool", help="Manifest or folder of the raw images.", show_default=False)],
    output: Annotated[Path, Option("--output", "-o", help="Manifest to write: .parquet or .csv.", show_default=False)],
    trusted: Annotated[
        list[Path] | None,
        Option("--trusted", help="Manifest of a small clean set: is kept, and asks for images like its own. Repeat."),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        Option("--exclude", help="Manifest of a set that must stay out, with its copies and its groups. Repeat."),
    ] = None,
    config: Annotated[Path | None, Option("--config", help="YAML file, such as configs/curation/default.yaml.")] = None,
    overrides: Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")] = None,
    backbone: Annotated[
        str | None, Option("--backbone", "-b", help="Frozen backbone to compare contents by; a run, or a name.")
    ] = None,
    weights: Weights = None,
    embeddings: Annotated[
        list[Path] | None, Option("--embeddings", help="Table of `dinomed features` of the pool, by that backbone.")
    ] = None,
    engine: Annotated[str, Option("--engine", help="local or ray.")] = "local",
    ray_address: Annotated[
        str | None, Option("--ray-address", help="Of a running cluster; by default Ray starts one on this machine.")
    ] = None,
    workers: Annotated[int | None, Option("--workers", help="Threads, or with Ray processes.", min=1)] = None,
    device: Device = "auto",
    dry_run: Annotated[bool, Option("--dry-run", help="Print the settings and the sets, and stop.")] = False,
    overwrite: Overwrite = False,
    names: Annotated[bool, Option("--names", help="Show in the report what images are called.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a collection to pretrain on: clean, without copies, without test images, like the trusted sets.

    Nothing is deleted: the output is the pool's manifest (and trusted images that are not in it) with `keep` and the
    `reason` why not; `dinomed pretrain --data` takes what is kept. What was computed lies in OUT.stages: an interrupted
    run goes on from there. For research use only.
    """
    from dinomed.config import load_config
    from dinomed.configs import find_config
    from dinomed.errors import UsageError
    from dinomed.pretrain.curation.config import CurationConfig
    from dinomed.pretrain.curation.pipeline import curate as run
    from dinomed.pretrain.curation.pool import build_pool
    from dinomed.pretrain.curation.runtime.ray_executor import build_executor
    from dinomed.pretrain.curation.selection.embedding import Embedder

    _check_options(output, engine, ray_address, overwrite=overwrite or dry_run)
    if weights is not None and backbone is None:
        raise UsageError("--weights: name the backbone that they are of with --backbone")
    settings = load_config(CurationConfig, None if config is None else find_config(config), overrides or [])
    sets = [[_open(path, option) for path in paths] for option, paths in
            (("--pool", [pool]), ("--trusted", trusted or []), ("--exclude", exclude or []))]  # fmt: skip
    images = build_pool(sets[0][0], sets[1], sets[2], hold_out=settings.hold_out)
    if dry_run:
        _show(images, settings, output, as_json)
        return
    embedder = Embedder(backbone, None if weights is None else str(weights), embeddings or ())
    runner = build_executor(engine, address=ray_address, workers=workers)
    try:
        outcome = run(images, output, settings, executor=runner, embedder=embedder, device=device, workers=workers)
    finally:
        runner.close()
    _report(outcome, as_json, names)


def _check_options(output: Path, engine: str, address: str | None, *, overwrite: bool) -> None:
    from dinomed.errors import UsageError, did_you_mean
    from dinomed.io.output_folder import check_writable
    from dinomed.pretrain.curation.output.read import summary_path

    if engine not in ("local", "ray"):
        raise UsageError(f"--engine {engine!r}{did_you_mean(engine, ('local', 'ray'))}")
    if address is not None and engine != "ray":
        raise UsageError(f"--ray-address {address}: add --engine ray")
    if output.suffix.lower() not in (".parquet", ".csv") or output.is_dir():
        raise UsageError(f"output {output}: a curation is written to a .parquet or .csv file")
    if output.exists():
        if not overwrite:
            raise UsageError(f"output {output} exists already; add --overwrite to replace it")
        if not summary_path(output).is_file():
            raise UsageError(f"output {output} is not overwritten, since no curation wrote it")
    check_writable(output.parent)


def _open(path: Path, option: str) -> "NamedManifest":
    from dinomed.datasets.open import open_dataset
    from dinomed.errors import UsageError
    from dinomed.pretrain.curation.pool import NamedManifest

    try:
        return NamedManifest(path.stem if path.is_file() else path.resolve().name, open_dataset(path))
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None


def _show(pool: "Pool", settings: "CurationConfig", output: Path, as_json: bool) -> None:
    """The settings as they would be used, and how many images there are."""
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


def _report(outcome: "CurationResult", as_json: bool, names: bool) -> None:
    from dinomed.apps.output import build_table, emit
    from dinomed.log import logger

    page = _write_page(outcome, names)
    summary = outcome.summary
    report: dict[str, Any] = {"output": str(outcome.path), "report": str(page), **summary}
    if as_json:
        emit(report, as_json)
        return
    kept = outcome.counts["kept"]
    rows = [(reason, count, count / summary["images"]) for reason, count in outcome.counts.items()]
    emit(report, False, build_table(("images", "count", "share"), rows, f"{kept:,} of {summary['images']:,} are kept"))
    table = [(row.name, row.mode, row.images, row.retrieved, row.kept) for row in outcome.sources]
    if table:
        emit(report, False, build_table(("source", "mode", "images", "retrieved", "kept"), table))
    logger.info(f"{outcome.path} is ready for dinomed pretrain --data; {summary['purpose']}")


def _write_page(outcome: "CurationResult", names: bool) -> Path:
    from dinomed.pretrain.curation.output.report import write_report

    page = outcome.path.with_suffix(".html")
    write_report(outcome, page, names=names)
    return page
