"""Records and tensors of backbones, adapters and indexes with any hostile value: one line, or a finite result.

A test replaces one value of a record, or of the header of the safetensors file that holds it, loads the artefact and
uses it. It must not need much memory or time.
"""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
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


@pytest.fixture(autouse=True)
def little_memory(user_folder: Path, memory_growth: Callable[[], int]) -> Iterator[None]:
    yield
    assert memory_growth() < GIB_KIB


def forge(user_folder: Path, folder: Path, name: str, forged: Iterable[tuple[str, bytes]]) -> None:
    """Use an artefact with each content of its file, which has a description."""
    file, count = FILES[name][0], 0
    for part in {"ssl", name}:
        shutil.copytree(user_folder / part, folder / part)
    shutil.copytree(user_folder / "lesions", folder / "lesions")
    for beside in (folder / name).rglob("*.json"):
        beside.unlink()  # a copy of the record for people
    use, path = USES[name], folder / name / file
    assert all(np.isfinite(values).all() for values in use(folder / name))
    messages: list[str] = []
    for description, content in forged:
        count += 1
        path.write_bytes(content)
        try:
            results = use(folder / name)
        except DinomedError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"{name}: {description}: {type(error).__name__}: {error}") from error
        else:
            assert all(np.isfinite(values).all() for values in results), description
    assert len(messages) > count / 5
    assert not [message for message in messages if "\n" in message or len(message) > 2000]


def forged_records(user_folder: Path, name: str, count: int | None = None) -> Iterator[tuple[str, bytes]]:
    """The file of an artefact with each hostile value at each place of its record, or with a sample of them."""
    file, entry = FILES[name]
    header, record, tensors = split((user_folder / name / file).read_bytes(), entry)
    changes = [(place, new) for place in places(record) for new in HOSTILE]
    for place, new in changes if count is None else random.Random(0).sample(changes, count):
        yield f"{place} = {str(new)[:60]}", join(header, replaced(record, place, new), entry, tensors)


DTYPES = (
    "F64",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "I64",
    "I8",
    "U16",
    "U64",
    "BOOL",
    "C64",
)
OFFSETS = ([0, 0], [0, 2**63], [2**63, 0], [-1, 4], [4, 0], [1, 5], [0, 2**40])


def forged_headers(user_folder: Path, name: str, count: int | None = None) -> Iterator[tuple[str, bytes]]:
    """The file of an artefact with a wrong type, shape or place of a tensor, without it, or with another name of it."""
    file, entry = FILES[name]
    header, record, tensors = split((user_folder / name / file).read_bytes(), entry)
    values = {"dtype": (*DTYPES, *HOSTILE), "shape": ([2**40, 2**40], *HOSTILE), "data_offsets": (*OFFSETS, *HOSTILE)}
    names = sorted(header.keys() - {"__metadata__"})
    changes: list[tuple[tuple[str, ...], Any]] = [
        ((tensor, field), new) for tensor in names for field, news in values.items() for new in news
    ]
    changes += [((tensor,), new) for tensor in names for new in (None, "renamed", HOSTILE)]
    for place, new in changes if count is None else random.Random(0).sample(changes, count):
        forged = replaced(header, place, new) if len(place) == 2 or new is HOSTILE else dict(header)
        if len(place) == 1 and new is not HOSTILE:
            fields = forged.pop(place[0])
            if new is not None:
                forged[new] = fields
        yield f"{place} = {str(new)[:60]}", join(forged, record, entry, tensors)


@pytest.mark.parametrize("name", FILES)
def test_a_forged_record_is_refused_or_gives_finite_results(user_folder: Path, tmp_path: Path, name: str) -> None:
    forge(user_folder, tmp_path, name, forged_records(user_folder, name, 60))


@pytest.mark.parametrize("name", FILES)
def test_forged_tensors_are_refused_or_give_finite_results(user_folder: Path, tmp_path: Path, name: str) -> None:
    forge(user_folder, tmp_path, name, forged_headers(user_folder, name, 60))


@pytest.mark.long
@pytest.mark.skipif(
    "DINOMED_EXHAUSTIVE" not in os.environ,
    reason="takes minutes: set DINOMED_EXHAUSTIVE=1",
)
@pytest.mark.parametrize("name", FILES)
def test_every_forged_record_is_refused_or_gives_finite_results(user_folder: Path, tmp_path: Path, name: str) -> None:
    forge(user_folder, tmp_path, name, forged_records(user_folder, name))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    forge(user_folder, tmp_path, name, forged_headers(user_folder, name))
