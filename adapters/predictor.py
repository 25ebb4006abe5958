"""Base class of predictors, which compute predictions from images by an adapter and its backbone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter, FeatureSpec
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.training_images import FamiliarityCheck, usable_check
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.compute import Features, compute_features
from dinomed.features.familiarity.reference import Familiarity
from dinomed.features.finite import check_finite, naming
from dinomed.features.loading import load_batches, preprocess_batches, stack_pixels
from dinomed.images.in_memory import ImageSource, list_images
from dinomed.metrics.uncertainty.abstention import AbstentionRule, AbstentionTable, choose_rule

R = TypeVar("R")
Size = tuple[int, ...]
"""Height and width of an image, px."""


class Predictor(ABC):
    """An adapter with its backbone. Each task has a subclass.

    Attributes:
        task: name of the task.
        classes: names of the classes, in the order of the channels of the head.
        metadata: record of the bundle, as a dict.
        abstention: thresholds of the confidence, measured on val; None if the bundle has none.
        check: whether images are unlike the training images; None if the bundle has no features of them.
        familiarity: results of `check_batch` since `evaluate` began.
    """

    unit: str = "image"
    """Unit of a prediction: ``image``, or ``group`` for all images of a group."""
    batch_size: int = 16
    """Number of images in a batch."""
    export_note: str = ""
    """How an exported model differs from the predictor, for its card."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        self.task = record.task
        self.classes: Sequence[str] = record.classes
        self.metadata: dict[str, Any] = record.model_dump(mode="json")
        self.adapter, self.backbone = adapter.to(backbone.device), backbone
        self.abstention: AbstentionTable | None = None
        self.check: FamiliarityCheck | None = None
        self.familiarity: list[Familiarity] = []
        self._newest: tuple[Tensor, Features] | None = None  # the last batch of a prediction, for `check_batch`

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of image files for `logits`."""
        return self.backbone.preprocessing

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features that the head reads."""
        return self.adapter.feature_spec

    def predict(self, images: Iterable[ImageSource]) -> list[Any]:
        """Predict images from files or from memory.

        Args:
            images: paths, PIL images, arrays (H, W) or (H, W, C), or torch tensors (C, H, W) or (H, W), in any mixture;
                see `dinomed.images.in_memory.as_pixels`.

        Returns:
            One result for each image, in order: a `ClassPrediction`, `MaskPrediction` or `DepthPrediction`, or the
            result type of another task.

        Raises:
            UnreadableImage: a file is missing or damaged.
            UsageError: an object is not an image, or `images` is one image instead of a list.
            NotFiniteError: the model gives values that are not finite for some images; `rows` are their indices.
        """
        return [result for result, _ in self.predict_checked(images, check=False)]

    def predict_checked(
        self, images: Iterable[ImageSource], *, check: bool = True
    ) -> list[tuple[Any, Familiarity | None]]:
        """Predict images as `predict`, and compare each with the training images by the features of the same pass.

        Args:
            images: as of `predict`.
            check: whether images are compared.

        Returns:
            For each image its result, and how like the training images it is; None if the check is not available.

        Raises:
            UnreadableImage: a file is missing or damaged.
            UsageError: an object is not an image.
            NotFiniteError: as `predict`.
        """
        sources, results = list_images(images), list[tuple[Any, Familiarity | None]]()
        names = [str(image) if isinstance(image, str | Path) else f"image {i}" for i, image in enumerate(sources)]
        for pixels, sizes in preprocess_batches(sources, self.preprocessing, self.batch_size):
            with naming(names, len(results)):
                batch = self.results(pixels, sizes)
                checked: Sequence[Familiarity | None] | None = self.check_batch(pixels) if check else None
                results += zip(batch, checked or [None] * len(batch), strict=True)
        return results

    def batches(self, manifest: Manifest, compute: Callable[[Tensor, Sequence[Size]], R]) -> Iterator[R]:
        """Yield the results of each batch of a manifest, and compare the batch with the training images.

        Args:
            manifest: images, all of which must be readable.
            compute: function of a batch prepared by `preprocessing` and the size of each image.

        Raises:
            DinomedError: an image cannot be read.
            NotFiniteError: the model gives values that are not finite; the error names the images.
        """
        names = manifest.column("image")
        for loaded in load_batches(manifest, self.preprocessing, self.batch_size):
            with naming([names[image.index] for image in loaded]):
                pixels = stack_pixels(loaded)
                result = compute(pixels, [image.size for image in loaded])
                self.check_batch(pixels)
            yield result

    @abstractmethod
    def results(self, pixels: Tensor, sizes: Sequence[Size]) -> list[Any]:
        """Return the results of a batch.

        Args:
            pixels: a batch prepared by `preprocessing`.
            sizes: height and width of each image, px.
        """

    @abstractmethod
    def outputs(self, adapter: nn.Module, features: Features, size: Size) -> Tensor:
        """Return the final outputs for a batch of features, such as probabilities or depths.

        An export traces this method.

        Args:
            adapter: the head to use instead of `self.adapter`.
            features: features of a batch, as `feature_spec` describes them.
            size: height and width of output maps, px.
        """

    @abstractmethod
    def outputs_of_features(self, features: Features, sizes: Sequence[Size]) -> list[Any]:
        """Return the output for each image, from the features of a shared backbone pass."""

    @abstractmethod
    def reference_outputs(self, pixels: Tensor) -> Tensor:
        """Return the outputs for preprocessed images (B, channels, H, W), as the reference for an exported model."""

    @property
    def export_refusal(self) -> str:
        """Reason why one graph on one image cannot compute the predictions; empty if it can."""
        return ""

    @property
    def shares_pass(self) -> bool:
        """Whether one backbone pass over the resized image suffices, which other consumers can share."""
        return True

    @torch.inference_mode()
    def output_of_image(self, image: np.ndarray) -> Any:
        """Return the output for an image (H, W, channels), from backbone passes of its own."""
        features = self._features(self.preprocessing(image)[None])
        return self.outputs_of_features(features, [image.shape[:2]])[0]

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits of preprocessed images (B, channels, height, width); see `Adapter`.

        Raises:
            NotFiniteError: features or logits of an image are not finite.
        """
        return self.logits_of_features(self._features(pixels))

    def logits_of_features(self, features: Features) -> Tensor:
        """Return the logits of features, float32; raise a `NotFiniteError` if those of an image are not finite."""
        logits = self.adapter(features).float()
        check_finite("outputs", logits)
        return logits

    @torch.inference_mode()
    def check_batch(self, pixels: Tensor) -> list[Familiarity] | None:
        """Compare a batch with the training images; None if the check is not available.

        The features of the prediction are used if the same batch was predicted immediately before, so that the backbone
        runs once.

        Args:
            pixels: a batch prepared by `preprocessing`.
        """
        check, _ = usable_check(self.check)
        if check is None:
            return None
        newest, self._newest = self._newest, None
        depth, block = self.backbone.depth, check.reference.block
        if newest is not None and newest[0] is pixels and (self.feature_spec.blocks[-1] - block) % depth == 0:
            features = newest[1]
        else:
            features = compute_features(self.backbone, self._whole_square(pixels), (block,), False)
        checked = check.outputs_of_features(features, [])
        self.familiarity += checked
        return checked

    def _whole_square(self, pixels: Tensor) -> Tensor:
        """Return a batch of `preprocessing` as the backbone reads whole images."""
        return pixels

    def _features(self, pixels: Tensor) -> Features:
        features = compute_features(self.backbone, pixels, self.feature_spec.blocks, self.feature_spec.patches)
        self._newest = None if self.check is None else (pixels, features)
        return features


def prediction_rule(
    predictor: Predictor, abstain: float | None, max_risk: float | None, unit: str | None
) -> AbstentionRule | None:
    """Return the rule by which predictions are abstained; None if none was asked for.

    Raises:
        UsageError: the adapter has no thresholds, or they are of another unit.
    """
    averages = any(member.abstention is not None for member in getattr(predictor, "members", ()))
    remedy = "an ensemble has none: give one of its members, such as fold_1" if averages else ""
    rule = choose_rule(predictor.abstention, abstain, max_risk, remedy=remedy)
    if rule is not None and (unit or "image") != predictor.unit:
        raise UsageError(
            f"`abstain` and `max_risk`: the thresholds were chosen for a prediction by {predictor.unit}; "
            f"give `unit={predictor.unit}`"
        )
    return rule
