"""Images of the curation report: pairs side by side, contact sheets of removed images and of clusters."""

from html import escape
from typing import Any

import numpy as np

from dinomed.html.album import Album, spaced_indices
from dinomed.html.page import heading, paragraph
from dinomed.pretrain.curation.decisions import EXPLANATIONS, REASONS
from dinomed.pretrain.curation.output.read import CurationResult

PAIRS = 8  # pairs per reason
SHEET = 36  # images per contact sheet
CLUSTERS = 12  # contact sheets of clusters
_SIZE: dict[str, Any] = {"side": 180, "quality": 85, "width_px": 150}


def show_pairs(result: CurationResult, album: Album) -> list[str]:
    """Show up to `PAIRS` pairs per reason, evenly spaced from the most to the least similar.

    The least similar pairs show whether the threshold is too low.
    """
    removed = result.removed
    reasons = np.array([result.reason[row] for row in removed.row], object)
    parts = []
    for reason in REASONS:
        places = np.flatnonzero(reasons == reason)
        if not len(places):
            continue
        shown = places[spaced_indices(len(places), PAIRS)]
        parts.append(heading(f"{reason.capitalize()}: {_count(len(places), 'pair')}"))
        note = (
            f"{len(shown)} of them, evenly spaced from the most to the least similar."
            if len(shown) < len(places)
            else ""
        )
        parts.append(paragraph(f"Left image: removed because {EXPLANATIONS[reason]}. {note}".strip()))
        for place in shown:
            row, kept_row, reference_row = (
                int(a[place]) for a in (removed.row, removed.duplicate_of, removed.reference)
            )
            left = album.picture(result.manifest, row, "removed", **_SIZE)
            if kept_row >= 0 or result.references is None:
                right = album.picture(result.manifest, kept_row, "kept", **_SIZE)
            else:
                right = album.picture(result.references, reference_row, "excluded", **_SIZE)
            caption = f"similarity {removed.similarity[place]:.2f}, {removed.how[place]}"
            parts.append(f"<div class='pair'>{left}{right}<p class='soft'>{escape(caption)}</p></div>")
    return parts


def show_sheets(result: CurationResult, album: Album) -> list[str]:
    """Show one contact sheet per reason, of the removed images that are not part of a pair."""
    paired = np.zeros(len(result.manifest), bool)
    paired[result.removed.row] = True
    reasons = np.array(result.reason, object)
    parts = []
    for reason in REASONS:
        rows = np.flatnonzero((reasons == reason) & ~paired)
        if len(rows):
            shown = rows[spaced_indices(len(rows), SHEET)]
            caption = f"{reason}: {len(shown):,} of {len(rows):,} ({EXPLANATIONS[reason]})"
            parts.append(album.sheet(result.manifest, shown.tolist(), caption))
    return [heading("Removed single images"), *parts] if parts else []


def show_clusters(result: CurationResult, album: Album) -> list[str]:
    """Show contact sheets of clusters, from the largest to the smallest."""
    clusters = list(result.clusters().values())
    if not clusters:
        return []
    parts = [
        heading("Clusters"),
        paragraph(
            f"{min(CLUSTERS, len(clusters))} of {len(clusters):,} clusters, from the largest to the smallest. "
            "Crossed-out images are not kept."
        ),
    ]
    for place in spaced_indices(len(clusters), CLUSTERS):
        rows = clusters[place]
        chosen = rows[spaced_indices(len(rows), SHEET // 2)]
        caption = f"{len(rows):,} images, {int(result.keep[rows].sum()):,} of them kept"
        crossed = (~result.keep[chosen]).tolist()
        parts.append(album.sheet(result.manifest, chosen.tolist(), caption, crossed=crossed, side=64))
    return parts


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
