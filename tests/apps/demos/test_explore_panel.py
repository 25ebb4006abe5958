"""The tab Explore: what it sends for a picture, alone and beside earlier pictures of the visit."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from dinomed.adapters.inference.shared import predict_many
from dinomed.apps.demos.explore.kept import KeptTokens
from dinomed.apps.demos.explore.panel import ExplorePanel
from dinomed.apps.demos.parts import Picture
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.explore.attention import last_attention
from dinomed.explore.images import patch_tokens
from dinomed.explore.match import match_patches
from dinomed.explore.pca import pca_colours
from dinomed.explore.similarity import similarity_maps
from dinomed.images.read import read_image


@pytest.fixture
def panel(tiny_backbone: Path) -> ExplorePanel:
    return ExplorePanel(load_backbone(tiny_backbone))


@pytest.fixture
def pixels(lesion_manifest: Path) -> list[np.ndarray]:
    manifest = read_manifest(lesion_manifest)
    return [read_image(manifest.path(row)) for row in range(8)]


def ask(panel: ExplorePanel, pixels: np.ndarray, **settings: Any) -> dict[str, Any]:
    """The answer for a picture, as the server computes it."""
    tokens = patch_tokens(panel.backbone, [pixels])[0]
    return panel.answer(Picture(pixels, pixels, "hash"), [tokens], settings)["explore"]


def test_the_page_can_compute_the_similarity_to_earlier_pictures(panel: ExplorePanel, pixels: list[np.ndarray]) -> None:
    first = ask(panel, pixels[0], mode="similarity")
    assert (first["rows"], first["columns"], first["components"], first["earlier"]) == (4, 4, 32, [])
    second = ask(panel, pixels[1], mode="similarity", earlier=json.dumps([first["key"], "unknown"]))
    assert second["earlier"] == [first["key"]]
    sent = [
        np.frombuffer(base64.b64decode(text), np.int8).reshape(4, 4, 32).astype(float) for text in second["features"]
    ]
    units = [values / np.linalg.norm(values, axis=-1, keepdims=True) for values in sent]
    exact = similarity_maps(patch_tokens(panel.backbone, [pixels[1], pixels[0]]), 0, (1, 2))
    for unit, expected in zip(units, exact, strict=True):
        assert np.abs(unit @ units[0][1, 2] - expected).max() < 0.03  # int8, and float16 of the earlier picture


def test_at_most_five_earlier_pictures_are_compared(panel: ExplorePanel, pixels: list[np.ndarray]) -> None:
    keys = [ask(panel, each, mode="pca")["key"] for each in pixels[:7]]
    answer = ask(panel, pixels[7], mode="pca", earlier=json.dumps(keys))
    assert answer["earlier"] == keys[:5]
    assert len(answer["maps"]) == 6
    tokens = np.stack(patch_tokens(panel.backbone, [pixels[7], *pixels[:5]]))
    image = Image.open(io.BytesIO(base64.b64decode(answer["maps"][0].partition("base64,")[2])))
    # float16 of the earlier pictures moves the components a little
    assert np.abs(np.asarray(image).astype(int) - pca_colours(tokens)[0]).max() <= 4


def test_padded_pictures_of_other_proportions_are_compared(tiny_backbone: Path, pixels: list[np.ndarray]) -> None:
    panel = ExplorePanel(load_backbone(tiny_backbone, aspect="pad"))

    def answer(picture: np.ndarray, **settings: Any) -> dict[str, Any]:
        tokens = [each for (each,) in predict_many(panel.consumers, [picture])]
        return panel.answer(Picture(picture, picture, "hash"), tokens, {"mode": "pca", **settings})["explore"]

    first = answer(pixels[0][:12])
    second = answer(pixels[1][:, :12], earlier=json.dumps([first["key"]]))
    assert (second["rows"], second["columns"], second["earlier"]) == (4, 4, [first["key"]])


def test_attention_and_matches_are_those_of_the_functions(panel: ExplorePanel, pixels: list[np.ndarray]) -> None:
    heads = ask(panel, pixels[0], mode="attention")["heads"]
    weights = last_attention(panel.backbone, panel.backbone.preprocessing(pixels[0])[None])
    assert [head["patches"] for head in heads] == pytest.approx(weights.shares()[0, :, -1].tolist())
    assert ask(panel, pixels[0], mode="match")["matches"] is None  # there is no earlier picture
    key = ask(panel, pixels[1], mode="match")["key"]
    answer = ask(panel, pixels[0], mode="match", earlier=json.dumps([key]))
    expected = match_patches(*patch_tokens(panel.backbone, pixels[:2]))
    assert [tuple(match[:4]) for match in answer["matches"]] == [(*m.first, *m.second) for m in expected]


def test_what_a_family_cannot_do_is_said(panel: ExplorePanel, pixels: list[np.ndarray]) -> None:
    tokens = patch_tokens(panel.backbone, pixels[:1])
    panel.backbone.model = nn.Identity()
    panel.backbone.model.family = "siglip"
    answer = panel.answer(Picture(pixels[0], pixels[0], "hash"), tokens, {"mode": "attention"})
    assert "whose attention is not known" in answer["html"]
    assert answer["explore"]["mode"] == "none"
    with pytest.raises(ValueError, match="an unknown mode"):
        panel.answer(Picture(pixels[0], pixels[0], "hash"), tokens, {"mode": "answer"})


def test_kept_tokens_are_bounded_and_have_secret_names() -> None:
    tokens = np.ones((4, 4, 8), np.float32)
    kept = KeptTokens(max_bytes=3 * 4 * 4 * 8 * 2)
    keys = [kept.put(tokens * number) for number in range(3)]
    assert kept.get(keys[0]) is not None  # used last, so the second goes first
    keys.append(kept.put(tokens))
    assert [kept.get(key) is not None for key in keys] == [True, False, True, True]
    assert len(set(keys)) == 4
    assert all(len(key) == 32 for key in keys)
