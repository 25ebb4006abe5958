"""Allow and deny lists: patterns match paths in any Unicode form."""

from pathlib import Path

import pytest

from dinomed.datasets.manifest import build_manifest
from dinomed.pretrain.curation.filters.allow_deny import find_allowed, find_denied

BOTH = ["a\u0308", "\u00e4"]  # decomposed, as names of files from some systems are, and composed


@pytest.mark.parametrize("letter", BOTH)
def test_a_pattern_matches_names_in_either_unicode_form(letter: str) -> None:
    paths = [f"Ger{letter}t/{other}.png" for other in BOTH] + ["phone/a.png"]
    manifest = build_manifest({"image": paths, "device": ["Ger\u00e4t 1", None, "phone"]}, Path("."))
    for written in BOTH:
        assert find_denied(manifest, paths, {"image": (f"Ger{written}t/*",)}).tolist() == [True, True, False]
        assert find_denied(manifest, paths, {"image": (f"*/[{written}].png",)}).tolist() == [True, True, False]
        assert find_allowed(manifest, paths, {"device": (f"Ger{written}t*",)}).tolist() == [True, False, False]
