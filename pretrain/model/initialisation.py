"""Initialisation of a run: random weights, released weights, or the weights of another run.

With initial weights the architecture is theirs. Heads that the weights do not contain are new, and gradients through
random heads damage a trained backbone (k-NN accuracy from 80 to 25% in the log of a user of the reference code). So at
first only the heads and the mask token learn, which the released distilled models never trained. Then the backbone
learns too.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.frozen import require_vit
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import VARIANTS
from dinomed.backbones.vit import TokenModel, VisionTransformer
from dinomed.backbones.weights import first_kernel, inflate_channels
from dinomed.errors import DinomedError, UsageError
from dinomed.io.checkpoint import DamagedCheckpoints, newest_checkpoint, read_whole
from dinomed.layers.patch_embedding import resize_position_embedding
from dinomed.log import logger
from dinomed.pretrain.model.config import InitialisationConfig, ObjectiveConfig, ProjectionHeadConfig
from dinomed.pretrain.model.dinov2 import DINOv2, build_side
from dinomed.pretrain.model.lora import has_lora
from dinomed.pretrain.run_folder import BACKBONE, CHECKPOINTS

PREDICTOR_POSITION = "predictor.position"  # it is resized like the positions of the backbone


@dataclass(frozen=True)
class Initialisation:
    """Initial weights: a backbone, and the other tensors of a run's model (names as in its state dict)."""

    vit: VisionTransformer
    preprocessing: Preprocessing
    run_weights: dict[str, Tensor]

    @property
    def head_configs(self) -> dict[str, ProjectionHeadConfig]:
        """The configs of the heads among the weights, by name (``dino_head``, ``ibot_head``), read off their shapes."""
        configs = {}
        for name in ("dino_head", "ibot_head"):
            prefix = f"teacher.{name}."
            shapes = {n.removeprefix(prefix): t.shape for n, t in self.run_weights.items() if n.startswith(prefix)}
            if "prototypes" in shapes:
                layers = [shape for n, shape in sorted(shapes.items()) if re.fullmatch(r"mlp\.\d+\.weight", n)]
                hidden = layers[0][0] if len(layers) > 1 else ProjectionHeadConfig().hidden
                prototypes, bottleneck = shapes["prototypes"]
                configs[name] = ProjectionHeadConfig(
                    prototypes=prototypes, hidden=hidden, bottleneck=bottleneck, layers=len(layers),
                    learned_norm="prototype_norms" in shapes,
                )  # fmt: skip
        return configs


def read_initialisation(config: InitialisationConfig, *, fetch: bool = True) -> Initialisation | None:
    """Read the weights that a config names; None for random weights.

    Args:
        fetch: whether released weights may be downloaded. If not, a released backbone is built on the meta device:
            its architecture is known, its weights are not allocated.

    Raises:
        UsageError: the backbone does not exist, or it records another mean and std than the config.
        DinomedError: a file is damaged.
    """
    name = config.weights
    if name is None:
        if config.file is not None:
            raise UsageError(f"start.file {config.file} needs start.weights, the name of its architecture")
        if config.mean is not None or config.std is not None:
            raise UsageError(
                "`mean` and `std` are those of the initial weights; name these with `start`, or, without initial "
                "weights, set `mean` and `std` in the config"
            )
        return None
    model, preprocessing = read_model(name, config.file, config.mean, config.std, fetch=fetch)
    return Initialisation(require_vit(model, name), preprocessing, _read_run_weights(Path(name)))


def read_model(
    name: str, file: str | None, mean: Sequence[float] | None, std: Sequence[float] | None, *, fetch: bool = True
) -> tuple[TokenModel, Preprocessing]:
    """Read a backbone of any family, with its preprocessing.

    Args:
        name: a run folder, or the folder, file or name of a backbone.
        file: a file with the weights of that name, instead of a download.
        mean: mean of each channel, for files that name none.
        std: standard deviation of each channel, likewise.
        fetch: whether released weights may be downloaded; see `read_initialisation`.
    """
    stated = mean is not None or std is not None
    if not fetch and file is None and not stated and name in VARIANTS and VARIANTS[name].release is not None:
        with torch.device("meta"):
            return VisionTransformer(VARIANTS[name].config()), Preprocessing()
    backbone = load_backbone(name, weights=file, mean=mean, std=std)
    return backbone.model, backbone.preprocessing


def _read_run_weights(folder: Path) -> dict[str, Tensor]:
    """Read the model of the newest checkpoint of a run folder; nothing from another kind of folder."""
    try:
        checkpoint = newest_checkpoint(folder / CHECKPOINTS) if folder.is_dir() else None
    except DamagedCheckpoints as error:
        raise DinomedError(
            f"run folder {folder} cannot be used for initialisation: {error}; "
            f"try its backbone alone: `start={folder / BACKBONE}`"
        ) from None
    return {} if checkpoint is None else read_run_model(checkpoint[0])


def read_run_model(checkpoint: Path) -> dict[str, Tensor]:
    """Read the model of a run's checkpoint: the student as ``student.*`` and its moving average as ``teacher.*``.

    In a distilled run the moving average is stored as ``average.*``; its ``teacher.*`` is the large frozen teacher,
    which is not part of the result.
    """
    weights = read_whole(checkpoint, "model.")
    if any(name.startswith("average.") for name in weights):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("teacher.")}
    return {re.sub(r"^average\.", "teacher.", name): tensor for name, tensor in weights.items()}


def has_new_heads(
    backbone: ViTConfig, objective: ObjectiveConfig, initialisation: Initialisation, teacher_width: int | None = None
) -> bool:
    """Return whether a part beside the backbone keeps a tensor of its random initialisation.

    The parts are the heads, the predictor of masked patches, and the projector of a distillation by features.

    Args:
        backbone: the architecture of the weights.
        objective: losses and heads, with the shapes of the heads among the weights.
        teacher_width: width of the teacher whose features are matched; None without one.
    """
    with torch.device("meta"):
        side = build_side(backbone, objective)
    needed = {name: tensor.shape for name, tensor in side.state_dict().items() if not name.startswith("backbone.")}
    needed.pop(PREDICTOR_POSITION, None)
    if teacher_width is not None:
        needed["projector.weight"] = torch.Size((teacher_width, backbone.embed_dim))
    known = {name: tensor.shape for name, tensor in initialisation.run_weights.items()}
    return any(known.get(f"student.{name}") != shape for name, shape in needed.items())


def load_initialisation(initialisation: Initialisation, model: DINOv2) -> None:
    """Copy the weights into the student and the EMA side of a model that was built from the resolved config.

    A head whose shape differs keeps its new weights.
    """
    num_loaded = num_new = 0
    for side_name, side in {"student": model.student, "teacher": model.sides[-1]}.items():
        state = side.state_dict()
        for name, tensor in _tensors_of_side(initialisation, side_name, state).items():
            fits = state[name].shape == tensor.shape
            num_loaded, num_new = num_loaded + fits, num_new + (not fits)
            if fits:
                state[name].copy_(tensor)
    heads = "with its heads" if initialisation.head_configs and not num_new else "with new heads"
    logger.info(f"initialised from trained weights ({num_loaded} tensors), {heads}")


def _tensors_of_side(initialisation: Initialisation, side: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors for one side: all of a run's model, else the backbone only.

    A student with LoRA adapters gets the backbone of the teacher, in which the adapters are merged.
    """
    prefix = f"{side}."
    of_run = {name.removeprefix(prefix): t for name, t in initialisation.run_weights.items() if name.startswith(prefix)}
    tensors = {n: tensor for n, tensor in of_run.items() if not n.startswith("backbone.") or not has_lora(of_run)}
    if not any(name.startswith("backbone.") for name in tensors):
        tensors |= {f"backbone.{name}": tensor for name, tensor in initialisation.vit.state_dict().items()}
    backbone = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    backbone = inflate_channels(backbone, state[f"backbone.{first_kernel(backbone)}"].shape[1])
    if (position := state.get("backbone.pos_embed")) is not None:
        backbone["pos_embed"] = _resize_positions(initialisation.vit, backbone["pos_embed"], position.shape[1] - 1)
    tensors |= {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    if PREDICTOR_POSITION in tensors and PREDICTOR_POSITION in state:
        grid = math.isqrt(state[PREDICTOR_POSITION].shape[1])
        tensors[PREDICTOR_POSITION] = resize_position_embedding(tensors[PREDICTOR_POSITION], (grid, grid))
    return {name: tensor for name, tensor in tensors.items() if name in state}


def _resize_positions(vit: VisionTransformer, position: Tensor, num_patches: int) -> Tensor:
    """Resize a position embedding (1, 1 + patches, C) to a square grid of `num_patches` patches."""
    side = math.isqrt(num_patches)
    grid = resize_position_embedding(
        position[:, 1:], (side, side), antialias=vit.config.position_antialias, offset=vit.config.position_offset
    )
    return torch.cat([position[:, :1], grid], dim=1)
