"""Pretraining from top to bottom: images in, a run folder with a backbone out."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.device import resolve_device
from dinomed.distributed import gather_objects, max_over_ranks, on_main, process_group, rank, world_size
from dinomed.errors import DinomedError, UsageError
from dinomed.files import locked, write_json
from dinomed.pretrain.collection import choose_images
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data import Collate, CropStream, RawBatch, batches
from dinomed.pretrain.engine import Engine, StepReport, mean_over_ranks
from dinomed.pretrain.monitor import Averages, RunLog, device_memory_gib, effective_drop_rate, target_statistics
from dinomed.pretrain.pictures import write_pca_picture
from dinomed.pretrain.run import CHECKPOINTS, StopSignal, clear_run, describe_device, open_run, write_record
from dinomed.pretrain.start import Start, fit_config, read_start
from dinomed.progress import bar, say, warn

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


def pretrain(
    config: PretrainConfig,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> RunResult:
    """Train a DINOv2 backbone on the training split of the manifest `data`; rows without a split are used too.

    With the same config, data, device and library versions the result is the same, bit for bit on a CPU, whether the
    run was interrupted and resumed or not.

    Raises:
        UsageError: the settings, the data or the output folder do not fit.
        DinomedError: the loss is no number for `run.max_bad_steps` steps in a row, or nothing can be written or read.
        SystemExit: 143 or 130 after SIGTERM or SIGINT; the step was finished and a checkpoint written.
    """
    run = config.run
    with process_group(resolve_device(device), run.timeout_s) as where:
        if run.batch_size % world_size():
            raise UsageError(f"a batch of {run.batch_size} images cannot be shared by {world_size()} processes evenly")
        start = read_start(config.start)
        config = fit_config(config, start)
        train, aside = choose_images(read_manifest(data), config)
        about_data = {"fingerprint": train.fingerprint, "images": len(train), "held_aside": len(aside)}
        on_main(lambda: open_run(out, config, about_data, resume=resume, overwrite=overwrite))
        with locked(out) if rank() == 0 else nullcontext(), StopSignal() as stop:
            return _Run(config, start, train, aside, about_data, out, where).train(stop, resume=resume)


class _Run:
    """One call of `pretrain`: what stays the same from step to step."""

    def __init__(
        self,
        config: PretrainConfig,
        start: Start | None,
        train: Manifest,
        aside: Manifest,
        about_data: dict[str, Any],
        out: Path,
        device: torch.device,
    ) -> None:
        self.config, self.start, self.out, self.device = config, start, out, device
        self.about_data, self.num_images = about_data, len(train)
        self.pictures = [aside.path(i) for i in range(len(aside))]
        channels = config.backbone.in_channels
        self.preprocessing = Preprocessing(
            image_size=config.image_size, mean=config.mean, std=config.std, channels=channels
        )
        paths = [str(train.path(i)) for i in range(len(train))]
        self.crops = CropStream(paths, train.column("image"), config.crops, channels, config.run.seed)
        self.unreadable: set[str] = set()
        self.bad_steps = 0

    def train(self, stop: StopSignal, *, resume: bool) -> RunResult:
        config, run, out = self.config, self.config.run, self.out
        if not resume:
            on_main(lambda: clear_run(out))
        engine = Engine(config, self.device, self.start)
        self.about_model = {
            "device": describe_device(self.device), "processes": world_size(), "parameters": engine.parameters
        }  # fmt: skip
        first = engine.load(out / CHECKPOINTS)
        if first == 0:
            untrained = engine.result()
            on_main(lambda: self._begin(untrained))
        elif rank() == 0:
            say(f"resuming {out} at step {first} of {run.steps}")
        log, averages, latest = RunLog(out, first) if rank() == 0 else None, Averages(), {}
        began = time.monotonic()
        with bar("pretrain", run.steps, start=first) if rank() == 0 else nullcontext() as progress:
            for step, raw in enumerate(self._batches(first), start=first):
                self._note_unreadable(raw)
                report = engine.step(raw, step)
                self._count_bad_steps(report, raw, step)
                if report.finite:
                    averages.add(report.losses)
                done = step + 1
                if done % run.log_every == 0 or done == run.steps:
                    latest = mean_over_ranks(averages.take(), self.device)
                    rate = (done - first) * run.batch_size / (time.monotonic() - began)
                    line = latest | self._measure(report) | {"images_per_second": rate}
                    if log:
                        log.write(done, line)
                if progress:
                    progress.advance(1, " ".join(f"{name} {value:.3f}" for name, value in latest.items()))
                exit_code = max_over_ranks(stop.exit_code or 0, self.device)
                if done % run.checkpoint_every == 0 or done == run.steps or exit_code:
                    self._save(engine, done)
                if exit_code and done < run.steps:
                    if log:
                        log.close()
                        say(f"stopped after step {done} of {run.steps}; go on with --resume")
                    raise SystemExit(exit_code)
        if log:
            log.close()
        seconds = time.monotonic() - began
        speed = (run.steps - first) * run.batch_size / max(seconds, 1e-9)
        return RunResult(out, out / "backbone", run.steps, self.num_images, seconds, speed, latest)

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

    def _save(self, engine: Engine, step: int) -> None:
        """A checkpoint, and beside it what a person or the next command can use already."""
        engine.save(self.out / CHECKPOINTS, step)
        backbone = engine.result()
        on_main(lambda: self._show(backbone, step))

    def _show(self, backbone: VisionTransformer, step: int) -> None:
        save_backbone(self.out / "backbone", backbone, self.preprocessing, {"step": step})
        if self.pictures:
            path = self.out / "pca" / f"{step:08d}.png"
            write_pca_picture(path, backbone, self.preprocessing, self.pictures, self.device)
        write_record(
            self.out, self.config, self.about_data, step=step, unreadable=sorted(self.unreadable), **self.about_model
        )

    def _measure(self, report: StepReport) -> dict[str, float]:
        """What a log line holds beside the losses; all ranks measure together."""
        run = self.config.run
        found = {f"gradient_norm/{name}": value for name, value in report.gradient_norms.items() if report.finite}
        if report.targets is not None:
            found |= target_statistics(report.targets)
        memory = device_memory_gib(self.device)
        if memory is not None:
            found["memory_gib"] = memory
        views = 2 * min(run.micro_batch or run.batch_size, run.batch_size // world_size())
        found["drop_path_effective"] = effective_drop_rate(views, self.config.backbone.drop_path)
        return found | {"lr": report.lr, "teacher_temperature": report.temperature}

    def _note_unreadable(self, raw: RawBatch) -> None:
        new = set(raw.skipped) - self.unreadable
        for line in sorted(new):
            warn(f"{line}; another image takes its place")
        self.unreadable |= new
        if len(self.unreadable) > max(_MAX_UNREADABLE * self.num_images, 3):
            raise DinomedError(
                f"{len(self.unreadable)} of {self.num_images} images cannot be read any more; "
                "check the disk, then scan again"
            )

    def _count_bad_steps(self, report: StepReport, raw: RawBatch, step: int) -> None:
        """A step whose loss or gradient is not finite is skipped; too many in a row end the run."""
        if report.finite:
            self.bad_steps = 0
            return
        self.bad_steps += 1
        if rank() == 0:
            warn(
                f"step {step}: the loss or its gradient is not finite; the step is skipped ({self.bad_steps} in a row)"
            )
        if self.bad_steps <= self.config.run.max_bad_steps:
            return
        path = self.out / "bad_batch.json"
        names = gather_objects(raw.names)
        on_main(lambda: write_json(path, {"step": step, "images": [name for part in names for name in part]}))
        raise DinomedError(
            f"{self.bad_steps} steps in a row without a finite loss, the last at step {step} (its images: {path}); "
            "the teacher is untouched. Usually the learning rate is too high: lower optimizer.lr, "
            "or use run.precision=float32"
        )
