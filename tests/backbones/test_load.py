"""`load_backbone`: names, files and folders; frozen weights; the fingerprint."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dinomed.backbones.frozen import fingerprint
from dinomed.backbones.load import FrozenBackbone, Preprocessing, load_backbone, save_backbone
from dinomed.backbones.variants import VARIANTS, Variant, build_vit
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import DinomedError, UsageError

NAME = "dinov2_test14_reg"
PREPROCESSING = Preprocessing(image_size=56)


@pytest.fixture(autouse=True)
def small_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS._items, NAME, Variant(16, 2, 2, patch_size=14, image_size=56, num_registers=4))


def vit(**overrides: object) -> VisionTransformer:
    torch.manual_seed(0)
    model = build_vit(NAME, **overrides)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_a_saved_run_can_be_loaded(tmp_path: Path) -> None:
    saved = vit(drop_path=0.3)
    save_backbone(tmp_path / "ssl" / "backbone", saved, PREPROCESSING, {"step": 7})
    backbone = load_backbone(tmp_path / "ssl")
    assert (backbone.name, backbone.source) == ("ssl", str(tmp_path / "ssl"))
    assert backbone.metadata == {"step": 7}
    assert backbone.preprocessing == PREPROCESSING
    assert (backbone.embed_dim, backbone.depth, backbone.patch_size) == (16, 2, 14)
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    images = backbone.preprocessing(image)[None]
    (tokens,) = backbone(images)
    assert torch.equal(tokens.patches, saved.eval()(images).patches)
    assert backbone.fingerprint == load_backbone(tmp_path / "ssl" / "backbone").fingerprint
    assert json.loads((tmp_path / "ssl" / "backbone" / "config.json").read_text())["metadata"] == {"step": 7}


def test_a_loaded_backbone_is_frozen(tmp_path: Path) -> None:
    backbone = FrozenBackbone(vit(drop_path=0.5), PREPROCESSING, "x")
    head = torch.nn.Sequential(backbone).train()
    assert not backbone.training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in head.parameters())
    (tokens,) = backbone(torch.randn(1, 3, 56, 56))
    torch.nn.Linear(16, 2)(tokens.cls).sum().backward()  # a head can be trained on the tokens
    assert (backbone.grid(), backbone.grid(28), backbone.grid((28, 70))) == ((4, 4), (2, 2), (2, 5))
    assert backbone.device == torch.device("cpu")


def test_fingerprint_changes_with_everything_that_features_depend_on() -> None:
    base = fingerprint(vit(), PREPROCESSING)
    assert base == fingerprint(vit(), PREPROCESSING)
    assert len(base) == 64
    assert base == fingerprint(vit(drop_path=0.3, layerscale=0.1), PREPROCESSING)  # used in training alone
    assert base != fingerprint(vit(num_heads=4), PREPROCESSING)  # the same weights, computed otherwise
    assert base != fingerprint(vit(position_offset=0.1), PREPROCESSING)
    assert base != fingerprint(vit(), Preprocessing(image_size=70))
    assert base != fingerprint(vit(), Preprocessing(image_size=56, mean=(0.5, 0.5, 0.5)))
    for name in vit().state_dict():
        changed = vit()
        changed.state_dict()[name].view(-1)[-1] += 0.01
        assert (fingerprint(changed, PREPROCESSING) == base) == (name == "mask_token"), name


def test_fingerprint_is_the_same_on_every_machine() -> None:
    """A change of this value makes every feature cache and every adapter of a user stale: only on purpose."""
    model = vit()
    for number, parameter in enumerate(model.parameters()):
        parameter.data.copy_(torch.arange(parameter.numel()).view_as(parameter) % 7 + number)
    assert fingerprint(model, PREPROCESSING) == "902b893f2f32f4ff87d5dd2dc8a2cb205c8987fda04fa81ad79627f31d6a9672"


def test_all_file_formats_give_the_same_fingerprint(tmp_path: Path) -> None:
    state = vit().state_dict()
    torch.save(state, tmp_path / "official.pth")
    timm = {key: value for key, value in state.items() if key not in {"mask_token", "register_tokens"}}
    timm["reg_token"] = state["register_tokens"]
    timm["cls_token"], timm["pos_embed"] = state["cls_token"] + state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    save_file({key: value.contiguous() for key, value in timm.items()}, tmp_path / "timm.safetensors")
    save_backbone(tmp_path / "own", vit(), Preprocessing(), {})
    backbones = {load_backbone(NAME, weights=tmp_path / file) for file in ("official.pth", "timm.safetensors", "own")}
    prints = {backbone.fingerprint for backbone in backbones} | {load_backbone(tmp_path / "own").fingerprint}
    assert len(prints) == 1


def test_a_folder_of_transformers_can_be_loaded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.preprocessing == Preprocessing()
    assert backbone.fingerprint == load_backbone(NAME, weights=tmp_path).fingerprint
    processor = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.2, 0.2, 0.2],
        "crop_size": {"height": 518, "width": 518},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    expected = Preprocessing(image_size=518, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert load_backbone(tmp_path).preprocessing == expected
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UsageError, match="weights of another family: with registers or LayerScale"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError, match="is of a llama model, which dinomed cannot use"):
        load_backbone(tmp_path)


def test_a_name_with_a_file_of_weights_can_be_loaded(tmp_path: Path) -> None:
    torch.save(vit().state_dict(), tmp_path / "weights.pth")
    backbone = load_backbone(NAME, weights=tmp_path / "weights.pth", image_size=70)
    assert (backbone.name, backbone.source) == (NAME, str(tmp_path / "weights.pth"))
    assert (backbone.preprocessing.image_size, backbone.grid()) == (70, (5, 5))
    with pytest.raises(UsageError, match="image size 60 is not a multiple of the patch size 14; nearest: 56 or 70"):
        load_backbone(NAME, weights=tmp_path / "weights.pth", image_size=60)
    with pytest.raises(UsageError, match="weights of another architecture"):
        load_backbone("vit_tiny_patch8", weights=tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="need the name of their architecture"):
        load_backbone(tmp_path, weights=tmp_path / "weights.pth")


def test_paths_without_a_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'dinov2_vits41' is no known name .* did you mean 'dinov2_vits14'"):
        load_backbone("dinov2_vits41")
    with pytest.raises(UsageError, match="no existing path"):
        load_backbone(tmp_path / "nothing")
    with pytest.raises(UsageError, match="holds no backbone"):
        load_backbone(tmp_path)
    with pytest.raises(UsageError, match="vit_tiny_patch8 has no released weights"):
        load_backbone("vit_tiny_patch8")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="a run without a backbone yet"):
        load_backbone(tmp_path)
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(UsageError, match="is an adapter"):
        load_backbone(tmp_path)


def test_a_damaged_backbone_gives_one_line(tmp_path: Path) -> None:
    save_backbone(tmp_path, vit(), PREPROCESSING, {})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DinomedError, match=r"model\.safetensors: a damaged safetensors file"):
        load_backbone(tmp_path)


def test_a_full_disk_gives_one_line_and_keeps_the_old_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"some")
        raise SafetensorError("I/O error: No space left on device")  # how safetensors reports it

    save_backbone(tmp_path, vit(), PREPROCESSING, {})
    monkeypatch.setattr("dinomed.backbones.load.save_file", save)
    with pytest.raises(DinomedError, match=r"cannot write .*model\.safetensors: .*No space left"):
        save_backbone(tmp_path, vit(), PREPROCESSING, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_backbone(tmp_path).fingerprint == fingerprint(vit(), PREPROCESSING)


def test_an_interrupted_save_keeps_the_old_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before and between the two renames of a save that changes weights and preprocessing."""
    changed = vit()
    torch.nn.init.zeros_(changed.cls_token)
    new = Preprocessing(image_size=70)
    save_backbone(tmp_path, vit(), PREPROCESSING, {})
    old = load_backbone(tmp_path).fingerprint
    for allowed, expected in ((0, old), (1, fingerprint(changed, new))):
        renames = iter(range(allowed))
        real = os.replace

        def stop(source: object, target: object, renames: object = renames, real: object = real) -> None:
            if next(renames, None) is None:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("dinomed.io.files.os.replace", stop)
            with pytest.raises(KeyboardInterrupt):
                save_backbone(tmp_path, changed, new, {})
        assert load_backbone(tmp_path).fingerprint == expected
        assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"architecture": {"embed_dim": 1000000000}, "preprocessing": {}}',
        '{"architecture": {"depth": 100000}, "preprocessing": {}}',
        '{"architecture": {}, "preprocessing": {"image_size": 10000000000}}',
        '{"architecture": ' + "9" * 10_000 + "}",
        "{",
    ],
)
def test_a_header_with_impossible_values_gives_one_line(tmp_path: Path, header: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"config": header})
    with pytest.raises((DinomedError, UsageError)) as caught:
        load_backbone(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_absurd_image_size_is_refused(tmp_path: Path) -> None:
    save_backbone(tmp_path, vit(), PREPROCESSING, {})
    with pytest.raises(UsageError, match="over the limit of 8192 px"):
        load_backbone(tmp_path, image_size=14 * 60_000)
