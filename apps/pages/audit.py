"""HTML page of an audit: pairs of training and test images side by side."""

from html import escape
from typing import Any

from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest
from dinomed.html.album import MIB, Album
from dinomed.html.page import (
    build_page,
    build_table,
    code,
    heading,
    next_steps,
    paragraph,
    verdict,
    with_contents,
)
from dinomed.pretrain.curation.audit.audit import KINDS, Audit, LeakedPair

MAX_PAIRS = 100
"""Maximum number of pairs of each kind; a larger page is too large to open. The JSON report has all pairs."""
_LIMIT = 64 * MIB
AFTER_A_LEAK = (
    ("dinomed curate --pool POOL --exclude TEST -o CURATED", "a training set without the test images and their copies"),
    ("dinomed audit CURATED TEST", "again, after the removal"),
    ("dinomed pretrain CONFIG --data CURATED -o RUN", "pretraining on what is left"),
)
WITHOUT_A_LEAK = (
    ("dinomed pretrain CONFIG --data TRAIN -o RUN", "pretraining on the training images"),
    ("dinomed audit TRAIN --labels COLUMN --backbone RUN -o labels.html", "the search for wrong labels"),
)
_TITLES = {
    "exact": "Exact copies: the same file",
    "near": "Near copies: the same picture, changed",
    "group": "Shared groups: another picture of a patient, lesion or video that is in the training set",
}


def build_audit_page(
    result: Audit,
    train: Manifest | None,
    test: Manifest,
    names: tuple[str, str],
    settings: str,
    mask: TextMask | None = None,
) -> str:
    """Return the page, with reduced pictures in it.

    Args:
        result: from the audit.
        train: training images; None if only their hashes are known.
        test: test images.
        names: names of the two sides.
        settings: settings of the audit, as YAML.
        mask: masks burned-in text in the images.
    """
    counts = result.counts
    rows: list[tuple[Any, ...]] = [(_TITLES[kind], counts[kind]) for kind in KINDS]
    rows += [("test images in any pair", result.leaked), ("test images", result.test_images)]
    rows += [("training images", result.train_images), ("test images that cannot be read", result.unreadable)]
    conclusion = (
        f"{result.leaked} of {result.test_images} test images have a copy, or an image of their group, "
        "in the training set."
        if result.pairs
        else "No leak was found."
    )
    limits = f"Training set: {names[0]}; test set: {names[1]}."
    if result.unreadable:
        limits += f" {result.unreadable} test images cannot be read; they were not compared."
    parts = [heading("Numbers"), build_table(("", "number"), rows)]
    parts += [paragraph(note) for note in result.notes]
    album = Album(_LIMIT, names=True, mask=mask)  # the user needs the names to remove these images
    for kind in KINDS:
        pairs = [pair for pair in result.pairs if pair.kind == kind]
        if pairs:
            parts.append(heading(f"{_TITLES[kind]} ({len(pairs)})"))
            if len(pairs) > MAX_PAIRS:
                parts.append(paragraph(f"The first {MAX_PAIRS} are shown; `--json` lists all."))
            parts += [_show(album, pair, train, test) for pair in pairs[:MAX_PAIRS]]
    parts += album.note()
    parts += next_steps(AFTER_A_LEAK if result.pairs else WITHOUT_A_LEAK, "Words in capitals stand for your paths.")
    parts += [heading("Settings"), code(settings)]
    return build_page("Leak audit", [verdict(conclusion, limits), *with_contents(parts)])


def describe_pair(pair: LeakedPair) -> str:
    """Return the similarity of a pair as text.

    >>> describe_pair(LeakedPair("near", 0, 0, similarity=0.8123, matches=37))
    'similarity 0.81, 37 points align'
    """
    words = []
    if pair.kind == "group":
        words.append(f"group {pair.group}")
    if pair.similarity is not None:
        words.append(f"similarity {pair.similarity:.2f}")
    if pair.matches is not None:
        words.append(f"{pair.matches} points align")
    if pair.distance is not None and pair.kind == "near":
        words.append(f"{pair.distance} of 256 bits differ")
    return ", ".join(words)


def _show(album: Album, pair: LeakedPair, train: Manifest | None, test: Manifest) -> str:
    left = (
        "<figure><figcaption>in the training set; only its hash is kept</figcaption></figure>"
        if pair.train is None or train is None
        else album.picture(train, pair.train, "train")
    )
    return f"<div>{left}{album.picture(test, pair.test, 'test')}<p class='soft'>{escape(describe_pair(pair))}</p></div>"
