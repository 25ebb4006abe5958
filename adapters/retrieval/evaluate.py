"""Evaluation of an index by labels: mAP, recall@k and precision@k.

Each labelled image of a split is a query; the images of the index with the same label are relevant.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.adapters.fitting.data import labelled, select_split
from dinomed.adapters.retrieval.filters import Condition, choose_rows
from dinomed.adapters.retrieval.index import VectorIndex
from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.finite import naming
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.log import logger
from dinomed.metrics.bootstrap import bootstrap_mean
from dinomed.metrics.retrieval import average_precision, precision_at, recall_at
from dinomed.notice import RESEARCH_USE
from dinomed.progress import bar

KS = (1, 5, 10)
_BLOCK = 64  # queries whose complete rankings are in memory at the same time
_GRAPH_RECALL_K = 10  # neighbours by which the graph is compared with the exact search


def evaluate_index(
    image_index: ImageIndex,
    manifest: Manifest,
    split: str = "test",
    *,
    label: str = "label",
    ks: Sequence[int] = KS,
    conditions: Sequence[Condition] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Compute mAP over the complete ranking, recall@k and precision@k, for all queries and for each label.

    Intervals (95%) come from a bootstrap over the groups of the queries. The query itself, its group, and images
    without a label are not in the ranking. Rankings are exact; for HNSW and IVF, `graph_recall@10` is the share of the
    exact first ten that their search returns.

    Args:
        split: split of `manifest` whose images are the queries.
        label: column of the labels, in `manifest` and in the index.
        conditions: on the manifest of the index, such as ``split=train``.
        seed: of the bootstrap.

    Returns:
        The report, as `dinomed search --evaluate --json` writes it.

    Raises:
        UsageError: no labels, an empty split, or a condition that no image meets.
        DinomedError: an image cannot be read.
    """
    index = image_index.vector_index
    rows = select_split(labelled(manifest, label), split)
    if not index.manifest.has(label):
        raise UsageError(f"the images of the index have no labels in a column {label!r}")
    gallery = index.manifest.column(label)
    allowed = np.array([value is not None for value in gallery], bool)
    chosen = choose_rows(index.manifest, conditions)
    allowed &= True if chosen is None else chosen
    names, gallery_labels = np.unique([value or "" for value in gallery], return_inverse=True)
    query_names = rows.column(label)
    unknown = sorted(set(query_names) - {value for value in gallery if value is not None})
    if len(unknown) == len(set(query_names)):
        raise UsageError(
            f"no image of the index has a label of the queries, such as {unknown[0]!r}; give the column in which both "
            "have the same names by `label`"
        )
    if unknown:
        logger.warning(
            f"no image of the index has label {', '.join(map(repr, unknown[:5]))}: its queries have no relevant image"
        )
    vectors = _vectors(image_index, rows)
    contents, groups = rows.column("sha256"), rows.groups()
    excluded = [image_index.groups.rows(*query) for query in zip(contents, groups, strict=True)]
    blocks, num_relevant = [], np.zeros(len(rows), np.int64)
    label_index = {name: i for i, name in enumerate(names)}
    query_labels = np.array([label_index.get(value, -1) for value in query_names])
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        relevant, num_relevant[block] = _rank(
            vectors[block], index.vectors, gallery_labels, query_labels[block], allowed, excluded[block]
        )
        scores = [average_precision(relevant, num_relevant[block])]
        for k in ks:
            scores += [recall_at(relevant, num_relevant[block], k), precision_at(relevant, k)]
        blocks.append(np.stack(scores, axis=1))
    table = np.concatenate(blocks)
    columns = ["map", *(f"{kind}@{k}" for k in ks for kind in ("recall", "precision"))]
    units = [group if group is not None else content for group, content in zip(groups, contents, strict=True)]
    return {
        "purpose": RESEARCH_USE,
        "task": "retrieve",
        "split": split,
        "label": label,
        "where": [str(condition) for condition in conditions],
        "metrics": _summarise(table, columns, num_relevant, units, seed),
        "per_class": {
            name: _summarise(table[mask], columns, num_relevant[mask], [units[i] for i in np.flatnonzero(mask)], seed)
            for name in sorted(set(query_names))
            for mask in [np.array([value == name for value in query_names])]
        },
        "index": {
            "images": len(index),
            "searched": int(allowed.sum()),
            "kind": index.record.kind,
            "pool": index.record.pooling.tokens,
            "dimension": index.record.dimension,
            "whitened": index.record.whitened,
            "graph_recall@10": _graph_recall(index, vectors),
        },
        "backbone": {"name": image_index.backbone.name, "fingerprint": image_index.backbone.fingerprint},
        "images": rows.fingerprint,
    }


def _rank(
    queries: np.ndarray,
    vectors: np.ndarray,
    gallery_labels: np.ndarray,
    query_labels: np.ndarray,
    allowed: np.ndarray,
    excluded: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return which places of each ranking are relevant, bool (Q, N), and the number of relevant images, int (Q,)."""
    similarity = queries @ vectors.T
    similarity[:, ~allowed] = -np.inf
    for row, gone in enumerate(excluded):
        similarity[row, gone] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")
    ranked = np.isfinite(np.take_along_axis(similarity, order, axis=1))
    relevant = (gallery_labels[order] == query_labels[:, None]) & ranked
    return relevant, relevant.sum(axis=1)


def _summarise(
    table: np.ndarray, columns: list[str], num_relevant: np.ndarray, units: Sequence[str], seed: int
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
        "without_relevant": int((num_relevant == 0).sum()),
        **{name: float(value) for name, value in zip(columns, means, strict=True)},
        "intervals": {name: [interval.low, interval.high] for name, interval in zip(columns, intervals, strict=True)},
    }


def _graph_recall(index: VectorIndex, vectors: np.ndarray) -> float | None:
    if index.graph is None:
        return None
    approximate, exact = (
        [{neighbor.row for neighbor in nearest} for nearest in index.nearest(vectors, _GRAPH_RECALL_K, exact=is_exact)]
        for is_exact in (False, True)
    )
    return float(np.mean([len(a & b) / len(b) for a, b in zip(approximate, exact, strict=True)]))


def _vectors(image_index: ImageIndex, rows: Manifest) -> np.ndarray:
    """Return the query vectors, float32 (N, D): from the index for images that it holds, computed for the others."""
    known = {content: row for row, content in enumerate(image_index.vector_index.manifest.column("sha256"))}
    contents, names = rows.column("sha256"), rows.column("image")
    out = np.empty((len(rows), image_index.vector_index.record.dimension), np.float32)
    new = [i for i, content in enumerate(contents) if content not in known]
    for i, content in enumerate(contents):
        if content in known:
            out[i] = image_index.vector_index.vectors[known[content]]
    with bar("queries", len(new)) as progress:
        for batch in load_batches(rows.take(new), image_index.backbone.preprocessing):
            with naming([names[new[image.index]] for image in batch]):
                out[[new[image.index] for image in batch]] = image_index.embed(stack_pixels(batch))
            progress.advance(len(batch))
    return out
