"""`benchmarks/heads/endoscopy.py`: from synthetic videos to a mask video that is compared with exact masks."""

import argparse
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dinomed
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.synthetic.endoscopy import draw_endoscopy
from dinomed.video.video import Video
from dinomed.video.write import writing_video

chain = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "heads" / "endoscopy.py"))
Run = Callable[..., tuple[int, str, str]]


def settings(**changes: object) -> argparse.Namespace:
    values = {"videos": 3, "frames": 50, "height": 72, "width": 96, "fps": 12.5, "backbone": None, "image_size": 96,
              "head": "linear", "set": None, "seed": 0}  # fmt: skip
    return argparse.Namespace(**values | changes)


def test_exact_masks_have_a_dice_of_1_and_others_less(tmp_path: Path) -> None:
    arguments = settings(frames=25)
    drawn = list(draw_endoscopy(25, (72, 96), chain["new_seed"](arguments)))
    for name, shift in (("exact", 0), ("shifted", 8)):
        with writing_video(tmp_path / f"{name}.avi", (72, 96), 25, lossless=True) as append:
            for frame in drawn:
                append(np.roll(frame.mask, shift, axis=1) * 255)
    exact = chain["compare"](tmp_path / "exact.avi", arguments)
    assert exact["dice_of_all_pixels"] == 1
    assert {row["dice"] for row in exact["by_kind"].values()} == {1.0}
    assert sum(row["frames"] for row in exact["by_kind"].values()) == exact["frames"] == 25
    assert {"outside, no polyp", "dark, no polyp"} <= set(exact["by_kind"])
    assert chain["compare"](tmp_path / "shifted.avi", arguments)["dice_of_all_pixels"] < 0.9


def test_the_printed_commands_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    def stop(*values: Any, seed: int, **options: Any) -> None:
        raise InterruptedError(seed)

    monkeypatch.setattr(dinomed, "train", stop)
    with pytest.raises(InterruptedError, match="3"):
        chain["run"](tmp_path, settings(videos=2, frames=10, seed=3))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ dinomed ")]
    select, scan, train = (shlex.split(line)[2:] for line in lines)
    for words in (scan, select):
        manifest = Path(words[words.index("-o") + 1])
        images = read_manifest(manifest).column("image")
        manifest.unlink()
        code, _, err = run(*words)
        assert code == 0, err
        assert read_manifest(manifest).column("image") == images
        shutil.rmtree(tmp_path / "videos" / "masks", ignore_errors=True)  # the first command ran without them
    assert train[train.index("--seed") + 1] == "3"


@pytest.mark.long
def test_a_segmenter_that_is_trained_on_selected_frames_outlines_the_polyp_of_a_new_video(tmp_path: Path) -> None:
    report = chain["run"](tmp_path, settings())
    assert report["frames"] == 50
    assert set(report["seconds"]) == {"select", "scan", "train", "predict"}
    assert 10 < report["training_frames"] < 3 * 50
    (mask,) = (tmp_path / "out").glob("*/mask.avi")
    assert sum(1 for _ in Video(mask).stream()) == 50
    # 0.44 when it was written, on random features; a mask of the whole frame has about 0.1, an empty one 0
    assert report["by_kind"]["inside"]["dice"] > 0.3
