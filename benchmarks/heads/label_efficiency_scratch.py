"""Networks from scratch and scores for `label_efficiency.py`: a U-Net for masks and a ResNet-18 for classes."""

import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from alternatives import build_augmentation, fit_unet, shrink, unet_probability
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dinomed.adapters.fitting.optimizers import computes_bfloat16
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.masks import dice_of_targets
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.images.read import read_image
from dinomed.io.tensor_file import read_tensors

BATCH = 8


def fit_unet_peer(
    images: Manifest, size: int, seed: int, *, seconds: float | None, steps: int, encoder: Path | None
) -> tuple[nn.Module, int]:
    """Train the U-Net of `alternatives.py` on all images: for so many processor seconds, or steps of 8 images.

    Its products are in bfloat16 where `hybrid_unet` trains in it by default.
    """
    batches = max(len(images) // min(BATCH, len(images)), 1)
    length: dict[str, Any] = {"epochs": ceil(steps / batches)} if seconds is None else {"seconds": seconds}
    torch.manual_seed(seed)
    model = smp.Unet("resnet18", encoder_weights=None)
    if encoder is not None:
        model.encoder.load_state_dict(read_encoder(encoder))
    half = computes_bfloat16(torch.device("cpu"))
    return fit_unet(images, size, np.random.default_rng(seed), seed, model=model, half=half, **length)


def read_encoder(path: Path) -> dict[str, Tensor]:
    """Read the weights of a resnet18, without its last layer; nothing is unpickled but tensors."""
    state = read_tensors(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    if "layer4.1.conv2.weight" not in state:
        raise UsageError(f"--encoder {path}: holds no resnet18 of torchvision; give its .pth or .safetensors file")
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def score_unet(model: nn.Module, manifest: Manifest, size: int) -> dict[str, Any]:
    """Return the Dice of each image at its own size, at the threshold 0.5, and the groups."""
    values = []
    for row in range(len(manifest)):
        image = read_image(manifest.path(row))
        values.append(dice_of(manifest, row, unet_probability(model, image, size, image.shape) >= 0.5))
    return {"values": values, "groups": manifest.units()}


def dice_of(manifest: Manifest, row: int, predicted: np.ndarray) -> float:
    """Return the Dice of a mask (H, W); 1 if both masks are empty."""
    return round(dice_of_targets((predicted > 0)[None], BINARY.read(manifest, row) > 0, BINARY), 4)


def fit_resnet(
    images: Manifest, size: int, seed: int, *, seconds: float | None, steps: int, encoder: Path | None
) -> tuple[nn.Module, int]:
    """Train a ResNet-18 on all images, each class with the same weight: for so many seconds, or steps of 8 images."""
    from torchvision.models import resnet18

    torch.manual_seed(seed)
    names = sorted(set(images.column("label")))
    labels = torch.tensor([names.index(label) for label in images.column("label")])
    pictures = [shrink(read_image(images.path(i)), size) for i in range(len(images))]
    model = resnet18(num_classes=len(names))
    if encoder is not None:
        model.load_state_dict(read_encoder(encoder), strict=False)
    model.names = names
    weight = len(labels) / (len(names) * torch.bincount(labels, minlength=len(names)).clamp_min(1).float())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    augment, rng, begin, done = build_augmentation(seed), np.random.default_rng(seed), time.process_time(), 0
    model.train()
    while True:
        progress = done / steps if seconds is None else (time.process_time() - begin) / seconds
        if progress >= 1:
            return model.eval(), done
        rows = rng.choice(len(pictures), min(BATCH, len(pictures)), replace=False)
        pixels = np.stack([augment(image=pictures[i])["image"] for i in rows])
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + np.cos(np.pi * progress)) / 2
        optimizer.zero_grad()
        cross_entropy(model(to_input(pixels)), labels[torch.from_numpy(rows)], weight).backward()
        optimizer.step()
        done += 1


def to_input(pixels: np.ndarray) -> Tensor:
    """Return images (B, side, side, 3), uint8, as float32 (B, 3, side, side) in 0 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def score_resnet(model: Any, manifest: Manifest, size: int) -> dict[str, Any]:
    """Return the probabilities of the test images, their classes and groups."""
    rows = [model(to_input(shrink(read_image(manifest.path(i)), size)[None])).softmax(1) for i in range(len(manifest))]
    names = [*model.names, *sorted(set(manifest.column("label")) - set(model.names))]
    targets = np.array([names.index(label) for label in manifest.column("label")])
    return scores_of_classes(targets, torch.cat(rows).numpy(), names, manifest.units())


def scores_of_classes(
    targets: np.ndarray, probabilities: np.ndarray, names: Sequence[str], groups: Sequence[str]
) -> dict[str, Any]:
    """Return class, probabilities and group of each image as JSON; classes that training lacks have probability 0."""
    wide = np.zeros((len(targets), len(names)))
    wide[:, : probabilities.shape[1]] = np.nan_to_num(probabilities)
    return {"targets": targets.tolist(), "scores": wide.round(5).tolist(), "groups": list(groups)}
