"""Records of backbones, adapters and indexes with any hostile value: one line, or a result that is finite.

A test replaces one value of a record, loads the artefact and uses it. It must not need much memory or time.
"""

import json
import os
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.retrieval.search import load_index
from dinomed.backbones.load import load_backbone
from dinomed.errors import DinomedError
from dinomed.features.compute import compute_features

FILES = {
    "ssl": ("backbone/model.safetensors", "config"),
    "cls": ("adapter.safetensors", "adapter"),
    "seg": ("adapter.safetensors", "adapter"),
    "idx": ("index.safetensors", "index"),
}
HOSTILE: list[Any] = [
    None, True, 0, -1, 1, 2, 7, 10_000, 2**31, 2**63, 10**30, 1e-40, 1e308, "", "x", "\x1b[31mred", "../../etc",
    "9" * 5000, [], {}, [0], [-1], [[1]], [1e9, 1e9], [2**40] * 5, {"a": 1},
    json.loads("[" * 900 + "]" * 900), list(range(2000)),
]  # fmt: skip
GIB_KIB = 2**20
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)


def use_backbone(folder: Path) -> list[np.ndarray]:
    backbone = load_backbone(folder)
    return [compute_features(backbone, backbone.preprocessing(IMAGE)[None], (-1,), patches=False).cls.numpy()]


def use_classifier(folder: Path) -> list[np.ndarray]:
    (prediction,) = load_adapter(folder).predict([IMAGE])
    return [np.array(list(prediction.probabilities.values()))]


def use_segmenter(folder: Path) -> list[np.ndarray]:
    (prediction,) = load_adapter(folder).predict([IMAGE])
    return [prediction.probabilities, prediction.mask]


def use_index(folder: Path) -> list[np.ndarray]:
    return [np.array([hit.similarity for hit in load_index(folder).search(IMAGE, 3)])]  # type: ignore[union-attr]


USES: dict[str, Callable[[Path], list[np.ndarray]]] = {
    "ssl": use_backbone, "cls": use_classifier, "seg": use_segmenter, "idx": use_index
}  # fmt: skip


def split(content: bytes, entry: str) -> tuple[dict[str, Any], Any, bytes]:
    """The header of a safetensors file, the record in it, and the tensors."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"][entry]), content[8 + length :]


def join(header: dict[str, Any], record: Any, entry: str, tensors: bytes) -> bytes:
    text = json.dumps({**header, "__metadata__": {entry: json.dumps(record)}}).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values of a record, also of lists and mappings."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a record with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def forge(user_folder: Path, folder: Path, name: str, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Use an artefact with each of the changes of its record."""
    file, entry = FILES[name]
    for part in {"ssl", name}:
        shutil.copytree(user_folder / part, folder / part)
    shutil.copytree(user_folder / "lesions", folder / "lesions")
    for beside in (folder / name).rglob("*.json"):
        beside.unlink()  # a copy of the record for people
    use, path = USES[name], folder / name / file
    header, record, tensors = split(path.read_bytes(), entry)
    assert all(np.isfinite(values).all() for values in use(folder / name))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages: list[str] = []
    for place, new in changes:
        path.write_bytes(join(header, replaced(record, place, new), entry, tensors))
        try:
            results = use(folder / name)
        except DinomedError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"{name}: {place} = {str(new)[:60]}: {type(error).__name__}: {error}") from error
        else:
            assert all(np.isfinite(values).all() for values in results), (place, new)
    assert len(messages) > len(changes) / 5
    assert not [message for message in messages if "\n" in message or len(message) > 2000]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIB_KIB


def all_changes(user_folder: Path, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    file, entry = FILES[name]
    record = split((user_folder / name / file).read_bytes(), entry)[1]
    return [(place, new) for place in places(record) for new in HOSTILE]


@pytest.mark.parametrize("name", FILES)
def test_a_forged_record_is_refused_or_gives_finite_results(user_folder: Path, tmp_path: Path, name: str) -> None:
    changes = all_changes(user_folder, name)
    forge(user_folder, tmp_path, name, random.Random(0).sample(changes, 60))


@pytest.mark.long
@pytest.mark.skipif(
    "DINOMED_EXHAUSTIVE" not in os.environ,
    reason="takes minutes: set DINOMED_EXHAUSTIVE=1",
)
@pytest.mark.parametrize("name", FILES)
def test_every_forged_record_is_refused_or_gives_finite_results(user_folder: Path, tmp_path: Path, name: str) -> None:
    forge(user_folder, tmp_path, name, all_changes(user_folder, name))
