"""`dinomed pretrain`: a DINOv2 backbone from unlabelled images."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dinomed.apps.options import Data, Device, Json, Output, Overwrite, Quiet, Resume


def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/pretrain/vit_tiny_cpu.yaml.")],
    data: Data,
    output: Output,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override one setting: a.b=value.")] = None,
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
    from dinomed.pretrain.config import PretrainConfig

    settings = [*(overrides or ()), *([f"run.seed={seed}"] if seed is not None else [])]
    resolved = load_config(PretrainConfig, find_config(config), settings)
    if dry_run:
        if as_json:
            emit(resolved.model_dump(mode="json"), as_json)
        else:
            print(to_yaml(resolved), end="")
        return
    if nproc > 1:
        from dinomed.pretrain.launch import launch

        flags = {"--resume": resume, "--overwrite": overwrite, "--json": as_json, "--quiet": quiet}
        launch(
            nproc,
            ["pretrain", str(config), "--data", str(data), "-o", str(output), "--device", device]
            + [part for setting in settings for part in ("--set", setting)]
            + [flag for flag, given in flags.items() if given],
        )
        return
    from dinomed.distributed import launched_rank
    from dinomed.pretrain.trainer import pretrain as run

    result = run(resolved, data, output, device=device, resume=resume, overwrite=overwrite)
    report = asdict(result) | {"folder": str(result.folder), "backbone": str(result.backbone)}
    if launched_rank() == 0:
        emit(report | {"note": "for research use only"}, as_json)
