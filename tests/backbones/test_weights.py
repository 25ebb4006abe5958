"""Files of weights: every known format gives the same tensors; damaged, malicious and other files give one line."""

import argparse
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinomed.backbones.variants import build_vit
from dinomed.backbones.vit import VisionTransformer
from dinomed.backbones.weights import build_with_weights, convert, inflate_channels, read_tensor_table, read_weights
from dinomed.errors import DinomedError, UsageError
from dinomed.io.weight_file import Omitted, read_weight_file

SMALL = {"embed_dim": 16, "depth": 4, "num_heads": 2, "image_size": 56}


def vit(name: str = "dinov2_vits14", **overrides: object) -> VisionTransformer:
    torch.manual_seed(0)
    model = build_vit(name, **{**SMALL, **overrides})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def chunked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DINOv2's training keeps blocks in two chunks: the inner number counts on, the outer is the chunk's."""

    def rename(key: str) -> str:
        first, _, name = key.removeprefix("blocks.").partition(".")
        return f"blocks.{int(first) // 2}.{first}.{name}" if key.startswith("blocks.") else key

    return {rename(key): value for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], dict]] = {
    "official": lambda state: state,
    "teacher": lambda state: {
        "teacher": {f"backbone.{key}": value for key, value in chunked(state).items()}
        | {"dino_head.mlp.0.weight": torch.zeros(2, 2)},
        "student": {"other": torch.zeros(1)},
    },
    "lightning": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "with a classifier": lambda state: {"model": {**state, "head.weight": torch.zeros(2, 16)}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vitg14_reg"])
def test_wrapped_official_files_give_the_same_tensors(name: str, wrapping: str, tmp_path: Path) -> None:
    expected = vit(name).state_dict()
    torch.save(WRAPPINGS[wrapping](dict(expected)), tmp_path / "weights.pth")
    weights = read_weights(tmp_path / "weights.pth")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_safetensors_are_recognised_by_content_and_half_precision_becomes_float32(tmp_path: Path) -> None:
    expected = {key: value.half() for key, value in vit().state_dict().items()}
    save_file(expected, tmp_path / "weights.pth")  # the wrong suffix
    weights = read_weights(tmp_path / "weights.pth")
    assert all(torch.equal(weights[key], value.float()) for key, value in expected.items())


def test_of_a_training_file_only_the_weights_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, path = vit().state_dict(), tmp_path / "training.pth"
    torch.save({"model": state, "optimizer": {"state": torch.ones(1000)}}, path)
    opened, load = list[bool](), torch.load
    monkeypatch.setattr("torch.load", lambda *args, **options: opened.append(options["mmap"]) or load(*args, **options))
    table = read_tensor_table(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))  # the tensors are no views of the file
    assert opened == [True]
    assert all(torch.equal(table[name], state[name]) for name in state)


def test_numbers_beside_the_tensors_are_ignored_and_the_note_is_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, path = vit().state_dict(), tmp_path / "training.pth"
    entries = {f"{'entry' * 100}{number}": number for number in range(200)}
    caplog.set_level("INFO", "dinomed")
    torch.save({"state_dict": {**state, "epoch": 3, "best": 0.5}, **entries}, path)
    weights = read_weights(path)
    assert weights.keys() == state.keys()
    (note,) = (line for line in caplog.messages if "ignored" in line)
    assert note.endswith(", and 192 more entries")
    assert len(note) < 1000
    torch.save({"state_dict": {**state, "epoch": 3}}, path)
    read_weights(path)
    assert caplog.messages[-1].endswith("ignored: 'epoch'")
    torch.save({**state, "parts": [torch.zeros(1)]}, path)
    with pytest.raises(DinomedError, match="holds no table of tensors"):
        read_weights(path)


def test_the_missing_class_position_of_timm_is_added() -> None:
    state = vit("dinov2_vits14_reg").state_dict()
    theirs = dict(state)
    theirs["reg_token"] = theirs.pop("register_tokens")
    theirs["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    theirs["pos_embed"] = state["pos_embed"][:, 1:]
    del theirs["mask_token"]
    config = vit("dinov2_vits14_reg").config
    converted = build_with_weights(config, convert(theirs), "timm")
    images = torch.randn(1, 3, 56, 56)
    assert torch.equal(converted(images).patches, build_with_weights(config, state, "own")(images).patches)
    assert not converted.mask_token.any()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(writer: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "side-effect", tmp_path / "weights.pth"
    data = {**vit().state_dict(), "extra": Payload(marker)}
    if writer == "torch":
        torch.save(data, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Payload(marker)}))
    with pytest.raises(DinomedError) as caught:
        read_weights(path)
    assert not marker.exists()
    # pickle writes names in two parts, which are not put together for the message
    parts = {"torch": ("refused: it holds more than tensors", "mkdir"), "pickle": ("without running code from it",)}
    assert all(part in str(caught.value) for part in parts[writer])
    assert "\n" not in str(caught.value)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def malicious(marker: Path) -> dict[str, tuple[object, str]]:
    """Pickles that would run code, hidden among arguments of a training, and the name that the refusal must show."""
    system, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    scalar, mkdir = np.float64(0.5).__reduce__()[0], f"{os.mkdir.__module__}.mkdir"  # posix or nt
    return {
        "os.system": (argparse.Namespace(x=Call(os.system, system)), f"{os.system.__module__}.system"),
        "eval": (argparse.Namespace(x=Call(eval, code)), "eval"),
        "exec": (argparse.Namespace(lr=0.1, inner=argparse.Namespace(x=[Call(exec, code)])), "exec"),
        "open": (argparse.Namespace(x=Call(open, str(marker), "w")), "io.open"),
        "a path that is a call": (argparse.Namespace(x=Call(type(marker), Call(os.mkdir, str(marker)))), mkdir),
        "a number that is a call": (Call(scalar, np.dtype("f8"), Call(os.mkdir, str(marker))), mkdir),
        "getattr": (Call(getattr, argparse.Namespace(), "x"), "getattr"),
        "a method of an allowed class": (Call(Path.touch, marker), "getattr"),
        "another function of numpy": (Call(np.fromfile, "/etc/hostname", "u1"), "numpy.fromfile"),
        "another class of argparse": (Call(argparse.FileType("w"), str(marker)), "argparse.FileType"),
    }


@pytest.mark.parametrize("kind", malicious(Path()))
def test_code_hidden_in_the_arguments_of_a_training_is_refused(kind: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "side-effect", tmp_path / "checkpoint.pth"
    hidden, name = malicious(marker)[kind]
    torch.save({"model": vit().state_dict(), "args": argparse.Namespace(lr=0.1, hidden=hidden)}, path)
    allowed = set(torch.serialization.get_safe_globals())
    with pytest.raises(DinomedError) as caught:
        read_weights(path)
    assert not marker.exists()
    assert "refused: it holds more than tensors" in str(caught.value)
    assert f"({name})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_arguments_of_a_training_are_not_built_and_the_permission_ends_with_the_call(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(lr=np.float64(0.5), out=tmp_path, steps=np.arange(3))
    torch.save({"model": vit().state_dict(), "args": args, "numbers": [np.float32(1)]}, path)
    content = read_weight_file(path)
    assert type(content["args"]) is Omitted
    assert not hasattr(content["args"], "__dict__")
    assert type(content["numbers"][0]) is Omitted
    assert not {
        name for entry in torch.serialization.get_safe_globals() if isinstance(entry, tuple) for name in entry[1:]
    }
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_files_read_at_once_by_several_threads_are_all_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": vit().state_dict(), "args": argparse.Namespace(values=list(range(2000)))}, path)
    with ThreadPoolExecutor(4) as pool:
        assert len({len(state) for state in pool.map(lambda _: read_weights(path), range(40))}) == 1


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.3, 0.999])
def test_truncated_files_give_one_line(kind: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{kind}"
    state = vit().state_dict()
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DinomedError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"PK\x03\x04 no zip", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{no json       "]
)
def test_other_files_give_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(DinomedError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_give_another_exception(kind: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "weights.pth", random.Random(0)
    state = {"cls_token": torch.ones(1, 1, 4), "norm.weight": torch.ones(4)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    messages = []
    for _ in range(100):
        damaged = bytearray(whole[: rng.randrange(len(whole) // 2, len(whole) + 1)])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except DinomedError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


def test_a_file_without_tensors_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(DinomedError, match="no table of tensors"):
        read_weights(tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="do not exist"):
        read_weights(tmp_path / "nothing.pth")


def test_another_architecture_lists_the_differences() -> None:
    state = vit(depth=5).state_dict()
    with pytest.raises(UsageError) as caught:
        build_with_weights(vit(num_registers=4).config, state, "weights.pth")
    message = str(caught.value)
    assert message.startswith(
        "weights.pth: weights of another architecture: 1 missing (register_tokens); 14 not known ("
    )
    assert "blocks.4.norm1.weight" in message
    with pytest.raises(UsageError, match=r"of another shape \(cls_token is 1x1x16, expected 1x1x24, "):
        build_with_weights(vit(embed_dim=24).config, vit().state_dict(), "weights.pth")
    with pytest.raises(UsageError, match=r"1 not known \(blocks.0.mlp.norm.weight\)"):
        build_with_weights(vit().config, {**vit().state_dict(), "blocks.0.mlp.norm.weight": torch.ones(1)}, "x")


def test_a_position_embedding_for_another_size_sets_the_size() -> None:
    resized = build_with_weights(vit(image_size=112).config, vit(image_size=56).state_dict(), "x")
    assert resized.config.image_size == 56


@pytest.mark.parametrize("channels", [1, 4])
def test_inflated_channels_give_the_same_tokens_for_a_grey_image(channels: int) -> None:
    state = vit().state_dict()
    inflated = build_with_weights(vit(in_channels=channels).config, inflate_channels(state, channels), "x")
    grey = torch.randn(1, 1, 56, 56)
    before = vit().embed(grey.expand(-1, 3, -1, -1))
    after = inflated.embed(grey.expand(-1, channels, -1, -1))
    assert torch.allclose(after, before, atol=1e-4)  # sums of 588 products of order 1


def test_integer_weights_are_refused() -> None:
    state = vit().state_dict()
    state["cls_token"] = state["cls_token"].int()
    with pytest.raises(DinomedError, match=r"x: 1 weights are int32, not floating point \(cls_token\)"):
        build_with_weights(vit().config, state, "x")


def test_errors_about_other_files_are_full_sentences(tmp_path: Path) -> None:
    for content, message in ((b"hello, this is text\n", "not a file of weights"), (b"", "an empty file")):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(DinomedError, match=rf"w\.pth: {message}"):
            read_weights(tmp_path / "w.pth")
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:200_000])
    with pytest.raises(DinomedError) as caught:
        read_weights(tmp_path / "w.pth")
    assert str(caught.value).endswith("(File is not a zip file); copy or download it again")
