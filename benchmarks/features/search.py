"""Speed and recall@10 of flat, HNSW and IVF indexes.

    python benchmarks/features/search.py [--count 100000] [--dimension 384] [--queries 1000]
        [--kinds flat,hnsw,ivf] [--json]

Vectors lie around 2,000 centres whose sizes follow a power law, like features of a collection of related images; a
query is a vector with some noise. Recall is the share of the exact ten nearest vectors that are found. Queries are sent
256 at a time (a batch) and one by one (a visitor). Times are processor seconds over all threads, so that other load on
the machine changes them little; with OMP_NUM_THREADS=1 they are the seconds of one idle core.
"""

import argparse
import json
import resource
import sys
import time
from typing import Any

import numpy as np

from dinomed.adapters.retrieval.engine import KINDS, build_graph, restore, search_graph
from dinomed.features.neighbors import search_exactly

BATCH, SINGLE, K = 256, 100, 10


def make_vectors(count: int, dimension: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2000, dimension)).astype(np.float32)
    share = 1 / np.arange(1, 2001) ** 0.8
    centre_of_row = rng.choice(2000, count, p=share / share.sum())
    x = centres[centre_of_row] + 0.7 * rng.standard_normal((count, dimension), dtype=np.float32)
    q = x[rng.integers(0, count, queries)] + 0.3 * rng.standard_normal((queries, dimension), dtype=np.float32)
    return (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, q))  # type: ignore[return-value]


def measure(kind: str, vectors: np.ndarray, queries: np.ndarray, neighbors: np.ndarray) -> dict[str, Any]:
    began = time.process_time()
    arrays = build_graph(kind, vectors)  # type: ignore[arg-type]
    built = time.process_time()
    index = restore(kind, vectors, arrays)  # type: ignore[arg-type]
    restored = time.process_time()

    def search(part: np.ndarray) -> np.ndarray:
        return search_exactly(part, vectors, K)[1] if index is None else search_graph(index, part, K)[1]

    start = time.process_time()
    indices = np.concatenate([search(queries[i : i + BATCH]) for i in range(0, len(queries), BATCH)])
    batched = time.process_time() - start
    start = time.process_time()
    for row in range(SINGLE):
        search(queries[row : row + 1])
    single = time.process_time() - start
    return {
        "kind": kind,
        "build_s": built - began,
        "load_s": restored - built,
        "queries_per_s_batched": len(queries) / batched,
        "queries_per_s_single": SINGLE / single,
        "recall@10": float(np.mean([len(set(a) & set(b)) / K for a, b in zip(indices, neighbors, strict=True)])),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    vectors, queries = make_vectors(arguments.count, arguments.dimension, arguments.queries)
    neighbors = search_exactly(queries, vectors, K)[1]
    rows = []
    for kind in arguments.kinds.split(","):
        rows.append(measure(kind, vectors, queries, neighbors))
        print(rows[-1], file=sys.stderr)
    if arguments.json:
        print(json.dumps({"count": arguments.count, "dimension": arguments.dimension, "results": rows}))


if __name__ == "__main__":
    main()
