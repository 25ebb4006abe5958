"""16-bit gray images and images of five channels, from files to features, a trained head and predictions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.apps.cli import main
from dinomed.backbones.load import load_backbone
from dinomed.config import to_yaml
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import UsageError
from dinomed.images.read import IntensityConfig, read_image
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.resolve import fit_to_images

Tiny = Callable[..., PretrainConfig]


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    assert done.value.code == 0, arguments


def spots(kind: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """uint16 (40, 40, channels): a round spot, bright in the first channel for kind 0 and in the last for kind 1, on
    a background that no 8 bits could tell from black."""
    rows, columns = np.mgrid[:40, :40]
    centre = rng.uniform(12, 28, 2)
    spot = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 40)[..., None]
    weights = np.zeros(channels)
    weights[0 if kind == 0 else -1] = 1
    if channels == 1:
        weights = np.array([0.2 + 0.8 * kind])
    return (rng.integers(0, 120, (40, 40, channels)) + 60_000 * spot * weights).astype(np.uint16)


@pytest.fixture(params=[pytest.param("gray16", marks=pytest.mark.long), "five"])
def collection(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    channels = 1 if request.param == "gray16" else 5
    rng = np.random.default_rng(0)
    for index in range(36):
        kind = index % 2
        folder = tmp_path / "pictures" / f"kind{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = spots(kind, channels, rng)
        if channels == 1:
            Image.fromarray(pixels[..., 0]).save(folder / f"{index}.png")
        elif index % 3 == 0:  # three ways to hold five channels
            np.save(folder / f"{index}.npy", pixels)
        elif index % 3 == 1:
            pages = [Image.fromarray(pixels[..., c]) for c in range(channels)]
            pages[0].save(folder / f"{index}.tif", save_all=True, append_images=pages[1:])
        else:
            import tifffile

            tifffile.imwrite(folder / f"{index}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return tmp_path, channels


@pytest.mark.slow  # five commands
def test_from_scan_to_predictions(collection: tuple[Path, int], tiny: Tiny) -> None:
    folder, channels = collection
    run("scan", folder / "pictures", "--labels", "folders", "-o", folder / "m.parquet")
    manifest = read_manifest(folder / "m.parquet")
    assert set(manifest.column("channels")) == {channels}
    assert set(manifest.column("bits")) == {16}

    config = tiny(backbone={"in_channels": channels})
    (folder / "c.yaml").write_text(to_yaml(PretrainConfig.model_validate(config.model_dump(exclude={"mean", "std"}))))
    run("pretrain", folder / "c.yaml", "--data", folder / "m.parquet", "-o", folder / "ssl", "--device", "cpu", "-q")
    backbone = load_backbone(folder / "ssl")
    assert backbone.vit.config.in_channels == backbone.preprocessing.channels == channels
    assert backbone.preprocessing.intensity == IntensityConfig(bits=16)
    path = manifest.path(0)
    pixels = backbone.preprocessing.read(path)
    assert (pixels.shape, pixels.dtype) == ((40, 40, channels), np.float32)
    assert len(np.unique(pixels)) > 256  # more than 8 bits hold

    run("features", folder / "m.parquet", "--backbone", folder / "ssl", "-o", folder / "f.parquet", "--device", "cpu")
    run("train", "classify", "--backbone", folder / "ssl", "--data", folder / "m.parquet", "-o", folder / "cls")
    run("predict", folder / "cls", folder / "m.parquet", "-o", folder / "out")
    rows = (folder / "out" / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + 36


def test_manifests_without_the_columns_channels_and_bits_are_read(lesion_manifest: Path, tiny: Tiny) -> None:
    manifest = read_manifest(lesion_manifest)
    assert set(manifest.column("bits")) == {8}
    old = Manifest(manifest.table.drop_columns(["channels", "bits"]), manifest.root)
    assert fit_to_images(tiny(), old) == fit_to_images(tiny(), manifest) == tiny()


def test_augmentation_that_needs_rgb_is_switched_off_with_a_message(
    lesion_manifest: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = fit_to_images(tiny(backbone={"in_channels": 1}), read_manifest(lesion_manifest))
    assert capsys.readouterr().err == (
        "saturation, hue, gray: off, because they need RGB and the backbone takes 1 channels\n"
    )
    assert (fitted.crops.jitter, fitted.crops.gray_probability) == ((0.4, 0.4, 0.0, 0.0), 0.0)
    assert fitted.mean == (0.449,)
    fit_to_images(fitted, read_manifest(lesion_manifest))
    assert capsys.readouterr().err == ""


def test_images_of_other_channels_are_refused(tmp_path: Path, tiny: Tiny) -> None:
    from dinomed.datasets.scan.scan import scan

    np.save(tmp_path / "a.npy", np.zeros((20, 20, 5), np.uint8))
    manifest = scan(tmp_path).manifest
    with pytest.raises(
        UsageError, match=r"a\.npy has 5 channels, but the backbone takes 3; use `settings=\['backbone\.in_chan"
    ):
        fit_to_images(tiny(), manifest)
    with pytest.raises(UsageError, match="but the backbone takes 4"):
        fit_to_images(tiny(backbone={"in_channels": 4}), manifest)
    fit_to_images(tiny(backbone={"in_channels": 5}), manifest)


def test_an_inflated_layer_gives_the_same_tokens_for_equal_channels(tiny: Tiny, tiny_backbone: Path) -> None:
    from dinomed.pretrain.model.dinov2 import backbone_of
    from dinomed.pretrain.model.initialisation import read_initialisation
    from dinomed.pretrain.resolve import fit_to_initialisation
    from dinomed.pretrain.train_step import TrainStep

    config = tiny(backbone={"in_channels": 5}, start={"weights": str(tiny_backbone)})
    initialisation = read_initialisation(config.start)
    train_step = TrainStep(fit_to_initialisation(config, initialisation), torch.device("cpu"), initialisation)
    gray = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        five = backbone_of(train_step.model.student).patch_embed(gray.expand(-1, 5, -1, -1))
        three = load_backbone(tiny_backbone).vit.patch_embed(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(five, three, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_preprocessing_keeps_the_range_of_the_image(tmp_path: Path) -> None:
    from dinomed.backbones.preprocessing import Preprocessing

    Image.fromarray(np.full((50, 60), 40_000, np.uint16)).save(tmp_path / "a.png")
    settings = {"image_size": 16, "channels": 1, "mean": (0.0,), "std": (1.0,)}
    for intensity, wanted in (
        (IntensityConfig(bits=16), 40_000 / 65_535),
        (IntensityConfig(bits=16, window=(0, 50_000)), 0.8),
        (IntensityConfig(bits=8, window=(0, 50_000)), 204 / 255),
        (IntensityConfig(), round(40_000 / 257) / 255),
    ):
        preprocessing = Preprocessing(intensity=intensity, **settings)  # type: ignore[arg-type]
        torch.testing.assert_close(
            preprocessing(preprocessing.read(tmp_path / "a.png")), torch.full((1, 16, 16), wanted)
        )
    assert json.loads(preprocessing.model_dump_json())["intensity"]["bits"] is None
    assert read_image(tmp_path / "a.png").dtype == np.uint8
