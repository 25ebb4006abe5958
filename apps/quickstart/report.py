"""What a quickstart shows beside its numbers: pictures of the segmentation, curves, settings, versions."""

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
from dinomed.apps.quickstart.run import SYNTHETIC, table_of
from dinomed.apps.quickstart.scope import Scope
from dinomed.datasets.manifest import Manifest
from dinomed.html import page
from dinomed.html.album import spaced_indices
from dinomed.html.plots import curve
from dinomed.images.read import read_image, read_mask
from dinomed.metrics.segmentation import Overlap, overlap, segmentation_metrics
from dinomed.progress import track

MAX_PICTURES = 60  # of the test split are looked at for the pictures; the table is over all of them
TRUTH = (255, 255, 255)
PACKAGES = ("dinomed", "torch", "torchvision", "monai", "scikit-learn", "gradio", "numpy")
READING = (
    "Both backbones are frozen and differ only in their weights. AUROC is the mean "
    "over classes, one against the rest; balanced accuracy is the mean recall of the classes."
)


@dataclass
class Findings:
    """A finished quickstart, as far as the report looks into it."""

    manifest: Manifest
    scanned: dict[str, Any]
    scope: Scope
    pretrained: dict[str, Any]
    ssl: Path
    segmenter: Path | None

    @cached_property
    def test(self) -> Manifest:
        """Test images that have a mask."""
        chosen = self.manifest.select(split="test")
        return chosen.take([i for i in range(len(chosen)) if chosen.mask_path(i)])

    def _mask(self, index: int, image: np.ndarray) -> np.ndarray:
        path = self.test.mask_path(index)
        assert path is not None
        return read_mask(path, size=(image.shape[0], image.shape[1]))

    def otsu_dice(self) -> float:
        """Mean Dice of Otsu's threshold on the test split."""
        found: list[Overlap] = []
        for index in track(range(len(self.test)), "Otsu's threshold"):
            image = read_image(self.test.path(index))
            found.append(overlap(self._mask(index, image), otsu_mask(image)))
        return segmentation_metrics(found)["dice"]

    def write_examples(self, folder: Path, count: int) -> list[Path]:
        """Pictures for the demo, from test if there are any (never seen in training), else from val, else from train.

        Numbered and encoded anew: neither the names of the files nor what is written in them goes along.
        """
        splits = self.manifest.column("split")
        of_splits = [[i for i, name in enumerate(splits) if name == split] for split in ("test", "val", "train")]
        with_masks = [i for i in of_splits[0] if self.manifest.mask_path(i)]
        rows = next(filter(None, [with_masks, *of_splits]))
        shutil.rmtree(folder, ignore_errors=True)
        return write_examples([self.manifest.path(rows[i]) for i in spaced_indices(len(rows), count)], folder, count)

    def segmented(self) -> list[tuple[float, np.ndarray]]:
        """(Dice, picture with outlines) of the best, median and worst test pictures, best first."""
        from dinomed.adapters.inference.loader import load_adapter
        from dinomed.adapters.tasks.segment.predict import SegmentPredictor

        assert self.segmenter is not None
        predictor = load_adapter(self.segmenter)
        assert isinstance(predictor, SegmentPredictor)
        judged = []
        for index in track(spaced_indices(len(self.test), MAX_PICTURES), "pictures for the report"):
            image = read_image(self.test.path(index), channels=predictor.backbone.preprocessing.channels)
            mask = (predictor.probability(image) >= predictor.threshold).astype(np.uint8)
            judged.append((overlap(self._mask(index, image), mask).dice, index, mask))
        judged.sort(key=lambda one: -one[0])
        middle = len(judged) // 2
        picked = [*judged[:2], *judged[middle : middle + 2], *judged[-2:]] if len(judged) >= 6 else judged
        out = []
        for dice, index, mask in picked:
            image = read_image(self.test.path(index))
            drawn = draw_mask(image, mask, fill=0.12)
            drawn[outline(self._mask(index, image), max(1, line_width_px(image.shape) // 2))] = TRUTH
            out.append((dice, drawn))
        return out


def write_report(findings: Findings, results: dict[str, Any], journal: Journal, device: str) -> str:
    """The report as one HTML document."""
    parts = [page.paragraph(f"{results['images']:,} images ({results['data']}), {_splits(findings.scanned)}.")]
    parts.append(page.paragraph(results["scope"]))
    columns, rows = table_of(results)
    if len(columns) > 1:
        parts += [page.heading("Results on the test split"), page.build_table(columns, rows, best=0)]
        parts.append(page.paragraph(READING))
    if results["data"] == SYNTHETIC:
        parts.append(page.paragraph("Synthetic lesions show that everything works; they say nothing about patients."))
    if findings.scope.judge_masks:
        looked_at = min(len(findings.test), MAX_PICTURES)
        parts.append(page.heading(f"Segmentation: best, median and worst of {looked_at} test pictures"))
        parts += [
            page.figure(drawn, f"Picture {number}: Dice {dice:.2f}")  # numbered: a file's name may be a patient's
            for number, (dice, drawn) in enumerate(findings.segmented(), start=1)
        ]
        parts.append(page.paragraph("Cyan: the model's outline. White: the reference."))
    parts += _pretraining(findings)
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, device {device}."
    parts += [
        page.heading("How to do it by hand"),
        page.code("\n".join(f"{name}  # {journal.seconds[name]:.0f} s" for name in journal.commands)),
        page.heading("Settings and versions"),
        page.folded("all settings of the pretraining", (findings.ssl / "config.yaml").read_text(encoding="utf-8")),
        page.build_table(["package", "version"], [(name, version(name)) for name in PACKAGES]),
        page.paragraph(system),
    ]
    return page.build_page("dinomed quickstart", parts)


def _pretraining(findings: Findings) -> list[str]:
    """The PCA picture and the curves."""
    from dinomed.pretrain.run_folder import PCA

    told = findings.pretrained
    parts = [
        page.heading("Pretraining"),
        page.paragraph(
            f"{told['steps']:,} steps on {told['images']:,} images, {told['images_per_second']:.0f} images a second."
        ),
    ]
    pictures = sorted((findings.ssl / PCA).glob("*.png"))
    if pictures:
        with Image.open(pictures[-1]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        parts.append(page.figure(pixels, "Held-aside pictures, and the first three principal components of their "
                                   "patch features as colours: like colours, like features.", wide=True))  # fmt: skip
    parts.append("<div>" + "".join(_curves(findings.ssl)) + "</div>")
    return parts


def _curves(run: Path) -> list[str]:
    """Each loss of ``log.jsonl`` over the steps; DINO's and iBOT's beside log K, where nothing has been learned."""
    from dinomed.config import load_config
    from dinomed.pretrain.config import PretrainConfig
    from dinomed.pretrain.run_folder import CONFIG_FILE, LOG_FILE

    lines = [json.loads(line) for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    objective = load_config(PretrainConfig, run / CONFIG_FILE).objective
    heads = {
        "dino": objective.dino_head,
        "ibot": objective.ibot_head if objective.untied_heads else objective.dino_head,
    }
    flat = {name: {"log K": math.log(head.prototypes)} for name, head in heads.items()}
    names = {
        "dino": ("DINO loss (class tokens)", flat["dino"]),
        "ibot": ("iBOT loss (masked patches)", flat["ibot"]),
        "koleo": ("KoLeo loss (spread of the features)", {}),
        "target_information": ("what the teacher's targets tell, in nats (0: collapse)", {}),
    }
    return [
        curve([(line["step"], line[key]) for line in lines if line.get(key) is not None], caption, marks)
        for key, (caption, marks) in names.items()
    ]


def _splits(scanned: dict[str, Any]) -> str:
    return ", ".join(f"{part['images']:,} {name}" for name, part in scanned["splits"].items()) or "no split"
