"""The commands `dinomed pretrain` (a DINOv2 backbone from unlabelled images) and `dinomed distill` (a smaller one)."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from dinomed.apps.options import Data, Device, Json, Output, Overwrite, Quiet, Resume

if TYPE_CHECKING:
    from dinomed.pretrain.config import PretrainConfig

ConfigFile = Annotated[Path, Argument(help="YAML file, such as configs/pretrain/vit_tiny_cpu.yaml.")]
Overrides = Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")]
Seed = Annotated[int | None, Option("--seed", help="Seed, in place of run.seed of the config.", min=0)]
DryRun = Annotated[bool, Option("--dry-run", help="Print the resolved settings and their estimated cost, and stop.")]
Nproc = Annotated[int, Option("--nproc", help="Number of processes (devices) on this machine.", min=1)]


def pretrain(
    config: ConfigFile,
    data: Data,
    output: Output,
    overrides: Overrides = None,
    start: Annotated[
        str | None, Option("--from", help="Initial weights: a run folder, a backbone folder, or a released name.")
    ] = None,
    weights: Annotated[Path | None, Option("--weights", help="File with the weights of that released name.")] = None,
    phase: Annotated[str | None, Option("--phase", help="highres: crops of 518 px; needs --from RUN.")] = None,
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
    from dinomed.apps.api.pretraining import check_resume, load_run_config

    check_resume(resume, overwrite)
    settings = _settings(overrides, {"run.seed": seed, "start.weights": start, "start.file": weights and str(weights)})
    flags = {"--resume": resume, "--overwrite": overwrite, "--json": as_json, "--quiet": quiet}
    loaded = load_run_config(config, settings, phase)
    if dry_run:
        _print_plan(loaded, data, device, nproc, as_json, overrides)
    elif nproc > 1:
        options = {"--data": data, "-o": output, "--device": device, "--phase": phase}
        _launch(nproc, ["pretrain", config], settings, options, flags)
    else:
        _run(loaded, data, output, device, overrides, resume=resume, overwrite=overwrite, as_json=as_json)


def distill(
    config: ConfigFile,
    teacher: Annotated[
        Path, Option("--teacher", help="Run folder of the larger model; with distill.method=features any backbone.")
    ],
    data: Data,
    output: Output,
    overrides: Overrides = None,
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
    from dinomed.apps.api.pretraining import check_resume, load_run_config

    check_resume(resume, overwrite)
    settings = _settings(overrides, {"run.seed": seed})
    flags = {"--resume": resume, "--overwrite": overwrite, "--json": as_json, "--quiet": quiet}
    loaded = load_run_config(config, settings)
    if dry_run:
        _print_plan(loaded, data, device, nproc, as_json, overrides, teacher)
    elif nproc > 1:
        options = {"--teacher": teacher, "--data": data, "-o": output, "--device": device}
        _launch(nproc, ["distill", config], settings, options, flags)
    else:
        _run(
            loaded, data, output, device, overrides,
            resume=resume, overwrite=overwrite, as_json=as_json, teacher=teacher,
        )  # fmt: skip


def _settings(overrides: list[str] | None, options: dict[str, object]) -> list[str]:
    """Return all overrides: those of --set, and the values of other options as settings."""
    from dinomed.io.files import to_json

    return [*(overrides or ()), *(f"{key}={to_json(value)}" for key, value in options.items() if value is not None)]


def _print_plan(
    config: "PretrainConfig",
    data: Path,
    device: str,
    nproc: int,
    as_json: bool,
    overrides: list[str] | None,
    teacher: Path | None = None,
) -> None:
    """Print the settings that the run would use, and its estimated cost."""
    from dinomed.apps.api.pretraining import fixed_names, plan_run
    from dinomed.apps.output import emit
    from dinomed.config import to_yaml

    resolved, costs = plan_run(
        config, data, num_processes=nproc, device=device, teacher=teacher, fixed=fixed_names(overrides)
    )
    if as_json:
        emit({"config": resolved.model_dump(mode="json"), "estimate": costs}, as_json)
    else:
        print(to_yaml(resolved), end="")
        print("# rough estimate: " + ", ".join(f"{name} {value:,.3g}" for name, value in costs.items()))


def _launch(
    nproc: int, command: list[str | Path], settings: list[str], options: dict[str, object], flags: dict[str, bool]
) -> None:
    """Run the same command in several processes."""
    from dinomed.pretrain.distributed.launch import launch

    words = [str(word) for word in command]
    words += [word for setting in settings for word in ("--set", setting)]
    words += [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    launch(nproc, [*words, *(flag for flag, is_set in flags.items() if is_set)])


def _run(
    config: "PretrainConfig",
    data: Path,
    output: Path,
    device: str,
    overrides: list[str] | None,
    *,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    teacher: Path | None = None,
) -> None:
    """Run the training, and print its report on rank 0."""
    from dinomed.apps.api.pretraining import fixed_names, run_pretraining
    from dinomed.apps.output import emit
    from dinomed.distributed import launched_rank
    from dinomed.notice import RESEARCH_USE

    result = run_pretraining(
        config, data, output, device=device, resume=resume, overwrite=overwrite, teacher=teacher,
        fixed=fixed_names(overrides),
    )  # fmt: skip
    if launched_rank() == 0:
        report = asdict(result) | {"folder": str(result.folder), "backbone": str(result.backbone)}
        emit(report | {"note": RESEARCH_USE}, as_json)
