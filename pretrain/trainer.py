"""Pretraining from top to bottom: images in, a run folder with a backbone out."""

import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest, open_collection
from dinomed.device import resolve_device
from dinomed.distributed import gather_objects, max_over_ranks, on_main, process_group, rank, world_size
from dinomed.errors import DinomedError, UsageError
from dinomed.images.read import UnreadableImage
from dinomed.io.checkpoint import list_checkpoints
from dinomed.io.files import read_json, write_json
from dinomed.io.output_folder import locked
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.select_images import choose_images, fit_images
from dinomed.pretrain.data.stream import Collate, CropStream, RawBatch, batches
from dinomed.pretrain.index_writer import Noting
from dinomed.pretrain.model.distillation import Teacher, fit_student, read_teacher
from dinomed.pretrain.model.initialisation import Start, fit_config, read_start
from dinomed.pretrain.monitoring.metrics import Watch
from dinomed.pretrain.monitoring.online_knn import choose_labelled
from dinomed.pretrain.monitoring.pca_pictures import write_pca_picture
from dinomed.pretrain.optim.scaling_rules import scale_to_data
from dinomed.pretrain.run_folder import (
    CHECKPOINTS,
    RECORD_FILE,
    StopSignal,
    check_kept,
    clear_run,
    describe_device,
    open_run,
    write_record,
)
from dinomed.pretrain.train_step import Engine, StepReport
from dinomed.progress import bar

_MAX_UNREADABLE = 0.05  # share of the images; above it something is wrong with the disk, not with a file


@dataclass(frozen=True)
class RunResult:
    """What `dinomed pretrain` reports."""

    folder: Path
    backbone: Path
    steps: int
    images: int
    seconds: float
    images_per_second: float
    losses: dict[str, float]
    energy: dict[str, Any]


def pretrain(
    config: PretrainConfig,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    teacher: Path | None = None,
    fixed: Collection[str] = (),
) -> RunResult:
    """Train a DINOv2 backbone on the training split of `data`, a manifest or a folder of images; images without a split
    are used too.

    With a `teacher`, a run folder, its frozen teacher is distilled into a student (`dinomed.pretrain.model.distillation`).
    `fixed` names settings (``backbone.embed_dim``) that somebody asked for: weights of another kind are refused, where
    else the settings would follow them.

    With the same config, data, device and library versions the result is the same, bit for bit on a CPU, whether the
    run was interrupted and resumed or not.

    Raises:
        UsageError: the settings, the data or the output folder do not fit.
        DinomedError: the loss is no number for `run.max_bad_steps` steps in a row, or nothing can be written or read.
        SystemExit: 143 or 130 after SIGTERM or SIGINT; the step was finished and a checkpoint written.
    """
    run = config.run
    for source in (teacher, config.start.weights):
        if source is not None and out.exists() and Path(source).resolve().is_relative_to(out.resolve()):
            raise UsageError(f"output {out} holds what the run starts from ({source}); choose another folder")
    with ExitStack() as stack:
        with process_group(resolve_device(device), run.timeout_s) as where:
            if run.batch_size % world_size():
                raise UsageError(
                    f"a batch of {run.batch_size} images cannot be shared by {world_size()} processes evenly"
                )
            asked, start = config, read_start(config.start)
            config = fit_config(config, start)
            larger = read_teacher(teacher) if teacher is not None else None
            if larger is not None:
                config = fit_student(config, larger)
            check_kept(asked, config, fixed, f"the weights of {teacher or config.start.weights}")
            manifest = open_collection(data)
            train, aside = choose_images(manifest, config)
            config = fit_images(config, train)
            came_with_heads = larger is not None or (start is not None and start.has_heads)
            config = scale_to_data(config, len(train), keep_heads=came_with_heads)
            about_data = {"fingerprint": train.fingerprint, "images": len(train), "held_aside": len(aside)}
            if teacher is not None:
                about_data["teacher"] = str(teacher)
            on_main(lambda: open_run(out, config, about_data, resume=resume, overwrite=overwrite))
            on_main(lambda: stack.enter_context(locked(out)))
            if not resume:
                on_main(lambda: clear_run(out))
            noting = Noting(out, train) if rank() == 0 else None
            with StopSignal() as stop:
                result = _Run(config, start, larger, manifest, train, aside, about_data, out, where).train(stop)
        if noting is not None:
            noting.finish()  # when the other processes are free to go
        return result


class _Run:
    """One call of `pretrain`: what stays the same from step to step."""

    def __init__(
        self,
        config: PretrainConfig,
        start: Start | None,
        teacher: Teacher | None,
        manifest: Manifest,
        train: Manifest,
        aside: Manifest,
        about_data: dict[str, Any],
        out: Path,
        device: torch.device,
    ) -> None:
        self.config, self.start, self.teacher, self.out, self.device = config, start, teacher, out, device
        self.about_data, self.num_images = about_data, len(train)
        self.pictures = [aside.path(i) for i in range(len(aside))]
        channels = config.backbone.in_channels
        self.preprocessing = Preprocessing(
            image_size=config.image_size,
            mean=config.mean,
            std=config.std,
            channels=channels,
            intensity=config.images,
        )
        paths = [str(train.path(i)) for i in range(len(train))]
        stamps = list(zip(train.column("bytes"), train.column("sha256"), strict=True))
        self.crops = CropStream(
            paths, train.column("image"), config.crops, channels, config.run.seed, stamps, config.images
        )
        self.knn = choose_labelled(manifest, train, self.preprocessing, config.run.knn_images)
        if self.knn is None and config.run.patience and rank() == 0:
            logger.warning(
                "run.patience waits for a better online k-NN, and there is none: the run goes on to its last step"
            )
        self.unreadable: set[str] = set()
        self.bad_steps = 0

    def train(self, stop: StopSignal) -> RunResult:
        config, run, out = self.config, self.config.run, self.out
        engine = Engine(config, self.device, self.start, self.teacher)
        first, state = engine.load(out / CHECKPOINTS)
        watch = Watch(config, out, self.device, first, self.knn, state)
        self.about_model = {
            "device": describe_device(self.device), "processes": world_size(), "parameters": engine.parameters
        }  # fmt: skip
        if first == 0:
            untrained = engine.result()
            watch.judge(0, untrained)
            on_main(lambda: self._begin(untrained))
        else:
            self._catch_up(engine, watch, first)
        began, done = time.monotonic(), first
        with bar("pretrain", run.steps, start=first) if rank() == 0 else nullcontext() as progress:
            for step, raw in enumerate(self._batches(first), start=first):
                if watch.has_stalled:
                    break
                self._note_unreadable(raw)
                report = engine.step(raw, step)
                self._count_bad_steps(report, raw, step)
                if report.finite:
                    watch.add(report)
                done = step + 1
                if done % run.log_every == 0 or done == run.steps:
                    watch.write(done, report)
                if progress:
                    progress.advance(1, " ".join(f"{name} {value:.3f}" for name, value in watch.latest.items()))
                exit_code = max_over_ranks(stop.exit_code or 0, self.device)
                if done % run.checkpoint_every == 0 or done == run.steps or exit_code:
                    self._save(engine, watch, done, raw)
                if exit_code and done < run.steps:
                    watch.close()
                    if rank() == 0:
                        logger.info(f"stopped after step {done} of {run.steps}; go on with --resume")
                    raise SystemExit(exit_code)
        watch.close()
        if done < run.steps and rank() == 0:
            logger.info(f"ended after step {done} of {run.steps}: {run.patience} checkpoints without a better k-NN; the best "
                f"backbone, of step {watch.progress.best_step}, is {out / 'best'}")  # fmt: skip
        seconds = time.monotonic() - began
        speed = (done - first) * run.batch_size / max(seconds, 1e-9)
        energy = watch.energy.report(world_size())
        return RunResult(out, out / "backbone", done, self.num_images, seconds, speed, watch.latest, energy)

    def _batches(self, first: int) -> Iterator[RawBatch]:
        config, run = self.config, self.config.run
        side = config.crops.global_size // config.backbone.patch_size
        return batches(
            self.crops,
            Collate(config.masks, (side, side), run.seed, run.batch_size),
            batch_size=run.batch_size,
            first_step=first,
            last_step=run.steps,
            workers=run.workers,
            pin=self.device.type == "cuda",
        )

    def _begin(self, untrained: VisionTransformer) -> None:
        write_record(self.out, self.config, self.about_data, step=0, **self.about_model)
        save_backbone(self.out / "untrained", untrained, self.preprocessing, {"step": 0})

    def _catch_up(self, engine: Engine, watch: Watch, step: int) -> None:
        """After an interruption between a checkpoint and what belongs beside it: write that now."""
        result, best = engine.result(), watch.progress.best_step == step
        on_main(lambda: self._write_missing(result, step, watch, best))

    def _write_missing(self, backbone: VisionTransformer, step: int, watch: Watch, best: bool) -> None:
        logger.info(f"resuming {self.out} at step {step} of {self.config.run.steps}")
        with suppress(DinomedError, KeyError):
            self.unreadable = set(read_json(self.out / RECORD_FILE)["unreadable"])
        if any(_step_of(self.out / name) != step for name in (("backbone", "best") if best else ("backbone",))):
            self._show(backbone, step, watch, best)

    def _save(self, engine: Engine, watch: Watch, step: int, raw: RawBatch) -> None:
        """A checkpoint, and beside it what a person or the next command can use already.

        Weights that an update has wrecked are not kept: the checkpoint before them stays the newest one.
        """
        if not engine.is_sound(raw):
            raise DinomedError(
                f"the run has diverged: after step {step} its weights give values that are not finite. {self._advise()}"
            )
        backbone = engine.result()
        best = watch.judge(step, backbone)
        engine.save(self.out / CHECKPOINTS, step, watch.state())
        on_main(lambda: self._show(backbone, step, watch, best))

    def _show(self, backbone: VisionTransformer, step: int, watch: Watch, best: bool) -> None:
        for name in ("backbone", "best") if best else ("backbone",):
            save_backbone(self.out / name, backbone, self.preprocessing, {"step": step})
        if self.pictures:
            path = self.out / "pca" / f"{step:08d}.png"
            try:
                write_pca_picture(path, backbone, self.preprocessing, self.pictures, self.device)
            except UnreadableImage as error:
                logger.warning(f"no PCA picture of step {step}: {error}")
        write_record(
            self.out,
            self.config,
            self.about_data,
            step=step,
            unreadable=sorted(self.unreadable),
            knn=watch.progress.as_dict() if watch.knn else None,
            energy=watch.energy.report(world_size()),
            **self.about_model,
        )

    def _note_unreadable(self, raw: RawBatch) -> None:
        new = set(raw.skipped) - self.unreadable
        for line in sorted(new):
            logger.warning(f"{line}; another image takes its place")
        self.unreadable |= new
        if len(self.unreadable) > max(_MAX_UNREADABLE * self.num_images, 3):
            raise DinomedError(
                f"{len(self.unreadable)} of {self.num_images} images cannot be read any more, or have changed; "
                "check the disk, then scan again"
            )

    def _count_bad_steps(self, report: StepReport, raw: RawBatch, step: int) -> None:
        """A step whose loss or gradient is not finite is skipped; too many in a row end the run."""
        if report.finite:
            self.bad_steps = 0
            return
        self.bad_steps += 1
        if rank() == 0:
            logger.warning(
                f"step {step}: the loss or its gradient is not finite; the step is skipped ({self.bad_steps} in a row)"
            )
        if self.bad_steps <= self.config.run.max_bad_steps:
            return
        path = self.out / "bad_batch.json"
        names = gather_objects(raw.names)
        on_main(lambda: write_json(path, {"step": step, "images": [name for part in names for name in part]}))
        raise DinomedError(
            f"{self.bad_steps} steps in a row without a finite loss, the last at step {step} (its images: {path}); "
            f"those steps changed nothing; {self._advise()}"
        )

    def _advise(self) -> str:
        """What is left of a run that diverged, and what to do."""
        kept = list_checkpoints(self.out / CHECKPOINTS)
        left = f"the last good state is kept ({kept[-1]})" if kept else "no checkpoint had been written yet"
        return f"{left}. Usually the learning rate is too high: lower optimizer.lr, or use run.precision=float32"


def _step_of(backbone: Path) -> int | None:
    """The step that a backbone was written at; None where there is none that can be read."""
    try:
        return load_backbone(backbone).metadata.get("step")
    except DinomedError:
        return None
