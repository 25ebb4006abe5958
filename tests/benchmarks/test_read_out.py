"""The values of read-outs: those of the command, chosen on val and never on test, and a table of differences."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dinomed.adapters.evaluation.draws import draw_images
from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.fit import fit_head
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest


@pytest.fixture(scope="module")
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("read_out")


def test_auto_is_the_best_on_val_and_never_a_head_that_it_does_not_try(bench: ModuleType) -> None:
    scores = {"linear": (0.6, 0.9), "linear, last 2 blocks": (0.7, 0.5), "multi_view": (0.8, 0.95)}
    chosen = bench.choose(scores)
    assert chosen[bench.AUTO] == (0.7, 0.5)
    assert chosen[bench.LIMIT] == (0.6, 0.9)


def test_differences_are_those_to_the_same_backbone_and_draw(bench: ModuleType) -> None:
    rows = [
        {"count": "25", "scores": {"linear": (0.5, 0.25), "multi_view": (0.5, 0.5)}},
        {"count": "25", "scores": {"linear": (0.5, 0.75), "multi_view": (0.5, 0.5)}},
        {"count": "200", "scores": {"linear": (0.5, 0.6), "multi_view": (0.5, 0.9)}},
    ]
    lines = bench.build_table(rows, "segment").splitlines()
    assert lines[0] == "| read-out | 25: mean Dice | 25: difference | 200: mean Dice | 200: difference |"
    assert lines[2] == "| linear | 0.500 |  | 0.600 |  |"
    assert lines[3] == "| multi_view | 0.500 | +0.000 (-0.250 to +0.250) | 0.900 | +0.300 (+0.300 to +0.300) |"
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| auto", "| best on test"]
    assert "2 of 25 images and 1 of 200 images" in lines[-1]


@pytest.mark.long
def test_a_value_is_that_of_the_command_and_runs_are_not_repeated(
    bench: ModuleType, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [str(lesion_manifest), "-b", str(tiny_backbone), "--size", "32", "--counts", "30", "-o", str(out)]
    bench.main([*words, "--draws", "1"])
    first = (out / "results.jsonl").read_text()
    (row,) = map(json.loads, first.splitlines())
    assert len(row["scores"]) == 15
    manifest, backbone = read_manifest(lesion_manifest), load_backbone(tiny_backbone)
    pool = manifest.take([i for i, split in enumerate(manifest.column("split")) if split in ("train", "val")])
    images = draw_images(pool, 30, 0, "label")
    for title in ("attentive", "logistic, cls+mean, sizes 1 and 1.5"):
        settings = [f"head.name={title.split(',')[0]}"]
        settings += ["head.tokens=cls+mean", "scales=[1, 1.5]"] if "sizes" in title else []
        config = bench.Bench("classify", 32, manifest, out).config(*settings, "seed=0")
        adapter = fit_head(backbone, images, tmp_path / "adapter", config, cache=tmp_path, overwrite=True).folder
        value = evaluate(adapter, manifest, "test", backbone=str(tiny_backbone))["metrics"]["auroc"]
        # The command computes features in float32 and calibrates probabilities, the benchmark keeps features in
        # float16: nearly equal images change places. A pair of the 12 test images of 3 classes is 0.01.
        assert row["scores"][title][1] == pytest.approx(value, abs=0.04)
    bench.main([*words, "--draws", "2"])
    assert (out / "results.jsonl").read_text().startswith(first)
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    assert "2 of 30 images" in (out / "classify.md").read_text()
