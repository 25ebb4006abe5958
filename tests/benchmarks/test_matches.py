"""The benchmark of matches: its warp leads back to the image, and only matches at the right place are correct."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import save_file


@pytest.fixture
def matches(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("matches")


def test_a_pixel_of_a_copy_is_that_of_the_image(matches: ModuleType) -> None:
    rows, columns = np.mgrid[:60, :80]
    image = np.stack([2 * rows, 2 * columns, 0 * rows], axis=-1).astype(np.uint8)  # colour tells the place
    copy, matrix = matches.warp(image, 90, 0.6, 0)
    x, y = 20, 40
    u, v = matrix @ [x + 0.5, y + 0.5, 1]
    expected = 1.1 * np.array([2 * v, 2 * u, 0])
    assert np.abs(copy[y - 2 : y + 3, x - 2 : x + 3].astype(float).mean(axis=(0, 1)) - expected).max() < 5  # noise of 4


def test_only_matches_at_the_right_place_are_correct(matches: ModuleType) -> None:
    tokens = np.random.default_rng(0).normal(size=(10, 10, 32)).astype(np.float32)
    same = np.array([[1.0, 0, 0], [0, 1, 0]])
    total, correct = matches.count_correct(tokens, tokens, same, (100, 100), 0.5)
    assert total == correct > 10
    away = np.add(same, [[0, 0, 50], [0, 0, 0]])  # as if the copy showed what lies 50 px to the right
    assert matches.count_correct(tokens, tokens, away, (100, 100), 0.5) == (total, 0)


def test_the_pixels_of_patches_find_an_image_that_is_only_brighter(matches: ModuleType) -> None:
    image = np.random.default_rng(0).integers(0, 220, (96, 96, 3)).astype(np.uint8)  # brighter, still below 255
    rows = matches.measure(lambda images: matches.describe_pixels(images, 12, 8), [image, image[::-1].copy()], 0.5)
    brighter = next(row for row in rows if row["copy"] == "same size, brighter")
    assert brighter["correct"] > 0.95
    assert brighter["counts"][1] == 2 * brighter["matches"]
    even = np.kron(image[:12, :12], np.ones((8, 8, 1), np.uint8))  # one colour for each patch
    (colours,) = matches.describe_colours([even], 12, 8)
    assert np.allclose(colours, even[4::8, 4::8])


def cache_published(cache: Path, patch: int) -> str:
    """Write a ViT of timm into a cache of the Hugging Face hub, as a download leaves it there; return its name."""
    timm = pytest.importorskip("timm", reason="timm is not installed (pip install dinomed[test])")
    model = {"img_size": 4 * patch, "patch_size": patch, "embed_dim": 64, "depth": 2, "num_heads": 1}
    vit = timm.models.vision_transformer.VisionTransformer(**model, init_values=1e-5, num_classes=0)
    config = {
        "architecture": "vit_small_patch14_dinov2",
        "model_args": model,
        "pretrained_cfg": {"input_size": [3, 4 * patch, 4 * patch], "mean": [0.5] * 3, "std": [0.2] * 3},
    }
    repository, commit = cache / f"models--timm--vit_patch{patch}", "b" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file(vit.state_dict(), snapshot / "model.safetensors")
    return f"timm/vit_patch{patch}"


def test_a_published_backbone_is_measured_under_its_name(
    matches: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name, other = cache_published(tmp_path, 14), cache_published(tmp_path, 16)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["matches.py", "--images", "2", *words])
        matches.main()
        return capsys.readouterr().out

    (results,) = json.loads(run("--backbone", name, "--image-size", "112", "--json")).values()
    assert list(results) == [name, "pixels", "mean colour"]
    assert [row["copy"] for row in results[name]] == [*matches.WARPS, "another image"]
    correct, total = results[name][0]["counts"]
    assert 0 < correct <= total
    with pytest.raises(SystemExit, match="192 is not a multiple of"):
        run("--backbone", name)
    with pytest.raises(SystemExit, match="different sizes"):
        run("--backbone", name, "--backbone", other, "--image-size", "112")
