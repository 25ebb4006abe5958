"""Baselines without dinomed on the same manifest and splits.

    python benchmarks/heads/alternatives.py runs/derm.parquet --json

- logistic regression on 24x24 RGB pixels, regularisation chosen on val by macro AUROC;
- Otsu's threshold, with the darker side as the lesion;
- a U-Net (resnet18 encoder, random weights) trained from scratch on few images with masks; the weights of the last
  epoch.
"""

import argparse
import os
import time
from typing import Any

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from monai.losses import DiceCELoss
from torch.nn.functional import interpolate

from dinomed.adapters.evaluation.mask_baselines import otsu_mask
from dinomed.adapters.fitting.data import class_indices, labelled, masked, train_classes
from dinomed.adapters.heads.solved.logistic import fit_logistic
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.masks import shrink_mask
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.open import open_dataset
from dinomed.images.read import read_image
from dinomed.io.files import to_json
from dinomed.metrics.classification import classification_metrics
from dinomed.metrics.segmentation import Overlap, overlap, segmentation_metrics
from dinomed.progress import bar, track


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image to (size, size, 3), uint8, by area interpolation."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def build_augmentation(seed: int) -> Any:
    """Return random rotations, flips and colour changes for an image and its mask."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # without it, it looks for updates on the network
    import albumentations as A

    return A.Compose([A.D4(p=1.0), A.ColorJitter(0.2, 0.2, 0.2, 0.02, p=0.8)], seed=seed)


def pixel_regression(manifest: Manifest, size: int) -> dict[str, Any]:
    """Evaluate logistic regression on the pixels of thumbnails."""
    rows = labelled(manifest)
    parts = {name: rows.select(split=name) for name in ("train", "val", "test")}
    classes = train_classes(parts["train"], "label")
    x, y = {}, {}
    for name, part in parts.items():
        pictures = [shrink(read_image(part.path(i)), size) for i in track(range(len(part)), f"pixels of {name}")]
        x[name] = np.stack(pictures).reshape(len(part), -1).astype(np.float32) / 255
        y[name] = class_indices(part, "label", classes, name)[0]
    path = fit_logistic(x["train"], y["train"], cs=tuple(10.0**power for power in range(-6, 1)))
    val = [classification_metrics(y["val"], path.probabilities(x["val"], i), classes) for i in range(len(path.cs))]
    best = int(np.argmax([metrics["auroc"] for metrics in val]))
    test = classification_metrics(y["test"], path.probabilities(x["test"], best), classes)
    return {"C": path.cs[best], **{key: test[key] for key in ("n", "auroc", "balanced_accuracy", "accuracy")}}


def otsu(manifest: Manifest) -> dict[str, Any]:
    """Evaluate Otsu's threshold, which needs no training."""
    test = masked(manifest).select(split="test")
    rows = track(range(len(test)), "Otsu's threshold")
    return segmentation_metrics([overlap(BINARY.read(test, i)[0], otsu_mask(read_image(test.path(i)))) for i in rows])


def fit_unet(
    train: Manifest,
    size: int,
    rng: np.random.Generator,
    seed: int,
    *,
    epochs: int | None = None,
    seconds: float | None = None,
    model: torch.nn.Module | None = None,
    half: bool = False,
) -> tuple[torch.nn.Module, int]:
    """A small U-Net from scratch on images with masks, at `size` px, for so many epochs, or until the processor has
    worked so long on it (all threads; reading the images is not counted); its learning rate goes through one cycle in
    either. `model` is used instead of the U-Net, `half` computes its products in bfloat16. Returns it with its last
    weights, and the steps it took."""
    torch.manual_seed(seed)
    pictures = [shrink(read_image(train.path(i)), size) for i in range(len(train))]
    masks = [shrink_mask(BINARY.read(train, i)[0], Preprocessing(image_size=size)) for i in range(len(train))]
    augment = build_augmentation(seed)
    model = smp.Unet("resnet18", encoder_weights=None) if model is None else model
    batch = min(8, len(pictures))
    total = 1000 if epochs is None else epochs * (len(pictures) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=total)
    loss = DiceCELoss(sigmoid=True)
    steps, began = 0, time.process_time()
    with bar("U-Net from scratch", total) as progress:
        while schedule.last_epoch < total:
            order = rng.permutation(len(pictures))
            for rows in order[: len(order) // batch * batch].reshape(-1, batch):
                pairs = [augment(image=pictures[i], mask=masks[i]) for i in rows]
                x = torch.from_numpy(np.stack([pair["image"] for pair in pairs])).permute(0, 3, 1, 2).float() / 255
                y = torch.from_numpy(np.stack([pair["mask"] for pair in pairs]))[:, None].float()
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                loss(logits.float(), y).backward()
                optimizer.step()
                steps += 1
                done = steps if seconds is None else round(total * (time.process_time() - began) / seconds)
                for _ in range(min(done, total) - schedule.last_epoch):
                    schedule.step()
                    progress.advance()
                if schedule.last_epoch >= total:
                    break
    return model.eval(), steps


@torch.no_grad()
def unet_probability(model: torch.nn.Module, image: np.ndarray, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Predict the probability of an image that is resized to `size`, float32 (H, W) of the given shape."""
    x = torch.from_numpy(shrink(image, size)).permute(2, 0, 1)[None].float() / 255
    return interpolate(model(x).float(), (shape[0], shape[1]), mode="bilinear")[0, 0].sigmoid().cpu().numpy()


def compare_unet(model: torch.nn.Module, manifest: Manifest, size: int, threshold: float = 0.5) -> list[Overlap]:
    """Evaluate a U-Net on each image of `manifest` at its own size."""
    overlaps = []
    for i in track(range(len(manifest)), "U-Net on test"):
        target = BINARY.read(manifest, i)[0]
        guess = unet_probability(model, read_image(manifest.path(i)), size, target.shape) >= threshold
        overlaps.append(overlap(target, guess))
    return overlaps


def unet(manifest: Manifest, images: int, epochs: int, size: int, seed: int) -> dict[str, Any]:
    """Train and evaluate a small U-Net from scratch on `images` random training images."""
    rng = np.random.default_rng(seed)
    train, test = (masked(manifest).select(split=name) for name in ("train", "test"))
    train = train.take(rng.permutation(len(train))[:images].tolist())
    began = time.monotonic()
    model, steps = fit_unet(train, size, rng, seed, epochs=epochs)
    seconds = time.monotonic() - began
    overlaps = compare_unet(model, test, size)
    return {"images": len(train), "steps": steps, "seconds": round(seconds), **segmentation_metrics(overlaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="manifest with labels, masks and splits, as `dinomed scan` writes it")
    parser.add_argument("--pixels", type=int, default=24, help="side of the thumbnails, px")
    parser.add_argument("--unet-images", type=int, default=200)
    parser.add_argument("--unet-epochs", type=int, default=40)
    parser.add_argument("--unet-size", type=int, default=160, help="side of the input of the U-Net, px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print all values as JSON")
    options = parser.parse_args()
    manifest = open_dataset(options.manifest)
    report = {
        "pixels": pixel_regression(manifest, options.pixels),
        "otsu": otsu(manifest),
        "unet": unet(manifest, options.unet_images, options.unet_epochs, options.unet_size, options.seed),
    }
    if options.json:
        print(to_json(report, indent=2))
        return
    for name, metrics in report.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in metrics.items()))


if __name__ == "__main__":
    main()
