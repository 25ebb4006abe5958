"""Search stages: the pairs above a threshold, in parts that the executor computes, exactly or by an inverted file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.errors import DinomedError
from dinomed.log import logger
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.runtime.images import absolute_name
from dinomed.pretrain.curation.search.config import SearchConfig
from dinomed.pretrain.curation.search.exact import near_pairs
from dinomed.pretrain.curation.search.ivf import build_ivf, load_ivf, tune_probes, write_ivf
from dinomed.pretrain.curation.search.pairs import SimilarPairs, from_table, merge_pairs, no_pairs

INDEX, MEASURED = "index.faiss", "measured.arrow"


@dataclass(frozen=True)
class VectorFile:
    """Unit vectors in a file.

    Attributes:
        file: absolute path of a .npy file, float32 (N, D).
        key: cache key over everything that the vectors depend on.
        count: N.
    """

    file: str
    key: str
    count: int


@dataclass(frozen=True)
class SearchPart:
    """Work of the stages: find one part (n, of) of the pairs above a threshold.

    The pairs are within the vectors of a file or, with `references`, from these to the vectors of another file. The
    columns are those of `SimilarPairs.table`. With `index` (a file of `ivf.write_ivf`) the search is approximate.
    """

    vectors: str
    threshold: float
    k: int | None
    memory_gib: float
    references: str | None = None
    index: str | None = None
    workers: int | None = None

    def __call__(self, part: tuple[int, int]) -> pa.Table:
        x = np.load(self.vectors, mmap_mode="r")
        if self.k is None and self.references is None:  # a single image has no partner
            return no_pairs().table()
        if self.index is not None:
            assert self.k is not None
            index = load_ivf(self.index, x)
            return index.near_pairs(threshold=self.threshold, k=self.k, memory_gib=self.memory_gib, part=part).table()
        y = None if self.references is None else np.load(self.references, mmap_mode="r")
        return near_pairs(
            x, y, threshold=self.threshold, k=self.k, memory_gib=self.memory_gib, part=part, workers=self.workers
        ).table()


def search_pairs(
    context: CurationContext, config: SearchConfig, stage: str, vectors: VectorFile, references: VectorFile | None, *,
    k: int, threshold: float, description: str,
) -> SimilarPairs:  # fmt: skip
    """Find the pairs above a threshold, from the cache or by the executor.

    Args:
        stage: name of the stage in the cache.
        references: for pairs from `vectors` (i) to `references` (j); None: pairs within `vectors`.
        k: pairs of each row, at most; see `exact.near_pairs`.
        description: label of the progress bar and of the measured recall in the report.
    """
    same = references is None
    num_columns = vectors.count if references is None else references.count
    k = min(k, num_columns - same)
    num_products = vectors.count * num_columns // (2 if same else 1)
    num_parts = max(1, -(-num_products // config.products_each))
    identity: list[Any] = [vectors.key, threshold, k, *([] if references is None else [references.key])]
    index, reference_file = None, None if references is None else references.file
    if same and vectors.count > config.exact_up_to:
        index = _prepare_index(context, config, stage, vectors, k, threshold, description)
        identity += ["index", config.recall, context.seed]
    work = SearchPart(vectors.file, threshold, k or None, context.memory_gib, reference_file, index, context.workers)
    items = [(f"{n:06d}", stage_key(stage, identity, n, num_parts), (n, num_parts)) for n in range(num_parts)]
    tables = context.compute_tables(stage, items, work, description, [1] * num_parts)
    return merge_pairs([from_table(table) for table in tables], k=k or None, symmetric=same)


def _prepare_index(
    context: CurationContext, config: SearchConfig, stage: str, vectors: VectorFile, k: int, threshold: float,
    description: str,
) -> str:  # fmt: skip
    """Return the file of an inverted file tuned to the configured recall, from the cache if it is valid."""
    cache = context.cache(stage, INDEX, MEASURED)
    key = stage_key("index", vectors.key, k, threshold, config.recall, context.memory_gib, context.seed)
    x = np.load(vectors.file, mmap_mode="r")
    if not (cache.is_valid(MEASURED, key) and _is_loadable(cache.path(INDEX), x)):
        with context.timed("index", vectors.count):
            index = build_ivf(x, memory_gib=context.memory_gib / 2, seed=context.seed)
            measured = tune_probes(index, k=k, threshold=threshold, target=config.recall, seed=context.seed)
            write_ivf(index, cache.path(INDEX))
        cache.put_table(MEASURED, key, pa.Table.from_pylist([asdict(measured)]))
    (measured_recall,) = cache.read_table(MEASURED).to_pylist()
    context.searches.append({"search": description, **measured_recall})
    return absolute_name(cache.path(INDEX))


def _is_loadable(path: Path, x: np.ndarray) -> bool:
    try:
        load_ivf(path, x)
    except DinomedError as error:
        logger.warning(f"{error}")
        return False
    return True
