"""Pretraining of backbones, and distillation of a large one into a small one."""

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
    resolved = load_pretrain_config(config, overrides, phase)
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
        teacher: run folder of the large model, or its result; it is not changed.
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
        UsageError: the patch sizes differ, the teacher is no run with a checkpoint, or settings do not fit.
        DinomedError: as `pretrain`.

    Example:
        >>> small = {"run.batch_size": 8, "run.workers": 0, "crops.num_local": 1, "backbone.depth": 1}
        >>> run = dinomed.pretrain("vit_tiny_cpu", "lesions.parquet", out="runs/teacher", steps=1, settings=small)
        >>> student = dinomed.distill("vit_tiny_cpu", run, "lesions.parquet", out="runs/student", steps=1, settings=small)
        >>> student.steps
        1
    """
    overrides = override_list(settings, run__steps=steps, run__seed=seed)
    return run_pretraining(
        load_pretrain_config(config, overrides, None), data, out, teacher=folder_path(teacher),
        fixed=fixed_names(settings, steps), device=device, resume=resume, overwrite=overwrite,
    )  # fmt: skip


def load_pretrain_config(config: PathLike, overrides: list[str], phase: str | None) -> "PretrainConfig":
    """Return the config of a file or a name, with overrides and, for ``phase="highres"``, the settings of that phase."""
    from dinomed.config import build_config, load_config, merge, parse_overrides
    from dinomed.pretrain.config import PretrainConfig
    from dinomed.pretrain.model.initialisation import HIGH_RESOLUTION, to_high_resolution

    file = config_path(config, "pretrain")
    resolved = load_config(PretrainConfig, file, overrides)
    if phase is None:
        return resolved
    if phase != "highres":
        raise UsageError(f"--phase {phase!r}: expected highres")
    fixed = parse_overrides(overrides)
    sized = "global_size" in fixed.get("crops", {})
    size = resolved.crops.global_size if sized else HIGH_RESOLUTION  # local crops follow it
    changed = to_high_resolution(load_config(PretrainConfig, file), size).model_dump()  # what was set stays on top
    resolved = build_config(PretrainConfig, merge(changed, fixed), "--phase highres")
    if resolved.start.weights is None:
        raise UsageError("--phase highres goes on from a run: give it with --from")
    return resolved


def run_pretraining(
    config: "PretrainConfig", data: DatasetLike, out: PathLike, *, resume: bool, overwrite: bool, **options: Any
) -> "RunResult":
    """Run a resolved config; `options` are those of `dinomed.pretrain.trainer.pretrain`."""
    from dinomed.pretrain.trainer import pretrain as train_backbone

    check_resume(resume, overwrite)
    source = data if isinstance(data, Manifest) else Path(data)
    return train_backbone(config, source, Path(out), resume=resume, overwrite=overwrite, **options)


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise if a run shall be continued and begun anew."""
    if resume and overwrite:
        raise UsageError("--resume continues a run and --overwrite begins it anew; use one of the two")


def fixed_names(settings: Settings | None, steps: int | None = None) -> list[str]:
    """Return the names of the settings that the caller fixed; loaded weights may not override them."""
    names = [text.partition("=")[0].strip() for text in override_list(settings)]
    return names if steps is None else [*names, "run.steps"]
