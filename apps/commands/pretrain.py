"""`dinomed pretrain`: a DINOv2 backbone from unlabelled images."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinomed.apps.options import Data, Device, Json, Output, Overwrite, Quiet, Resume

if TYPE_CHECKING:
    from dinomed.pretrain.config import PretrainConfig


def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/pretrain/vit_tiny_cpu.yaml.")],
    data: Data,
    output: Output,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override one setting: a.b=value.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Weights to start from: a run or backbone folder, or a released name.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="A file with the weights of that name.")] = None,
    phase: Annotated[
        str | None, typer.Option("--phase", help="highres: crops of 518 px, after --from a finished run.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Instead of run.seed of the config.", min=0)] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
    nproc: Annotated[int, typer.Option("--nproc", help="Processes (devices) on this machine.", min=1)] = 1,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pretrain a DINOv2 backbone on the images of a manifest.

    Ctrl-C or SIGTERM finish the step and write a checkpoint; --resume goes on as if nothing had happened.
    """
    from dinomed.apps.output import emit
    from dinomed.config import load_config, to_yaml
    from dinomed.configs import find_config
    from dinomed.files import to_json
    from dinomed.pretrain.config import PretrainConfig

    given = {"run.seed": seed, "start.weights": start, "start.file": weights and str(weights)}
    settings = [*(overrides or ()), *(f"{key}={to_json(value)}" for key, value in given.items() if value is not None)]
    resolved = load_config(PretrainConfig, find_config(config), settings)
    if phase is not None:
        resolved = _enter_phase(phase, find_config(config), settings)
    if dry_run:
        if as_json:
            emit(resolved.model_dump(mode="json"), as_json)
        else:
            print(to_yaml(resolved), end="")
        return
    if nproc > 1:
        from dinomed.pretrain.launch import launch

        options = {"--device": device, "--phase": phase}
        flags = {"--resume": resume, "--overwrite": overwrite, "--json": as_json, "--quiet": quiet}
        launch(
            nproc,
            ["pretrain", str(config), "--data", str(data), "-o", str(output)]
            + [part for setting in settings for part in ("--set", setting)]
            + [part for option, value in options.items() if value for part in (option, value)]
            + [flag for flag, given in flags.items() if given],
        )
        return
    from dinomed.distributed import launched_rank
    from dinomed.pretrain.trainer import pretrain as run

    result = run(resolved, data, output, device=device, resume=resume, overwrite=overwrite)
    report = asdict(result) | {"folder": str(result.folder), "backbone": str(result.backbone)}
    if launched_rank() == 0:
        emit(report | {"note": "for research use only"}, as_json)


def _enter_phase(phase: str, file: Path, settings: list[str]) -> "PretrainConfig":
    """The config of a phase: the file's, changed for the phase, with what was set on top."""
    from dinomed.config import build_config, load_config, merge, parse_overrides
    from dinomed.errors import UsageError
    from dinomed.pretrain.config import PretrainConfig
    from dinomed.pretrain.start import to_high_resolution

    if phase != "highres":
        raise UsageError(f"--phase {phase!r}: expected highres")
    changed = to_high_resolution(load_config(PretrainConfig, file))
    config = build_config(PretrainConfig, merge(changed.model_dump(), parse_overrides(settings)), "--phase highres")
    if config.start.weights is None:
        raise UsageError("--phase highres goes on from a run: give it with --from")
    return config
