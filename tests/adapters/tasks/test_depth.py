"""Depth: files, losses in double precision, the range of heads, and training and prediction on real frames."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.heads.depth import LinearDepth, LinearDepthConfig
from dinomed.adapters.inference.folder import predict_collection
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.depth.losses import gradient_loss, sig_loss
from dinomed.adapters.tasks.depth.maps import DepthSource, shrink_depth
from dinomed.adapters.tasks.depth.predict import DepthPredictor
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.config import load_config
from dinomed.configs import find_config
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import Features
from dinomed.images.depthmap import read_depth, write_depth
from dinomed.images.read import MaskSizeError, UnreadableImage

SIMCOL = 20 / 65280


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, targets = torch.rand(2, 2, 1, 20, 18, generator=generator, dtype=torch.float64) * 9 + 0.5
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = float("nan")
    return prediction, targets


def test_sig_loss_equals_its_formula() -> None:
    prediction, targets = maps()
    known = ~np.isnan(targets.numpy())
    d = np.log(prediction.numpy()[known] + 1e-3) - np.log(targets.numpy()[known] + 1e-3)
    expected = np.sqrt(d.var(ddof=1) + 0.15 * d.mean() ** 2)
    assert sig_loss(prediction, targets).item() == pytest.approx(expected, rel=1e-10)
    assert sig_loss(prediction.float(), targets.float()).item() == pytest.approx(expected, rel=1e-5)
    assert sig_loss(2 * targets, targets).item() == pytest.approx(
        0.15**0.5 * np.log(2), rel=1e-2
    )  # + 0.001 in the logs


@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_sig_loss_of_one_known_pixel_is_its_difference_without_sign(factor: float) -> None:
    targets = torch.full((1, 1, 4, 4), float("nan"), dtype=torch.float64)
    targets[0, 0, 1, 2] = 3.0
    prediction = torch.full_like(targets, 3.0 * factor).requires_grad_()
    loss = sig_loss(prediction, targets)
    expected = abs(np.log(3.0 * factor + 1e-3) - np.log(3.001))
    assert loss.item() == pytest.approx(0.15**0.5 * expected, abs=2e-6)
    loss.backward()
    assert prediction.grad is not None
    assert np.sign(prediction.grad[0, 0, 1, 2].item()) == np.sign(factor - 1)


def test_gradient_loss_equals_its_formula() -> None:
    prediction, targets = maps(1)
    d = np.log(prediction.numpy() + 1e-3) - np.log(targets.numpy() + 1e-3)
    expected = 0.0
    for scale in (1, 2, 4, 8):
        part = d[:, 0, ::scale, ::scale]
        down, across = np.abs(part[:, 2:] - part[:, :-2]), np.abs(part[:, :, 2:] - part[:, :, :-2])
        expected += (np.nansum(down) + np.nansum(across)) / (~np.isnan(part)).sum()
    assert gradient_loss(prediction, targets).item() == pytest.approx(expected, rel=1e-10)
    assert gradient_loss(3 * prediction, 3 * prediction).item() == 0


def test_losses_of_perfect_and_of_unknown_depths_have_finite_gradients() -> None:
    targets = torch.full((1, 1, 8, 8), 2.0)
    for known in (targets, torch.full_like(targets, float("nan"))):
        prediction = targets.clone().requires_grad_()
        (sig_loss(prediction, known) + gradient_loss(prediction, known)).backward()
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()


def test_the_linear_head_equals_the_formula_of_the_paper() -> None:
    head = LinearDepth(LinearDepthConfig(low=0.5, high=8, bins=16, blocks=(0, 1)), embed_dim=6, num_classes=1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    x = Features(torch.randn(2, 12), torch.randn(2, 12), torch.randn(2, 12, 3, 4))
    assert x.patches is not None
    tokens = torch.cat([x.patches, x.cls[:, :, None, None].expand_as(x.patches)], 1)  # as the reference: joined first,
    big = interpolate(tokens, scale_factor=4, mode="bilinear").double()  # enlarged, then the layer
    weight = torch.cat([head.patch_layer.weight[:, :, 0, 0], head.cls_layer.weight], 1).double()
    logits = torch.einsum("kc,bchw->bkhw", weight, big) + head.patch_layer.bias.double()[:, None, None]
    shares = logits.relu() + 0.1
    expected = (shares / shares.sum(1, keepdim=True) * torch.linspace(0.5, 8, 16)[:, None, None]).sum(1)
    torch.testing.assert_close(head(x)[:, 0].double(), expected, atol=1e-4, rtol=0)  # float32 sums of 24 products


@pytest.mark.parametrize("name", ["linear", "linear4", "dpt"])
def test_depths_stay_in_the_range_for_any_features(name: str, tiny_backbone: Path) -> None:
    head_settings = {"name": name, "low": 0.3, "high": 7.0} | ({"channels": 16} if name == "dpt" else {})
    config = DepthConfig.model_validate({"head": head_settings})
    head = build_adapter(config, load_backbone(tiny_backbone), num_classes=1)
    width = 32 * len(head.config.blocks)
    for factor in (0.0, 1.0, 1e4):
        out = head(Features(*torch.randn(2, 2, width) * factor, torch.randn(2, width, 5, 4) * factor)).detach()
        assert out.shape[:2] == (2, 1)
        assert out.min() >= 0.3
        assert out.max() <= 7.0


def test_depth_files(tmp_path: Path) -> None:
    values = np.array([[0, 1, 300], [65280, 65535, 7]], np.uint16)
    Image.fromarray(values).save(tmp_path / "d.png")
    depth = read_depth(tmp_path / "d.png", SIMCOL, size=(2, 3))
    assert np.isnan(depth[0, 0])
    assert depth[1, 0] == pytest.approx(20)
    np.testing.assert_allclose(depth[0, 1:], values[0, 1:] * SIMCOL, rtol=1e-6)
    np.save(tmp_path / "d.npy", np.array([[1.5, -1, np.inf], [np.nan, 0, 2]]))
    array = read_depth(tmp_path / "d.npy", 2.0)
    np.testing.assert_array_equal(array, np.array([[3, np.nan, np.nan], [np.nan, np.nan, 4]], np.float32))
    write_depth(tmp_path / "w.png", depth, SIMCOL)
    np.testing.assert_array_equal(read_depth(tmp_path / "w.png", SIMCOL), depth)
    Image.new("L", (4, 4)).save(tmp_path / "j.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "d.npy").read_bytes()[:-8])
    for name, message in (("j.jpg", "JPEG"), ("c.png", "gray"), ("o.npy", "damaged"), ("cut.npy", "damaged")):
        with pytest.raises(UnreadableImage, match=message):
            read_depth(tmp_path / name)
    with pytest.raises(MaskSizeError, match="the depth map is 3x2, its image 4x4"):
        read_depth(tmp_path / "d.png", size=(4, 4))


def test_shrinking_leaves_unknown_depths_out() -> None:
    depth = np.full((4, 4), 2.0, np.float32)
    depth[:2, :2] = np.nan
    depth[0, 2] = np.nan
    small = shrink_depth(depth, Preprocessing(image_size=2))
    assert np.isnan(small[0, 0])
    assert small[0, 1] == small[1, 0] == small[1, 1] == 2


@pytest.fixture(scope="module")
def frames(real_data: Path) -> Manifest:
    """The ten frames; eight to learn from, and two of them again as val and test."""
    manifest = scan(real_data / "depth", labels="labels.csv", make_split=False).manifest
    assert len(manifest) == 10
    splits = pa.array(["train"] * 8 + ["val", "test"], pa.string())
    return Manifest(manifest.table.append_column("split", splits), manifest.root)


@pytest.mark.long
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", pytest.param("dpt", marks=pytest.mark.long)])
def test_heads_overfit_the_frames_and_stay_in_their_range(
    name: str, frames: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    """What is learned of eight frames has to come close to them, even on a random backbone."""
    fit = FitConfig(epochs=10, patience=10, batch_size=8, learning_rate=0.005 if name == "dpt" else 0.05, min_steps=150)
    head = {"name": name} | ({"channels": 16} if name == "dpt" else {"bins": 64, "blocks": [0, 1, 2]})
    config = DepthConfig.model_validate({"head": head, "scale": SIMCOL, "unit": "cm", "image_size": 64, "fit": fit})
    folder = fit_head(load_backbone(tiny_backbone), frames, tmp_path / "d", config, cache=tmp_path / "s").folder
    metrics = evaluate(folder, frames, "train")["metrics"]
    constant = constant_error(frames)
    assert metrics["rmse"] < 0.5 * constant
    assert metrics["unit"] == "cm"
    predictor = load_adapter(folder)
    assert isinstance(predictor, DepthPredictor)
    predict_collection(predictor, frames.take([0, 9]), tmp_path / "out")
    schema = json.loads((tmp_path / "out" / "depth_scale.json").read_text())
    assert schema["unit"] == "cm"
    for path in (tmp_path / "out").rglob("*.png"):
        depth = read_depth(path, schema["scale"])
        assert depth.shape == (frames.table["height"][0].as_py(), frames.table["width"][0].as_py())
        assert predictor.low - schema["scale"] <= depth.min() <= depth.max() <= predictor.high + schema["scale"]


def constant_error(frames: Manifest) -> float:
    """The mean RMSE of each frame's own median: better than any one depth for all."""
    depths = [DepthSource(scale=SIMCOL).read(frames, i) for i in range(8)]
    return float(np.mean([np.sqrt(np.nanmean((depth - np.nanmedian(depth)) ** 2)) for depth in depths]))


def test_errors_of_depth_maps_have_clear_messages(lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    manifest, backbone = read_manifest(lesion_manifest), load_backbone(tiny_backbone)
    with pytest.raises(UsageError, match="no depth maps in a column 'depth'"):
        fit_head(backbone, manifest, tmp_path / "a", DepthConfig(), cache=tmp_path / "s")
    size = (manifest.table["height"][0].as_py(), manifest.table["width"][0].as_py())
    np.save(tmp_path / "flat.npy", np.full(size, 3.0))
    climbing = Manifest(
        manifest.table.append_column("depth", pa.array(["../" * 3 + "etc"] * len(manifest), pa.string())), manifest.root
    )
    with pytest.raises(UsageError, match="leaves the folder"):
        fit_head(backbone, climbing, tmp_path / "b", DepthConfig(), cache=tmp_path / "s")
    flat = manifest.table.append_column("depth", pa.array(["flat.npy"] * len(manifest), pa.string()))
    with pytest.raises(DinomedError, match=r"only one depth \(3\)"):
        fit_head(backbone, Manifest(flat, tmp_path), tmp_path / "c", DepthConfig(), cache=tmp_path / "s")
    with pytest.raises(ValueError, match="must be below"):
        LinearDepthConfig(low=3, high=2)


@pytest.fixture(scope="module")
def slopes(lesion_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Synthetic images with depths of 1 to 20 that rise to the right."""
    folder, manifest = tmp_path_factory.mktemp("slopes"), read_manifest(lesion_manifest)
    (folder / "images").symlink_to(manifest.root / "images")
    names = []
    for row, (height, width) in enumerate(zip(manifest.column("height"), manifest.column("width"), strict=True)):
        names.append(f"{row}.npy")
        np.save(folder / names[-1], np.tile(np.linspace(1, 10 + row % 11, width, dtype=np.float32), (height, 1)))
    return Manifest(manifest.table.append_column("depth", pa.array(names, pa.string())), folder)


def quick(**settings: object) -> DepthConfig:
    fit = FitConfig(epochs=3, batch_size=8, learning_rate=0.05, min_steps=0)
    return DepthConfig.model_validate({"image_size": 32, "augment": "none", "fit": fit, **settings})


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"low": 50}, r"`head.low=50` is not below 20, the largest depth of the training maps; set head.high too"),
        ({"high": 0.5}, r"`head.high=0.5` is not above 1, the smallest depth of the training maps; set head.low too"),
    ],
)
def test_a_limit_outside_the_depths_is_refused_with_both_limits(
    head: dict[str, float], message: str, slopes: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fit_head(load_backbone(tiny_backbone), slopes, tmp_path / "d", quick(head=head), cache=tmp_path / "s")


@pytest.mark.parametrize("flips", [False, True])
def test_the_metrics_of_a_fit_are_those_of_the_saved_predictor(
    flips: bool, slopes: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    result = fit_head(load_backbone(tiny_backbone), slopes, tmp_path / "d", quick(flips=flips), cache=tmp_path / "s")
    again = evaluate(result.folder, slopes, "val", resamples=10)["metrics"]
    for name in ("rmse", "abs_rel", "delta1"):
        assert again[name] == pytest.approx(result.validation[name], rel=1e-3), name  # cached features are float16


@pytest.mark.parametrize("name", ["depth", "depth_dpt", "depth_simcol"])
def test_the_config_files_of_dinomed_are_valid(name: str) -> None:
    assert load_config(DepthConfig, find_config(f"configs/adapters/{name}.yaml")).column == "depth"
