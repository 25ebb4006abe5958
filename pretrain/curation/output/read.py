"""Result of a curation, read from its files: for the command, the report and the Python API.

A curation to ``curated.parquet`` leaves
* ``curated.parquet``: one row per image, with `keep`, `reason`, `duplicate_of`, `component`, `source`;
* ``curated.json``: the summary; equal inputs and settings give equal bytes;
* ``curated.stages/``: the cache of the stages. `rows.arrow` holds numbers for every row (`ROWS`), `references.parquet`
  is the manifest of the excluded images, `timings.jsonl` holds the time of each stage.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import DinomedError, MissingFileError, UsageError, first_line
from dinomed.io.files import read_json
from dinomed.pretrain.curation.pool import COLUMNS
from dinomed.pretrain.curation.runtime.context import TIMINGS
from dinomed.pretrain.curation.selection.contribution import SetContribution

FORMAT = "dinomed.curation/1"
STAGES_SUFFIX = ".stages"
ROWS = pa.schema(
    [
        pa.field("duplicate_of", pa.int64()),  # row of the image that is kept instead, or -1
        pa.field("reference", pa.int64()),  # row of the excluded image that it duplicates, or -1
        pa.field("similarity", pa.float32()),  # to either of the two; nan for none
        pa.field("how", pa.string()),  # method that found the pair: exact, hash or descriptor; null for none
        pa.field("cluster", pa.int64()),  # of retrieval, or of the lowest level of balancing; -1 for none
        pa.field("retrieved_for", pa.string()),  # the query set that retrieved it, or null
        pa.field("unlike", pa.float32()),  # cosine to the nearest query; nan if not measured
        pa.field("x", pa.float32()),  # on the map: two principal components of the embeddings; nan for none
        pa.field("y", pa.float32()),
    ]
)
How = Literal["exact", "hash", "descriptor"]


@dataclass(frozen=True)
class Removed:
    """P images that are removed because they duplicate another one; arrays of (P,), the most similar first."""

    row: np.ndarray  # int64, of the manifest
    duplicate_of: np.ndarray  # int64, row of the manifest, or -1
    reference: np.ndarray  # int64, row of the excluded images, or -1; exactly one of the two is set
    similarity: np.ndarray  # float32: cosine of the descriptors, also for pairs found by hash; 1 if exact
    how: list[How]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class CurationResult:
    """Result of a curation of N images: those of the pool, then the query images that are not in the pool."""

    path: Path
    manifest: Manifest  # N rows, with `COLUMNS`
    references: Manifest | None  # the excluded images; `rows["reference"]` refers to their rows
    summary: dict[str, Any]  # the JSON file; keys: see `docs/curation.md`
    rows: dict[str, np.ndarray]  # the columns of `ROWS`, (N,) each
    timings: list[dict[str, Any]]  # `stage`, `seconds`, `images`; only stages that were computed, not cached

    @cached_property
    def keep(self) -> np.ndarray:
        """Images that are kept, bool (N,)."""
        return np.array(self.manifest.column("keep"), bool)

    @cached_property
    def reason(self) -> list[str | None]:
        """Reason of each image, None for images that are kept; see `dinomed.pretrain.curation.decisions`."""
        return self.manifest.column("reason")

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by reason, "kept" first, then in the order of the stages; only reasons that occur."""
        return dict(self.summary["counts"])

    @property
    def sources(self) -> list[SetContribution]:
        """Contribution of each set: the table of the paper."""
        return [SetContribution(**row) for row in self.summary["sources"]]

    @property
    def recall(self) -> list[dict[str, Any]]:
        """Measured recall of each approximate search: `search`, `recall` (0 to 1), `of`, `queries`, `probes`."""
        return list(self.summary["searches"])

    @cached_property
    def removed(self) -> Removed:
        """Images that are removed as duplicates, with the image that they duplicate."""
        chosen = np.flatnonzero((self.rows["duplicate_of"] >= 0) | (self.rows["reference"] >= 0))
        chosen = chosen[np.lexsort((chosen, -self.rows["similarity"][chosen]))]
        of, reference, similarity = (self.rows[name][chosen] for name in ("duplicate_of", "reference", "similarity"))
        return Removed(chosen, of, reference, similarity, self.rows["how"][chosen].tolist())

    @cached_property
    def points(self) -> np.ndarray:
        """The map, float32 (N, 2); nan for images without a place. A duplicate has the place of the image that is
        kept."""
        return np.stack([self.rows["x"], self.rows["y"]], axis=1)

    def clusters(self) -> dict[int, np.ndarray]:
        """Return the rows of each cluster, int64, the largest cluster first. Images removed before clustering are in
        none."""
        label = self.rows["cluster"]
        order = np.flatnonzero(label >= 0)[np.argsort(label[label >= 0], kind="stable")]
        names, starts = np.unique(label[order], return_index=True)
        members = dict(zip(names.tolist(), np.split(order, starts[1:]) if len(names) else [], strict=True))
        return dict(sorted(members.items(), key=lambda item: (-len(item[1]), item[0])))

    def balance(self, column: str) -> dict[str, tuple[int, int]]:
        """Count (images, images kept) of each value of a column, the most frequent first; null values are left out.

        Raises:
            UsageError: no such column.
        """
        values = self.manifest.column(column)
        before = Counter(value for value in values if value is not None)
        after = Counter(value for value, keep in zip(values, self.keep, strict=True) if keep and value is not None)
        return {str(value): (count, after[value]) for value, count in before.most_common()}

    def balance_columns(self) -> list[str]:
        """Return the columns whose balance can be shown: the label, then user columns, with 2 to 30 different
        values."""
        reserved = {
            *COLUMNS,
            "image",
            "sha256",
            "group",
            "mask",
            "width",
            "height",
            "bytes",
            "original",
            "retrieved_for",
        }
        names = [name for name in self.manifest.columns if name not in reserved and self.manifest.has(name)]
        names = [name for name in names if 2 <= len(set(self.manifest.column(name)) - {None}) <= 30]
        return sorted(names, key=lambda name: name != "label")


def summary_path(output: str | Path) -> Path:
    """Return the path of the summary of a curation."""
    return Path(output).with_suffix(".json")


def stages_path(output: str | Path) -> Path:
    """Return the folder with the cache of the stages of a curation."""
    return Path(output).with_suffix(STAGES_SUFFIX)


def load_result(output: str | Path) -> CurationResult:
    """Load the result that `dinomed curate -o OUTPUT` wrote.

    Raises:
        UsageError: the manifest does not exist, or no curation wrote it.
        DinomedError: a file of the result is missing, damaged or of another run.
    """
    output = Path(output)
    return result_of(output, read_manifest(output))


def result_of(output: Path, manifest: Manifest) -> CurationResult:
    """Return the result whose manifest is, or will be, written to `output`; see `load_result`."""
    if not set(COLUMNS) <= set(manifest.columns) or not summary_path(output).is_file():
        raise UsageError(f"{output} was not written by `dinomed curate` (or {summary_path(output).name} is missing)")
    summary = read_json(summary_path(output))
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise DinomedError(f"{summary_path(output)} does not have the format {FORMAT}; run dinomed curate again")
    folder = stages_path(output)
    rows = read_rows(folder / "rows.arrow")
    if len(rows["x"]) != len(manifest) or summary["images"] != len(manifest):
        raise DinomedError(f"{folder} belongs to another run than {output}; run dinomed curate again")
    references_path = folder / "references.parquet"
    return CurationResult(
        output,
        manifest,
        read_manifest(references_path) if references_path.is_file() else None,
        summary,
        rows,
        read_timings(folder),
    )


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of `ROWS`.

    Raises:
        MissingFileError: the file is missing.
        DinomedError: the file is damaged.
    """
    remedy = "run dinomed curate again"
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; {remedy}")
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        if table.schema != ROWS:
            raise pa.ArrowInvalid("unexpected columns")
    except (pa.ArrowException, OSError) as error:
        raise DinomedError(f"{path} is damaged ({first_line(error)}); {remedy}") from None
    return {name: np.array(table[name].to_pylist(), object) if kind == pa.string() else table[name].to_numpy()
            for name, kind in zip(ROWS.names, ROWS.types, strict=True)}  # fmt: skip


def read_timings(folder: Path) -> list[dict[str, Any]]:
    """Read one entry per computed stage; an incomplete line is skipped."""
    path = folder / TIMINGS
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
