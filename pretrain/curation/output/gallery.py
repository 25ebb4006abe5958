"""The pictures of a curation's report: pairs side by side, sheets of what was unfit, clusters."""

from html import escape
from typing import Any

import numpy as np

from dinomed.html.album import Album, spaced_indices
from dinomed.html.page import heading, paragraph
from dinomed.pretrain.curation.decisions import EXPLANATIONS, REASONS
from dinomed.pretrain.curation.output.read import CurationResult

PAIRS = 8  # shown of each reason
SHEET = 36  # pictures on a contact sheet
CLUSTERS = 12
_SIZE: dict[str, Any] = {"side": 180, "quality": 85, "width_px": 150}


def show_pairs(outcome: CurationResult, album: Album) -> list[str]:
    """Of each reason some pairs, evenly from the most to the least alike: the last ones show what a threshold did."""
    removed = outcome.removed
    reasons = np.array([outcome.reason[row] for row in removed.row], object)
    parts = []
    for reason in REASONS:
        found = np.flatnonzero(reasons == reason)
        if not len(found):
            continue
        shown = found[spaced_indices(len(found), PAIRS)]
        parts.append(heading(f"{reason.capitalize()}: {_count(len(found), 'pair')}"))
        note = f"{len(shown)} of them, evenly from the most to the least alike." if len(shown) < len(found) else ""
        parts.append(paragraph(f"Left: removed, since {EXPLANATIONS[reason]}. {note}".strip()))
        for place in shown:
            row, kept, kept_out = (int(a[place]) for a in (removed.row, removed.duplicate_of, removed.reference))
            left = album.picture(outcome.manifest, row, "removed", **_SIZE)
            if kept >= 0 or outcome.references is None:
                right = album.picture(outcome.manifest, kept, "kept", **_SIZE)
            else:
                right = album.picture(outcome.references, kept_out, "excluded", **_SIZE)
            said = f"similarity {removed.similarity[place]:.2f}, {removed.how[place]}"
            parts.append(f"<div class='pair'>{left}{right}<p class='soft'>{escape(said)}</p></div>")
    return parts


def show_sheets(outcome: CurationResult, album: Album) -> list[str]:
    """Of the reasons that concern an image by itself, a sheet each."""
    paired = np.zeros(len(outcome.manifest), bool)
    paired[outcome.removed.row] = True
    reasons = np.array(outcome.reason, object)
    parts = []
    for reason in REASONS:
        rows = np.flatnonzero((reasons == reason) & ~paired)
        if len(rows):
            shown = rows[spaced_indices(len(rows), SHEET)]
            caption = f"{reason}: {len(shown):,} of {len(rows):,} ({EXPLANATIONS[reason]})"
            parts.append(album.sheet(outcome.manifest, shown.tolist(), caption))
    return [heading("Removed for what they are"), *parts] if parts else []


def show_clusters(outcome: CurationResult, album: Album) -> list[str]:
    found = list(outcome.clusters().values())
    if not found:
        return []
    parts = [
        heading("Clusters"),
        paragraph(
            f"{len(found):,} hold images; shown are {min(CLUSTERS, len(found))}, from the largest to the smallest. "
            "What is struck out is not kept."
        ),
    ]
    for place in spaced_indices(len(found), CLUSTERS):
        rows = found[place]
        chosen = rows[spaced_indices(len(rows), SHEET // 2)]
        caption = f"{len(rows):,} images, {int(outcome.keep[rows].sum()):,} of them kept"
        crossed = (~outcome.keep[chosen]).tolist()
        parts.append(album.sheet(outcome.manifest, chosen.tolist(), caption, crossed=crossed, side=64))
    return parts


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
