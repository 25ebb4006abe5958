"""Where a run starts from: random weights, released ones, or those of another run.

From weights, the architecture is theirs. Heads that do not come along are new, and gradients through random heads
wreck a trained backbone (k-NN from 80 to 25% in a user's log of the reference): so at first only they learn, and the
mask token, which the released distilled models never trained; then the backbone joins in.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import VARIANTS
from dinomed.backbones.vit import VisionTransformer
from dinomed.backbones.weights import inflate_channels
from dinomed.config import build_config, merge
from dinomed.errors import DinomedError, UsageError
from dinomed.images.intensity import IntensityConfig
from dinomed.io.checkpoint import DamagedCheckpoints, newest_checkpoint, read_whole
from dinomed.layers.patch_embedding import resize_position_embedding
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig, StartConfig
from dinomed.pretrain.model.dinov2 import DINOv2
from dinomed.pretrain.model.lora import check_tune, has_lora

NEW_HEADS_WARMUP = 0.1
HIGH_RESOLUTION = 518  # px (Oquab et al. 2023, section 4)


@dataclass(frozen=True)
class Start:
    """Weights to start from: a backbone, and what else of the model came along (names as in its state dict)."""

    vit: VisionTransformer
    preprocessing: Preprocessing
    rest: dict[str, Tensor]

    @property
    def has_heads(self) -> bool:
        return any(".dino_head." in name or ".ibot_head." in name for name in self.rest)


def read_start(config: StartConfig) -> Start | None:
    """The weights that a config names; None for random ones.

    Raises:
        UsageError: there is no such backbone.
        DinomedError: a file is damaged.
    """
    if config.weights is None:
        if config.file is not None:
            raise UsageError("start.file needs start.weights, the name of its architecture")
        return None
    backbone = load_backbone(config.weights, weights=config.file)
    return Start(backbone.vit, backbone.preprocessing, _heads_of_run(Path(config.weights)))


def _heads_of_run(folder: Path) -> dict[str, Tensor]:
    try:
        found = newest_checkpoint(folder / "checkpoints") if folder.is_dir() else None
    except DamagedCheckpoints as error:
        raise DinomedError(
            f"{folder} cannot be started from: {error}; its backbone alone may be whole: {folder / 'backbone'}"
        ) from None
    if found is None:
        return {}
    return read_whole(found[0], "model.")


def fit_config(config: PretrainConfig, start: Start | None) -> PretrainConfig:
    """`config` with the architecture and the normalisation of the weights that it starts from.

    Its own are stochastic depth and the number of input channels (the first layer is inflated if need be).
    """
    feed_forward = config.backbone.feed_forward if start is None else start.vit.config.feed_forward
    check_tune(config.tune, feed_forward, has_start=start is not None, parallel=config.run.parallel)
    if start is None:
        return config
    theirs = start.vit.config.model_dump(exclude={"drop_path", "in_channels"})
    backbone = config.backbone.model_dump() | theirs
    if config.start.resize_positions:
        backbone["image_size"] = config.crops.global_size
    data = config.model_dump() | {"backbone": backbone}
    if start.preprocessing.channels == config.backbone.in_channels:
        data |= {"mean": start.preprocessing.mean, "std": start.preprocessing.std}
        if config.images == IntensityConfig():
            data["images"] = start.preprocessing.intensity
    if config.start.warmup is None:
        data["start"] = data["start"] | {"warmup": 0.0 if start.has_heads else NEW_HEADS_WARMUP}
    return build_config(PretrainConfig, data, f"weights of {config.start.weights}")


def read_plan(config: StartConfig) -> Start | None:
    """As `read_start`, but what is released is not fetched: its architecture is known, and its weights stay unmade."""
    name = config.weights
    if name is None or name not in VARIANTS or VARIANTS[name].release is None or config.file is not None:
        return read_start(config)
    with torch.device("meta"):
        vit = VisionTransformer(VARIANTS[name].config())
    return Start(vit, Preprocessing(), {})


def load_start(start: Start, model: DINOv2) -> None:
    """Put the weights into a model that `fit_config` described (into the student, and what follows it); heads that do
    not fit stay new."""
    came, new = 0, 0
    sides = {"student": model.student, "teacher": model.sides[-1]}
    for side_name, side in sides.items():
        own = side.state_dict()
        for name, tensor in _tensors_for(start, side_name, own).items():
            fits = own[name].shape == tensor.shape
            came, new = came + fits, new + (not fits)
            if fits:
                own[name].copy_(tensor)
    heads = "with its heads" if start.has_heads and not new else "with new heads"
    logger.info(f"starting from trained weights ({came} tensors), {heads}")


def _tensors_for(start: Start, side: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """What there is for one side: all of it from a run, else the backbone; also where adapters stand beside the
    student's, which the teacher has merged."""
    rest = {name.removeprefix(f"{side}."): t for name, t in start.rest.items() if name.startswith(f"{side}.")}
    found = {name: tensor for name, tensor in rest.items() if not name.startswith("backbone.") or not has_lora(rest)}
    if not any(name.startswith("backbone.") for name in found):
        found |= {f"backbone.{name}": tensor for name, tensor in start.vit.state_dict().items()}
    backbone = {name.removeprefix("backbone."): t for name, t in found.items() if name.startswith("backbone.")}
    kernel, position = own["backbone.patch_embed.proj.weight"], own["backbone.pos_embed"]
    backbone = inflate_channels(backbone, kernel.shape[1])
    backbone["pos_embed"] = _resize(start.vit, backbone["pos_embed"], position.shape[1] - 1)
    found |= {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    return {name: tensor for name, tensor in found.items() if name in own}


def _resize(vit: VisionTransformer, position: Tensor, patches: int) -> Tensor:
    side = math.isqrt(patches)
    grid = resize_position_embedding(
        position[:, 1:], (side, side), antialias=vit.config.position_antialias, offset=vit.config.position_offset
    )
    return torch.cat([position[:, :1], grid], dim=1)


def to_high_resolution(config: PretrainConfig, size: int = HIGH_RESOLUTION) -> PretrainConfig:
    """The short phase on larger images at the end of pretraining (section 4): all crops grow alike, the position
    embedding is resized once, and every schedule runs anew, over the steps of this phase.

    The paper's 10,000 steps after 125,000 (or 625,000) become 8% of the config's; the learning rate, which the paper
    only calls lower, a tenth. `size` is rounded to whole patches, px.
    """
    patch, crops, run = config.backbone.patch_size, config.crops, config.run
    large = round(size / patch) * patch
    local = max(round(crops.local_size * large / crops.global_size / patch), 1) * patch
    delta = {
        "backbone": {"image_size": large},
        "crops": {"global_size": large, "local_size": local},
        "frozen_size": large,
        "optimizer": {"lr": config.optimizer.lr / 10},
        "run": {"steps": max(run.steps * 8 // 100, 1)},
        "start": {"resize_positions": True},
    }
    return build_config(PretrainConfig, merge(config.model_dump(), delta), "--phase highres")
