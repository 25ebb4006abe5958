"""Copy-detection descriptors: what the projections are, copies found among look-alikes, files that are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.scene import KINDS as LESIONS
from dinomed.datasets.synthetic.scene import draw_scene
from dinomed.datasets.synthetic.view import take_view
from dinomed.errors import DinomedError, UsageError
from dinomed.images.read import read_image
from dinomed.pretrain.curation.deduplication.config import MIN_MATCHES
from dinomed.pretrain.curation.deduplication.keypoints import count_matches, find_keypoints
from dinomed.pretrain.curation.descriptors.config import BackboneConfig, DescriptorConfig, SSCDConfig
from dinomed.pretrain.curation.descriptors.descriptor import (
    fit_descriptor,
    load_descriptor,
    save_descriptor,
)
from dinomed.pretrain.curation.descriptors.handcrafted import SIZE, compose
from dinomed.pretrain.curation.descriptors.projection import Projection, fit_invariance, fit_whitening
from dinomed.pretrain.curation.descriptors.sources import BackboneSource
from dinomed.pretrain.curation.descriptors.sscd import GeneralisedMean, load_sscd
from dinomed.pretrain.curation.descriptors.synthetic_copies import KINDS, make_copy


def draw_lesion(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return take_view(draw_scene(LESIONS[seed % 3], 200, 270, rng), 150, 200, rng)[0]


@pytest.fixture(scope="module")
def fitted(lesion_manifest: Path):
    config = DescriptorConfig(fit_images=16, dimension=256)
    return fit_descriptor(config, [read_manifest(lesion_manifest)])


# The projections.


def test_whitening_is_that_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    raw = np.random.default_rng(0).normal(size=(200, 10)) @ np.random.default_rng(1).normal(size=(10, 10))
    theirs = PCA(6, whiten=True).fit_transform(raw)
    ours = (raw - raw.mean(0)) @ fit_whitening(raw.astype(np.float32), 6).matrix
    assert np.abs(ours) == pytest.approx(np.abs(theirs), abs=2e-3)  # signs are arbitrary; float32 against float64
    plain = fit_whitening(raw.astype(np.float32), 6, power=0.0).matrix
    assert plain.T @ plain == pytest.approx(np.eye(6), abs=1e-5)


def test_invariance_is_linear_discriminant_analysis() -> None:
    """The span that is kept is that of scikit-learn's discriminant directions, with each picture as a class."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    scale = np.array([5.0, 4, 3, 1, 1, 1])  # where pictures differ
    noise = np.array([0.1, 0.2, 9, 0.1, 3, 0.5])  # what copying changes
    raw = rng.normal(size=(300, 6)) * scale
    copies = raw[:, None] + rng.normal(size=(300, 8, 6)) * noise
    ours = fit_invariance(raw, copies, 2, ridge=0.0).matrix
    samples = np.concatenate([raw[:, None], copies], axis=1)
    lda = LinearDiscriminantAnalysis(solver="eigen", n_components=2)
    lda.fit(samples.reshape(-1, 6), np.repeat(np.arange(300), 9))
    ours, theirs = (np.linalg.qr(basis)[0] for basis in (ours, lda.scalings_[:, :2]))
    # they estimate the noise about the class mean, ours about the original: the angle between the planes is small
    assert np.linalg.svd(ours.T @ theirs, compute_uv=False).min() > 0.99


def test_few_pictures_still_give_the_requested_dimension() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(5, 40))
    projection = fit_invariance(raw, raw[:, None] + 0.1 * rng.normal(size=(5, 6, 40)), 32)
    assert projection.dimension == 32
    assert np.linalg.matrix_rank(projection.matrix) == 32
    assert fit_invariance(raw, raw[:, None] + 0.1, 100).dimension == 40


def test_rows_have_length_one_and_bad_values_are_named() -> None:
    projection = Projection(np.ones(3, np.float32), np.eye(3, dtype=np.float32))
    out = projection(np.array([[1, 1, 1], [4, 1, 1]], np.float32))
    assert out.tolist() == [[1, 0, 0], [1, 0, 0]]
    with pytest.raises(DinomedError, match="descriptor of image 1"):
        projection(np.array([[0, 0, 0], [np.nan, 0, 0]], np.float32))
    with pytest.raises(DinomedError, match="2 values, the projection expects 3"):
        projection(np.ones((1, 2), np.float32))


# The composed features.


def test_composed_features_forgive_what_they_say() -> None:
    image = draw_lesion(1)
    square = np.ascontiguousarray(image[:, 25:175])
    base = compose(square)
    assert base.shape == (SIZE,)
    turned = compose(np.ascontiguousarray(np.rot90(square)))
    gradients = slice(0, 256)
    assert np.abs(base[gradients] - turned[gradients]).max() > 0.05
    # The rest knows no directions. What is left is resampling, and circles that begin elsewhere.
    assert np.abs(base[256:] - turned[256:]).max() < 0.02
    padded = np.pad(square, ((20, 5), (9, 30), (0, 0)), constant_values=200)
    assert np.abs(compose(padded) - base).max() < 1e-6


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_one_colour_is_described_too(level: int, fitted) -> None:
    flat = np.full((50, 60, 3), level, np.uint8)
    assert np.isfinite(compose(flat)).all()
    assert np.linalg.norm(fitted([flat])[0]) == pytest.approx(1, abs=1e-5)


# A fitted descriptor.


def test_copies_are_more_alike_than_lesions(fitted) -> None:
    lesions = [draw_lesion(seed) for seed in range(1000, 1024)]
    vectors = fitted(lesions)
    similarities = (vectors @ vectors.T)[~np.eye(len(lesions), dtype=bool)]
    limit = np.quantile(similarities, 0.99)
    for kind in ("turn", "flip", "jpeg", "text", "rescale", "border"):
        copies = fitted([make_copy(lesion, kind, np.random.default_rng(i)) for i, lesion in enumerate(lesions)])
        assert ((copies * vectors).sum(axis=1) > limit).mean() > 0.8, kind


def test_fitting_is_the_same_for_a_seed_and_survives_a_file(lesion_manifest: Path, tmp_path: Path, fitted) -> None:
    again = fit_descriptor(fitted.config, [read_manifest(lesion_manifest)], workers=3)
    assert again.fingerprint == fitted.fingerprint
    other_seed = fit_descriptor(fitted.config.model_copy(update={"seed": 1}), [read_manifest(lesion_manifest)])
    assert other_seed.fingerprint != fitted.fingerprint
    save_descriptor(tmp_path / "d.safetensors", fitted)
    loaded = load_descriptor(tmp_path / "d.safetensors")
    images = [draw_lesion(1), draw_lesion(2)[:40]]
    assert (loaded(images) == fitted(images)).all()
    assert (loaded.fingerprint, loaded.config) == (fitted.fingerprint, fitted.config)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, fitted) -> None:
    path = tmp_path / "d.safetensors"
    with pytest.raises(UsageError, match="does not exist"):
        load_descriptor(path)
    save_descriptor(path, fitted)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DinomedError, match="is damaged"):
        load_descriptor(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DinomedError, match="is not a descriptor"):
        load_descriptor(path)


def test_too_few_or_unreadable_images_are_an_error(lesion_manifest: Path, tmp_path: Path) -> None:
    manifest = read_manifest(lesion_manifest)
    with pytest.raises(DinomedError, match="needs at least 8 images for the fit, and 5"):
        fit_descriptor(DescriptorConfig(), [manifest.take(range(5))])
    moved = Manifest(manifest.table, tmp_path)  # no image is there
    with pytest.raises(DinomedError, match="and 0 can be read"):
        fit_descriptor(DescriptorConfig(), [moved])


# A frozen backbone.


def test_backbone_features_are_class_token_and_generalised_mean(tiny_backbone: Path) -> None:
    backbone = load_backbone(tiny_backbone)
    images = [draw_lesion(1), draw_lesion(2)]
    raw = BackboneSource(backbone, 4.0)(images)
    tokens = backbone(torch.stack([backbone.preprocessing(image) for image in images]))[0]
    for row in range(2):
        patches = np.maximum(tokens.patches[row].double().numpy(), 1e-6)
        expected = (patches**4).mean(axis=0) ** 0.25
        # float32 powers against float64
        assert raw[row] == pytest.approx([*tokens.cls[row].tolist(), *expected.tolist()], abs=1e-4)


def test_a_changed_backbone_is_noticed(tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, copy)
    config = DescriptorConfig(source=BackboneConfig(backbone=str(copy)), fit="whitening", fit_images=20)
    descriptor = fit_descriptor(config, [read_manifest(lesion_manifest)], device="cpu")
    save_descriptor(tmp_path / "d.safetensors", descriptor)
    assert load_descriptor(tmp_path / "d.safetensors", device="cpu").fingerprint == descriptor.fingerprint
    from dinomed.backbones.load import save_backbone

    changed = load_backbone(copy)
    with torch.no_grad():
        changed.vit.pos_embed.add_(1)
    save_backbone(copy, changed.vit, changed.preprocessing)
    with pytest.raises(DinomedError, match="fitted on other weights"):
        load_descriptor(tmp_path / "d.safetensors", device="cpu")


# SSCD. Its weights are not ours to ship: a network of the same architecture with random ones stands in.


@pytest.fixture(scope="module")
def sscd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = resnet50(num_classes=512)
    network.avgpool = GeneralisedMean(3.0)
    return tmp_path_factory.mktemp("sscd"), network.eval()


def test_sscd_is_read_from_tensors(sscd: tuple[Path, torch.nn.Module]) -> None:
    folder, network = sscd
    images = torch.randn(2, 3, 64, 64)
    state = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    torch.save(state, folder / "sscd.torchvision.pt")
    save_file(state, folder / "sscd.safetensors")
    for name in ("sscd.torchvision.pt", "sscd.safetensors"):
        loaded = load_sscd(folder / name)
        assert torch.equal(loaded(images), network(images))
    source = DescriptorConfig(source=SSCDConfig(weights=str(folder / "sscd.safetensors")), fit="none")
    vectors = fit_descriptor(source, [], device="cpu")([draw_lesion(1)])
    assert vectors.shape == (1, 512)
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_pooling_is_the_papers(sscd: tuple[Path, torch.nn.Module]) -> None:
    x = torch.randn(2, 5, 3, 4)
    expected = (x.clamp(min=1e-6) ** 3).flatten(2).mean(2) ** (1 / 3)
    assert torch.allclose(sscd[1].avgpool(x).flatten(1), expected, atol=1e-6)


def test_torchscript_runs_only_with_allow_code(
    sscd: tuple[Path, torch.nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, network = sscd
    path = folder / "sscd.torchscript.pt"
    images = torch.randn(1, 3, 64, 64)
    torch.jit.trace(network, images).save(str(path))
    with pytest.raises(UsageError, match=r"TorchScript, a program.*allow_code"):
        load_sscd(path)
    loaded = load_sscd(path, allow_code=True)
    assert "running the code" in capsys.readouterr().err
    assert torch.allclose(loaded(images), network(images), atol=1e-4)  # a traced program may fuse its sums


def test_other_files_are_no_sscd(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not exist"):
        load_sscd(tmp_path / "none.safetensors")
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "vit.safetensors")
    with pytest.raises(UsageError, match=r"no fc\.weight"):
        load_sscd(tmp_path / "vit.safetensors")
    save_file({"fc.weight": torch.zeros(4, 2048)}, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match="not the weights of an SSCD ResNet-50"):
        load_sscd(tmp_path / "part.safetensors")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(DinomedError, match="damaged, or more than tensors"):
        load_sscd(tmp_path / "text.pt")

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(DinomedError, match="more than tensors"):
        load_sscd(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


# Checking a pair.


def test_copies_align_and_different_lesions_do_not() -> None:
    lesions = [draw_lesion(seed) for seed in range(3)]
    points = [find_keypoints(lesion) for lesion in lesions]
    for kind in KINDS:
        if kind in ("blur", "mixed"):  # may leave no points, and the hash is then what tells
            continue
        match_counts = [
            count_matches(points[i], find_keypoints(make_copy(lesion, kind, np.random.default_rng(i))))
            for i, lesion in enumerate(lesions)
        ]
        assert sum(count >= MIN_MATCHES for count in match_counts) >= 2, (kind, match_counts)
    different_counts = [count_matches(points[i], points[j]) for i in range(3) for j in range(i)]
    assert max(different_counts) < MIN_MATCHES, different_counts


def test_nothing_to_align_in_a_blank_picture() -> None:
    blank = find_keypoints(np.full((60, 80, 3), 130, np.uint8))
    assert count_matches(blank, blank) == count_matches(blank, find_keypoints(draw_lesion(0))) == 0


@pytest.mark.long
@pytest.mark.data
def test_copies_of_real_lesions_are_found_among_others(real_data: Path) -> None:
    """A small edition of the table in docs/curation.md: 100 lesions to fit to, copies of 15 others among 150."""
    folder = real_data / "dermoscopy"
    labels = folder / "labels.csv"
    rows = [line.split(",") for line in labels.read_text().splitlines()[1:]]
    first = list({row[3]: row[0] for row in rows}.values())  # one image a lesion
    manifest = _manifest(folder, first[:100])
    descriptor = fit_descriptor(DescriptorConfig(fit_images=100), [manifest])
    images = [read_image(folder / name) for name in first[100:250]]
    vectors = descriptor(images)
    recalled, false = [], 0
    for i, image in enumerate(images[:15]):
        copies = [make_copy(image, kind, np.random.default_rng([i, n])) for n, kind in enumerate(KINDS)]
        similarity = descriptor(copies) @ vectors.T
        recalled.append(similarity[:, i] > 0.6)
        false += int((np.delete(similarity, i, axis=1) > 0.6).sum())
    recall = dict(zip(KINDS, np.mean(recalled, axis=0).tolist(), strict=True))
    assert np.mean(recalled) > 0.8, recall
    assert min(recall[kind] for kind in ("turn", "flip", "blur", "jpeg", "rescale", "border")) > 0.9, recall
    assert false <= 0.1 * np.sum(recalled), false


def _manifest(folder: Path, images: list[str]) -> Manifest:
    facts = {"image": images, "sha256": images, "mode": ["RGB"] * len(images), "format": ["JPEG"] * len(images)}
    zeros = {name: [0] * len(images) for name in ("width", "height", "bytes")}
    return build_manifest(facts | zeros, folder)


def test_scan_makes_what_fitting_takes(tmp_path: Path) -> None:
    from PIL import Image

    for seed in range(9):
        Image.fromarray(draw_lesion(seed)).save(tmp_path / f"{seed}.png")
    descriptor = fit_descriptor(DescriptorConfig(dimension=16), [scan(tmp_path).manifest])
    assert descriptor([draw_lesion(0)]).shape == (1, 16)
