"""How good is an index? Each labelled image of a split is a query, and images of its label are what it should find."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dinomed.adapters.fitting.data import labelled, select_split
from dinomed.adapters.retrieval.filters import Condition, choose
from dinomed.adapters.retrieval.search import Retriever
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import load_images
from dinomed.log import logger
from dinomed.metrics.bootstrap import bootstrap_mean
from dinomed.metrics.retrieval import average_precision, precision_at, recall_at
from dinomed.notice import RESEARCH_USE
from dinomed.progress import bar

KS = (1, 5, 10)
_BLOCK = 64  # queries whose whole ranking is in memory
_CHECKED = 10  # results by which the graph is compared with the exact search


def evaluate_index(
    retriever: Retriever,
    manifest: Manifest,
    split: str = "test",
    *,
    label: str = "label",
    ks: Sequence[int] = KS,
    conditions: Sequence[Condition] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """mAP over the whole ranking, recall@k and precision@k, over all queries and for each label, with intervals by
    bootstrap over the queries' groups (95%).

    The image itself and all of its group are no results. Images of the index without a label are none either. Rankings
    are exact; for HNSW and IVF, `graph_recall@10` says what share of the exact first ten their search finds.

    Args:
        label: the column of labels, in `manifest` and in the index.
        conditions: on the index, such as split=train.

    Raises:
        UsageError: no labels, an empty split, a condition that nothing meets, or no image left to find.
        DinomedError: an image cannot be read.
    """
    index = retriever.index
    rows = select_split(labelled(manifest, label), split)
    if not index.manifest.has(label):
        raise UsageError(f"the images of the index have no labels in a column {label!r}")
    gallery = index.manifest.column(label)
    allowed = np.array([value is not None for value in gallery], bool)
    chosen = choose(index.manifest, conditions)
    allowed &= True if chosen is None else chosen
    names, number = np.unique([value or "" for value in gallery], return_inverse=True)
    wanted = rows.column(label)
    unknown = sorted(set(wanted) - {value for value in gallery if value is not None})
    if unknown:
        logger.warning(
            f"the index has no image of {', '.join(map(repr, unknown[:5]))}: such queries have nothing to find"
        )
    vectors = _vectors(retriever, rows)
    contents, groups = rows.column("sha256"), rows.groups()
    excluded = [retriever.relatives.rows(*one) for one in zip(contents, groups, strict=True)]
    values, total = [], np.zeros(len(rows), np.int64)
    place = {name: i for i, name in enumerate(names)}
    target = np.array([place.get(value, -1) for value in wanted])
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        relevant, total[part] = _rank(vectors[part], index.vectors, number, target[part], allowed, excluded[part])
        scores = [average_precision(relevant, total[part])]
        for k in ks:
            scores += [recall_at(relevant, total[part], k), precision_at(relevant, k)]
        values.append(np.stack(scores, axis=1))
    table = np.concatenate(values)
    columns = ["map", *(f"{kind}@{k}" for k in ks for kind in ("recall", "precision"))]
    units = [group if group is not None else content for group, content in zip(groups, contents, strict=True)]
    return {
        "purpose": RESEARCH_USE,
        "task": "retrieve",
        "split": split,
        "label": label,
        "where": [str(condition) for condition in conditions],
        "metrics": _summary(table, columns, total, units, seed),
        "per_class": {
            name: _summary(table[own], columns, total[own], [units[i] for i in np.flatnonzero(own)], seed)
            for name in sorted(set(wanted))
            for own in [np.array([value == name for value in wanted])]
        },
        "index": {
            "images": len(index),
            "searched": int(allowed.sum()),
            "kind": index.record.kind,
            "pool": index.record.pooling.tokens,
            "dimension": index.record.dimension,
            "whitened": index.record.whitened,
            "graph_recall@10": _graph_recall(retriever, vectors),
        },
        "backbone": {"name": retriever.backbone.name, "fingerprint": retriever.backbone.fingerprint},
        "images": rows.fingerprint,
    }


def _rank(
    queries: np.ndarray,
    vectors: np.ndarray,
    number: np.ndarray,
    target: np.ndarray,
    allowed: np.ndarray,
    excluded: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Which places of each query's ranking are relevant, bool (Q, N), and how many images are, int (Q,)."""
    similarity = queries @ vectors.T
    similarity[:, ~allowed] = -np.inf
    for row, gone in enumerate(excluded):
        similarity[row, gone] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")
    there = np.isfinite(np.take_along_axis(similarity, order, axis=1))
    relevant = (number[order] == target[:, None]) & there
    return relevant, relevant.sum(axis=1)


def _summary(
    table: np.ndarray, columns: list[str], total: np.ndarray, units: Sequence[str], seed: int
) -> dict[str, Any]:
    known = ~np.isnan(table)
    means = np.divide(
        np.where(known, table, 0).sum(axis=0),
        known.sum(axis=0),
        out=np.full(len(columns), np.nan),
        where=known.any(axis=0),
    )
    intervals = bootstrap_mean(table, units, seed=seed)
    return {
        "n": len(table),
        "groups": len(set(units)),
        "without_relevant": int((total == 0).sum()),
        **{name: float(value) for name, value in zip(columns, means, strict=True)},
        "intervals": {name: [one.low, one.high] for name, one in zip(columns, intervals, strict=True)},
    }


def _graph_recall(retriever: Retriever, vectors: np.ndarray) -> float | None:
    if retriever.index.graph is None:
        return None
    found, exact = (
        [{one.row for one in best} for best in retriever.index.search(vectors, _CHECKED, exact=how)]
        for how in (False, True)
    )
    return float(np.mean([len(a & b) / len(b) for a, b in zip(found, exact, strict=True)]))


def _vectors(retriever: Retriever, rows: Manifest) -> np.ndarray:
    """Float32 (N, D): of an image that is in the index as they stand there, of others computed."""
    known = {content: row for row, content in enumerate(retriever.index.manifest.column("sha256"))}
    contents = rows.column("sha256")
    out = np.empty((len(rows), retriever.index.record.dimension), np.float32)
    new = [i for i, content in enumerate(contents) if content not in known]
    for i, content in enumerate(contents):
        if content in known:
            out[i] = retriever.index.vectors[known[content]]
    with bar("queries", len(new)) as progress:
        for part, pixels in _pixels(retriever, rows.take(new)):
            out[[new[i] for i in part]] = retriever.vectors(pixels)
            progress.advance(len(part))
    return out


def _pixels(retriever: Retriever, rows: Manifest) -> Iterator[tuple[list[int], torch.Tensor]]:
    batch: list[tuple[int, torch.Tensor]] = []
    for one in load_images(rows, retriever.backbone.preprocessing):
        if one.pixels is None:
            raise DinomedError(f"{one.error}; it could be read when the manifest was made: scan the folder again")
        batch.append((one.index, one.pixels))
        if len(batch) == 16 or one.index == len(rows) - 1:
            yield [i for i, _ in batch], torch.stack([pixels for _, pixels in batch])
            batch = []
