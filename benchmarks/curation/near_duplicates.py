"""Near-duplicate search compared with faiss, and the growth of its time and memory.

    python benchmarks/curation/near_duplicates.py --sizes 20000 --rounds 5
    python benchmarks/curation/near_duplicates.py --sizes 100000 --rounds 1 --json
    python benchmarks/curation/near_duplicates.py --growth 10000 30000 100000
    python benchmarks/curation/near_duplicates.py --approximate 10000 30000 100000

- compare: all pairs with a cosine above the threshold, by `near_pairs` and by `IndexFlatIP.range_search`, alternating
  in one process, one thread each; medians of processor seconds, and how many of the pairs of faiss were found.
- growth: time and peak memory (without the vectors, which are mapped from a file) of `near_pairs` with k = 64.
- approximate: the inverted file; its lists are tuned to a recall, and 2,000 queries are timed.

The vectors are synthetic: `--clusters` centres (Zipf frequencies) and noise, both with a spectrum that falls as
k^-decay over the components; every tenth row is an earlier row with noise; all have length 1. At decay 0 all components
are equal, which is the worst case for a bound by components. (For the features of the small backbone in docs/results.md
the decay is about 4.)
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from numpy.lib.format import open_memmap

from dinomed.io.files import to_json
from dinomed.log import logger, set_level
from dinomed.pretrain.curation.search import bound as bounds
from dinomed.pretrain.curation.search import low_precision as products
from dinomed.pretrain.curation.search.bound import fit_bound
from dinomed.pretrain.curation.search.exact import near_pairs
from dinomed.pretrain.curation.search.ivf import build_ivf, tune_probes
from dinomed.pretrain.curation.search.pairs import SimilarPairs

BLOCK = 10_000
GIB = 2**30


def write_features(path: Path, count: int, dimension: int, decay: float, clusters: int, seed: int) -> np.ndarray:
    """Write float32 (count, dimension) block by block and map it, read-only. A longer file starts with the shorter
    one."""
    spectrum = (np.arange(1, dimension + 1) ** (-decay / 2)).astype(np.float32)
    spectrum /= np.linalg.norm(spectrum)
    centres = np.random.default_rng((seed, 0)).standard_normal((clusters, dimension), np.float32) * spectrum
    weight = 1 / np.arange(1, clusters + 1) ** 0.7
    x = open_memmap(path, "w+", np.float32, (count, dimension))
    for start in range(0, count, BLOCK):
        rng = np.random.default_rng((seed, 1 + start))
        rows = rng.standard_normal((BLOCK, dimension), np.float32) * spectrum
        rows = 0.35**0.5 * centres[rng.choice(clusters, BLOCK, p=weight / weight.sum())] + 0.65**0.5 * rows
        copies = rng.choice(BLOCK, BLOCK // 10, replace=False)
        if start:
            noise = rng.standard_normal((len(copies), dimension), np.float32) * spectrum
            source = x[np.sort(rng.integers(0, start, len(copies)))]
            rows[copies] = source + rng.uniform(0.05, 0.9, (len(copies), 1)).astype(np.float32) * noise
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        x[start : start + BLOCK] = rows[: count - start]
    x.flush()
    return np.load(path, mmap_mode="r")


class PeakMemory:
    """Measure the peak memory of this process (without mapped files) during the block, in GiB above its start.
    The value is nan where the system does not report it (Linux does)."""

    def __enter__(self) -> "PeakMemory":
        self._stop, self._began, self._most = threading.Event(), own_memory(), 0.0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.gib = (max(self._most, own_memory()) - self._began) / GIB

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._most = max(self._most, own_memory())


def own_memory() -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), float("nan"))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds over all threads, and the result of the work."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def faiss_pairs(x: np.ndarray, threshold: float) -> SimilarPairs:
    """Search with faiss. The time includes building the index, which is only a copy."""
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    limits, similarity, j = index.range_search(x, threshold)
    i = np.repeat(np.arange(len(x)), np.diff(limits.astype(np.int64)))
    keep = i < j
    return SimilarPairs(i[keep], j[keep], similarity[keep])


def compare(x: np.ndarray, threshold: float, rounds: int) -> dict[str, Any]:
    """Compare our search and faiss in alternating runs."""
    x = np.array(x)  # in memory, as faiss needs them
    ours, theirs = [], []
    for _ in range(rounds):
        seconds, pairs = timed(lambda: near_pairs(x, threshold=threshold, memory_gib=4, workers=1))
        ours.append(seconds)
        seconds, expected = timed(lambda: faiss_pairs(x, threshold))
        theirs.append(seconds)
    bound = fit_bound(x, None, threshold, 2)
    # faiss sums in float32: pairs nearer to the threshold than its rounding count neither as right nor as wrong
    clear = expected.take(expected.similarity > threshold + 2e-6)
    code = np.int64(len(x))
    hits = np.isin(clear.i * code + clear.j, pairs.i * code + pairs.j).sum()
    return {
        "vectors": len(x),
        "pairs": len(pairs),
        "ours_s": median(ours),
        "faiss_s": median(theirs),
        "ratio": median(a / b for a, b in zip(ours, theirs, strict=True)),
        "recall": float(hits / max(len(clear), 1)),
        "width": bound.width,
        "kind": str(bound.product.dtype).removeprefix("torch."),
    }


def growth(x: np.ndarray, threshold: float, memory_gib: float) -> dict[str, Any]:
    with PeakMemory() as peak:
        seconds, pairs = timed(lambda: near_pairs(x, threshold=threshold, k=64, memory_gib=memory_gib, workers=1))
    return {"vectors": len(x), "pairs": len(pairs), "seconds": seconds, "peak_gib": peak.gib}


def approximate(x: np.ndarray, threshold: float, memory_gib: float, recall: float) -> dict[str, Any]:
    """Measure the search of 2,000 random rows."""
    rows = np.sort(np.random.default_rng(0).choice(len(x), 2000, replace=False))
    with PeakMemory() as peak:
        build_s, searcher = timed(lambda: build_ivf(x, codec="sq8", memory_gib=memory_gib))
        measured = tune_probes(searcher, k=64, threshold=threshold, target=recall)
        search_s, _ = timed(lambda: searcher.near_pairs(x[rows], threshold=threshold, k=64))
    return {
        "vectors": len(x), "lists": searcher.index.nlist, "probes": measured.probes, "recall": measured.recall,
        "recall_of": measured.of, "build_s": build_s, "search_ms_each": search_s / len(rows) * 1e3,
        "peak_gib": peak.gib,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[],
        help="compare with faiss (default: 20000 if no other option is given)",
    )
    parser.add_argument("--growth", type=int, nargs="*", default=[], help="sizes; beyond 300,000 add --large")
    parser.add_argument("--approximate", type=int, nargs="*", default=[], help="sizes; beyond 300,000 add --large")
    parser.add_argument("--large", action="store_true", help="allow a million (2 GiB on disk, about 15 minutes)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--decay", type=float, nargs="+", default=[0.75], help="decay of the spectrum; 0 is flat")
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--threshold", type=float, default=0.6)
    parser.add_argument("--memory-gib", type=float, default=2.0)
    parser.add_argument("--recall", type=float, default=0.95, help="recall that the approximate search is tuned to")
    parser.add_argument(
        "--float32", action="store_true", help="use float32 only, as on a processor without fast lower precision"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print all values as JSON")
    options = parser.parse_args()
    if max(options.growth + options.approximate, default=0) > 300_000 and not options.large:
        parser.error("sizes beyond 300,000 take long: add --large")
    if not options.sizes + options.growth + options.approximate:
        options.sizes = [20_000]
    if options.float32:
        products.measure_speedups = bounds.measure_speedups = dict  # type: ignore[assignment]
    speedups = bounds.measure_speedups().items()
    faster = ", ".join(f"{str(dtype).removeprefix('torch.')} {speedup:.1f} times" for dtype, speedup in speedups)
    logger.info(f"products faster than float32 on this machine: {faster or 'none'}")
    set_level("warning")
    faiss.omp_set_num_threads(1)
    jobs: list[tuple[str, list[int], Callable[[np.ndarray], dict[str, Any]]]] = [
        ("compare", options.sizes, lambda x: compare(x, options.threshold, options.rounds)),
        ("growth", options.growth, lambda x: growth(x, options.threshold, options.memory_gib)),
        (
            "approximate",
            options.approximate,
            lambda x: approximate(x, options.threshold, options.memory_gib, options.recall),
        ),
    ]
    report = []
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes, work in jobs:
            for decay in options.decay:
                for size in sizes:
                    path = Path(folder) / "x.npy"
                    x = write_features(path, size, options.dimension, decay, options.clusters, options.seed)
                    report.append({"job": name, "decay": decay, **work(x)})
                    del x
                    if not options.json:
                        print(
                            "  ".join(
                                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in report[-1].items()
                            ),
                            flush=True,
                        )
    if options.json:
        print(to_json(report, indent=2))


if __name__ == "__main__":
    main()
