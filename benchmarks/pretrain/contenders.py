"""The training steps that `step.py` and `gpu.py` compare, each measured in a process of its own.

``dinomed`` is our step; ``slow`` is our step without the three optimisations that `slow.py` removes; ``lightly`` is
DINOv2 of lightly-train, in an environment of its own. The objective is the same in all: centring, one head of 65,536
prototypes for both losses, KoLeo on both views, 2 x 224 + 8 x 98 px. Pixels are random: reading images is not measured,
moving them to the device is.

    python benchmarks/pretrain/contenders.py WHO SETTING

SETTING is JSON; the last line of the output is the result as JSON.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinomed.pretrain.config import PretrainConfig
    from dinomed.pretrain.data.stream import RawBatch
    from dinomed.pretrain.train_step import TrainStep

# this file runs in lightly-train's environment too: it imports dinomed and torch only where they are used
MODELS: dict[str, dict[str, int]] = {
    "vits14": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vitl14": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "tiny": {"embed_dim": 32, "depth": 2, "num_heads": 2},
}
LIGHTLY_MODELS = {"vits14": "vits14-noreg", "vitl14": "vitl14-noreg", "tiny": "_vittest14"}
TOTAL_STEPS, FIRST_STEP = 1000, 20  # after the steps in which the prototypes are frozen
Figures = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Setting of a measurement. The model ``tiny``, with small crops and a small head, is for trials."""

    model: str = "vits14"
    batch: int = 4
    device: str = "cpu"
    precision: str = "float32"
    drop_path: float = 0.3
    compile: bool = False  # applies to dinomed only, as the next field
    checkpoint_activations: bool = False
    steps: int = 3
    unmeasured: int = 2

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the sides of the global and of the local views, px."""
        return (56, 28) if self.model == "tiny" else (224, 98)

    @property
    def prototypes(self) -> int:
        return 256 if self.model == "tiny" else 65_536


def make_config(setting: Setting, **objective: Any) -> "PretrainConfig":
    """Return the pretraining config of a setting, with `objective` on top of the common objective."""
    from dinomed.pretrain.config import PretrainConfig

    head = {"prototypes": setting.prototypes} | ({"hidden": 64, "bottleneck": 32} if setting.model == "tiny" else {})
    return PretrainConfig.model_validate({
        "backbone": MODELS[setting.model] | {"patch_size": 14, "drop_path": setting.drop_path},
        "crops": {"global_size": setting.sizes[0], "local_size": setting.sizes[1]},
        "objective": {"targets": "centering", "untied_heads": False, "dino_head": head} | objective,
        "run": {
            "batch_size": setting.batch, "steps": TOTAL_STEPS, "precision": setting.precision,
            "compile": setting.compile, "checkpoint_activations": setting.checkpoint_activations,
        },
    })  # fmt: skip


def make_raw(config: "PretrainConfig", sizes: tuple[int, int]) -> "RawBatch":
    """Return a batch like that of the data workers: random pixels in views of these sides, and masks of the config."""
    import numpy as np

    from dinomed.pretrain.data.stream import Collate, Sample

    rng, side = np.random.default_rng(0), config.crops.global_size // config.backbone.patch_size

    def pixels(count: int, size: int) -> np.ndarray:
        return rng.integers(0, 256, (count, size, size, 3), np.uint8)

    large, small = sizes
    samples = [
        Sample(index, pixels(2, large), pixels(config.crops.num_local, small), str(index), [])
        for index in range(config.run.batch_size)
    ]
    return Collate(config.masks, (side, side), 0)(samples)


def call_steps(train_step: "TrainStep", setting: Setting) -> Callable[[], None]:
    """Return a function that runs one step of `train_step`."""
    raw = make_raw(train_step.config, setting.sizes)
    if train_step.device.type == "cuda":
        raw = raw.pin_memory()
    state = {"step": FIRST_STEP}

    def step() -> None:
        if not train_step.run(raw, state["step"]).finite:
            raise SystemExit("the loss is not finite: nothing was measured")
        state["step"] += 1

    return step


def dinomed_step(setting: Setting) -> Callable[[], None]:
    import torch

    from dinomed.pretrain.train_step import TrainStep

    return call_steps(TrainStep(make_config(setting), torch.device(setting.device)), setting)


def slow_step(setting: Setting) -> Callable[[], None]:
    import torch
    from slow import slow_down

    from dinomed.pretrain.train_step import TrainStep

    train_step = TrainStep(make_config(setting), torch.device(setting.device))
    slow_down(train_step.model)
    return call_steps(train_step, setting)


def lightly_step(setting: Setting) -> Callable[[], None]:
    from types import SimpleNamespace

    import torch
    from lightly_train._methods.dinov2.dinov2 import DINOv2, DINOv2AdamWViTArgs, DINOv2Args
    from lightly_train._methods.dinov2.utils import get_optimizer_with_decay
    from lightly_train._models.dinov2_vit.dinov2_vit_package import DINOv2ViTPackage
    from lightly_train._models.embedding_model import EmbeddingModel

    torch.manual_seed(0)
    device = torch.device(setting.device)
    vit = DINOv2ViTPackage.get_model(
        LIGHTLY_MODELS[setting.model], model_args={"drop_path_rate": setting.drop_path}, load_weights=False
    )
    arguments, optimizer_arguments = DINOv2Args(), DINOv2AdamWViTArgs()
    arguments.output_dim = setting.prototypes
    embedding = EmbeddingModel(DINOv2ViTPackage.get_model_wrapper(vit))
    method = DINOv2(arguments, optimizer_arguments, embedding, setting.batch, 3)
    method._trainer = SimpleNamespace(global_step=FIRST_STEP, estimated_stepping_batches=TOTAL_STEPS, max_epochs=1)
    method.to(device).train()
    for module in (method.teacher_embedding_model, method.teacher_head):
        module.eval()
    optimizer = get_optimizer_with_decay(
        optim_args=optimizer_arguments,
        trainable_modules=method.trainable_modules(),
        layerwise_decay=arguments.layerwise_decay,
        patch_embed_lr_multiplier=arguments.patch_embed_lr_multiplier,
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    views = [torch.randn(setting.batch, 3, size, size) for size in [setting.sizes[0]] * 2 + [setting.sizes[1]] * 8]
    if device.type == "cuda":
        views = [view.pin_memory() for view in views]
    half = setting.precision == "bfloat16"

    def step() -> None:
        batch = {"views": [view.to(device, non_blocking=True) for view in views]}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = method.training_step_impl(batch, 0).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, arguments.gradient_clip_val)
        optimizer.step()
        method.on_train_batch_end(None, batch, 0)

    return step


STEPS: dict[str, Callable[[Setting], Callable[[], None]]] = {
    "dinomed": dinomed_step,
    "slow": slow_step,
    "lightly": lightly_step,
}


def measure(who: str, setting: Setting) -> Figures:
    """Measure seconds and processor seconds of a step (medians), images per second, and peak memory in GiB: of the
    device on CUDA, else of this process with its libraries. Return ``{"full": True}`` if memory was not sufficient."""
    try:
        return _measure(who, setting)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return {"full": True}
        raise


def _measure(who: str, setting: Setting) -> Figures:
    import torch

    on_cuda = setting.device.startswith("cuda")

    def wait() -> None:
        if on_cuda:
            torch.cuda.synchronize(setting.device)

    step = STEPS[who](setting)
    for _ in range(setting.unmeasured):
        step()
    wait()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    walls, cpus = [], []
    for _ in range(setting.steps):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        wait()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    seconds = statistics.median(walls)
    if on_cuda:
        peak = torch.cuda.max_memory_allocated(setting.device) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(cpus),
        "images_per_second": setting.batch / seconds,
        "gib": peak,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory is full, in the allocator of torch, in cuBLAS or in the system."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "alloc_failed", "can't allocate memory")
    )


def measure_apart(who: str, setting: Setting, python: str = sys.executable) -> Figures:
    """Run `measure` in a new process of the environment of the contender."""
    command = [python, str(Path(__file__).resolve()), who, json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SystemExit(f"{who} with {python} failed: {last}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_rounds(settings: Mapping[str, Setting], pythons: Mapping[str, str], rounds: int) -> dict[str, list[Figures]]:
    """Measure every contender in every round; the order alternates."""
    results: dict[str, list[Figures]] = {who: [] for who in settings}
    for turn in range(rounds):
        for who in settings if turn % 2 == 0 else reversed(settings):
            results[who].append(measure_apart(who, settings[who], pythons.get(who, sys.executable)))
            print(f"round {turn + 1}, {who}, batch {settings[who].batch}: {results[who][-1]}", file=sys.stderr)
    return results


def compare_rounds(ours: Sequence[Figures], theirs: Sequence[Figures], key: str) -> dict[str, float]:
    """Return the ratios of ours to theirs, each within a round."""
    return spread([a[key] / b[key] for a, b in zip(ours, theirs, strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Setting(**json.loads(sys.argv[2])))))
