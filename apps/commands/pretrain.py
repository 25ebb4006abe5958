"""`dinomed pretrain`: a DINOv2 backbone from unlabelled images. `dinomed distill`: a smaller one from a larger."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from dinomed.apps.options import Data, Device, Json, Output, Overwrite, Quiet, Resume

if TYPE_CHECKING:
    from dinomed.pretrain.config import PretrainConfig

ConfigFile = Annotated[Path, Argument(help="YAML file, such as configs/pretrain/vit_tiny_cpu.yaml.")]
Overrides = Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")]
Seed = Annotated[int | None, Option("--seed", help="Instead of run.seed of the config.", min=0)]
DryRun = Annotated[bool, Option("--dry-run", help="Print the resolved settings and what they cost, and stop.")]
Nproc = Annotated[int, Option("--nproc", help="Processes (devices) on this machine.", min=1)]


def pretrain(
    config: ConfigFile,
    data: Data,
    output: Output,
    overrides: Overrides = None,
    start: Annotated[
        str | None, Option("--from", help="Weights to start from: a run or backbone folder, or a released name.")
    ] = None,
    weights: Annotated[Path | None, Option("--weights", help="A file with the weights of that name.")] = None,
    phase: Annotated[str | None, Option("--phase", help="highres: crops of 518 px, after --from a run.")] = None,
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

    Ctrl-C or SIGTERM finish the step and write a checkpoint; --resume goes on as if nothing had happened.
    """
    _refuse_both(resume, overwrite)
    settings = _settings(overrides, {"run.seed": seed, "start.weights": start, "start.file": weights and str(weights)})
    flags = {"--resume": resume, "--overwrite": overwrite, "--json": as_json, "--quiet": quiet}
    resolved = _resolve(config, settings, phase)
    if dry_run:
        _show(resolved, device, nproc, as_json, overrides)
    elif nproc > 1:
        _launch(
            nproc,
            ["pretrain", config],
            settings,
            {"--data": data, "-o": output, "--device": device, "--phase": phase},
            flags,
        )
    else:
        _run(resolved, data, output, device, overrides, resume=resume, overwrite=overwrite, as_json=as_json)


def distill(
    config: ConfigFile,
    teacher: Annotated[Path, Option("--teacher", help="Run folder of the larger model; it stays as it is.")],
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
    """Train a small backbone to do what a large one does.

    CONFIG describes the student; what it must share with the teacher (prototypes, normalisation) comes from there.
    """
    _refuse_both(resume, overwrite)
    settings = _settings(overrides, {"run.seed": seed})
    flags = {"--resume": resume, "--overwrite": overwrite, "--json": as_json, "--quiet": quiet}
    resolved = _resolve(config, settings, None)
    if dry_run:
        _show(resolved, device, nproc, as_json, overrides, teacher)
    elif nproc > 1:
        options = {"--teacher": teacher, "--data": data, "-o": output, "--device": device}
        _launch(nproc, ["distill", config], settings, options, flags)
    else:
        _run(
            resolved, data, output, device, overrides,
            resume=resume, overwrite=overwrite, as_json=as_json, teacher=teacher,
        )  # fmt: skip


def _refuse_both(resume: bool, overwrite: bool) -> None:
    from dinomed.errors import UsageError

    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite begins it anew; give one of the two")


def _settings(overrides: list[str] | None, given: dict[str, object]) -> list[str]:
    from dinomed.io.files import to_json

    return [*(overrides or ()), *(f"{key}={to_json(value)}" for key, value in given.items() if value is not None)]


def _resolve(config: Path, settings: list[str], phase: str | None) -> "PretrainConfig":
    from dinomed.config import build_config, load_config, merge, parse_overrides
    from dinomed.configs import find_config
    from dinomed.errors import UsageError
    from dinomed.pretrain.config import PretrainConfig

    file = find_config(config)
    if phase is None:
        return load_config(PretrainConfig, file, settings)
    if phase != "highres":
        raise UsageError(f"--phase {phase!r}: expected highres")
    from dinomed.pretrain.model.initialisation import HIGH_RESOLUTION, to_high_resolution

    plain, asked = load_config(PretrainConfig, file, settings), parse_overrides(settings)
    sized = "global_size" in asked.get("crops", {})
    size = plain.crops.global_size if sized else HIGH_RESOLUTION  # local crops follow it
    changed = to_high_resolution(load_config(PretrainConfig, file), size).model_dump()  # what was set stays on top
    resolved = build_config(PretrainConfig, merge(changed, asked), "--phase highres")
    if resolved.start.weights is None:
        raise UsageError("--phase highres goes on from a run: give it with --from")
    return resolved


def _show(
    asked: "PretrainConfig",
    device: str,
    nproc: int,
    as_json: bool,
    overrides: list[str] | None,
    teacher: Path | None = None,
) -> None:
    """The settings as they would be used, with the architecture of what the run starts from, and what it would cost."""
    from dinomed.apps.output import emit
    from dinomed.config import to_yaml
    from dinomed.device import resolve_device
    from dinomed.pretrain.model.distillation import fit_student, read_teacher
    from dinomed.pretrain.model.initialisation import fit_config, read_plan
    from dinomed.pretrain.monitoring.cost_estimate import estimate
    from dinomed.pretrain.run_folder import check_kept

    config = fit_config(asked, read_plan(asked.start))
    if teacher is not None:
        config = fit_student(config, read_teacher(teacher))
    check_kept(asked, config, _names(overrides), f"the weights of {teacher or asked.start.weights}")
    costs = asdict(estimate(config, resolve_device(device), nproc))
    if as_json:
        emit({"config": config.model_dump(mode="json"), "estimate": costs}, as_json)
    else:
        print(to_yaml(config), end="")
        print("# estimate, rough: " + ", ".join(f"{name} {value:,.3g}" for name, value in costs.items()))


def _names(overrides: list[str] | None) -> list[str]:
    """The settings that somebody asked for."""
    return [text.partition("=")[0].strip() for text in overrides or ()]


def _launch(
    nproc: int, command: list[str | Path], settings: list[str], options: dict[str, object], flags: dict[str, bool]
) -> None:
    """The same command in several processes."""
    from dinomed.pretrain.distributed.launch import launch

    words = [str(word) for word in command]
    words += [word for setting in settings for word in ("--set", setting)]
    words += [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    launch(nproc, [*words, *(flag for flag, given in flags.items() if given)])


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
    from dinomed.apps.output import emit
    from dinomed.distributed import launched_rank
    from dinomed.notice import RESEARCH_USE
    from dinomed.pretrain.trainer import pretrain as run

    fixed = _names(overrides)
    result = run(config, data, output, device=device, resume=resume, overwrite=overwrite, teacher=teacher, fixed=fixed)
    if launched_rank() == 0:
        report = asdict(result) | {"folder": str(result.folder), "backbone": str(result.backbone)}
        emit(report | {"note": RESEARCH_USE}, as_json)
