"""Pretraining from top to bottom: images in, a run folder with a backbone out. One process, one device."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.checkpoint import prune_checkpoints
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.device import resolve_device
from dinomed.errors import DinomedError, UsageError
from dinomed.files import locked, write_json
from dinomed.pretrain.accumulate import forward_backward
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data import Collate, CropStream, RawBatch, batches
from dinomed.pretrain.method import Batch, DINOv2
from dinomed.pretrain.monitor import Averages, RunLog, device_memory_gib, effective_drop_rate, target_statistics
from dinomed.pretrain.optimizer import OptimizerDriver
from dinomed.pretrain.pictures import write_pca_picture
from dinomed.pretrain.run import CHECKPOINTS, StopSignal, clear_run, describe_device, open_run, write_record
from dinomed.pretrain.state import load_state, save_state
from dinomed.progress import bar, say, warn

_MAX_UNREADABLE = 0.05  # share of the images; above it something is wrong with the disk, not with a file
_PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    run, where = config.run, resolve_device(device)
    train, aside = _choose_images(read_manifest(data), config)
    about_data = {"fingerprint": train.fingerprint, "images": len(train), "held_aside": len(aside)}
    open_run(out, config, about_data, resume=resume, overwrite=overwrite)
    with locked(out), StopSignal() as stop:
        if not resume:
            clear_run(out)
        torch.manual_seed(run.seed)
        model = DINOv2(config.backbone, config.objective).to(where).train()
        optimizer = OptimizerDriver(model.student, config.optimizer, run.batch_size, run.steps)
        scaler = torch.amp.GradScaler(where.type, enabled=run.precision == "float16")
        preprocessing = Preprocessing(
            image_size=config.image_size, mean=config.mean, std=config.std, channels=config.backbone.in_channels
        )
        first = load_state(out / CHECKPOINTS, model, optimizer, scaler, where)
        record: dict[str, Any] = {"device": describe_device(where), "parameters": _count(model)}
        if first == 0:
            write_record(out, config, about_data, step=0, **record)
            save_backbone(out / "untrained", model.result, preprocessing, {"step": 0})
        else:
            say(f"resuming {out} at step {first} of {run.steps}")

        crops = CropStream(
            [str(train.path(i)) for i in range(len(train))],
            train.column("image"),
            config.crops,
            config.backbone.in_channels,
            run.seed,
        )
        side = config.crops.global_size // config.backbone.patch_size
        stream = batches(
            crops,
            Collate(config.masks, (side, side), run.seed),
            batch_size=run.batch_size,
            first_step=first,
            last_step=run.steps,
            workers=run.workers,
            pin=where.type == "cuda",
        )
        mean, std = (torch.tensor(v, device=where).view(-1, 1, 1) * 255 for v in (config.mean, config.std))
        log, averages = RunLog(out, first), Averages()
        unreadable: set[str] = set()
        bad_steps, began, latest = 0, time.monotonic(), {}
        precision = _PRECISION[run.precision]
        autocast = partial(torch.autocast, where.type, precision, enabled=run.precision != "float32")

        def backward(loss: torch.Tensor) -> None:
            scaler.scale(loss).backward()

        def finish(step: int) -> None:
            """A checkpoint, and beside it what a person or the next command can use already."""
            save_state(out / CHECKPOINTS, step, model, optimizer, scaler, where)
            prune_checkpoints(out / CHECKPOINTS, run.keep_checkpoints)
            save_backbone(out / "backbone", model.result, preprocessing, {"step": step})
            if len(aside):
                pictures = [aside.path(i) for i in range(len(aside))]
                path = out / "pca" / f"{step:08d}.png"
                write_pca_picture(path, model.result, preprocessing, pictures, where)
            write_record(out, config, about_data, step=step, unreadable=sorted(unreadable), **record)

        with bar("pretrain", run.steps, start=first) as progress:
            for step, raw in enumerate(stream, start=first):
                unreadable |= _report_unreadable(raw, unreadable, len(train))
                lr = optimizer.set_schedules(step)
                temperature = config.teacher.temperature_at(step, run.steps)
                slices = [partial(_to_device, part, where, mean, std) for part in raw.split(run.micro_batch)]
                optimizer.adamw.zero_grad(set_to_none=True)
                losses = forward_backward(model, slices, temperature, autocast, backward)
                scaler.unscale_(optimizer.adamw)
                norms = optimizer.clip_gradients()
                # in float16 the scaler skips a step whose gradient overflowed, and lowers its scale
                finite = bool(torch.isfinite(losses.total)) and (
                    scaler.is_enabled() or all(np.isfinite(list(norms.values())))
                )
                if finite:
                    scaler.step(optimizer.adamw)
                    model.update_teacher(config.teacher.momentum_at(step, run.steps))
                    bad_steps = 0
                    averages.add({"loss": losses.total, **losses.terms})
                else:
                    bad_steps += 1
                    _stop_if_diverged(out, raw, step, bad_steps, run.max_bad_steps)
                scaler.update()

                done = step + 1
                if done % run.log_every == 0 or done == run.steps:
                    latest = averages.take()
                    rate = (done - first) * run.batch_size / (time.monotonic() - began)
                    extra = {f"gradient_norm/{name}": value for name, value in norms.items()} if finite else {}
                    if losses.targets is not None:
                        extra |= target_statistics(losses.targets)
                    memory = device_memory_gib(where)
                    if memory is not None:
                        extra["memory_gib"] = memory
                    extra["drop_path_effective"] = effective_drop_rate(
                        2 * (run.micro_batch or run.batch_size), config.backbone.drop_path
                    )
                    extra |= {"lr": lr, "teacher_temperature": temperature, "images_per_second": rate}
                    log.write(done, {**latest, **extra})
                text = " ".join(f"{name} {value:.3f}" for name, value in latest.items())
                progress.advance(1, text)
                if done % run.checkpoint_every == 0 or done == run.steps or stop.exit_code is not None:
                    finish(done)
                if stop.exit_code is not None and done < run.steps:
                    log.close()
                    say(f"stopped after step {done} of {run.steps}; go on with --resume")
                    raise SystemExit(stop.exit_code)
        log.close()
        seconds = time.monotonic() - began
        speed = (run.steps - first) * run.batch_size / max(seconds, 1e-9)
        return RunResult(out, out / "backbone", run.steps, len(train), seconds, speed, latest)


def _choose_images(manifest: Manifest, config: PretrainConfig) -> tuple[Manifest, Manifest]:
    """(images to train on, held-aside images for the PCA pictures). Validation and test images are never trained on,
    nor are images without a split whose patient or lesion is among them; the pictures are of validation images, or,
    without a split, of a few that are then not trained on."""
    count = config.run.pca_images
    if manifest.has("split"):
        splits = manifest.column("split")
        groups = manifest.column("group") if manifest.has("group") else [None] * len(manifest)
        kept_back = {g for g, split in zip(groups, splits, strict=True) if split in ("val", "test")} - {None}
        usable = [i for i, split in enumerate(splits) if split in (None, "", "train")]
        train = manifest.take([i for i in usable if groups[i] not in kept_back])
        aside = manifest.take([i for i, split in enumerate(splits) if split == "val"])
        if len(train) < len(usable):
            warn(f"left out: {len(usable) - len(train)} images whose group has others in val or test")
    else:
        # by content, so that adding images to a collection changes few of them
        order = sorted(range(len(manifest)), key=manifest.column("sha256").__getitem__)
        count = min(count, len(manifest) // 10)
        aside, train = manifest.take(sorted(order[:count])), manifest.take(sorted(order[count:]))
    if len(train) < config.run.batch_size:
        raise UsageError(
            f"{len(train)} training images are fewer than a batch of {config.run.batch_size}; "
            f"add images, or --set run.batch_size={max(len(train), 1)}"
        )
    chosen = np.linspace(0, len(aside) - 1, min(count, len(aside))).round().astype(int).tolist() if len(aside) else []
    return train, aside.take(chosen)


def _to_device(raw: RawBatch, device: torch.device, mean: torch.Tensor, std: torch.Tensor) -> Batch:
    """uint8 (n, s, s, channels) -> float32 (n, channels, s, s), normalised, on the device."""

    def images(x: torch.Tensor) -> torch.Tensor:
        return x.to(device, non_blocking=True).permute(0, 3, 1, 2).float().sub_(mean).div_(std)

    def move(x: torch.Tensor) -> torch.Tensor:
        return x.to(device, non_blocking=True)

    return Batch(images(raw.globals), images(raw.locals), move(raw.masks), move(raw.masked), move(raw.mask_weights))


def _report_unreadable(raw: RawBatch, known: set[str], num_images: int) -> set[str]:
    new = set(raw.skipped) - known
    for line in sorted(new):
        warn(f"{line}; another image takes its place")
    if len(known | new) > max(_MAX_UNREADABLE * num_images, 3):
        raise DinomedError(
            f"{len(known | new)} of {num_images} images cannot be read any more; check the disk, scan again"
        )
    return new


def _stop_if_diverged(out: Path, raw: RawBatch, step: int, bad_steps: int, allowed: int) -> None:
    """A step whose loss or gradient is not finite is skipped; too many in a row end the run."""
    warn(f"step {step}: the loss or its gradient is not finite; the step is skipped ({bad_steps} in a row)")
    if bad_steps > allowed:
        path = out / "bad_batch.json"
        write_json(path, {"step": step, "images": raw.names})
        raise DinomedError(
            f"{bad_steps} steps in a row without a finite loss, the last at step {step} (its images: {path}); "
            "the teacher is untouched. Usually the learning rate is too high: lower optimizer.lr, "
            "or use run.precision=float32"
        )


def _count(model: DINOv2) -> dict[str, int]:
    return {name: sum(p.numel() for p in module.parameters()) for name, module in model.student.items()}
