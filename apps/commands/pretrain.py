"""The commands `dinomed pretrain` (a DINOv2 backbone from unlabelled images) and `dinomed distill` (a smaller one)."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Data, Device, Json, Mean, Output, Overwrite, Quiet, Resume, Std

if TYPE_CHECKING:
    from dinomed.apps.api.pretraining import PretrainingPlan

ConfigFile = Annotated[Path, Argument(help="YAML file, such as configs/pretrain/vit_tiny_cpu.yaml.")]
Overrides = Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")]
Seed = Annotated[int | None, Option("--seed", help="Seed, in place of run.seed of the config.", min=0)]
DryRun = Annotated[bool, Option("--dry-run", help="Print the resolved settings and their estimated cost, and stop.")]
Nproc = Annotated[int, Option("--nproc", help="Number of processes (devices) on this machine.", min=1)]


def pretrain(
    config: ConfigFile,
    data: Data,
    out: Output,
    settings: Overrides = None,
    start: Annotated[
        str | None, Option("--from", help="Initial weights: a run folder, or the folder, file or name of a backbone.")
    ] = None,
    weights: Annotated[Path | None, Option("--weights", help="File with the weights of that released name.")] = None,
    mean: Mean = None,
    std: Std = None,
    phase: Annotated[
        str | None, Option("--phase", help="highres: the last phase, with larger crops; needs --from RUN.")
    ] = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    nproc: Nproc = 1,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pretrain a DINOv2 backbone on the images of a manifest or a folder.

    Ctrl-C or SIGTERM finishes the step and writes a checkpoint; --resume then continues the run exactly.
    """
    _run("pretrain", locals())


def distill(
    config: ConfigFile,
    teacher: Annotated[
        Path, Option("--teacher", help="Run folder of the larger model; with distill.method=features any backbone.")
    ],
    data: Data,
    out: Output,
    settings: Overrides = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    nproc: Nproc = 1,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distil a large pretrained backbone into a small one.

    CONFIG describes the student. What it must share with the teacher (prototypes, normalisation) is the teacher's.
    """
    _run("distill", locals())


def _run(command: str, options: dict[str, Any]) -> None:
    """Run or plan a training in this process, or run it in several processes; rank 0 prints its report."""
    from dinomed.apps.api import pretraining
    from dinomed.apps.ending import after_backbone, after_dry_run, print_end
    from dinomed.apps.output import api_arguments, emit
    from dinomed.launched import launched_rank
    from dinomed.notice import RESEARCH_USE

    pretraining.check_resume(options["resume"], options["overwrite"])
    arguments = api_arguments(options, without=["dry_run", "nproc"])
    if options["dry_run"]:
        _print_plan(pretraining.plan_pretraining(**arguments, num_processes=options["nproc"]), options["as_json"])
        print_end([], after_dry_run([command], options), as_json=options["as_json"], mark="# ")
    elif options["nproc"] > 1:
        _launch(command, options)
    else:
        result = getattr(pretraining, command)(**arguments)
        if launched_rank() == 0:
            report = asdict(result) | {"folder": str(result.folder), "backbone": str(result.backbone)}
            if not (result.images_per_second or options["as_json"]):  # the resumed run was complete
                del report["seconds"], report["images_per_second"]
            emit(report | {"note": RESEARCH_USE}, options["as_json"])
            step = partial(after_backbone, result.folder, options["data"])
            print_end([result.folder], step, as_json=options["as_json"])


def _print_plan(plan: "PretrainingPlan", as_json: bool) -> None:
    """Print the settings that the run would use, and its estimated cost."""
    from dinomed.apps.output import emit
    from dinomed.config import to_yaml

    costs = asdict(plan.estimate)
    if as_json:
        emit({"config": plan.config.model_dump(mode="json"), "estimate": costs}, as_json)
    else:
        print(to_yaml(plan.config), end="")
        print("# rough estimate: " + ", ".join(f"{name} {value:,.3g}" for name, value in costs.items()))


def _launch(command: str, options: dict[str, Any]) -> None:
    """Run the same command in several processes."""
    from dinomed.apps.cli import command_words
    from dinomed.pretrain.distributed.launch import launch

    launch(options["nproc"], command_words([command], options | {"nproc": None}))
