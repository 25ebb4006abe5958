"""Files in the layouts of published training scripts, compared with timm: tables, prefixes, and what is ignored."""

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dinomed.backbones.load import load_backbone

vision_transformer = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")

TOLERANCE = 1e-5  # float32: tokens of order 1 after sums in another order
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
State = dict[str, Tensor]


def make(randomize: Callable[..., None], pool: str = "token", seed: int = 0) -> nn.Module:
    """A small ViT of timm with the names of MAE, RETFound, DINO and iBOT, and a classifier."""
    model = vision_transformer.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=1, num_classes=5, global_pool=pool
    ).eval()
    randomize(model, seed)
    return model


def script_state(model: nn.Module) -> dict[str, Any]:
    """What a script saves beside its weights: a used optimizer, a scaler, and arguments of many types."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    args = argparse.Namespace(
        batch_size=64, lr=np.float64(1e-3), betas=(0.9, 0.95), resume="", device="cuda", seed=None,
        output_dir=Path("out"), weights=np.arange(3.0), nested=argparse.Namespace(gpu=0),
    )  # fmt: skip
    return {
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "args": args,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }


def with_prefix(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def without_head(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def mae_decoder() -> State:
    """The decoder of MAE, narrower than the encoder; its mask token has no prefix."""
    return {
        "mask_token": torch.zeros(1, 1, 32), "decoder_pos_embed": torch.zeros(1, 17, 32),
        "decoder_embed.weight": torch.zeros(32, 64), "decoder_blocks.0.norm1.weight": torch.ones(32),
        "decoder_norm.weight": torch.ones(32), "decoder_pred.weight": torch.zeros(768, 32),
    }  # fmt: skip


HEAD = {"head.mlp.0.weight": torch.zeros(8, 64), "head.last_layer.weight_v": torch.zeros(9, 8)}  # of DINO and iBOT

# layout -> (the pooling of timm's model, file content from the weights, other weights, the rest; words of the note)
LAYOUTS: dict[str, tuple[str, Callable[[State, State, dict], dict], list[str]]] = {
    "MAE and RETFound, pretrained": (
        "token",
        lambda good, other, rest: {
            "model": without_head(good) | mae_decoder(), **rest
        },
        ["those of 'model'; ignored: 'optimizer', 'epoch', 'args', 'scaler', 5 tensors outside", "decoder_pos_embed"],
    ),
    "RETFound, fine-tuned": (
        "avg",
        lambda good, other, rest: {"model": good, **rest},
        ["2 tensors outside the backbone (head.weight, head.bias)"],
    ),
    "both norms": (
        "token",
        lambda good, other, rest: {"model": good | {"fc_norm.weight": torch.zeros(64), "fc_norm.bias": torch.ones(64)}},
        ["4 tensors outside the backbone"],
    ),
    "DINO": (
        "token",
        lambda good, other, rest: {
            "student": with_prefix("module.backbone.", other) | with_prefix("module.", HEAD),
            "teacher": with_prefix("backbone.", without_head(good)) | HEAD,
            "dino_loss": {"center": torch.zeros(1, 9)}, "fp16_scaler": None, **rest,
        },
        ["those of 'teacher'; ignored: 'student', 'dino_loss'", "head.mlp.0.weight"],
    ),
    "a student alone": (
        "token",
        lambda good, other, rest: {"student": with_prefix("module.backbone.", good), **rest},
        ["those of 'student'; ignored: 'optimizer'"],
    ),
    "a training of DINOv2": (
        "token",
        lambda good, other, rest: {
            "model": with_prefix("student.backbone.", other) | with_prefix("teacher.backbone.", good)
            | with_prefix("teacher.dino_", HEAD), "iteration": 5,
        },
        ["those of 'model'; ignored: 'iteration'", "student.backbone.cls_token"],
    ),
    "timm, with an average": (
        "token",
        lambda good, other, rest: {
            "arch": "vit", "state_dict": other, "state_dict_ema": good, "metric": np.float32(0.5), "version": 2, **rest
        },
        ["those of 'state_dict_ema'; ignored: 'arch', 'state_dict', 'metric'"],
    ),
    "BEiT, with an average": (
        "token", lambda good, other, rest: {"model": other, "model_ema": good, **rest}, ["those of 'model_ema'"]
    ),
    "an average that is no table": (
        "token",
        lambda good, other, rest: {"model": good, "ema": {"decay": 0.999}, "model_ema": None, **rest},
        ["those of 'model'; ignored: 'ema', 'model_ema'"],
    ),
    "one table in another": (
        "token",
        lambda good, other, rest: {"ema": {"state_dict": good, "decay": 0.999}, "model": other, **rest},
        ["those of 'state_dict' in 'ema'; ignored: 'model'"],
    ),
    "wrapped, with an encoder": (
        "token",
        lambda good, other, rest: {"state_dict": with_prefix("module.encoder.", good), **rest},
        ["those of 'state_dict'; ignored: 'optimizer'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_a_training_gives_the_tokens_of_timm(
    layout: str, tmp_path: Path, randomize: Callable[..., None], difference: Callable[..., float],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    pool, build, words = LAYOUTS[layout]
    theirs, other = make(randomize, pool), make(randomize, pool, seed=1)
    torch.save(
        build(dict(theirs.state_dict()), dict(other.state_dict()), script_state(make(randomize))), tmp_path / "c.pth"
    )
    with caplog.at_level("INFO", logger="dinomed"):
        backbone = load_backbone(tmp_path / "c.pth", mean=MEAN, std=STD, image_size=64)
    notes = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert len(notes) == 1
    assert all(word in notes[0] for word in words), notes
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    norm = theirs.fc_norm if pool == "avg" else theirs.norm
    with torch.no_grad():
        hidden = theirs.forward_intermediates(
            images, indices=[0, 2], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True, norm=False
        )
        for tokens, (patches, prefix_tokens) in zip(backbone(images, (0, 2)), hidden, strict=True):
            expected = norm(torch.cat([prefix_tokens, patches], dim=1))
            assert difference(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), expected) < TOLERANCE


def test_names_of_older_numpy_and_newer_python_are_read(tmp_path: Path, randomize: Callable[..., None]) -> None:
    model = make(randomize)
    file, renamed = tmp_path / "c.pth", tmp_path / "renamed.pth"
    torch.save({"model": model.state_dict(), **script_state(model)}, file)
    theirs = b"numpy._core.multiarray" if np.__version__ >= "2" else b"numpy.core.multiarray"
    (other,) = {b"numpy._core.multiarray", b"numpy.core.multiarray"} - {theirs}
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(renamed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert theirs in content
                assert b"cpathlib\nPosixPath" in content or b"cpathlib._local\n" in content
                content = content.replace(theirs, other).replace(b"cpathlib\nPosix", b"cpathlib._local\nWindows")
            new.writestr(name, content)
    assert load_backbone(renamed, mean=MEAN, std=STD).fingerprint == load_backbone(file, mean=MEAN, std=STD).fingerprint
