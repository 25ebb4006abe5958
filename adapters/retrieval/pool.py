"""Pooling of tokens to one feature vector for an image, and PCA whitening of the vectors."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from dinomed.adapters.adapter import FeatureSpec
from dinomed.config import Config
from dinomed.errors import UsageError, did_you_mean
from dinomed.features.compute import Features
from dinomed.features.pooling import generalised_mean

Pool = Literal["cls", "mean", "cls+mean", "gem"]
POOLS: tuple[str, ...] = get_args(Pool)


class Pooling(Config):
    """Pooling of the tokens of the last block.

    `cls`: the class token. `mean`: the mean patch token. `cls+mean`: both, each of length 1, concatenated. `gem`: the
    generalised mean of the patch tokens, (mean of x^p)^(1/p) over x clipped at 0, between mean (p = 1) and maximum
    (Radenović et al. 2018, "Fine-tuning CNN image retrieval with no human annotation", section 3.2).
    """

    tokens: Pool = "cls"
    gem_power: float = Field(3.0, ge=1, le=64)

    @property
    def feature_spec(self) -> FeatureSpec:
        return FeatureSpec((-1,), patches=self.tokens == "gem")

    def __call__(self, features: Features) -> Tensor:
        """Pool features of the last block to (B, D); only the parts of `cls+mean` are normalised."""
        if self.tokens == "cls":
            return features.cls
        if self.tokens == "mean":
            return features.mean
        if self.tokens == "cls+mean":
            return torch.cat([normalize(features.cls, dim=-1), normalize(features.mean, dim=-1)], dim=-1)
        assert features.patches is not None
        return generalised_mean(features.patches, self.gem_power)


def parse_pool(word: str) -> Pool:
    """Return the pooling; raise a `UsageError` that names the nearest one if there is no such pooling."""
    if word not in POOLS:
        raise UsageError(f"`pool={word!r}`{did_you_mean(word, POOLS)}")
    return word  # type: ignore[return-value]


@dataclass(frozen=True)
class Whitening:
    """Whitening ``(x - mean) @ matrix`` to decorrelated values of equal variance; `mean` (C,), `matrix` (C, D)."""

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Whiten vectors (N, C) to float32 (N, D)."""
        return (vectors - self.mean).astype(np.float32) @ self.matrix


def fit_whitening(vectors: np.ndarray, dimension: int) -> Whitening:
    """Fit PCA whitening to `dimension` values (Jégou and Chum 2012, "Negative evidences and co-occurrences in image
    retrieval: the benefit of PCA and whitening", section 3).

    0.01% of the largest variance is added to each variance, so that directions without variation are not amplified.

    Args:
        vectors: pooled vectors (N, C).

    Raises:
        UsageError: `dimension` is larger than C or than N - 1.
    """
    count, channels = vectors.shape
    largest = min(channels, count - 1)
    if not 1 <= dimension <= largest:
        raise UsageError(f"`whiten={dimension}`: {count} vectors of {channels} values allow 1 to {largest} dimensions")
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors.astype(np.float64) - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / count)
    variances, directions = variances[::-1][:dimension].clip(0), directions[:, ::-1][:, :dimension]
    ridge = max(1e-4 * float(variances[0]), 1e-12)
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(dimension)])  # eigh leaves them arbitrary
    matrix = directions * signs / np.sqrt(variances + ridge)
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))
