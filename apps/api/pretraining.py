"""Pretraining of backbones, and distillation of a large one into a small one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinomed.apps.api.inputs import DatasetLike, FolderLike, PathLike, Settings, config_path, folder_path, override_list
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError

if TYPE_CHECKING:
    from dinomed.pretrain.config import PretrainConfig
    from dinomed.pretrain.monitoring.cost_estimate import CostEstimate
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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    phase: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> "RunResult":
    """Pretrain a DINOv2 backbone on images without labels and write a run folder.

    With the same config, data, device and library versions the result is the same, also after an interruption and
    ``resume=True``. The command is ``dinomed pretrain``.

    One call is one process. For several devices, start the same script in several processes:
    ``torchrun --nproc-per-node 4 script.py``. Each process calls this function with the same arguments, and rank 0
    writes. Without a script, use ``dinomed pretrain --nproc 4``.

    Args:
        config: YAML file, or a name in configs/pretrain such as ``"vit_tiny_cpu"``.
        data: a manifest or a folder. The split train is used, and images without a split.
        out: run folder to write.
        steps: optimizer steps; None for `run.steps` of the config.
        settings: settings that override the config, such as ``{"run.batch_size": 32}``.
        start: weights to start from: a run folder or its result, the folder or file of a backbone, or the name of one.
        weights: file with the weights of a backbone that `start` names.
        mean: mean of each channel in 0 to 1, for weights of `start` that name none; see `load_backbone`. The run and
            its backbone record it.
        std: standard deviation of each channel, likewise.
        phase: ``"highres"`` for the short phase at the end, after `start`, with crops that are larger by 518 / 224.
        seed: `run.seed` of the config.
        resume: continue an interrupted run in `out`.
        overwrite: replace an earlier run in `out`.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The run folder, its backbone, the number of steps and images, images per second, losses and energy.

    Raises:
        UsageError: settings, data and output folder do not fit together.
        DinomedError: the loss is not finite for more than `run.max_bad_steps` steps in a row, or a file cannot be read
            or written.
        SystemExit: 143 or 130 after SIGTERM or SIGINT; the step was finished and a checkpoint written.

    Example:
        >>> small = {"run.batch_size": 8, "run.workers": 0, "crops.num_local": 1, "backbone.depth": 1}
        >>> run = dinomed.pretrain("vit_tiny_cpu", "lesions.parquet", out="runs/new", steps=2, settings=small)
        >>> run.steps, dinomed.load_backbone(run).embed_dim
        (2, 128)
    """
    check_resume(resume, overwrite)
    resolved = _load_config(
        config, settings, steps=steps, start=start, weights=weights, phase=phase, seed=seed, start__mean=mean,
        start__std=std,
    )  # fmt: skip
    from dinomed.pretrain.trainer import pretrain as train_backbone  # takes seconds, so after the check of the config

    return train_backbone(
        resolved, _source(data), Path(out), fixed=_fixed_names(settings, steps), device=device, resume=resume,
        overwrite=overwrite,
    )  # fmt: skip


def distill(
    config: PathLike,
    teacher: FolderLike,
    data: DatasetLike,
    out: PathLike,
    *,
    steps: int | None = None,
    settings: Settings | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
            ``distill.method="features"`` also the folder, file or name of a backbone.
        data: a manifest or a folder. The split train is used, and images without a split.
        out: run folder to write.
        steps: optimizer steps; None for `run.steps` of the config.
        settings: settings that override the config.
        mean: mean of each channel in 0 to 1, for a teacher whose files name none; see `load_backbone`. The student
            has the statistics of its teacher.
        std: standard deviation of each channel, likewise.
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
    check_resume(resume, overwrite)
    resolved = _load_config(config, settings, steps=steps, seed=seed, distill__mean=mean, distill__std=std)
    from dinomed.pretrain.trainer import pretrain as train_backbone

    return train_backbone(
        resolved, _source(data), Path(out), teacher=folder_path(teacher), fixed=_fixed_names(settings, steps),
        device=device, resume=resume, overwrite=overwrite,
    )  # fmt: skip


@dataclass(frozen=True)
class PretrainingPlan:
    """The settings that a run would use, and its estimated costs.

    Attributes:
        config: all settings, with those that follow from the images, the weights and the teacher.
        estimate: parameters, memory (GiB) and time of the run on this machine.
    """

    config: "PretrainConfig"
    estimate: "CostEstimate"


def plan_pretraining(
    config: PathLike,
    data: DatasetLike,
    *,
    teacher: FolderLike | None = None,
    steps: int | None = None,
    settings: Settings | None = None,
    start: FolderLike | None = None,
    weights: PathLike | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    phase: str | None = None,
    seed: int | None = None,
    num_processes: int = 1,
    out: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> PretrainingPlan:
    """Return the settings and the costs of a pretraining or a distillation, without running it.

    Nothing is written, and no weights are downloaded. The command is ``dinomed pretrain --dry-run``; with `teacher`,
    ``dinomed distill --dry-run``.

    Args:
        config: as in `pretrain`.
        data: as in `pretrain`.
        teacher: teacher of a distillation, as in `distill`.
        steps: as in `pretrain`; `settings`, `start`, `weights`, `phase` and `seed` too.
        settings: settings that override the config.
        start: weights to start from.
        weights: file with the weights of a backbone that `start` names.
        mean: mean of each channel of the weights of `start`, or of the teacher, whose files name none.
        std: standard deviation of each channel, likewise.
        phase: ``"highres"`` or None.
        seed: `run.seed` of the config.
        num_processes: number of processes (devices) of the run.
        out: run folder that the run would write; it is checked, and nothing is written.
        resume: the run would continue an interrupted one in `out`.
        overwrite: the run would replace an earlier one in `out`.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The plan, with `config` and `estimate`.

    Raises:
        UsageError: settings and data do not fit together.
        DinomedError: the data or the weights cannot be read.

    Example:
        >>> small = {"run.batch_size": 8}
        >>> plan = dinomed.plan_pretraining("vit_tiny_cpu", "lesions.parquet", steps=100, settings=small)
        >>> plan.config.run.steps, plan.estimate.backbone_parameters > 1e6
        (100, True)
    """
    from dinomed.device import resolve_device
    from dinomed.pretrain.monitoring.cost_estimate import estimate
    from dinomed.pretrain.resolve import check_batch_size, resolve_config
    from dinomed.pretrain.run_folder import check_sources, open_run

    check_resume(resume, overwrite)
    section = "start" if teacher is None else "distill"
    loaded = _load_config(
        config, settings, steps=steps, start=start, weights=weights, phase=phase, seed=seed,
        **{f"{section}__mean": mean, f"{section}__std": std},
    )  # fmt: skip
    folder = None if out is None else Path(out)
    if folder is not None:
        check_sources(folder, None if teacher is None else folder_path(teacher), loaded.start.weights)
    check_batch_size(loaded, num_processes)
    run = resolve_config(
        loaded, _source(data), fetch=False, teacher=None if teacher is None else folder_path(teacher),
        fixed=_fixed_names(settings, steps),
    )  # fmt: skip
    if folder is not None:
        open_run(folder, run.config, run.data_record, resume=resume, overwrite=overwrite)
    return PretrainingPlan(run.config, estimate(run.config, resolve_device(device), num_processes, run.teacher))


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise if a run is to be both continued and replaced."""
    if resume and overwrite:
        raise UsageError("`resume` and `overwrite` exclude each other; use one of them")


def _load_config(
    config: PathLike,
    settings: Settings | None,
    *,
    steps: int | None,
    start: FolderLike | None = None,
    weights: PathLike | None = None,
    phase: str | None = None,
    seed: int | None,
    **statistics: Sequence[float] | None,
) -> "PretrainConfig":
    """Return the config of a file or a name, with overrides and the settings of a phase.

    `statistics` are the settings `mean` and `std` of the weights (``start__mean``) or of the teacher.
    """
    from dinomed.pretrain.config import load_pretrain_config

    overrides = override_list(
        settings, run__steps=steps, run__seed=seed, start__weights=None if start is None else str(folder_path(start)),
        start__file=None if weights is None else str(weights),
        **{name: None if values is None else list(values) for name, values in statistics.items()},
    )  # fmt: skip
    path = config_path(config, "pretrain")
    assert path is not None
    return load_pretrain_config(path, overrides, phase)


def _fixed_names(settings: Settings | None, steps: int | None) -> list[str]:
    """Return the names of the settings that the caller fixed; loaded weights may not override them."""
    names = [text.partition("=")[0].strip() for text in override_list(settings)]
    return names if steps is None else [*names, "run.steps"]


def _source(data: DatasetLike) -> Manifest | Path:
    return data if isinstance(data, Manifest) else Path(data)
