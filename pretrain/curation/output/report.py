"""What a curation did, as one HTML page that a person can check by eye: no script, nothing fetched.

The paper's table (DINOv2, table 15), what was removed and why, pairs side by side, the pool as a map before and after,
clusters as contact sheets, how balanced the collection is, what the search was measured to find, all settings. What
files are called, and of whom they are, is shown on request only.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dinomed.html.album import MIB, Album
from dinomed.html.page import build_bar_table, build_page, build_table, code, folded, heading, paragraph
from dinomed.html.plots import scatter
from dinomed.io.files import write_text
from dinomed.pretrain.curation.decisions import EXPLANATIONS, NOT_RETRIEVED, NOT_SAMPLED, UNLIKE
from dinomed.pretrain.curation.output.gallery import show_clusters, show_pairs, show_sheets
from dinomed.pretrain.curation.output.read import CurationResult
from dinomed.progress import bar

POINTS = 5000  # drawn on a map
NAMED = 7  # values of a column that have a colour of their own
COLUMNS = 6  # columns whose balance is shown
_OTHER = "other"


def write_report(outcome: CurationResult, path: str | Path, *, names: bool = False, limit_mib: float = 16) -> None:
    """Write the page.

    Args:
        names: show what images are called, instead of the number of their row.
        limit_mib: pictures beyond this size of the page are left out.

    Raises:
        DinomedError: `path` cannot be written.
    """
    write_text(path, build_report(outcome, names=names, limit_mib=limit_mib))


def build_report(outcome: CurationResult, *, names: bool = False, limit_mib: float = 16) -> str:
    """The page as text; see `write_report`."""
    album = Album(round(limit_mib * MIB), names=names)
    chapters = (_sources, _reasons, _balance, _maps, show_pairs, show_sheets, show_clusters, _search, _times)
    parts = []
    with bar("report", len(chapters)) as progress:
        for chapter in chapters:
            parts += chapter(outcome, album)
            progress.advance()
    if album.left_out:
        parts.append(paragraph(f"{album.left_out} pictures were left out, for the page is {limit_mib:g} MiB already."))
    return build_page("Curation", [*parts, *_settings(outcome)])


def _sources(outcome: CurationResult, _: Album) -> list[str]:
    total, kept = len(outcome.manifest), int(outcome.keep.sum())
    rows: list[tuple[Any, ...]] = [
        (source.name, source.mode, source.images, source.retrieved, source.kept) for source in outcome.sources
    ]
    rows.append(("all", "", total, None, kept))
    return [
        paragraph(f"Of {total:,} images {kept:,} are kept ({kept / max(total, 1):.1%})."),
        build_table(("source", "mode", "images", "retrieved", "kept"), rows),
    ]


def _reasons(outcome: CurationResult, _: Album) -> list[str]:
    total = max(len(outcome.manifest), 1)
    rows = [(name, count, f"{count / total:.1%}", EXPLANATIONS.get(name, "")) for name, count in outcome.counts.items()]
    said = "An image has one reason, the first that applies. Nothing is deleted: the manifest says why not."
    return [heading("What became of the images"), build_table(("", "images", "share", ""), rows), paragraph(said)]


def _balance(outcome: CurationResult, _: Album) -> list[str]:
    parts = [heading("Balance, before and after")]
    for column in _shown_columns(outcome):
        found = outcome.balance(column)
        before, after = (np.array([pair[side] for pair in found.values()], float) for side in (0, 1))
        values = list(found.items())
        rows = [(name, *pair) for name, pair in values[:20]]
        if len(values) > 20:
            rest = np.sum([pair for _, pair in values[20:]], axis=0)
            rows.append((f"{len(values) - 20} others", int(rest[0]), int(rest[1])))
        parts.append(build_bar_table(column, ("before", "kept"), rows))
        parts.append(
            paragraph(f"As even as {effective(before):.1f} equal classes before, {effective(after):.1f} after.")
        )
    return parts if len(parts) > 1 else []


def effective(counts: np.ndarray) -> float:
    """How many equally large classes are as even as these, float (n,): e to the entropy; 0 where there is nothing.

    >>> effective(np.array([5.0, 5.0, 0.0])), effective(np.zeros(2))
    (2.0, 0.0)
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(round(np.exp(-(share * np.log(share)).sum()), 6)) if len(share) else 0.0


def _shown_columns(outcome: CurationResult) -> list[str]:
    """Those with few values for their images: a column with nearly as many as images would name them."""
    labels, given = [], outcome.manifest
    for name in outcome.balance_columns():
        values = [value for value in given.column(name) if value is not None]
        if name == "label" or len(values) >= 4 * len(set(values)):
            labels.append(name)
    return labels[:COLUMNS]


def _maps(outcome: CurationResult, _: Album) -> list[str]:
    points = outcome.points
    placed = np.flatnonzero(np.isfinite(points).all(axis=1))
    if len(placed) < 2:
        return []
    rows = np.sort(np.random.default_rng(0).choice(placed, min(POINTS, len(placed)), replace=False))
    low, high = np.quantile(points[placed], [0.002, 0.998], axis=0)
    margin = 0.04 * (high - low) + 1e-6
    box = (*(low - margin).tolist(), *(high + margin).tolist())
    kept = outcome.keep[rows]

    def draw(word: np.ndarray, order: list[str], chosen: np.ndarray, caption: str) -> str:
        return scatter({name: points[rows[chosen & (word == name)]] for name in order}, caption, box=box)

    everything = np.ones(len(rows), bool)
    fate = np.array([_fate(outcome.reason[row]) for row in rows], object)
    fates = ["kept", "copies, and tests", "unfit", "not asked for"]
    source = np.array([value or _OTHER for value in _values(outcome, "source", rows)], object)
    parts = [
        heading("The pool as a map"),
        paragraph(
            "Two principal components of the embeddings; a copy lies where its original does. "
            + (f"A sample of {len(rows):,} of {len(placed):,} images." if len(rows) < len(placed) else "")
        ),
        draw(fate, fates, everything, "before, by what became of it"),
        draw(source, sorted(set(source[kept])), kept, "after, by what brought it in"),
    ]
    columns = _shown_columns(outcome)
    if columns:
        words = np.array(_values(outcome, columns[0], rows), object)
        order = list(outcome.balance(columns[0]))[:NAMED]
        words = np.array([word if word in order else _OTHER for word in words], object)
        parts += [
            draw(words, [*order, _OTHER], chosen, f"{when}, by {columns[0]}")
            for chosen, when in ((everything, "before"), (kept, "after"))
        ]
    return parts


def _values(outcome: CurationResult, column: str, rows: np.ndarray) -> list[str | None]:
    values = outcome.manifest.column(column)
    return [None if values[row] is None else str(values[row]) for row in rows]


def _fate(reason: str | None) -> str:
    if reason is None:
        return "kept"
    if reason in (NOT_RETRIEVED, NOT_SAMPLED, UNLIKE):
        return "not asked for"
    return "copies, and tests" if "copy" in reason or "excluded" in reason or "linked" in reason else "unfit"


def _search(outcome: CurationResult, _: Album) -> list[str]:
    parts = [heading("What the search finds")]
    if not outcome.recall:
        return [*parts, paragraph("All searches were exact: every pair above its threshold was found.")]
    names = ("search", "recall", "of", "queries", "probes")
    rows = [tuple(measured.get(name) for name in names) for measured in outcome.recall]
    said = "Measured against the exact answer, for a sample of queries; other searches were exact."
    return [*parts, build_table(("search", "recall", "of true neighbours", "queries", "lists looked into"), rows),
            paragraph(said)]  # fmt: skip


def _times(outcome: CurationResult, _: Album) -> list[str]:
    if not outcome.timings:
        return []
    whole = sum(entry["seconds"] for entry in outcome.timings) or 1
    rows = [
        (
            entry["stage"], entry["images"], round(entry["seconds"], 1),
            round(entry["images"] / max(entry["seconds"], 1e-9), 1), f"{entry['seconds'] / whole:.0%}",
        )
        for entry in outcome.timings
    ]  # fmt: skip
    return [heading("What it took"), build_table(("stage", "images", "seconds", "images a second", "share"), rows)]


def _settings(outcome: CurationResult) -> list[str]:
    told = {key: value for key, value in outcome.summary.items() if key not in ("counts", "sources", "searches")}
    settings = told.pop("config", None)
    parts = [heading("Settings and fingerprints")]
    parts.append(code(_yaml(told)))
    return [*parts, folded("All settings", _yaml(settings))] if settings else parts


def _yaml(data: Any) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))
