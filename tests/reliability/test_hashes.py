"""One changed byte in the weights of a backbone, an adapter or an index is found when the file is loaded."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.retrieval.search import load_index
from dinomed.backbones.load import load_backbone
from dinomed.errors import DinomedError

FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "ssl": (load_backbone, "backbone/model.safetensors"),
    "cls": (load_adapter, "adapter.safetensors"),
    "seg": (load_adapter, "adapter.safetensors"),
    "idx": (load_index, "index.safetensors"),
}


def change_byte(path: Path, share: float) -> None:
    """Flip the lowest bit of one byte of the tensors, at a share of their length."""
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]
    content[start + int((len(content) - start - 1) * share)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.37, 1])
def test_one_changed_bit_is_found(user_folder: Path, tmp_path: Path, name: str, share: float) -> None:
    load, file = FILES[name]
    shutil.copytree(user_folder / "ssl", tmp_path / "ssl")
    shutil.copytree(user_folder / name, tmp_path / name, dirs_exist_ok=True)
    load(tmp_path / name)
    change_byte(tmp_path / name / file, share)
    with pytest.raises(
        DinomedError, match=f"{Path(file).name} is damaged: its tensors do not match its record; "
    ) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_backbone_without_a_hash_is_refused(user_folder: Path, tmp_path: Path) -> None:
    """A header whose record was replaced by one without a hash is not taken for a file of another library."""
    shutil.copytree(user_folder / "ssl", tmp_path / "ssl")
    path = tmp_path / "ssl" / "backbone" / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    record = json.loads(header["__metadata__"]["config"])
    del record["weights_sha256"]
    header["__metadata__"]["config"] = json.dumps(record)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(DinomedError, match="weights_sha256: Field required"):
        load_backbone(tmp_path / "ssl")
