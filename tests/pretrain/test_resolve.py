"""Resolution of the config, in the run and in `--dry-run`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.apps.cli import main
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.config import load_config, to_yaml
from dinomed.datasets.scan.scan import scan
from dinomed.errors import UsageError
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig, load_pretrain_config, to_high_resolution
from dinomed.pretrain.model.initialisation import Initialisation
from dinomed.pretrain.resolve import fit_to_initialisation, resolve_config
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


def call(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code


@pytest.fixture(scope="module")
def images_16_bit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 60_000, (40, 40)).astype(np.uint16)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, images_16_bit: Path) -> Path:
    """A finished run, for a teacher or for initial weights, of one channel."""
    out = tmp_path_factory.mktemp("trained") / "run"
    pretrain(
        tiny(backbone={"in_channels": 1}, mean=[0.4], std=[0.2], run={"steps": 1}), images_16_bit, out, device="cpu"
    )
    return out


@pytest.mark.parametrize("source", ["random weights", "initial weights", "teacher"])
def test_a_dry_run_shows_the_settings_that_the_run_uses(
    source: str, tiny: Tiny, images_16_bit: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"run": {"steps": 1, "scale_to_data": True}, "backbone": {"in_channels": 1}}
    (tmp_path / "c.yaml").write_text(to_yaml(tiny(mean=[0.5], std=[0.25], **changes)))
    command = "distill" if source == "teacher" else "pretrain"
    words: list[object] = [
        command,
        tmp_path / "c.yaml",
        "--data",
        images_16_bit,
        "--device",
        "cpu",
        "--json",
        "--quiet",
    ]
    words += {"random weights": [], "initial weights": ["--from", trained], "teacher": ["--teacher", trained]}[source]
    call(*words, "-o", tmp_path / "dry", "--dry-run")
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "dry").exists()
    call(*words, "-o", tmp_path / "run")
    used = load_config(PretrainConfig, tmp_path / "run" / "config.yaml").model_dump(mode="json")
    assert plan["config"] == used
    assert used["images"]["bits"] == 16
    assert used["crops"]["gray_probability"] == 0  # one channel
    assert used["teacher"]["momentum"] == pytest.approx(0.992 ** (4 / 1024))
    assert used["objective"]["dino_head"]["prototypes"] == (256 if source == "random weights" else 24)
    capsys.readouterr()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    heads = record["parameters"]["dino_head"] + record["parameters"]["ibot_head"]
    assert plan["estimate"]["head_parameters"] == heads


def test_local_views_follow_the_size_of_the_high_resolution_phase() -> None:
    recipe = Path("configs/pretrain/vit_tiny_cpu.yaml")  # 48 and 24 px, patch 8
    for settings, sizes in (([], (112, 56)), (["crops.global_size=96"], (96, 48))):
        crops = load_pretrain_config(recipe, ["start.weights=a", *settings], "highres").crops
        assert (crops.global_size, crops.local_size) == sizes


@pytest.mark.parametrize(
    ("patch", "before", "after"),
    [(14, 224, 518), (16, 224, 512), (8, 32, 72), (8, 256, 520), (8, 640, 640)],  # the factor of the paper, up to 518
)
def test_the_high_resolution_phase_has_the_factor_of_the_paper(tiny: Tiny, patch: int, before: int, after: int) -> None:
    config = tiny(backbone={"patch_size": patch}, crops={"global_size": before, "local_size": 2 * patch})
    assert to_high_resolution(config).crops.global_size == after


def test_the_sizes_of_the_high_resolution_phase_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logger.addHandler(caplog.handler)
    load_pretrain_config(Path("configs/pretrain/vit_tiny_cpu.yaml"), ["start.weights=a"], "highres")
    logger.removeHandler(caplog.handler)
    assert caplog.messages == [
        "`phase=highres`: global views of 112 px and local views of 56 px, in place of 48 and 24 px; "
        "`settings=['crops.global_size=SIZE']` sets another size"
    ]


def test_views_that_are_larger_than_nearly_all_images_give_a_warning(
    tiny: Tiny, images_16_bit: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger.addHandler(caplog.handler)
    sizes = {"backbone": {"in_channels": 1}, "mean": [0.4], "std": [0.2]}
    for size in (40, 48):
        resolve_config(tiny(crops={"global_size": size}, **sizes), images_16_bit)
    logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "crops.global_size is 48 px, and 100% of the 11 training images have fewer pixels (at the median as many as a "
        "square of 40 px): their views are always enlarged; for views of their own size add "
        "`settings=['crops.global_size=40']`"
    ]


def test_a_size_that_does_not_fit_the_patches_of_the_weights_is_named() -> None:
    config = load_pretrain_config(Path("configs/pretrain/highres.yaml"), ["start.weights=w"])  # for patches of 14 px
    vit = VisionTransformer(ViTConfig(patch_size=8, image_size=48, embed_dim=16, depth=1, num_heads=2))
    with pytest.raises(UsageError, match=r"518 is not divisible by the patch size 8 of w; set it to 512, or .*highres"):
        fit_to_initialisation(config, Initialisation(vit, Preprocessing(), {}))


@pytest.mark.parametrize(("ratios", "used"), [((0.5, 0.25, 0.25), 6), (None, 11)])  # None: 1 is kept for PCA pictures
def test_the_log_says_how_many_images_are_left_out(
    tiny: Tiny, images_16_bit: Path, caplog: pytest.LogCaptureFixture, ratios: tuple[float, ...] | None, used: int
) -> None:
    manifest = scan(images_16_bit, ratios=ratios).manifest
    logger.addHandler(caplog.handler)
    resolve_config(tiny(backbone={"in_channels": 1}, mean=[0.4], std=[0.2]), manifest)
    logger.removeHandler(caplog.handler)
    assert f"{used} of 12 images are used for training; the others are held out" in caplog.messages
