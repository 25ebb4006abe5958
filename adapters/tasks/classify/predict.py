"""Predicting classes: calibrated probabilities of images, and of groups of them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.inference.predictor import Predictor
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.tasks.classify.answer import answer_from
from dinomed.adapters.tasks.classify.groups import Groups
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features, compute_features


class ClassifyPredictor(Predictor):
    """Probabilities of classes, or of labels that do not exclude each other (`answer.multilabel`), after the
    temperature that validation gave."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        super().__init__(record, adapter, backbone)
        self.answer = answer_from(record)

    def probabilities(self, image: np.ndarray) -> dict[str, float]:
        """uint8 (H, W, channels) -> the probability of each class; they sum to 1, unless labels do not exclude each
        other. An adapter for groups takes the image for a group of one."""
        values = self.probability_rows(self.backbone.preprocessing(image)[None])[0]
        return dict(zip(self.classes, values.tolist(), strict=True))

    def probability_rows(self, pixels: Tensor) -> np.ndarray:
        """Float32 (B, classes) of a preprocessed batch, each image by itself."""
        return self.answer.probabilities(self.logits(pixels)).cpu().numpy()

    def predicted(self, values: np.ndarray) -> str:
        """The most probable class of a row of probabilities; of labels that do not exclude each other all that reach
        their thresholds (0.5 where val gave none), with the separator between them."""
        if not self.answer.multilabel:
            return str(self.classes[int(values.argmax())])
        cuts = [0.5 if cut is None else cut for cut in self.answer.thresholds] or [0.5] * len(self.classes)
        found = [name for name, value, cut in zip(self.classes, values, cuts, strict=True) if value >= cut]
        return (self.answer.separator or "|").join(found)

    def group_rows(self, batches: Iterable[Tensor], groups: Groups) -> np.ndarray:
        """Float32 (groups, classes) of the preprocessed images of ``groups.manifest``, in its order.

        An adapter for groups pools their features; one for images has its probabilities averaged.
        """
        if self.answer.unit == "image":
            return groups.average(np.concatenate([self.probability_rows(pixels) for pixels in batches]))
        found = [self._features(pixels) for pixels in batches]
        blocks, device = len(self.adapter.feature_spec.blocks), self.backbone.device
        cls, mean = (
            torch.from_numpy(groups.pool(torch.cat(parts).cpu().numpy(), self.answer.pool, blocks)).to(device)
            for parts in ([one.cls for one in found], [one.mean for one in found])
        )
        with torch.inference_mode():
            return self.answer.probabilities(self.adapter(Features(cls, mean))).cpu().numpy()

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(B, classes), before the temperature; see `Adapter`."""
        features = self._features(pixels)
        return self.adapter(self.answer.alone(features, len(self.adapter.feature_spec.blocks))).float()

    @torch.inference_mode()
    def _features(self, pixels: Tensor) -> Features:
        needs = self.adapter.feature_spec
        return compute_features(self.backbone, pixels, needs.blocks, needs.patches)
