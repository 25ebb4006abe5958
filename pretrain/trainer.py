"""The pretraining loop: images in, a run folder with a backbone out."""

import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest
from dinomed.device import resolve_device
from dinomed.distributed import gather_objects, max_over_ranks, on_main, process_group, rank, world_size
from dinomed.errors import DinomedError
from dinomed.images.read import UnreadableImage
from dinomed.io.checkpoint import list_checkpoints
from dinomed.io.files import read_json, write_json
from dinomed.io.output_folder import locked
from dinomed.log import ALL_RANKS, logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.stream import Collate, CropStream, RawBatch, load_batches, worker_failure
from dinomed.pretrain.distributed.graceful_stop import GracefulStop
from dinomed.pretrain.monitoring.metrics import TrainingMetrics
from dinomed.pretrain.monitoring.online_knn import build_online_knn
from dinomed.pretrain.monitoring.pca_pictures import write_pca_picture
from dinomed.pretrain.resolve import ResolvedRun, check_batch_size, resolve_config
from dinomed.pretrain.run_folder import (
    BACKBONE,
    BAD_BATCH_FILE,
    BEST,
    CHECKPOINTS,
    CONFIG_FILE,
    PCA,
    RECORD_FILE,
    UNTRAINED,
    check_sources,
    clear_run,
    describe_device,
    open_run,
    write_record,
)
from dinomed.pretrain.train_step import StepReport, TrainStep
from dinomed.pretrain.training_index_writer import TrainingIndexWriter
from dinomed.progress import bar

_MAX_UNREADABLE = 0.05  # share of the images; above it the disk is at fault, not a file


@dataclass(frozen=True)
class RunResult:
    """The report of `dinomed pretrain`."""

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
    data: Manifest | Path,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    teacher: Path | None = None,
    fixed: Collection[str] = (),
) -> RunResult:
    """Train a DINOv2 backbone on the training split of `data`; images without a split are used too.

    The same config, data, device and library versions give the same result, bit for bit on a CPU, also if the run was
    interrupted and resumed.

    Args:
        config: the settings as the user wrote them; `dinomed.pretrain.resolve` adapts them to weights and data.
        data: a manifest or a folder of images.
        out: the run folder.
        device: cpu, cuda, cuda:N, mps or auto.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        teacher: run folder whose frozen teacher is distilled into a student (`dinomed.pretrain.model.distillation`).
        fixed: names of settings (``backbone.embed_dim``) that the user set on the command line. Weights that need
            another value are refused; any other setting follows the weights.

    Raises:
        UsageError: settings, data and output folder do not fit together.
        DinomedError: the loss is not finite for more than `run.max_bad_steps` steps in a row, or a file cannot be
            written or read.
        SystemExit: 143 or 130 after SIGTERM or SIGINT; the step was finished and a checkpoint written.
    """
    run = config.run
    check_sources(out, teacher, config.start.weights)
    with ExitStack() as stack:
        with process_group(resolve_device(device), run.timeout_s) as local_device:
            check_batch_size(config, world_size())
            resolved = resolve_config(config, data, teacher=teacher, fixed=fixed)
            settings, record = resolved.config, resolved.data_record
            on_main(lambda: open_run(out, settings, record, resume=resume, overwrite=overwrite))
            on_main(lambda: stack.enter_context(locked(out)))
            on_main(lambda: None if resume and (out / CONFIG_FILE).exists() else clear_run(out))
            index_writer = TrainingIndexWriter(out, resolved.train) if rank() == 0 else None
            with GracefulStop() as stop:
                trainer = Trainer(resolved, out, local_device)
                try:
                    result = trainer.train(stop)
                except RuntimeError as error:  # torch reports a dead data worker in the middle of any step
                    raise worker_failure(error, trainer.stream) or error from None
        if index_writer is not None:
            index_writer.finish()  # after the process group, so that other processes can end
        return result


class Trainer:
    """The training loop of one run, and the files that it writes."""

    def __init__(self, resolved: ResolvedRun, out: Path, device: torch.device) -> None:
        self.resolved, self.config, self.out, self.device = resolved, resolved.config, out, device
        self.preprocessing = self.config.preprocessing
        self.num_images = len(resolved.train)
        self.data_record = resolved.data_record
        self.unreadable: set[str] = set()
        self.bad_steps = 0
        self.stream: CropStream | None = None

    def train(self, stop: GracefulStop) -> RunResult:
        """Train from the newest checkpoint, or from the start, to the last step or until `stop`."""
        config, run, out = self.config, self.config.run, self.out
        knn = build_online_knn(self.resolved.manifest, self.resolved.train, self.preprocessing, run.knn_images)
        if knn is None and run.patience:
            logger.warning("run.patience has no effect because online k-NN is disabled; the run goes to its last step")
        train_step = TrainStep(config, self.device, self.resolved.initialisation, self.resolved.teacher)
        first, extra = train_step.load(out / CHECKPOINTS)
        with closing(TrainingMetrics(config, out, self.device, first, knn, extra)) as metrics:
            return self._train_steps(train_step, metrics, first, stop)

    def _train_steps(
        self, train_step: TrainStep, metrics: TrainingMetrics, first: int, stop: GracefulStop
    ) -> RunResult:
        run, out = self.config.run, self.out
        self.model_record = {
            "device": describe_device(self.device), "processes": world_size(), "parameters": train_step.parameters
        }  # fmt: skip
        if first == 0:
            untrained = train_step.ema_backbone()
            metrics.evaluate(0, untrained)
            on_main(lambda: self._write_untrained(untrained))
        else:
            self._complete_files(train_step, metrics, first)
        began, done, good = time.monotonic(), first, None  # good: the last batch of a step that was not skipped
        with bar("pretrain", run.steps, start=first) as progress:
            for step, raw in enumerate(self._batches(first), start=first):
                if metrics.is_out_of_patience:
                    break
                self._note_unreadable(raw)
                report = train_step.run(raw, step)
                self._count_bad_steps(report, raw, step)
                if report.finite:
                    metrics.add(report)
                    good = raw
                done = step + 1
                if done % run.log_every == 0 or done == run.steps:
                    metrics.write(done, report)
                progress.advance(1, " ".join(f"{name} {value:.3f}" for name, value in metrics.latest.items()))
                exit_code = max_over_ranks(stop.exit_code or 0, self.device)
                if done % run.checkpoint_every == 0 or done == run.steps or exit_code:
                    self._save(train_step, metrics, done, raw if good is None else good)
                if exit_code and done < run.steps:
                    logger.info(f"stopped after step {done} of {run.steps}; continue with `resume=True`")
                    raise SystemExit(exit_code)
        if done < run.steps:
            logger.info(
                f"ended after step {done} of {run.steps}: {run.patience} checkpoints without a better online k-NN; the "
                f"best backbone, of step {metrics.knn_history.best_step}, is {out / BEST}"
            )
        seconds = time.monotonic() - began
        speed = (done - first) * run.batch_size / max(seconds, 1e-9)
        energy = metrics.energy.report(world_size())
        return RunResult(out, out / BACKBONE, done, self.num_images, seconds, speed, metrics.latest, energy)

    def _batches(self, first: int) -> Iterator[RawBatch]:
        """Yield the batches from step `first` to the last."""
        config, run, train = self.config, self.config.run, self.resolved.train
        paths = [str(train.path(i)) for i in range(len(train))]
        channels, crops, patch = config.backbone.in_channels, config.crops, config.backbone.patch_size
        side, early_side = crops.global_size // patch, crops.early_crops().global_size // patch
        early_steps = crops.early_steps(run.steps)
        intensity, early_positions = config.images, early_steps * run.batch_size
        objective, anchors_from = config.objective, None
        if objective.gram_weight and objective.gram_scale > 1:
            anchors_from = objective.gram_first_step(run.steps) * run.batch_size
        self.stream = CropStream(
            paths,
            train.column("image"),
            crops,
            channels,
            run.seed,
            train.stamps(),
            intensity,
            early_positions,
            isolated=not train.decoded,
            anchors_from=anchors_from,
        )
        return load_batches(
            self.stream,
            Collate(config.masks, (side, side), run.seed, run.batch_size, early_steps, (early_side, early_side)),
            batch_size=run.batch_size,
            first_step=first,
            last_step=run.steps,
            workers=run.workers,
            pin=self.device.type == "cuda",
        )

    def _write_untrained(self, backbone: VisionTransformer) -> None:
        write_record(self.out, self.config, self.data_record, step=0, **self.model_record)
        save_backbone(self.out / UNTRAINED, backbone, self.preprocessing, self._metadata(0))

    def _metadata(self, step: int) -> dict[str, Any]:
        """Return what the backbone's file says of the run; heads choose their augmentation by the modality."""
        return {"step": step, "modality": self.config.crops.modality}

    def _complete_files(self, train_step: TrainStep, metrics: TrainingMetrics, step: int) -> None:
        """Write the files of a checkpoint that an interruption after it left out."""
        backbone, is_best = train_step.ema_backbone(), metrics.knn_history.best_step == step
        on_main(lambda: self._write_missing(backbone, step, metrics, is_best))

    def _write_missing(self, backbone: VisionTransformer, step: int, metrics: TrainingMetrics, is_best: bool) -> None:
        steps = self.config.run.steps
        state = "resuming {} at" if step < steps else "{} is already complete:"
        logger.info(f"{state.format(self.out)} step {step} of {steps}")
        recorded_step = None
        with suppress(DinomedError, KeyError):
            record = read_json(self.out / RECORD_FILE)  # written last
            recorded_step, self.unreadable = record["step"], set(record["unreadable"])
        names = (BACKBONE, BEST) if is_best else (BACKBONE,)
        if recorded_step != step or any(_step_of(self.out / name) != step for name in names):
            self._write_outputs(backbone, step, metrics, is_best)

    def _save(self, train_step: TrainStep, metrics: TrainingMetrics, step: int, raw: RawBatch) -> None:
        """Write a checkpoint, the backbone, its PCA picture and the record.

        Weights that are not finite, or give such values on `raw`, are not saved: the checkpoint before them stays the
        newest one.
        """
        if not train_step.is_finite(raw):
            raise DinomedError(
                f"the run has diverged: after step {step} its weights give values that are not finite; {self._advice()}"
            )
        backbone = train_step.ema_backbone()
        is_best = metrics.evaluate(step, backbone)
        train_step.save(self.out / CHECKPOINTS, step, metrics.state())
        on_main(lambda: self._write_outputs(backbone, step, metrics, is_best))

    def _write_outputs(self, backbone: VisionTransformer, step: int, metrics: TrainingMetrics, is_best: bool) -> None:
        (self.out / BAD_BATCH_FILE).unlink(missing_ok=True)  # of a run that was resumed
        for name in (BACKBONE, BEST) if is_best else (BACKBONE,):
            save_backbone(self.out / name, backbone, self.preprocessing, self._metadata(step))
        if len(self.resolved.held_aside):
            path = self.out / PCA / f"{step:08d}.png"
            try:
                write_pca_picture(path, backbone, self.preprocessing, self.resolved.held_aside, self.device)
                if metrics.log:
                    metrics.log.picture(step, path)
            except UnreadableImage as error:
                logger.warning(f"PCA picture of step {step} was not written: {error}")
        write_record(
            self.out,
            self.config,
            self.data_record,
            step=step,
            unreadable=sorted(self.unreadable),
            knn=metrics.knn_history.as_dict() if metrics.knn else None,
            energy=metrics.energy.report(world_size()),
            **self.model_record,
        )

    def _note_unreadable(self, raw: RawBatch) -> None:
        """Warn of each unreadable image once, and raise if there are too many."""
        new = set(raw.skipped) - self.unreadable
        for line in sorted(new):
            logger.warning(f"{line}; another image takes its place", extra=ALL_RANKS)
        self.unreadable |= new
        if len(self.unreadable) > max(_MAX_UNREADABLE * self.num_images, 3):
            raise DinomedError(
                f"{len(self.unreadable)} of {self.num_images} images are unreadable or have changed since the scan; "
                "check the disk, then scan again"
            )

    def _count_bad_steps(self, report: StepReport, raw: RawBatch, step: int) -> None:
        """Count skipped steps in a row, whose loss or gradient is not finite; raise if there are too many."""
        if report.finite:
            self.bad_steps = 0
            return
        self.bad_steps += 1
        logger.warning(
            f"step {step}: the loss or its gradient is not finite; the step is skipped ({self.bad_steps} in a row)"
        )
        if self.bad_steps <= self.config.run.max_bad_steps:
            return
        path = self.out / BAD_BATCH_FILE
        names = gather_objects(raw.names)
        on_main(lambda: write_json(path, {"step": step, "images": [name for part in names for name in part]}))
        raise DinomedError(
            f"the loss was not finite in {self.bad_steps} steps in a row, the last of them step {step} (its images: "
            f"{path}); these steps changed nothing; {self._advice()}"
        )

    def _advice(self) -> str:
        """Return which state of a diverged run is left, and what to change."""
        checkpoints = list_checkpoints(self.out / CHECKPOINTS)
        state = f"the last good state is kept ({checkpoints[-1]})" if checkpoints else "there is no checkpoint yet"
        return f"{state}. Usually the learning rate is too high: lower optimizer.lr, or use run.precision=float32"


def _step_of(backbone: Path) -> int | None:
    """Return the step at which a backbone was written; None if there is no readable one."""
    try:
        return load_backbone(backbone).metadata.get("step")
    except DinomedError:
        return None
