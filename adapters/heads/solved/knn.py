"""k-nearest-neighbour classifier: the bundle holds the training features; only k is fitted.

The vote is that of `dinomed.features.knn` (Caron et al. 2021, section 4.1): cosine similarity, weight
exp(similarity / 0.07).
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from dinomed.adapters.adapter import ADAPTERS
from dinomed.adapters.heads.linear import LinearClassifierConfig
from dinomed.adapters.heads.solved.solve import CHOSEN_BY, Examples, Solution, SolvedClassifier, best_of, macro_auroc
from dinomed.features.compute import Features
from dinomed.features.knn import KS, sum_votes

_MIN_SHARE = 1e-6  # lower limit of a share of the vote, so that its logit is finite


class KnnConfig(LinearClassifierConfig):
    """Settings: `k`; null chooses the best of 10, 20, 100 and 200 on val."""

    name: str = "knn"
    k: int | None = Field(None, ge=1, description="neighbours that vote; null: the best of 10, 20, 100 and 200 on val")


@ADAPTERS.register("classify.knn")
class KnnClassifier(SolvedClassifier):
    """k-nearest-neighbour vote on the training features.

    Buffers: `bank` (N, width), training features of length 1; `votes` (N, K), votes of each training example, nan where
    its label is unknown; `k`; `independent`, true for multi-label targets.
    """

    Config = KnnConfig
    bank: Tensor
    votes: Tensor
    k: Tensor
    independent: Tensor

    def __init__(self, config: KnnConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        width = embed_dim * len(config.blocks) * (2 if config.tokens == "cls+mean" else 1)
        self.register_buffer("bank", torch.zeros(0, width))
        self.register_buffer("votes", torch.zeros(0, num_classes))
        self.register_buffer("k", torch.tensor(1))
        self.register_buffer("independent", torch.tensor(False))

    def solve(self, train: Examples, val: Examples, weight: np.ndarray | None, seed: int) -> Solution:
        """Store the training features and choose k. `weight` balances the votes of frequent and rare classes."""
        self.bank = self._unit(torch.from_numpy(train.cls), torch.from_numpy(train.mean))
        self.independent = torch.tensor(train.multilabel)
        votes = train.targets if train.multilabel else np.eye(self.num_classes)[train.targets]
        self.votes = torch.from_numpy(votes * (1.0 if weight is None or train.multilabel else weight)).float()
        ks = sorted({min(k, len(train)) for k in (KS if self.config.k is None else (self.config.k,))})
        queries = Features(torch.from_numpy(val.cls), torch.from_numpy(val.mean))
        scores = []
        for k in ks:
            self.k = torch.tensor(k)
            scores.append(macro_auroc(val.targets, self(queries).numpy()))
        _, k = best_of(ks, scores)
        self.k = torch.tensor(k)
        return Solution(self, {"k": k, "chosen_by": CHOSEN_BY, "tried": dict(zip(map(str, ks), scores, strict=True))})

    def forward(self, features: Features) -> Tensor:
        """Return the log of the shares of the vote; for multi-label targets the log odds.

        A label that is unknown for all neighbours of an image has its share of the training examples.
        """
        similarity, index = (self._unit(features.cls, features.mean) @ self.bank.T).topk(int(self.k))
        votes = self.votes[index]
        sums = sum_votes(similarity, votes.nan_to_num())
        if self.independent:
            known = sum_votes(similarity, ~votes.isnan())
            shares = torch.where(known > 0, sums / known, self.votes.nanmean(dim=0).double())
            return shares.clamp(_MIN_SHARE, 1 - _MIN_SHARE).logit().to(similarity.dtype)
        return (sums / sums.sum(1, keepdim=True)).clamp_min(_MIN_SHARE).log().to(similarity.dtype)

    def _unit(self, cls: Tensor, mean: Tensor) -> Tensor:
        parts = {"cls": [cls], "mean": [mean], "cls+mean": [cls, mean]}[self.config.tokens]
        return normalize(torch.cat(parts, dim=-1), dim=-1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the buffers to the number of features in the bundle, then load them."""
        for name in ("bank", "votes"):
            value = state_dict.get(prefix + name)
            if value is not None and value.ndim == 2 and value.shape[1] == getattr(self, name).shape[1]:
                setattr(self, name, torch.zeros_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)
