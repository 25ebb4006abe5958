"""Forged pickles of weights: names that other libraries permit, endless and deep values, tensors without memory."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dinomed.backbones.weights import read_weights
from dinomed.errors import DinomedError
from dinomed.io.weight_file import TABLES, read_weight_file

START, EMPTY_DICT = b"\x80\x02", b"}"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def tensor(size: int, stride: int, kind: str = "FloatStorage", stored: int = 1) -> bytes:
    """The instructions of a tensor of one dimension on the storage "0"."""
    storage = b"(" + text("storage") + name("torch", kind) + text("0") + text("cpu") + number(stored) + b"tQ"
    shape = b"(" + number(size) + b"t(" + number(stride) + b"t"
    hooks = b"\x89" + name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + number(0) + shape + hooks + b"tR"


def archive(path: Path, instructions: bytes, content: bytes = b"\0" * 4, compressed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", START + instructions + b".")
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DinomedError) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_plain_tensor_in_such_an_archive_is_read(tmp_path: Path) -> None:
    """Otherwise the refusals below would say nothing."""
    path = archive(tmp_path / "w.pth", EMPTY_DICT + text("blocks.0.w") + tensor(1, 1) + b"s")

    assert torch.equal(read_weight_file(path)["blocks.0.w"], torch.zeros(1))


def test_names_that_other_libraries_permit_are_refused(tmp_path: Path) -> None:
    """torchvision permits DeviceMesh, whose constructor starts a process group, for the whole process."""
    import torchvision  # noqa: F401
    from torch.distributed.device_mesh import DeviceMesh

    permitted = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([DeviceMesh])
    try:
        mesh = name("torch.distributed.device_mesh", "DeviceMesh") + b"(" + text("cpu") + b"]" + number(0) + b"atR"
        message = refusal(archive(tmp_path / "w.pth", EMPTY_DICT + text("args") + mesh + b"s"))
        assert "torch.distributed.device_mesh.DeviceMesh" in message
        assert DeviceMesh in torch.serialization.get_safe_globals()  # the process keeps its own permissions
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(permitted)


@pytest.mark.parametrize("kind", ["itself", "two of itself", "every level eight times"])
def test_tables_that_hold_themselves_or_many_tables_end_soon(kind: str, tmp_path: Path) -> None:
    itself = EMPTY_DICT + b"q\0" + text("w") + tensor(1, 1) + b"s" + text("model") + b"h\0s"
    many = EMPTY_DICT + b"q\0"
    for level in range(1, 12):
        entries = b"".join(text(key) + b"h" + bytes([level - 1]) + b"s" for key in TABLES)
        many += EMPTY_DICT + entries + b"q" + bytes([level])
    instructions = {
        "itself": itself,
        "two of itself": EMPTY_DICT + b"q\0" + text("model") + b"h\0s" + text("teacher") + b"h\0s",
        "every level eight times": many,
    }
    assert "holds no table of tensors" in refusal(archive(tmp_path / "w.pth", instructions[kind]))


def test_values_nested_deeper_than_the_stack_of_python_are_refused(tmp_path: Path) -> None:
    """In a process of its own: without the check it ends by a signal."""
    path = archive(tmp_path / "w.pth", EMPTY_DICT + b"N" + b"\x85" * 1_000_000 + text("v") + b"s")
    code = (
        "import sys; from dinomed.errors import DinomedError; from dinomed.backbones.weights import read_weights\n"
        "try: read_weights(sys.argv[1])\nexcept DinomedError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "nested more than 100 levels deep" in done.stdout


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (name("builtins", "bytearray") + number(6 << 30) + b"\x85R", "bytearray"),
        (EMPTY_DICT + text("w") + tensor(1 << 31, 0, "HalfStorage", 2) + b"s", "no tensor of plain numbers"),
        (
            name("collections", "OrderedDict") + b")R}" + text("get") + name("builtins", "bytearray") + b"sb",
            "bytearray",
        ),
        (name("collections", "OrderedDict") + b")R}" + text("values") + b"K\x01sb", "holds no table of tensors"),
    ],
    ids=["a gigabyte by a call", "one number without end", "a table with a function", "a table with a number"],
)
def test_forged_values_give_one_line(instructions: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(archive(tmp_path / "w.pth", instructions))


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    instructions = EMPTY_DICT + text("w") + tensor(1 << 20, 1, stored=1 << 20) + b"s"
    path = archive(tmp_path / "w.pth", instructions, bytes(4 << 20), compressed=True)
    assert "its parts are compressed" in refusal(path)


@pytest.mark.parametrize("kind", ["meta", "sparse", "with an attribute", "with a name that is no text"])
def test_tensors_that_are_more_or_less_than_numbers_give_one_line(kind: str, tmp_path: Path) -> None:
    value = torch.ones(4, 4)
    if kind == "with an attribute":
        value.float = 1  # type: ignore[method-assign,assignment]
    odd = {"meta": value.to("meta"), "sparse": value.to_sparse()}.get(kind, value)
    torch.save({3 if kind == "with a name that is no text" else "w": odd}, tmp_path / "w.pth")
    refusal(tmp_path / "w.pth")


def test_a_pickle_of_another_version_is_not_called_malicious(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth", pickle_protocol=4)
    message = refusal(tmp_path / "w.pth")
    assert "save it again with torch.save" in message
    assert "more than tensors" not in message
