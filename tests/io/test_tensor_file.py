"""Tensor files: records in the header, checksums of tensors, and damaged or hostile files."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dinomed.errors import DinomedError
from dinomed.io import tensor_file
from dinomed.io.tensor_file import (
    check_tensors,
    has_entry,
    hash_tensors,
    parse_record,
    read_header,
    read_tensors,
    write_tensors,
)

FORMAT = "dinomed.test/1"
SAME_FOLDER = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestRecord(BaseModel):
    """A record as those of bundles and indexes."""

    __test__ = False
    format: str = FORMAT
    count: int = Field(ge=0)
    classes: dict[str, int]


TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.ones(2, 3, dtype=torch.bfloat16),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 5),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    record = TestRecord(count=3, classes={"mel": 0, "nævus\n\0": 1})
    data = record.model_dump() | {"hash": hash_tensors(TENSORS)}
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"record": json.dumps(data)})
    return tmp_path / "a.safetensors"


def test_tensors_and_record_are_read_as_they_were_written(path: Path) -> None:
    tensors = read_tensors(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(
        tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items()
    )
    data = read_header(path, "record", "train again")
    assert parse_record(path, data, TestRecord, FORMAT, "train again").classes == {"mel": 0, "nævus\n\0": 1}
    check_tensors(path, tensors, data["hash"], "train again")


RECORDS = st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=20), st.none()), max_size=5)


@SAME_FOLDER
@given(record=RECORDS)
def test_any_record_goes_through_the_header_unchanged(tmp_path: Path, record: dict[str, Any]) -> None:
    write_tensors(tmp_path / "b.safetensors", {}, {"record": json.dumps(record)})
    assert read_header(tmp_path / "b.safetensors", "record", "train again") == record


def read_all(path: Path) -> TestRecord:
    data = read_header(path, "record", "train again")
    record = parse_record(path, data, TestRecord, FORMAT, "train again")
    check_tensors(path, read_tensors(path), data.get("hash"), "train again")
    return record


@SAME_FOLDER
@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
def test_a_changed_byte_is_noticed_in_one_line_unless_nothing_depends_on_it(
    path: Path, place: int, change: int
) -> None:
    """Of the header, a letter of a class name is the only byte whose change nothing else contradicts."""
    content = path.read_bytes()
    (header_length,) = struct.unpack("<Q", content[:8])
    place %= len(content)
    changed = bytearray(content)
    changed[place] ^= change
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(changed)
    try:
        record = read_all(damaged)
    except DinomedError as error:
        assert "damaged.safetensors" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert place < 8 + header_length, "a changed tensor was not noticed"
        assert record.format == FORMAT


@SAME_FOLDER
@given(length=st.integers(0, 10**6))
def test_a_truncated_file_is_refused(path: Path, length: int) -> None:
    content = path.read_bytes()
    cut = path.with_name("cut.safetensors")
    cut.write_bytes(content[: length % len(content)])
    with pytest.raises(DinomedError, match=r"cut\.safetensors"):
        read_all(cut)
    with pytest.raises(DinomedError, match=r"cut\.safetensors cannot be read"):
        read_tensors(cut)


HUGE = 2**63


@pytest.mark.parametrize("length", [0, 1, 2**31, HUGE, 2 * HUGE - 1], ids=hex)
def test_a_header_of_an_impossible_length_is_refused(path: Path, length: int) -> None:
    """The last one is -1 for a reader with signed numbers."""
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", length) + content[8:])
    with pytest.raises(DinomedError, match="truncated, damaged, or not a safetensors file"):
        read_header(path, "record", "train again")
    with pytest.raises(DinomedError, match="cannot be read"):
        read_tensors(path)


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
        {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]},
        {"dtype": "F1000", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 16]},
    ],
    ids=str,
)
def test_a_tensor_of_an_impossible_size_is_refused(tmp_path: Path, tensor: dict[str, Any]) -> None:
    header = json.dumps({"__metadata__": {"record": "{}"}, "weight": tensor}).encode()
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(DinomedError, match=r"hostile\.safetensors"):
        read_tensors(path)
    with pytest.raises(DinomedError, match=r"hostile\.safetensors"):
        read_header(path, "record", "train again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("1" * 100_000, "damaged"),
        ("null", "format None"),
        ("[]", "format None"),
        ('{"format": "dinomed.test/2"}', "format 'dinomed.test/2', this version reads 'dinomed.test/1'; train again"),
        (json.dumps({"format": FORMAT, "classes": {}}), "damaged: count: "),
        (json.dumps({"format": FORMAT, "count": -1, "classes": {}}), "damaged: count: "),
        (json.dumps({"format": FORMAT, "count": 1, "classes": {"mel": "a"}}), r"damaged: classes\.mel: "),
    ],
    ids=lambda value: value[:20],
)
def test_a_record_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"record": text})
    with pytest.raises(DinomedError, match=message) as refused:
        read_all(path)
    assert "\n" not in str(refused.value)


def test_a_file_without_the_record_is_refused_with_a_remedy(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    with pytest.raises(DinomedError, match="has no record record in its header; train again"):
        read_header(tmp_path / "a.safetensors", "record", "train again")


def test_the_hash_depends_on_names_types_shapes_and_bytes_and_not_on_the_order() -> None:
    base = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    changes = [
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)},
        {"a": torch.arange(6.0), "c": torch.zeros(2)},
        {"a": torch.arange(6.0), "b": -torch.zeros(2)},
        {"a": torch.arange(6), "b": torch.zeros(2)},
        {"a": torch.arange(6.0)},
    ]
    hashes = {hash_tensors(tensors) for tensors in (base, *changes)}
    assert len(hashes) == 1 + len(changes)
    assert hash_tensors(dict(reversed(base.items()))) == hash_tensors(base)
    assert hash_tensors({"a": torch.arange(12.0)[::2] / 2, "b": torch.zeros(2)}) == hash_tensors(base)  # not contiguous


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DinomedError, match="cannot write"):
        write_tensors(tmp_path / "missing" / "a.safetensors", TENSORS)
    with pytest.raises(DinomedError, match="cannot be read"):
        read_tensors(tmp_path / "missing" / "a.safetensors")


def test_a_file_without_permission_is_not_called_missing_or_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tensor_file, "open", refuse, raising=False)  # permissions do not bind the user root
    for read in (
        read_tensors,
        lambda file: has_entry(file, "record"),
        lambda file: read_header(file, "record", "train"),
    ):
        with pytest.raises(DinomedError) as refused:
            read(path)
        assert str(refused.value) == f"{path} cannot be read: Permission denied; change its permissions"
