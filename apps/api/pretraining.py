"""Pretraining of backbones, and distillation of a large one into a small one."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.apps.api.inputs import DatasetLike, FolderLike, PathLike, Settings, config_path, folder_path, override_list
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError

if TYPE_CHECKING:
    from dinomed.pretrain.config import PretrainConfig
    from dinomed.pretrain.trainer import RunResult


def pretrain(
    config: PathLike,
    data: DatasetLike,
    out: PathLike,
    *,
    steps: int | None = None,
    settings: Settings | None = None,
    start: FolderLike | None = None,
    weights: PathLike | None = None,
    phase: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> "RunResult":
    """Pretrain a DINOv2 backbone on images without labels and write a run folder.

    With the same config, data, device and library versions the result is the same, also after an interruption and
    ``resume=True``. The command is ``dinomed pretrain``, which also starts several processes (``--nproc``).

    Args:
        config: YAML file, or a name in configs/pretrain such as ``"vit_tiny_cpu"``.
        data: a manifest or a folder. The split train is used, and images without a split.
        out: run folder to write.
        steps: optimizer steps; None for `run.steps` of the config.
        settings: settings that override the config, such as ``{"run.batch_size": 32}``.
        start: weights to start from: a run folder or its result, a backbone folder, or the name of a released backbone.
        weights: file with the weights of a backbone that `start` names.
        phase: ``"highres"`` for the short phase with crops of 518 px, after `start`.
        seed: `run.seed` of the config.
        resume: continue an interrupted run in `out`.
        overwrite: replace an earlier run in `out`.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The run folder, its backbone, the number of steps and images, images per second, losses and energy.

    Raises:
        UsageError: settings, data and output folder do not fit together.
        DinomedError: the loss is not finite for `run.max_bad_steps` steps in a row, or nothing can be read or written.
        SystemExit: 143 or 130 after SIGTERM or SIGINT; the step was finished and a checkpoint written.

    Example:
        >>> small = {"run.batch_size": 8, "run.workers": 0, "crops.num_local": 1, "backbone.depth": 1}
        >>> run = dinomed.pretrain("vit_tiny_cpu", "lesions.parquet", out="runs/new", steps=2, settings=small)
        >>> run.steps, dinomed.load_backbone(run).embed_dim
        (2, 128)
    """
    place = None if start is None else str(folder_path(start))
    overrides = override_list(
        settings,
        run__steps=steps,
        run__seed=seed,
        start__weights=place,
        start__file=None if weights is None else str(weights),
    )
    resolved = load_run_config(config, overrides, phase)
    return run_pretraining(
        resolved, data, out, fixed=fixed_names(settings, steps), device=device, resume=resume, overwrite=overwrite
    )


def distill(
    config: PathLike,
    teacher: FolderLike,
    data: DatasetLike,
    out: PathLike,
    *,
    steps: int | None = None,
    settings: Settings | None = None,
    seed: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> "RunResult":
    """Train a small backbone to reproduce the outputs of a large one, and write a run folder.

    The command is ``dinomed distill``.

    Args:
        config: YAML file of the student, or a name in configs/pretrain such as ``"distill_vits"``. The prototypes and
            the normalisation come from the teacher.
        teacher: run folder of the large model, or its result; it is not changed. With the setting
            ``distill.method="features"`` also a backbone folder or the name of a released backbone.
        data: a manifest or a folder. The split train is used, and images without a split.
        out: run folder to write.
        steps: optimizer steps; None for `run.steps` of the config.
        settings: settings that override the config.
        seed: `run.seed` of the config.
        resume: continue an interrupted run in `out`.
        overwrite: replace an earlier run in `out`.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        As `pretrain`.

    Raises:
        UsageError: the patch sizes differ or the teacher has no heads (for ``distill.method="heads"``), or settings do
            not fit.
        DinomedError: as `pretrain`.

    Example:
        >>> small = {"run.batch_size": 8, "run.workers": 0, "crops.num_local": 1, "backbone.depth": 1}
        >>> run = dinomed.pretrain("vit_tiny_cpu", "lesions.parquet", out="runs/teacher", steps=1, settings=small)
        >>> data, out = "lesions.parquet", "runs/student"
        >>> student = dinomed.distill("vit_tiny_cpu", run, data, out=out, steps=1, settings=small)
        >>> student.steps
        1
    """
    overrides = override_list(settings, run__steps=steps, run__seed=seed)
    return run_pretraining(
        load_run_config(config, overrides), data, out, teacher=folder_path(teacher),
        fixed=fixed_names(settings, steps), device=device, resume=resume, overwrite=overwrite,
    )  # fmt: skip


def load_run_config(config: PathLike, overrides: Sequence[str], phase: str | None = None) -> "PretrainConfig":
    """Return the config of a file or a name, with overrides and the settings of a phase."""
    from dinomed.pretrain.resolve import load_pretrain_config

    path = config_path(config, "pretrain")
    assert path is not None
    return load_pretrain_config(path, overrides, phase)


def plan_run(
    config: "PretrainConfig", data: DatasetLike, *, num_processes: int, device: str, **options: Any
) -> "tuple[PretrainConfig, dict[str, Any]]":
    """Return the settings that a run would use, and its estimated cost; ``--dry-run`` prints both.

    Args:
        config: as `load_run_config` returns it.
        data: a manifest or a folder.
        num_processes: processes of the run.
        device: auto, cpu, cuda, cuda:N or mps.
        options: `teacher` and `fixed` of `dinomed.pretrain.resolve.resolve_config`.
    """
    from dinomed.device import resolve_device
    from dinomed.pretrain.monitoring.cost_estimate import estimate
    from dinomed.pretrain.resolve import resolve_config

    run = resolve_config(config, _source(data), fetch=False, **options)
    return run.config, asdict(estimate(run.config, resolve_device(device), num_processes, run.teacher))


def run_pretraining(
    config: "PretrainConfig", data: DatasetLike, out: PathLike, *, resume: bool, overwrite: bool, **options: Any
) -> "RunResult":
    """Run a training; `options` are those of `dinomed.pretrain.trainer.pretrain`."""
    from dinomed.pretrain.trainer import pretrain as train_backbone

    check_resume(resume, overwrite)
    return train_backbone(config, _source(data), Path(out), resume=resume, overwrite=overwrite, **options)


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise if a run is to be both continued and replaced."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; use one of them")


def fixed_names(settings: Settings | None, steps: int | None = None) -> list[str]:
    """Return the names of the settings that the caller fixed; loaded weights may not override them."""
    names = [text.partition("=")[0].strip() for text in override_list(settings)]
    return names if steps is None else [*names, "run.steps"]


def _source(data: DatasetLike) -> Manifest | Path:
    return data if isinstance(data, Manifest) else Path(data)
