"""Prediction of classes: calibrated probabilities of images, and of groups of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.inference.ensemble.head import EnsembleHead
from dinomed.adapters.inference.native_size import NativeSizePredictor, resize_to_input
from dinomed.adapters.predictor import Size
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.tasks.classify.answer import DECIMALS, answer_from, join_sizes, mean_logits
from dinomed.adapters.tasks.classify.groups import Groups, pool_members
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.errors import DinomedError
from dinomed.features.compute import Features, compute_features
from dinomed.features.finite import check_finite, naming


@dataclass(frozen=True)
class ClassPrediction:
    """The prediction for an image.

    Attributes:
        label: the most probable class; of labels that may occur together those above their thresholds, with the
            separator between them.
        probabilities: name of each class to its probability, 0 to 1.
        prediction_set: the classes that are plausible at the coverage of the adapter
            (`dinomed.metrics.uncertainty.conformal`); None for labels that may occur together, and for an adapter for
            groups, whose limit holds for groups.
    """

    label: str
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ClassRows:
    """The predictions for N images.

    Attributes:
        probabilities: float32 (N, classes).
        confidence: float64 (N,), how sure they are; thresholds of abstention are compared with it.
        sets: bool (N, classes), the classes of each prediction set; None without sets.
    """

    probabilities: np.ndarray
    confidence: np.ndarray
    sets: np.ndarray | None


class ClassProbabilities(dict[str, float]):
    """Name of each class to its probability, 0 to 1, with the confidence and the set of the prediction.

    Args:
        values: names and probabilities.
        confidence: how sure the prediction is, 0 to 1.
        prediction_set: as of `ClassPrediction`.
    """

    def __init__(
        self, values: Iterable[tuple[str, float]], confidence: float, prediction_set: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(values)
        self.confidence, self.prediction_set = confidence, prediction_set


class ClassifyPredictor(NativeSizePredictor):
    """Predicts calibrated probabilities of classes, or of labels that may occur together (`answer.multilabel`)."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        answer = answer_from(record)
        super().__init__(record, adapter, backbone, native=answer.scales != (1.0,))
        self.answer, self.unit, self.abstention = answer, answer.unit, answer.abstention

    @property
    def export_refusal(self) -> str:
        return "it reads the image at several sizes (scales)" if self.native else ""

    def _features(self, pixels: Tensor) -> Features:
        if not self.native:
            return super()._features(pixels)
        blocks, scales = self.feature_spec.blocks, self.answer.scales
        parts = []
        for scale in scales:
            images = torch.cat([resize_to_input(self.backbone, image, scale) for image in pixels])
            patches = self.feature_spec.patches and scale == 1.0  # of a member of an ensemble that reads one size
            parts.append(compute_features(self.backbone, images, blocks, patches))
        whole = next((part.patches for part in parts if part.patches is not None), None)
        return replace(join_sizes(parts, len(blocks)), patches=whole)

    def probabilities(self, image: np.ndarray) -> dict[str, float]:
        """Return the probability of each class for an image, uint8 (H, W, channels).

        They sum to 1, unless labels may occur together. An adapter for groups treats the image as a group of one.
        """
        values = self.probability_rows(self.preprocessing(image)[None])[0]
        return dict(zip(self.classes, values.tolist(), strict=True))

    def probability_rows(self, pixels: Tensor) -> np.ndarray:
        """Return the probabilities of a preprocessed batch, float32 (B, classes), each image by itself."""
        return self.answer.probabilities(self.logits(pixels)).cpu().numpy()

    @property
    def has_sets(self) -> bool:
        """Whether single images have prediction sets. Those of an adapter for groups are of groups."""
        return self.unit == "image" and self.answer.sets is not None

    @property
    def has_group_sets(self) -> bool:
        """Whether groups have prediction sets: those of an adapter for groups, on which the limit was chosen."""
        return self.unit == "group" and self.answer.sets is not None

    def group_set(self, values: np.ndarray) -> tuple[str, ...]:
        """Return the prediction set of a group, from its probabilities (classes,), if `has_group_sets`."""
        sets = self.answer.prediction_sets(values[None])
        assert sets is not None, "has_group_sets"
        return self.names_of_set(sets[0])

    def rows(self, pixels: Tensor) -> ClassRows:
        """Return the predictions for a preprocessed batch, each image by itself."""
        with torch.inference_mode():
            return self.rows_of_features(self._features(pixels))

    def rows_of_features(self, features: Features) -> ClassRows:
        """Return the predictions for the features of a batch, each image by itself."""
        logits = self.logits_of_features(self.answer.alone(features, len(self.feature_spec.blocks)))
        values = self.answer.probabilities(logits).cpu().numpy()
        sets = self.answer.prediction_sets(values) if self.has_sets else None
        return ClassRows(values, self.answer.confidence(values), sets)

    def predicted(self, values: np.ndarray) -> str:
        """Return the most probable class of a row of probabilities.

        Of labels that may occur together return those that are present (`Answer.decide`), with the separator
        between them.
        """
        if not self.answer.multilabel:
            return str(self.classes[int(values.argmax())])
        present = zip(self.classes, self.answer.decide(values), strict=True)
        return self.separator.join(name for name, decision in present if decision)

    @property
    def separator(self) -> str:
        """The text between labels that occur together."""
        return self.answer.separator or "|"

    def names_of_set(self, held: np.ndarray) -> tuple[str, ...]:
        """Return the classes of a prediction set, bool (classes,)."""
        return tuple(str(self.classes[int(place)]) for place in np.flatnonzero(held))

    def describe(self, values: np.ndarray) -> str:
        """Return the predicted class or labels of a row of probabilities, with their percentages."""
        labels = [self.predicted(values)]
        if self.answer.multilabel:
            labels = labels[0].split(self.separator)
        named = zip(self.classes, values, strict=True)
        return ", ".join(f"{name} {100 * value:.0f}%" for name, value in named if name in labels) or "no label"

    def uncertainty(self, values: np.ndarray) -> float:
        """Return 1 minus the confidence (`Answer.confidence`) of a row of probabilities."""
        return 1 - float(self.answer.confidence(values[None])[0])

    @torch.inference_mode()
    def group_rows(self, batches: Iterable[Tensor], groups: Groups) -> np.ndarray:
        """Return the probabilities of groups, float32 (groups, classes).

        An adapter for groups pools the features of the images; for another the probabilities are averaged.

        Args:
            batches: preprocessed images of ``groups.manifest``, in its order.
            groups: the groups.

        Raises:
            NotFiniteError: the model gives no finite values for an image, which is named.
        """
        images = groups.manifest.column("image")
        if self.answer.unit == "image":
            rows: list[np.ndarray] = []
            for pixels in batches:
                with naming(images, sum(map(len, rows))):
                    rows.append(self.probability_rows(pixels))
            return groups.average(np.concatenate(rows))
        features: list[Features] = []
        for pixels in batches:
            with naming(images, sum(len(batch.cls) for batch in features)):
                features.append(self._features(pixels))
        with naming([images[members[0]] for members in groups.members]):
            return self.pooled_rows(features, groups.members)

    @torch.inference_mode()
    def pooled_rows(self, features: Sequence[Features], members: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the probabilities of groups by an adapter for groups, float32 (groups, classes).

        Args:
            features: of batches of images.
            members: rows of the images of each group, over all batches; for concatenation as many of every group.
        """
        blocks, device = len(self.feature_spec.blocks), self.backbone.device
        cls, mean = (
            torch.from_numpy(pool_members(torch.cat(parts).cpu().numpy(), members, self.answer.pool, blocks)).to(device)
            for parts in ([batch.cls for batch in features], [batch.mean for batch in features])
        )
        return self.answer.probabilities(self.logits_of_features(Features(cls, mean))).cpu().numpy()

    @torch.inference_mode()
    def predict_members(self, pixels: Tensor) -> tuple[list[ClassPrediction], Features]:
        """Return the predictions for a preprocessed batch, each image by itself, and its features for `pooled_rows`."""
        features = self._features(pixels)
        return self.predictions(self.rows_of_features(features)), features

    def results(self, pixels: Tensor, sizes: Sequence[Size]) -> list[ClassPrediction]:
        return self.predictions(self.rows(pixels))

    def predictions(self, rows: ClassRows) -> list[ClassPrediction]:
        """Return the predictions for images by name."""
        return [
            ClassPrediction(
                self.predicted(values),
                dict(zip(self.classes, values.tolist(), strict=True)),
                None if rows.sets is None else self.names_of_set(rows.sets[row]),
            )
            for row, values in enumerate(rows.probabilities)
        ]

    def outputs(self, adapter: nn.Module, features: Features, size: Size = ()) -> Tensor:
        return self.answer.probabilities(adapter(self.answer.alone(features, len(self.feature_spec.blocks))))

    @torch.inference_mode()
    def outputs_of_features(self, features: Features, sizes: Sequence[Size]) -> list[ClassProbabilities]:
        rows = self.rows_of_features(features)
        return [
            ClassProbabilities(
                zip(self.classes, values.tolist(), strict=True),
                float(rows.confidence[row]),
                None if rows.sets is None else self.names_of_set(rows.sets[row]),
            )
            for row, values in enumerate(rows.probabilities)
        ]

    def reference_outputs(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.probability_rows(pixels))

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits before the temperature, (B, classes)."""
        features = self._features(pixels)
        return self.logits_of_features(self.answer.alone(features, len(self.feature_spec.blocks)))


class EnsembleClassifier(ClassifyPredictor):
    """Predicts the mean of the calibrated probabilities of its members.

    Args:
        record: record of the ensemble as an adapter.
        members: predictors of the members.
    """

    def __init__(self, record: AdapterRecord, members: Sequence[ClassifyPredictor]) -> None:
        self.members = list(members)
        answers = [member.answer for member in members]
        head = EnsembleHead(members, partial(mean_logits, answers), [answer.scales for answer in answers])
        super().__init__(record, head, members[0].backbone)
        if self.answer.cross is not None and len(self.answer.cross.folds) != len(self.members):
            raise DinomedError("the record of the ensemble is damaged: its members and folds differ; train again")

    @property
    def has_sets(self) -> bool:
        return self.unit == "image" and self.answer.cross is not None

    def rows_of_features(self, features: Features) -> ClassRows:
        """Return the mean of the members.

        Sets (CV+) compare single members, as those whose thresholds were chosen out of fold. The confidence is the
        median over the members of their probability of the class that the mean predicts; of labels that may occur
        together the median of their certainty about the decisions of the mean.
        """
        assert isinstance(self.adapter, EnsembleHead)
        features = self.answer.alone(features, len(self.feature_spec.blocks))
        logits = self.adapter.logits_of_members(features)
        check_finite("outputs", *logits)
        values = self.answer.probabilities(self.adapter.combine(logits)).cpu().numpy()
        answers = [member.answer for member in self.members]
        parts = np.stack([a.probabilities(x).cpu().numpy() for a, x in zip(answers, logits, strict=True)])
        confidence = np.median([self.answer.confidence(part, values) for part in parts], axis=0)
        cross = self.answer.cross
        return ClassRows(values, confidence.round(DECIMALS), None if cross is None else cross.sets(parts))

    def outputs(self, adapter: nn.Module, features: Features, size: Size = ()) -> Tensor:
        """Return the mean of the probabilities in float32, since an exported graph should need no float64."""
        assert isinstance(adapter, EnsembleHead)
        logits = adapter.logits_of_members(self.answer.alone(features, len(self.feature_spec.blocks)))
        parts = [member.answer.probabilities(x) for member, x in zip(self.members, logits, strict=True)]
        return torch.stack(parts).mean(0)
