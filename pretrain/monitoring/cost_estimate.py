"""Rough estimate of the parameters, memory and time of a run, counted from its architecture."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from dinomed.backbones.config import ViTConfig
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.losses.pixels import num_values
from dinomed.pretrain.model.dinov2 import build_side
from dinomed.pretrain.model.distillation import Teacher
from dinomed.pretrain.model.lora import LoraConfig

BYTES = 4
LEARNED_COPIES = 3  # of each weight that learns: gradient and two moments
SAVED_PER_TOKEN = 19  # values of a token that a block saves for the backward pass, per embedding dimension
SAVED_PER_LOGIT = 3  # values that a head saves for a logit: the logit, its softmax, the target
EFFICIENCY = 0.35  # speed of a whole step relative to that of large matrix products
SPEED_TEST_S = 0.3


@dataclass(frozen=True)
class CostEstimate:
    """Costs of a run. Memory is per process, GiB; time is for the device of this machine."""

    backbone_parameters: int
    head_parameters: int
    tokens_per_image: int
    teraflop_per_step: float
    memory_gib: float
    seconds_per_step: float
    hours: float


def estimate(
    config: PretrainConfig, device: torch.device, processes: int = 1, teacher: Teacher | None = None
) -> CostEstimate:
    """Estimate the costs of a run on `processes` devices like `device`. Reading of images is not included.

    With a `teacher` of a distillation, its weights and its forward pass are added, and the iBOT loss is on all patches.

    In runs on two CPU cores the time was within a factor of 1.5 of the estimate, and the memory of the process (which
    also holds the libraries, about 0.6 GiB) within a third; see docs/pretraining.md.
    """
    with torch.device("meta"):
        side = build_side(config.backbone, config.objective)
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in side.items()}
    run, vit = config.run, config.backbone
    if teacher is not None and config.distill.method == "features":
        sizes["projector"] = (vit.embed_dim + 1) * teacher.backbone.embed_dim
    backbone, heads = sizes.pop("backbone"), sum(sizes.values())
    tokens = _tokens(config)
    images = -(-run.batch_size // processes)
    images_in_memory = min(run.micro_batch or images, images)

    student_tokens, teacher_tokens = _visible_share(config) * tokens["global"] + tokens["local"], tokens["global"]
    kept = 1 - vit.drop_path
    rows = _head_rows(config, all_patches=teacher is not None)
    flop = images * _image_flop(config, teacher, sizes)
    if config.crops.early is not None:  # the mean over the steps of the run
        early = config.model_copy(update={"crops": config.crops.early_crops()})
        share = config.crops.early.fraction
        flop = (1 - share) * flop + share * images * _image_flop(early, teacher, sizes)

    shards = processes if run.parallel == "shard" else 1
    adapters = _adapters(side, config.tune.lora)
    learned = heads + (adapters or backbone)
    frozen = 0 if teacher is None else sum(tensor.numel() for tensor in teacher.weights.values())
    # the student and its moving average, which is the teacher unless a frozen one is there
    anchor = backbone if config.objective.gram_weight else 0
    weights = (2 * (backbone + heads) + anchor + frozen + adapters + LEARNED_COPIES * learned) * BYTES / shards
    width = 2 if run.precision != "float32" else BYTES
    depth = 2 if run.checkpoint_activations else vit.depth  # the inputs of all blocks, and the activations of one
    activations = images_in_memory * student_tokens * vit.embed_dim * SAVED_PER_TOKEN * depth * kept * width
    widths = {"dino_head": config.objective.dino_head.prototypes, "ibot_head": config.objective.ibot_head.prototypes}
    widths["pixel_head"] = num_values(config.objective.pixel_target, vit.patch_size, vit.in_channels)
    widths["predictor"] = vit.embed_dim * SAVED_PER_TOKEN * config.objective.predictor_depth // SAVED_PER_LOGIT
    widths["projector"] = vit.embed_dim if teacher is None else teacher.backbone.embed_dim
    logits = sum(images * sum(rows[name]) * widths[name] * SAVED_PER_LOGIT * BYTES for name in sizes)
    seconds = flop / (matrix_speed(device, run.precision) * EFFICIENCY)
    views = _anchor_bytes(config, images_in_memory) + _stem_bytes(config, images_in_memory)
    memory_gib = (weights + activations + logits + views) / 2**30
    num_tokens = round(student_tokens + teacher_tokens)
    return CostEstimate(backbone, heads, num_tokens, flop / 1e12, memory_gib, seconds, seconds * run.steps / 3600)


def _image_flop(config: PretrainConfig, teacher: Teacher | None, head_sizes: dict[str, int]) -> float:
    """Return the FLOP of a step for one image."""
    vit, rows = config.backbone, _head_rows(config, all_patches=teacher is not None)
    of_globals = _visible_share(config) * _forward(config, "global", vit)
    flop = 3 * (1 - vit.drop_path) * (of_globals + _forward(config, "local", vit))
    flop += _forward(config, "global", vit if teacher is None else teacher.backbone)
    if config.objective.gram_weight:
        flop += (1 - config.objective.gram_start) * _forward(config, "anchor", vit)
    for name, size in head_sizes.items():
        of_teacher = 0.0 if name in ("projector", "pixel_head", "predictor") else rows[name][1]  # not run
        flop += 2 * size * (3 * rows[name][0] + of_teacher)
    return flop


def _anchor_bytes(config: PretrainConfig, images: int) -> int:
    """Return the memory of the enlarged views of Gram anchoring, and of their tokens in a feed-forward layer."""
    vit, objective, crops = config.backbone, config.objective, config.crops
    if not objective.gram_weight or objective.gram_scale == 1:
        return 0
    side = objective.gram_scale * crops.global_size
    values = vit.in_channels * side**2 + _grid(side, config) * int(vit.embed_dim * (2 + vit.mlp_ratio))
    return 2 * images * values * BYTES


def _adapters(side: nn.ModuleDict, lora: LoraConfig | None) -> int:
    """Return the number of weights of the LoRA adapters."""
    if lora is None:
        return 0
    layers = [(name.split(".")[-1], m) for name, m in side.named_modules() if ".blocks." in name]
    return sum(
        lora.rank * (m.in_features + m.out_features)
        for name, m in layers
        if name in lora.targets and isinstance(m, nn.Linear)
    )


def _grid(size: int, config: PretrainConfig) -> int:
    """Return the tokens of a view of `size` px."""
    return (size // config.backbone.patch_size) ** 2 + 1 + config.backbone.num_registers


def _tokens(config: PretrainConfig) -> dict[str, int]:
    """Return the tokens of the global and of the local views of an image."""
    crops = config.crops
    return {"global": 2 * _grid(crops.global_size, config), "local": crops.num_local * _grid(crops.local_size, config)}


def _visible_share(config: PretrainConfig) -> float:
    """Return the share of the patches of a global view that the student's encoder gets."""
    return 1 - config.masks.ratio[0] if config.objective.predictor_depth else 1.0


def _forward(config: PretrainConfig, kind: str, vit: ViTConfig) -> float:
    """Return the FLOP of a forward pass of one image: twice the weights for each token, and the attention."""
    crops = config.crops
    count, size = {
        "global": (2, crops.global_size),
        "anchor": (2, config.objective.gram_scale * crops.global_size),
        "local": (crops.num_local, crops.local_size),
    }[kind]
    n, c = _grid(size, config), vit.embed_dim
    weights = vit.depth * (4 * c * c + 2 * c * int(c * vit.mlp_ratio))
    patch = sum(pixels * values * width for pixels, values, width in _embedding_layers(vit))
    return count * n * (2 * weights + 2 * patch + vit.depth * 4 * n * c)


def _embedding_layers(vit: ViTConfig) -> list[tuple[int, int, int]]:
    """Return, for each layer of the patch embedding, its outputs a patch, the values that one reads, and its channels.

    See `dinomed.layers.patch_embedding`.
    """
    if vit.stem == "linear":
        return [(1, vit.in_channels * vit.patch_size**2, vit.embed_dim)]
    layers, side, width = [(1, vit.embed_dim, vit.embed_dim)], 1, vit.embed_dim
    while side < vit.patch_size:
        narrow = width // 2 if 2 * side < vit.patch_size else vit.in_channels
        layers.append((side**2, 16 * narrow, width))
        side, width = 2 * side, width // 2
    return layers


def _stem_bytes(config: PretrainConfig, images: int) -> int:
    """Return the memory of what the layers of a convolutional stem save: three values for each output."""
    vit = config.backbone
    if vit.stem == "linear":
        return 0
    patches = sum(_tokens(config).values())
    return images * patches * sum(pixels * width for pixels, _, width in _embedding_layers(vit)) * 3 * BYTES


def _head_rows(config: PretrainConfig, *, all_patches: bool) -> dict[str, tuple[float, float]]:
    """Return the rows of an image in each head and in the projector, of student and teacher.

    A tied DINO head gets the patches too. The patches are the masked ones of both global views, or all of them in a
    distillation.
    """
    patches = 2 * (config.crops.global_size // config.backbone.patch_size) ** 2
    masked = patches if all_patches else patches * config.masks.probability * sum(config.masks.ratio) / 2
    tied = masked if config.objective.ibot_weight and not config.objective.untied_heads else 0
    return {
        "dino_head": (2 + config.crops.num_local + tied, 2 + tied),
        "ibot_head": (masked, masked),
        "pixel_head": (masked, masked),
        "predictor": (patches + 2, patches + 2),
        "projector": (2 + patches, 2 + patches),
    }


def matrix_speed(device: torch.device, precision: str) -> float:
    """Measure the FLOP/s of large matrix products on this device."""
    size = 1024 if device.type == "cpu" else 8192
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    a = torch.randn(size, size, device=device, dtype=dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    a @ a
    wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SPEED_TEST_S:
        a @ a
        wait()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began)
