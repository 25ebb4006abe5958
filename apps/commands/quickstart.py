"""`dinomed quickstart`: the main steps from images to a demo."""

from pathlib import Path
from typing import Annotated

import typer

from dinomed.apps.options import Device, Json, Quiet, Seed


def quickstart(
    data: Annotated[Path | None, typer.Option("--data", help="Folder of your images [synthetic lesions].")] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="As in `dinomed scan` [labels.csv in the folder, if it exists].")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="As in `dinomed scan`: column of patients, lesions or videos.")
    ] = None,
    mask: Annotated[str | None, typer.Option("--mask", help="As in `dinomed scan`; `none` for no masks.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all results.")] = Path("runs/quickstart"),
    count: Annotated[int, typer.Option("--count", help="Number of synthetic images.", min=40)] = 600,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the pretraining: a.b=value.")
    ] = None,
    no_demo: Annotated[bool, typer.Option("--no-demo", help="Stop after the report, as --json does.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the main steps once: scan, pretrain, train, evaluate, demo.

    Without --data, synthetic lesions are drawn; this takes less than 10 minutes on 2 cores. Each command is printed
    before it runs. The same command continues an interrupted quickstart. Your images need labels for classification,
    and masks for segmentation and the demo. For research use only, not for diagnosis.
    """
    from dinomed.apps.output import emit
    from dinomed.apps.quickstart.run import Plan, run_quickstart, show_results
    from dinomed.log import logger

    plan = Plan(output, data, labels, group, mask, count, tuple(overrides or ()), seed, device, quiet)
    results = run_quickstart(plan)
    emit(results, as_json, None if as_json else show_results(results))
    logger.info(f"report: {results['report']}")
    if no_demo or as_json or results["segmenter"] is None:
        return  # with --json, stdout holds one JSON object and not the address of a demo
    from dinomed.apps.demos.launch import serve_demo

    examples = results["examples"]
    examples_option = f" --examples {examples}" if examples else ""
    logger.info(f"\n$ dinomed demo segment --adapter {results['segmenter']}{examples_option}")
    serve_demo(segment=Path(results["segmenter"]), examples=examples and Path(examples), device=device)
