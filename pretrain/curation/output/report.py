"""HTML report of a curation, for checking by eye: one page without scripts or external files.

It shows the paper's table (DINOv2, table 15), the reasons of removed images, pairs side by side, a map of the pool
before and after, contact sheets of clusters, the balance of classes, the measured recall of searches, and all settings.
File names and groups are shown only on request.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dinomed.burned_in_text.mask import TextMask
from dinomed.html.album import MIB, Album
from dinomed.html.page import (
    build_bar_table,
    build_page,
    build_table,
    code,
    folded,
    heading,
    next_steps,
    paragraph,
    verdict,
    with_contents,
)
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


def write_report(
    result: CurationResult,
    path: str | Path,
    *,
    names: bool = False,
    mask: TextMask | None = None,
    limit_mib: float = 16,
) -> None:
    """Write the report.

    Args:
        names: show the paths of images instead of their row numbers.
        mask: masks burned-in text in the images.
        limit_mib: maximum size of the page; further images are left out.

    Raises:
        DinomedError: `path` cannot be written.
    """
    write_text(path, build_report(result, names=names, mask=mask, limit_mib=limit_mib))


def build_report(
    result: CurationResult, *, names: bool = False, mask: TextMask | None = None, limit_mib: float = 16
) -> str:
    """Return the report as HTML; see `write_report`."""
    album = Album(round(limit_mib * MIB), names=names, mask=mask)
    chapters = (_sources, _reasons, _balance, _maps, show_pairs, show_sheets, show_clusters, _search, _times)
    parts = []
    with bar("report", len(chapters)) as progress:
        for chapter in chapters:
            parts += chapter(result, album)
            progress.advance()
    parts += album.note()
    if album.left_out:
        parts.append(
            paragraph(f"{album.left_out} images were left out: the page has reached its limit of {limit_mib:g} MiB.")
        )
    parts += next_steps(
        [
            ("dinomed audit CURATED TEST", "exit code 1 if test images are in it"),
            ("dinomed pretrain CONFIG --data CURATED -o RUN", "pretraining on the kept images"),
            ("dinomed show map CURATED --backbone RUN --color reason -o map.html", "all images, by decision"),
        ],
        "CURATED stands for the manifest of this curation.",
    )
    return build_page("Curation", [_verdict(result), *with_contents([*parts, *_settings(result)])])


def _verdict(result: CurationResult) -> str:
    """Return how many images are kept, and the most frequent reasons of the others."""
    total, kept = len(result.manifest), int(result.keep.sum())
    removed = sorted(
        ((count, name) for name, count in result.counts.items() if count and name not in ("kept", "images")),
        key=lambda item: (-item[0], item[1]),
    )
    words = ", ".join(f"{name} ({count:,})" for count, name in removed[:3])
    limits = f"Most frequent reasons of the others: {words}." if words else ""
    return verdict(f"Of {total:,} images {kept:,} are kept ({kept / max(total, 1):.1%}).", limits)


def _sources(result: CurationResult, _: Album) -> list[str]:
    total, kept = len(result.manifest), int(result.keep.sum())
    rows: list[tuple[Any, ...]] = [
        (source.name, source.mode, source.images, source.retrieved, source.kept) for source in result.sources
    ]
    rows.append(("all", "", total, None, kept))
    return [
        heading("Sources"),
        build_table(("source", "mode", "images", "retrieved", "kept"), rows),
    ]


def _reasons(result: CurationResult, _: Album) -> list[str]:
    total = max(len(result.manifest), 1)
    rows = [(name, count, f"{count / total:.1%}", EXPLANATIONS.get(name, "")) for name, count in result.counts.items()]
    note = "An image has one reason, the first that applies. No file is deleted; the manifest holds the reasons."
    return [heading("Decisions"), build_table(("", "images", "share", ""), rows), paragraph(note)]


def _balance(result: CurationResult, _: Album) -> list[str]:
    parts = [heading("Balance before and after")]
    for column in _shown_columns(result):
        counts = result.balance(column)
        before, after = (np.array([pair[side] for pair in counts.values()], float) for side in (0, 1))
        values = list(counts.items())
        rows = [(name, *pair) for name, pair in values[:20]]
        if len(values) > 20:
            sums = np.sum([pair for _, pair in values[20:]], axis=0)
            rows.append((f"{len(values) - 20} others", int(sums[0]), int(sums[1])))
        parts.append(build_bar_table(column, ("before", "kept"), rows))
        parts.append(
            paragraph(f"Effective number of classes: {effective(before):.1f} before, {effective(after):.1f} after.")
        )
    return parts if len(parts) > 1 else []


def effective(counts: np.ndarray) -> float:
    """Compute the effective number of classes, e to the entropy, of the class counts, float (n,); 0 without images.

    >>> effective(np.array([5.0, 5.0, 0.0])), effective(np.zeros(2))
    (2.0, 0.0)
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(round(np.exp(-(share * np.log(share)).sum()), 6)) if len(share) else 0.0


def _shown_columns(result: CurationResult) -> list[str]:
    """Return columns with at least 4 images per value on average: other columns could identify single images."""
    labels, manifest = [], result.manifest
    for name in result.balance_columns():
        values = [value for value in manifest.column(name) if value is not None]
        if name == "label" or len(values) >= 4 * len(set(values)):
            labels.append(name)
    return labels[:COLUMNS]


def _maps(result: CurationResult, _: Album) -> list[str]:
    points = result.points
    placed = np.flatnonzero(np.isfinite(points).all(axis=1))
    if len(placed) < 2:
        return []
    rows = np.sort(np.random.default_rng(0).choice(placed, min(POINTS, len(placed)), replace=False))
    low, high = np.quantile(points[placed], [0.002, 0.998], axis=0)
    margin = 0.04 * (high - low) + 1e-6
    box = (*(low - margin).tolist(), *(high + margin).tolist())
    kept = result.keep[rows]

    def draw(word: np.ndarray, order: list[str], chosen: np.ndarray, caption: str) -> str:
        return scatter({name: points[rows[chosen & (word == name)]] for name in order}, caption, box=box)

    everything = np.ones(len(rows), bool)
    decision = np.array([_decision_group(result.reason[row]) for row in rows], object)
    groups = ["kept", "duplicate or excluded", "unfit", "not selected"]
    source = np.array([value or _OTHER for value in _values(result, "source", rows)], object)
    parts = [
        heading("The pool as a map"),
        paragraph(
            "Two principal components of the embeddings; a duplicate has the place of the image that is kept. "
            + (f"A sample of {len(rows):,} of {len(placed):,} images." if len(rows) < len(placed) else "")
        ),
        draw(decision, groups, everything, "before, by decision"),
        draw(source, sorted(set(source[kept])), kept, "after, by source"),
    ]
    columns = _shown_columns(result)
    if columns:
        words = np.array(_values(result, columns[0], rows), object)
        order = list(result.balance(columns[0]))[:NAMED]
        words = np.array([word if word in order else _OTHER for word in words], object)
        parts += [
            draw(words, [*order, _OTHER], chosen, f"{when}, by {columns[0]}")
            for chosen, when in ((everything, "before"), (kept, "after"))
        ]
    return parts


def _values(result: CurationResult, column: str, rows: np.ndarray) -> list[str | None]:
    values = result.manifest.column(column)
    return [None if values[row] is None else str(values[row]) for row in rows]


def _decision_group(reason: str | None) -> str:
    if reason is None:
        return "kept"
    if reason in (NOT_RETRIEVED, NOT_SAMPLED, UNLIKE):
        return "not selected"
    return "duplicate or excluded" if "copy" in reason or "excluded" in reason or "linked" in reason else "unfit"


def _search(result: CurationResult, _: Album) -> list[str]:
    parts = [heading("Recall of the searches")]
    if not result.recall:
        return [*parts, paragraph("All searches were exact: every pair above its threshold was found.")]
    names = ("search", "recall", "of", "queries", "probes")
    rows = [tuple(measured.get(name) for name in names) for measured in result.recall]
    note = "Measured against exact search on a sample of queries; other searches were exact."
    return [*parts, build_table(("search", "recall", "of true neighbours", "queries", "probed lists"), rows),
            paragraph(note)]  # fmt: skip


def _times(result: CurationResult, _: Album) -> list[str]:
    if not result.timings:
        return []
    whole = sum(entry["seconds"] for entry in result.timings) or 1
    rows = [
        (
            entry["stage"], entry["images"], round(entry["seconds"], 1),
            round(entry["images"] / max(entry["seconds"], 1e-9), 1), f"{entry['seconds'] / whole:.0%}",
        )
        for entry in result.timings
    ]  # fmt: skip
    return [heading("Time"), build_table(("stage", "images", "seconds", "images per second", "share"), rows)]


def _settings(result: CurationResult) -> list[str]:
    summary = {key: value for key, value in result.summary.items() if key not in ("counts", "sources", "searches")}
    settings = summary.pop("config", None)
    parts = [heading("Settings and fingerprints")]
    parts.append(code(_yaml(summary)))
    return [*parts, folded("All settings", _yaml(settings))] if settings else parts


def _yaml(data: Any) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))
