"""What a run will cost, before it starts: parameters, memory, time. Counted from the architecture; rough."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model.dinov2 import build_side
from dinomed.pretrain.model.lora import LoraConfig

BYTES = 4
LEARNED_COPIES = 3  # of each weight that learns: gradient, two moments
SAVED_PER_TOKEN = 19  # floats a block keeps of a token for the backward, in units of the embedding's width
SAVED_PER_SCORE = 3  # floats a head keeps of a score: itself, its softmax, the target
EFFICIENCY = 0.35  # of the speed of large matrix products: what a step reaches with its small ones and all else


@dataclass(frozen=True)
class Estimate:
    """Memory is per process, GiB; time is of this machine's device."""

    backbone_parameters: int
    head_parameters: int
    tokens_per_image: int
    teraflop_per_step: float
    memory_gib: float
    seconds_per_step: float
    hours: float


def estimate(config: PretrainConfig, device: torch.device, processes: int = 1) -> Estimate:
    """Costs of a run on `processes` devices like this one. Reading images is not counted.

    Compared with runs on two CPU cores the time was within a factor of 1.5 and the memory of the process (which also
    holds the libraries, about 0.6 GiB) within a third; see docs/pretraining.md.
    """
    with torch.device("meta"):
        side = build_side(config.backbone, config.objective)
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in side.items()}
    backbone, heads = sizes.pop("backbone"), sum(sizes.values())
    run, vit = config.run, config.backbone
    tokens = _tokens(config)
    own = -(-run.batch_size // processes)
    held = min(run.micro_batch or own, own)

    student, teacher = tokens["global"] + tokens["local"], tokens["global"]
    kept = 1 - vit.drop_path
    flop = own * (3 * kept * (_forward(config, "global") + _forward(config, "local")) + _forward(config, "global"))
    rows = _head_rows(config)
    flop += own * sum(2 * size * (3 * rows[name][0] + rows[name][1]) for name, size in sizes.items())

    shards = processes if run.parallel == "shard" else 1
    adapters = _adapters(side, config.tune.lora)
    learned = heads + (adapters or backbone)
    fixed = (2 * (backbone + heads) + adapters + LEARNED_COPIES * learned) * BYTES / shards  # student and teacher
    width = 2 if run.precision != "float32" else BYTES
    depth = 2 if run.checkpoint_activations else vit.depth  # the inputs of all blocks, and one block's own
    saved = held * student * vit.embed_dim * SAVED_PER_TOKEN * depth * kept * width
    scores = sum(
        own * (rows[name][0] + rows[name][1]) * getattr(config.objective, name).prototypes * SAVED_PER_SCORE * BYTES
        for name in sizes
    )
    seconds = flop / (matrix_speed(device, run.precision) * EFFICIENCY)
    return Estimate(
        backbone, heads, student + teacher, flop / 1e12, (fixed + saved + scores) / 2**30, seconds,
        seconds * run.steps / 3600,
    )  # fmt: skip


def _adapters(side: nn.ModuleDict, lora: LoraConfig | None) -> int:
    """Weights of the low-rank adapters; 0 where there are none."""
    if lora is None:
        return 0
    layers = [(name.split(".")[-1], m) for name, m in side.named_modules() if ".blocks." in name]
    return sum(
        lora.rank * (m.in_features + m.out_features)
        for name, m in layers
        if name in lora.targets and isinstance(m, nn.Linear)
    )


def _grid(size: int, config: PretrainConfig) -> int:
    return (size // config.backbone.patch_size) ** 2 + 1 + config.backbone.num_registers


def _tokens(config: PretrainConfig) -> dict[str, int]:
    """Tokens of an image's views."""
    crops = config.crops
    return {"global": 2 * _grid(crops.global_size, config), "local": crops.num_local * _grid(crops.local_size, config)}


def _forward(config: PretrainConfig, kind: str) -> float:
    """FLOP of a forward of one image's views of a kind: twice the weights a token meets, and the attention."""
    vit, crops = config.backbone, config.crops
    count, size = (2, crops.global_size) if kind == "global" else (crops.num_local, crops.local_size)
    n, c = _grid(size, config), vit.embed_dim
    weights = vit.depth * (4 * c * c + 2 * c * int(c * vit.mlp_ratio))
    patch = vit.in_channels * vit.patch_size**2 * c
    return count * n * (2 * weights + 2 * patch + vit.depth * 4 * n * c)


def _head_rows(config: PretrainConfig) -> dict[str, tuple[float, float]]:
    """Rows that each head sees of an image: of the student, of the teacher. Tied, DINO's sees those of both."""
    patches = (config.crops.global_size // config.backbone.patch_size) ** 2
    masked = 2 * patches * config.masks.probability * sum(config.masks.ratio) / 2
    tied = masked if config.objective.ibot_weight and not config.objective.untied_heads else 0
    return {"dino_head": (2 + config.crops.num_local + tied, 2 + tied), "ibot_head": (masked, masked)}


def matrix_speed(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """FLOP/s of large matrix products here."""
    size = 1024 if device.type == "cpu" else 8192
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    a = torch.randn(size, size, device=device, dtype=dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    a @ a
    wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        a @ a
        wait()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began)
