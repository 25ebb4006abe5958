"""`dinomed quickstart`: the main steps from images to a demo."""

from pathlib import Path
from typing import Annotated

from typer import Option

from dinomed.apps.options import Device, Json, Quiet, Seed, output_place


def quickstart(
    data: Annotated[Path | None, Option("--data", help="Folder of your images [synthetic lesions].")] = None,
    labels: Annotated[
        str | None, Option("--labels", help="As in `dinomed scan` [labels.csv in the folder, if it exists].")
    ] = None,
    group: Annotated[
        str | None, Option("--group", help="As in `dinomed scan`: column of patients, lesions or videos.")
    ] = None,
    mask: Annotated[str | None, Option("--mask", help="As in `dinomed scan`; `none` for no masks.")] = None,
    out: Annotated[Path, Option("--output", "-o", help="Folder for all results.", callback=output_place)] = Path(
        "runs/quickstart"
    ),
    count: Annotated[int, Option("--count", help="Number of synthetic images.", min=40)] = 600,
    settings: Annotated[
        list[str] | None, Option("--set", help="Override a setting of the pretraining: a.b=value.")
    ] = None,
    no_demo: Annotated[bool, Option("--no-demo", help="Stop after the report, as --json does.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the main steps once: scan, pretrain, train heads, evaluate, index, report, demo.

    Without --data, synthetic lesions are drawn; this took 11 minutes on 2 busy cores. Each command is
    printed before it runs. The same command continues an interrupted quickstart. Your images need labels for
    classification, and masks for segmentation. For research use only, not for diagnosis.
    """
    from dinomed.apps.ending import print_end
    from dinomed.apps.output import build_table, emit
    from dinomed.apps.quickstart.report import demo_arguments, results_table
    from dinomed.apps.quickstart.run import quickstart as run_quickstart
    from dinomed.apps.quickstart.run import show_demo
    from dinomed.notice import RESEARCH_USE

    results = run_quickstart(
        out, data=data, labels=labels, group=group, mask=mask, count=count, settings=settings, seed=seed, device=device
    )
    title = f"{results['images']:,} images ({results['data']}), test split; {RESEARCH_USE}"
    emit(results, as_json, None if as_json else build_table(*results_table(results), title=title))
    step = (["demo", "all"], demo_arguments(results)) if no_demo else None
    print_end([out, results["report"]], step, as_json=as_json)
    if not (no_demo or as_json):  # with --json, stdout holds one JSON object and not the address of a demo
        show_demo(results, device)
