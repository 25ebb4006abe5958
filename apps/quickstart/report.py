"""HTML report of a quickstart: results, pictures of the segmentation, training curves, commands, settings, versions."""

import json
import math
import platform
import shutil
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinomed.apps.pages.overlay import draw_mask, line_width_px, outline
from dinomed.apps.quickstart.baselines import otsu_mask
from dinomed.apps.quickstart.examples import write_examples
from dinomed.apps.quickstart.journal import Journal
from dinomed.apps.quickstart.scope import Scope
from dinomed.apps.quickstart.table import SYNTHETIC, table_of
from dinomed.datasets.manifest import Manifest
from dinomed.html import page
from dinomed.html.album import spaced_indices
from dinomed.html.plots import curve
from dinomed.images.read import read_image, read_mask
from dinomed.metrics.segmentation import Overlap, overlap, segmentation_metrics
from dinomed.pretrain.run_folder import CONFIG_FILE, LOG_FILE, PCA
from dinomed.progress import track

MAX_PICTURES = 60  # test images from which the pictures are chosen; the table is over all test images
REFERENCE_COLOUR = (255, 255, 255)
PACKAGES = ("dinomed", "torch", "torchvision", "monai", "scikit-learn", "gradio", "numpy")
READING = (
    "Both backbones are frozen and differ only in their weights. AUROC is the mean "
    "over classes, one against the rest; balanced accuracy is the mean recall of the classes."
)


@dataclass
class ReportData:
    """The data and the models of a finished quickstart, as the report needs them."""

    manifest: Manifest
    scanned: dict[str, Any]
    scope: Scope
    pretrained: dict[str, Any]
    run: Path
    segmenter: Path | None

    @cached_property
    def test(self) -> Manifest:
        """The test images that have a mask."""
        test = self.manifest.select(split="test")
        return test.take([row for row in range(len(test)) if test.mask_path(row)])

    def _reference(self, row: int, image: np.ndarray) -> np.ndarray:
        path = self.test.mask_path(row)
        assert path is not None
        return read_mask(path, size=(image.shape[0], image.shape[1]))

    def otsu_dice(self) -> float:
        """Return the mean Dice of Otsu's threshold on the test split."""
        overlaps: list[Overlap] = []
        for row in track(range(len(self.test)), "Otsu's threshold"):
            image = read_image(self.test.path(row))
            overlaps.append(overlap(self._reference(row, image), otsu_mask(image)))
        return segmentation_metrics(overlaps)["dice"]

    def write_examples(self, folder: Path, count: int) -> list[Path]:
        """Write images for the demo: of test if there are any (not seen in training), else of val, else of train."""
        splits = self.manifest.column("split")
        by_split = [[row for row, name in enumerate(splits) if name == split] for split in ("test", "val", "train")]
        with_masks = [row for row in by_split[0] if self.manifest.mask_path(row)]
        rows = next(filter(None, [with_masks, *by_split]))
        shutil.rmtree(folder, ignore_errors=True)
        return write_examples([self.manifest.path(rows[i]) for i in spaced_indices(len(rows), count)], folder, count)

    def segmented(self) -> list[tuple[float, np.ndarray]]:
        """Return (Dice, picture with outlines) of the best, median and worst test images, best first."""
        from dinomed.adapters.inference.loader import load_adapter

        assert self.segmenter is not None
        predictor: Any = load_adapter(self.segmenter)
        scored = []
        for row in track(spaced_indices(len(self.test), MAX_PICTURES), "pictures for the report"):
            image = read_image(self.test.path(row), channels=predictor.backbone.preprocessing.channels)
            mask = (predictor.probability(image) >= predictor.threshold).astype(np.uint8)
            scored.append((overlap(self._reference(row, image), mask).dice, row, mask))
        scored.sort(key=lambda case: -case[0])
        middle = len(scored) // 2
        shown = [*scored[:2], *scored[middle : middle + 2], *scored[-2:]] if len(scored) >= 6 else scored
        pictures = []
        for dice, row, mask in shown:
            image = read_image(self.test.path(row))
            drawn = draw_mask(image, mask, fill=0.12)
            drawn[outline(self._reference(row, image), max(1, line_width_px(image.shape) // 2))] = REFERENCE_COLOUR
            pictures.append((dice, drawn))
        return pictures


def write_report(data: ReportData, results: dict[str, Any], journal: Journal, device: str) -> str:
    """Return the report as one HTML document."""
    parts = [page.paragraph(f"{results['images']:,} images ({results['data']}), {_splits(data.scanned)}.")]
    parts.append(page.paragraph(results["scope"]))
    columns, rows = table_of(results)
    if len(columns) > 1:
        parts += [page.heading("Results on the test split"), page.build_table(columns, rows, best=0)]
        parts.append(page.paragraph(READING))
    if results["data"] == SYNTHETIC:
        parts.append(page.paragraph("Synthetic lesions show that everything works; they say nothing about patients."))
    if data.scope.judge_masks:
        count = min(len(data.test), MAX_PICTURES)
        parts.append(page.heading(f"Segmentation: best, median and worst of {count} test pictures"))
        parts += [
            page.figure(drawn, f"Picture {number}: Dice {dice:.2f}")  # the name of a file may identify a patient
            for number, (dice, drawn) in enumerate(data.segmented(), start=1)
        ]
        parts.append(page.paragraph("Cyan: the model's outline. White: the reference."))
    parts += _pretraining(data)
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, device {device}."
    parts += [
        page.heading("The commands"),
        page.code("\n".join(f"{name}  # {journal.seconds[name]:.0f} s" for name in journal.commands)),
        page.heading("Settings and versions"),
        page.folded("all settings of the pretraining", (data.run / CONFIG_FILE).read_text(encoding="utf-8")),
        page.build_table(["package", "version"], [(name, version(name)) for name in PACKAGES]),
        page.paragraph(system),
    ]
    return page.build_page("dinomed quickstart", parts)


def _pretraining(data: ReportData) -> list[str]:
    """Return the PCA picture and the training curves."""
    run = data.pretrained
    summary = f"{run['steps']:,} steps on {run['images']:,} images, {run['images_per_second']:.0f} images a second."
    parts = [page.heading("Pretraining"), page.paragraph(summary)]
    pictures = sorted((data.run / PCA).glob("*.png"))
    if pictures:
        with Image.open(pictures[-1]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        caption = (
            "Held-out pictures, and the first three principal components of their patch features as colours: similar "
            "colours mean similar features."
        )
        parts.append(page.figure(pixels, caption, wide=True))
    parts.append("<div>" + "".join(_curves(data.run)) + "</div>")
    return parts


def _curves(run: Path) -> list[str]:
    """Return the curves of ``log.jsonl``; log K, the loss of a uniform output, is marked for DINO and iBOT."""
    from dinomed.config import load_config
    from dinomed.pretrain.config import PretrainConfig

    lines = [json.loads(line) for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    objective = load_config(PretrainConfig, run / CONFIG_FILE).objective
    ibot_head = objective.ibot_head if objective.untied_heads else objective.dino_head
    curves: dict[str, tuple[str, dict[str, float]]] = {
        "dino": ("DINO loss (class tokens)", {"log K": math.log(objective.dino_head.prototypes)}),
        "ibot": ("iBOT loss (masked patches)", {"log K": math.log(ibot_head.prototypes)}),
        "koleo": ("KoLeo loss (spread of the features)", {}),
        "target_information": ("information in the teacher's targets, nats (0: collapse)", {}),
    }
    return [
        curve([(line["step"], line[key]) for line in lines if line.get(key) is not None], caption, marks)
        for key, (caption, marks) in curves.items()
    ]


def _splits(scanned: dict[str, Any]) -> str:
    return ", ".join(f"{part['images']:,} {name}" for name, part in scanned["splits"].items()) or "no split"
