"""Failed exports, which leave nothing behind and do not change an earlier export."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinomed.adapters.export import run
from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.run import REPORT_FILE, export
from dinomed.adapters.export.source import ExportSource, load_source
from dinomed.adapters.inference.loader import load_adapter
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import sha256_file
from dinomed.io.output_folder import STAGE

Make = Callable[..., Path]
SHAPES = [(2, 64, 64)]


def files(folder: Path) -> dict[str, str]:
    """Hashes of all files but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "kind", ["safetensors", "timm", "transformers", "monai", pytest.param("onnx", marks=pytest.mark.long)]
)
def test_a_full_disk_is_one_line_and_leaves_the_earlier_export(kind: str, small_backbone: Make, tmp_path: Path) -> None:
    source, out = load_source(str(small_backbone())), tmp_path / "out"
    export(source, "safetensors", out)
    before = files(out)
    with full_disk(20_000), pytest.raises(DinomedError, match=r"cannot write .*model"):
        export(source, kind, out, overwrite=True)
    assert files(out) == before
    assert not (out / STAGE).exists()


def test_an_interrupt_leaves_the_earlier_export(
    small_backbone: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = load_source(str(small_backbone())), tmp_path / "out"
    export(source, "safetensors", out)
    before = files(out)

    def interrupted(backbone: Any, folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_timm", interrupted)
    for place, content in ((out, before), (tmp_path / "new", {})):
        with pytest.raises(KeyboardInterrupt):
            export(source, "timm", place, overwrite=True)
        assert files(place) == content
    monkeypatch.undo()
    pytest.importorskip("timm")
    export(source, "timm", tmp_path / "new")  # the folder that it left is not in the way


def test_an_interrupt_while_an_earlier_export_is_removed_leaves_a_list_for_the_next_call(
    small_backbone: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = load_source(str(small_backbone())), tmp_path / "out"
    export(source, "safetensors", out)
    complete, unlink = set(files(out)), Path.unlink

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path == out / REPORT_FILE:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(source, "safetensors", out, overwrite=True)
    with pytest.raises(UsageError, match="already holds a result"):
        export(source, "safetensors", out)
    assert set(files(out)) == complete


def test_an_earlier_list_of_files_is_not_trusted(small_backbone: Make, tmp_path: Path) -> None:
    source, out = load_source(str(small_backbone())), tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    (tmp_path / "mine.txt").touch()
    (out / REPORT_FILE).write_text('{"files": {"folder": "", "gone": "", "../mine.txt": ""}}')
    export(source, "safetensors", out, overwrite=True)
    assert (tmp_path / "mine.txt").exists()
    assert (out / "folder").is_dir()
    (out / REPORT_FILE).write_text("half")
    before = files(out)
    with pytest.raises(UsageError, match=r"holds a damaged export\.json"):
        export(source, "safetensors", out, overwrite=True)
    assert files(out) == before


def test_a_killed_export_is_repeated_and_its_files_are_removed(small_backbone: Make, tmp_path: Path) -> None:
    source, out = load_source(str(small_backbone())), tmp_path / "out"
    (out / STAGE).mkdir(parents=True)
    (out / STAGE / "model.onnx").write_bytes(b"half")
    export(source, "safetensors", out)
    assert set(files(out)) == {"model.safetensors", "config.json", "README.md", "NOTICE", REPORT_FILE}


def test_an_export_never_replaces_its_source(make_adapter: Make, small_backbone: Make, tmp_path: Path) -> None:
    folder = make_adapter("classify", "linear", classes=("a", "b"))
    export(load_source(str(folder)), "safetensors", tmp_path / "own")
    export(load_source(str(small_backbone())), "safetensors", tmp_path / "bare")
    for name in ("own", "bare"):
        before = files(tmp_path / name)
        with pytest.raises(UsageError, match="is the folder of the source"):
            export(load_source(str(tmp_path / name)), "monai", tmp_path / name, overwrite=True)
        assert files(tmp_path / name) == before
    with pytest.raises(UsageError, match=r"holds no export\.json"):
        export(load_source(str(small_backbone())), "monai", folder, overwrite=True)
    export(load_source(str(folder)), "safetensors", folder / "inside")  # a folder of its own in the bundle is fine
    assert load_adapter(folder / "inside").classes == ("a", "b")


def test_a_missing_or_different_backbone_is_named(make_adapter: Make, small_backbone: Make, tmp_path: Path) -> None:
    backbone = small_backbone()
    folder = make_adapter("classify", "linear", classes=("a", "b"), backbone=backbone)
    backbone.rename(tmp_path / "moved")
    with pytest.raises(DinomedError, match="say where: `backbone=PATH`"):
        load_source(str(folder))
    reloaded = load_source(str(folder), backbone=str(tmp_path / "moved"))
    export(reloaded, "safetensors", tmp_path / "own", backbone=str(tmp_path / "moved"))
    shutil.rmtree(tmp_path / "moved")
    assert load_adapter(tmp_path / "own").backbone.fingerprint == reloaded.backbone.fingerprint
    with pytest.raises(UsageError, match="was made on backbone"):
        load_source(str(folder), backbone=str(small_backbone(intensity={"bits": 16})))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(small_backbone: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DinomedError, match="not writable"):
        export(load_source(str(small_backbone())), "safetensors", tmp_path / "out")


class Peeking(torch.nn.Module):
    """A head of a plug-in that asks a tensor for its value."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head, self.feature_spec, self.config = head, head.feature_spec, head.config

    def forward(self, features: Any) -> Tensor:
        logits: Tensor = self.head(features)
        return logits * 2 if float(features.cls.sum()) > 0 else logits


@pytest.mark.parametrize(
    ("dynamic", "remedy"),
    [
        (False, "`format=monai` or safetensors"),
        pytest.param(True, "leave `dynamic_size` out", marks=pytest.mark.long),
    ],
)
def test_a_head_that_cannot_be_traced_is_named_with_the_remedy(
    dynamic: bool, remedy: str, make_adapter: Make, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    source = load_source(str(make_adapter("classify", "linear", classes=("a", "b"))))
    predictor: Any = source.predictor
    predictor.adapter = Peeking(predictor.adapter)
    with pytest.raises(DinomedError, match="a classify adapter with head linear cannot be written as ONNX") as refusal:
        export(source, "onnx", tmp_path / "out", dynamic_size=dynamic)
    assert remedy in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_rounding_that_a_head_amplifies_is_accepted(make_adapter: Make) -> None:
    """A head with logits of 1e4 times its features: float32 alone makes probabilities differ by more than 1e-4."""
    source = load_source(str(make_adapter("classify", "linear", classes=("a", "b"))))
    assert source.predictor is not None
    linear: Any = source.predictor.adapter
    with torch.no_grad():
        linear.linear.weight *= 1e4
        probe = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))  # the one that is compared
        linear.linear.bias -= source.predictor.logits(probe)[0]  # in the middle, where it shows
    doubled = source.doubled()
    assert doubled.predictor is not None
    assert next(doubled.predictor.adapter.parameters()).dtype == torch.float64
    assert next(source.predictor.adapter.parameters()).dtype == torch.float32  # untouched

    def rounded(pixels: Tensor) -> Tensor:
        return doubled.reference(pixels.double())[0].float()

    report = compare(source, "float64", rounded, [(1, 64, 64)])
    assert 1e-4 < report["largest_difference"] < report["tolerance"] <= 1e-2
    for shift in (0.02, float("nan")):  # twice the loosest, and no number
        with pytest.raises(DinomedError, match="outputs of float64 for a classify adapter with head linear differ"):
            compare(source, "float64", lambda pixels, by=shift: rounded(pixels) + by, [(1, 64, 64)])


def test_a_small_difference_is_refused_if_it_is_not_rounding(small_backbone: Make) -> None:
    source = ExportSource(load_source(str(small_backbone())).backbone)

    def off(pixels: Tensor) -> list[Tensor]:
        return [output + 5e-4 * output.abs().max() for output in source.reference(pixels)]

    with pytest.raises(DinomedError, match=r"differ from those of dinomed by 0\.0005 \(allowed: 0\.0001\)"):
        compare(source, "another", off, SHAPES)
