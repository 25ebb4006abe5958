"""A task in one file: regression of a number in a column of the manifest, such as the age of the patient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import SerializeAsAny
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig
from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.fitting.data import Splits, fit_splits
from dinomed.adapters.fitting.head_fit import FitOutcome, HeadFit
from dinomed.adapters.fitting.loop import BestEpoch
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import TASKS, Task
from dinomed.adapters.writer import PredictionWriter, Row
from dinomed.datasets.manifest import Manifest
from dinomed.features.compute import Features
from dinomed.features.loading import load_batches, stack_pixels


class NumberConfig(TrainConfig):
    """Settings of a fit; `column` holds the numbers."""

    task = "number"
    head: SerializeAsAny[HeadConfig] = HeadConfig()
    column: str = "age"
    fit: FitConfig = FitConfig(epochs=5, min_steps=0, batch_size=16)


@ADAPTERS.register("number.linear")
class LinearNumber(Adapter):
    """One linear layer on the class token."""

    task = "number"

    def __init__(self, config: Any, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        self.linear = nn.Linear(embed_dim * len(config.blocks), 1)

    def forward(self, features: Features) -> Tensor:
        return self.linear(features.cls)


def usable_rows(manifest: Manifest, column: str) -> Manifest:
    """Return the rows that have a number."""
    return manifest.take([i for i, value in enumerate(manifest.column(column)) if value is not None])


def read_numbers(manifest: Manifest, column: str) -> Tensor:
    """Return the numbers, float32 (N,)."""
    return torch.tensor([float(value) for value in manifest.column(column)])


class NumberFit(HeadFit):
    """Fit by the squared error on train; the epoch with the smallest error on val is kept."""

    description = "training the regressor"

    def select_rows(self, manifest: Manifest) -> Splits:
        return fit_splits(usable_rows(manifest, self.config.column), None, self.config.seed)

    def build(self) -> Adapter:
        train, self.val_numbers = (
            read_numbers(part, self.config.column) for part in (self.splits.train, self.splits.val)
        )
        self.targets = train.__getitem__
        return build_adapter(self.config, self.backbone, num_classes=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(outputs[:, 0], targets)

    def validate(self) -> tuple[float, dict[str, float]]:
        predicted = torch.cat([outputs[:, 0].cpu() for _, outputs in self.val_outputs(len(self.val_numbers))])
        error = (predicted - self.val_numbers).abs().mean().item()
        return -error, {"mae": error}

    def finish(self, best: BestEpoch) -> FitOutcome:
        return FitOutcome([self.config.column], best.values)


class NumberPredictor(Predictor):
    """Predicts a number for each image."""

    def results(self, pixels: Tensor, sizes: Sequence[tuple[int, ...]]) -> list[float]:
        return self.logits(pixels)[:, 0].tolist()

    def outputs(self, adapter: nn.Module, features: Features, size: tuple[int, ...]) -> Tensor:
        return adapter(features)

    def outputs_of_features(self, features: Features, sizes: Sequence[tuple[int, ...]]) -> list[float]:
        return self.adapter(features)[:, 0].tolist()

    def reference_outputs(self, pixels: Tensor) -> Tensor:
        return self.logits(pixels)


class NumberWriter(PredictionWriter):
    """Writes one column of numbers."""

    def __init__(self, predictor: NumberPredictor, names: Sequence[str]) -> None:
        super().__init__(names, list(predictor.classes))
        self.predictor = predictor

    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        numbers = self.predictor.results(pixels, sizes)
        return [[self.names[i], f"{number:.6g}"] for i, number in zip(indices, numbers, strict=True)]


@TASKS.register("number")
class NumberTask(Task):
    """Regression of a number."""

    name, title, help = "number", "regressor", "Train a regression of a number in a column of the manifest."
    output_names = ("number",)
    metric_titles: ClassVar[dict[str, str]] = {"mae": "mean absolute error", "bias": "mean difference"}
    config, predictor = NumberConfig, NumberPredictor

    @property
    def head_fit(self) -> type[NumberFit]:
        return NumberFit

    def usable_rows(self, record: AdapterRecord, manifest: Manifest) -> Manifest:
        return usable_rows(manifest, record.classes[0])

    def evaluate(self, predictor: NumberPredictor, manifest: Manifest, split: str) -> EvaluatedValues:
        numbers = read_numbers(manifest, predictor.classes[0]).numpy()
        batches = load_batches(manifest, predictor.preprocessing)
        predicted = [number for images in batches for number in predictor.results(stack_pixels(images), ())]
        differences = np.array(predicted) - numbers
        errors = np.abs(differences)

        def summary(rows: Sequence[int]) -> dict[str, Any]:
            rows = list(rows)
            return {"n": len(rows), "mae": float(errors[rows].mean()), "bias": float(differences[rows].mean())}

        return EvaluatedValues(manifest, manifest.units(), {"mae": errors}, summary, errors={"mae"})

    def build_writer(self, predictor: NumberPredictor, names: Sequence[str]) -> NumberWriter:
        return NumberWriter(predictor, names)
