"""What a curation did, read back from what it wrote: for the command, for the report, for tests.

A curation to ``curated.parquet`` leaves
* ``curated.parquet``: the pool, a row an image, with `keep`, `reason`, `duplicate_of`, `component`, `source`;
* ``curated.json``: the summary, the same bytes for the same inputs and settings;
* ``curated.stages/``: what each stage computed. `rows.arrow` there holds numbers for every row of the pool (`ROWS`),
  `references.parquet` is the manifest of the images that were kept out, `timings.jsonl` what each stage took.
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
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import read_json
from dinomed.pretrain.curation.pool import COLUMNS
from dinomed.pretrain.curation.runtime.stage import TIMINGS
from dinomed.pretrain.curation.selection.contribution import SetContribution

FORMAT = "dinomed.curation/1"
ROWS = pa.schema(
    [
        pa.field("duplicate_of", pa.int64()),  # row that is kept in its place, or -1
        pa.field("reference", pa.int64()),  # row of the references that it is a copy of, or -1
        pa.field("similarity", pa.float32()),  # to either of the two; nan where there is neither
        pa.field("how", pa.string()),  # what found it: exact, hash or descriptor; null where there is neither
        pa.field("cluster", pa.int64()),  # of the retrieval or of the lowest level, or -1
        pa.field("retrieved_for", pa.string()),  # the trusted set that asked for it, or null
        pa.field("unlike", pa.float32()),  # cosine to the nearest trusted image, nan where not measured
        pa.field("x", pa.float32()),  # on the map: two principal components of the embeddings; nan where none
        pa.field("y", pa.float32()),
    ]
)
How = Literal["exact", "hash", "descriptor"]


@dataclass(frozen=True)
class Removed:
    """P images that are not kept since they are like another one; arrays of (P,), the most similar first."""

    row: np.ndarray  # int64, of the manifest
    duplicate_of: np.ndarray  # int64, row of the manifest, or -1
    reference: np.ndarray  # int64, row of the references, or -1: exactly one of the two is given
    similarity: np.ndarray  # float32: cosine of descriptors, also where a hash found it; 1 if exact
    how: list[How]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class CurationResult:
    """Everything that a report needs. N images in the pool: those of the pool, then trusted ones that are not in it."""

    path: Path
    manifest: Manifest  # N rows, with `COLUMNS`
    references: Manifest | None  # the images that were kept out, in the order of `rows["reference"]`
    summary: dict[str, Any]  # the JSON file; keys: see `docs/curation.md`
    rows: dict[str, np.ndarray]  # the columns of `ROWS`, (N,) each
    timings: list[dict[str, Any]]  # `stage`, `seconds`, `images`; only what the last runs really computed

    @cached_property
    def keep(self) -> np.ndarray:
        """bool (N,)"""
        return np.array(self.manifest.column("keep"), bool)

    @cached_property
    def reason(self) -> list[str | None]:
        """Why not; None for what is kept. The words are those of `dinomed.pretrain.curation.decisions`."""
        return self.manifest.column("reason")

    @property
    def counts(self) -> dict[str, int]:
        """Images by reason, "kept" first, then in the order of the stages; only reasons that occur."""
        return dict(self.summary["counts"])

    @property
    def sources(self) -> list[SetContribution]:
        """The paper's table."""
        return [SetContribution(**row) for row in self.summary["sources"]]

    @property
    def recall(self) -> list[dict[str, Any]]:
        """`search`, `recall` (0 to 1), `of`, `queries`, `probes` of each approximate search; empty if all are exact."""
        return list(self.summary["searches"])

    @cached_property
    def removed(self) -> Removed:
        """What was removed for being like another image, with that image."""
        chosen = np.flatnonzero((self.rows["duplicate_of"] >= 0) | (self.rows["reference"] >= 0))
        chosen = chosen[np.lexsort((chosen, -self.rows["similarity"][chosen]))]
        of, reference, similarity = (self.rows[name][chosen] for name in ("duplicate_of", "reference", "similarity"))
        return Removed(chosen, of, reference, similarity, self.rows["how"][chosen].tolist())

    @cached_property
    def points(self) -> np.ndarray:
        """The map, float32 (N, 2); nan for images that have no place on it. A copy lies where its original does."""
        return np.stack([self.rows["x"], self.rows["y"]], axis=1)

    def clusters(self) -> dict[int, np.ndarray]:
        """The rows of each cluster, int64, the largest cluster first; what was removed before clustering is in none."""
        label = self.rows["cluster"]
        order = np.flatnonzero(label >= 0)[np.argsort(label[label >= 0], kind="stable")]
        names, starts = np.unique(label[order], return_index=True)
        members = dict(zip(names.tolist(), np.split(order, starts[1:]) if len(names) else [], strict=True))
        return dict(sorted(members.items(), key=lambda item: (-len(item[1]), item[0])))

    def balance(self, column: str) -> dict[str, tuple[int, int]]:
        """(images before, images kept) of each value of a column, the commonest first; rows without a value left out.

        Raises:
            UsageError: no such column.
        """
        values = self.manifest.column(column)
        before = Counter(value for value in values if value is not None)
        after = Counter(value for value, keep in zip(values, self.keep, strict=True) if keep and value is not None)
        return {str(value): (count, after[value]) for value, count in before.most_common()}

    def balance_columns(self, most: int = 30) -> list[str]:
        """The columns that a balance can be shown of: label, then free ones, with 2 to `most` different values."""
        own = {*COLUMNS, "image", "sha256", "group", "mask", "width", "height", "bytes", "original", "retrieved_for"}
        names = [name for name in self.manifest.columns if name not in own and self.manifest.has(name)]
        names = [name for name in names if 2 <= len(set(self.manifest.column(name)) - {None}) <= most]
        return sorted(names, key=lambda name: name != "label")


def summary_path(output: str | Path) -> Path:
    return Path(output).with_suffix(".json")


def stages_path(output: str | Path) -> Path:
    return Path(output).with_suffix(".stages")


def load_result(output: str | Path) -> CurationResult:
    """What `dinomed curate -o OUTPUT` left.

    Raises:
        UsageError: no such manifest, or no curation wrote it.
        DinomedError: a part of it is missing, damaged or of another run.
    """
    output = Path(output)
    manifest = read_manifest(output)
    if not set(COLUMNS) <= set(manifest.columns) or not summary_path(output).is_file():
        raise UsageError(f"{output} was not written by `dinomed curate` (or {summary_path(output).name} is gone)")
    summary = read_json(summary_path(output))
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise DinomedError(f"{summary_path(output)} is not of the form {FORMAT}; run dinomed curate again")
    folder = stages_path(output)
    rows = read_rows(folder / "rows.arrow")
    if len(rows["x"]) != len(manifest) or summary["images"] != len(manifest):
        raise DinomedError(f"{folder} is of another run than {output}; run dinomed curate again")
    kept_out = folder / "references.parquet"
    return CurationResult(
        output, manifest, read_manifest(kept_out) if kept_out.is_file() else None, summary, rows, read_timings(folder)
    )


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """The columns of `ROWS`. Raises `DinomedError` if the file is missing or damaged."""
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        if table.schema != ROWS:
            raise pa.ArrowInvalid("other columns than are expected")
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:100]
        raise DinomedError(f"{path} is missing or damaged ({reason}); run dinomed curate again") from None
    return {name: np.array(table[name].to_pylist(), object) if kind == pa.string() else table[name].to_numpy()
            for name, kind in zip(ROWS.names, ROWS.types, strict=True)}  # fmt: skip


def read_timings(folder: Path) -> list[dict[str, Any]]:
    """One entry for each stage that computed something; a line that was cut off is passed over."""
    path = folder / TIMINGS
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
