"""Bundles: always complete and never mixed up, and the message for each kind of damage."""

import json
import os
import pickle
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dinomed.adapters import bundle
from dinomed.adapters.adapter import Adapter
from dinomed.adapters.bundle import load_head, open_output, read_record, read_training_hashes, save_bundle
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.training_images import TrainingHashes
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.errors import DinomedError, UsageError

NOTHING = TrainingHashes(frozenset(), frozenset())


class Stop(BaseException):
    """As a kill: nothing catches it."""


@cache
def head(backbone: Path, seed: int) -> tuple[SegmentConfig, FrozenBackbone, Adapter]:
    """The config, the backbone and the head of a bundle; made once, since one test saves them a hundred times."""
    config, frozen = SegmentConfig(seed=seed), load_backbone(backbone)
    return config, frozen, build_adapter(config, frozen, 1)


def save(folder: Path, backbone: Path, seed: int) -> AdapterRecord:
    config, frozen, adapter = head(backbone, seed)
    with open_output(folder, config, overwrite=True) as output:
        (output.stage / "log.jsonl").write_text(f"{seed}\n")
        return save_bundle(
            output, adapter, frozen, classes=["lesion"], seen=NOTHING, threshold=0.5, validation={}, training={}
        )


@pytest.fixture
def adapter_folder(tmp_path: Path, tiny_backbone: Path) -> Path:
    save(tmp_path / "one", tiny_backbone, 1)
    return tmp_path / "one"


def test_a_bundle_is_five_files_and_loads_from_one(adapter_folder: Path) -> None:
    assert {path.name for path in adapter_folder.iterdir()} - {".lock"} == {
        "adapter.safetensors",
        "adapter.json",
        "adapter.yaml",
        "card.md",
        "log.jsonl",
    }
    for path in adapter_folder.iterdir():
        if path.name != "adapter.safetensors":
            path.unlink()
    record = read_record(adapter_folder)
    assert load_head(adapter_folder, record).task == "segment"
    assert read_training_hashes(adapter_folder, record) == NOTHING


def what_loads(folder: Path) -> str:
    """The hash of the adapter in `folder`, which loads; or "did not finish"."""
    try:
        record = read_record(folder)
    except UsageError as error:
        return "did not finish" if "did not finish" in str(error) else str(error)
    load_head(folder, record)
    return record.weights_sha256


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_save_leaves_the_old_or_the_new_bundle(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    folder, outcomes = tmp_path / "bundle", []
    for steps in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        old = save(folder, tiny_backbone, 1) if overwrite else None
        left = steps

        def step(function):
            def counted(*arguments, **options):
                nonlocal left
                if not left:
                    raise Stop
                left -= 1
                return function(*arguments, **options)

            return counted

        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "fsync"), (os, "rmdir"), (Path, "unlink"), (Path, "rmdir")):
                patch.setattr(owner, name, step(getattr(owner, name)))
            try:
                new = save(folder, tiny_backbone, 2)
                done = True
            except Stop:
                new, done = None, False
        outcomes.append(what_loads(folder))
        if done:
            break
        save(folder, tiny_backbone, 2)  # and the next try needs no help
    assert new is not None
    first = "did not finish" if old is None else old.weights_sha256
    assert outcomes == sorted(
        outcomes, key=lambda outcome: outcome == new.weights_sha256
    )  # first the old, then the new
    assert set(outcomes) == {first, new.weights_sha256}
    assert len(outcomes) > 8


def header(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["adapter"])


def rewrite(path: Path, **changes: object) -> None:
    data = header(path) | changes
    save_file(load_file(path), path, {"adapter": json.dumps(data)})
    path.with_name("adapter.json").write_text(json.dumps(data))


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "truncated, damaged"),
        ("empty", "truncated, damaged"),
        ("pickle", "not a safetensors file"),
        ("torch pickle", "not a safetensors file"),
        ("gone", "is missing"),
        ("flipped", "its tensors do not match its record"),
        ("no header", "has no adapter record in its header"),
        ("format", "format 'dinomed.adapter/9'"),
        ("field", "threshold"),
        ("json cut", "cannot be read"),
        ("json changed", "is not the record"),
        ("json of another", "files of two adapters are mixed up"),
        ("weights of another", "files of two adapters are mixed up"),
    ],
)
def test_a_damaged_bundle_raises_a_clear_error(
    adapter_folder: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, damage: str, message: str
) -> None:
    monkeypatch.chdir(adapter_folder.parent)
    weights, record = adapter_folder / "adapter.safetensors", adapter_folder / "adapter.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "pickle":
        weights.write_bytes(pickle.dumps(_Evil()))
    elif damage == "torch pickle":
        torch.save(_Evil(), weights)
    elif damage == "gone":
        weights.unlink()
    elif damage == "flipped":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "no header":
        save_file(load_file(weights), weights)
    elif damage == "format":
        rewrite(weights, format="dinomed.adapter/9")
    elif damage == "field":
        rewrite(weights, threshold=7)
    elif damage == "json cut":
        record.write_text(record.read_text()[:50])
    elif damage == "json changed":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"threshold": 0.1}))
    else:
        second_folder = adapter_folder.parent / "other"
        save(second_folder, tiny_backbone, 2)
        name = "adapter.json" if damage == "json of another" else "adapter.safetensors"
        shutil.copy(second_folder / name, adapter_folder / name)
    with pytest.raises(DinomedError, match=str(adapter_folder)) as error:
        load_head(adapter_folder, read_record(adapter_folder))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (adapter_folder.parent / "owned").exists()


def test_a_folder_without_a_bundle_raises_a_clear_error(tmp_path: Path, tiny_backbone: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_record(tmp_path / "none")
    with pytest.raises(UsageError, match="is no adapter"):
        read_record(tiny_backbone)


def test_the_hash_depends_on_names_shapes_and_bytes() -> None:
    base = {"a": torch.arange(4.0), "n": torch.tensor(3)}
    changed = [
        {"b": base["a"], "n": base["n"]},
        {"a": base["a"].reshape(2, 2), "n": base["n"]},
        {"a": base["a"].int(), "n": base["n"]},
        {"a": base["a"] + 1, "n": base["n"]},
    ]
    hashes = {bundle.hash_tensors(tensors) for tensors in (base, *changed)}
    assert len(hashes) == 5
    assert bundle.hash_tensors(dict(reversed(base.items()))) == bundle.hash_tensors(base)
