"""`dinomed doctor ARTEFACT`: a sound artefact, and every kind of damage with its remedy."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import dinomed
from dinomed.apps.examine.report import ArtefactReport
from dinomed.backbones.vit import TokenModel, Tokens
from dinomed.backbones.weights import INDEX_FILE as SHARD_LIST
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError

Run = Callable[..., tuple[int, str, str]]
SMALL = {"run.batch_size": 8, "run.workers": 0, "crops.num_local": 0, "backbone.depth": 1, "run.checkpoint_every": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lesion_manifest: Path, tiny_backbone: Path) -> Path:
    """A folder with one of each artefact."""
    folder = tmp_path_factory.mktemp("artefacts")
    shutil.copytree(lesion_manifest.parent / "lesions", folder / "lesions")
    shutil.copy(lesion_manifest, folder / "derm.parquet")
    shutil.copytree(tiny_backbone, folder / "ssl")
    data, quick = folder / "derm.parquet", {"fit.epochs": 1, "fit.min_steps": 0}
    dinomed.train("classify", folder / "ssl", data, folder / "cls", settings=quick)
    dinomed.build_index(folder / "ssl", data, folder / "idx")
    dinomed.predict(folder / "cls", data, folder / "predicted")
    dinomed.evaluate(folder / "cls", data, out=folder / "evaluated", resamples=10)
    dinomed.extract_features(dinomed.load_backbone(folder / "ssl"), data, out=folder / "f.parquet")
    dinomed.curate(data, folder / "curated.parquet", settings={"quality.min_short_side_px": 32})
    dinomed.pretrain("vit_tiny_cpu", data, folder / "run", steps=2, settings=SMALL, device="cpu")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


KINDS = {
    "derm.parquet": "manifest",
    "curated.parquet": "curated manifest",
    "curated.stages": "feature cache",
    "derm.features": "feature cache",
    "f.parquet": "feature table",
    "ssl": "backbone",
    "run": "run",
    "run/backbone": "backbone",
    "cls": "adapter",
    "idx": "index",
    "predicted": "predictions",
    "evaluated": "evaluation",
}


def wrong(report: ArtefactReport) -> dict[str, str]:
    return {part.name: part.state for part in report.parts if part.state != "good"}


def test_every_artefact_is_sound(made: Path) -> None:
    for name, kind in KINDS.items():
        report = dinomed.doctor(made / name)
        assert (name, report.kind, wrong(report)) == (name, kind, {})
        assert report.parts, name


def flip(path: Path, place: int = -9) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


DAMAGE: dict[str, tuple[str, Callable[[Path], object], dict[str, str]]] = {
    "changed image": ("derm.parquet", lambda f: flip(first(f / "lesions/images", "*")), {"images": "changed"}),
    "missing image": ("derm.parquet", lambda f: first(f / "lesions/images", "*").unlink(), {"images": "missing"}),
    "missing mask": ("derm.parquet", lambda f: first(f / "lesions/masks", "*.png").unlink(), {"masks": "missing"}),
    "cut manifest": ("derm.parquet", lambda f: flip(f / "derm.parquet"), {"derm.parquet": "damaged"}),
    "page of a curation": ("curated.parquet", lambda f: (f / "curated.html").unlink(), {"curated.html": "missing"}),
    "rows of a curation": (
        "curated.parquet", lambda f: (f / "curated.stages/rows.arrow").unlink(), {"curated.json": "missing"}
    ),
    "damaged rows of a curation": (
        "curated.parquet", lambda f: cut(f / "curated.stages/rows.arrow"), {"curated.json": "damaged"}
    ),
    "folder of a manifest": ("derm.parquet", lambda f: shutil.rmtree(f / "lesions"), {"derm.parquet": "missing"}),
    "shard of features": ("derm.features", lambda f: flip(first(f / "derm.features", "*.npy")), {"": "damaged"}),
    "features without a record": (
        "derm.features", lambda f: first(f / "derm.features", "*.json").unlink(), {"unfinished files": "incomplete"}
    ),
    "table of features": ("f.parquet", lambda f: cut(f / "f.parquet"), {"f.parquet": "damaged"}),
    "weights": ("ssl", lambda f: flip(f / "ssl/model.safetensors"), {"ssl": "damaged"}),
    "checkpoint": (
        "run", lambda f: flip(first(f / "run/checkpoints", "*.safetensors")), {"checkpoints/step_00000001": "damaged"}
    ),
    "no checkpoint": ("run", lambda f: shutil.rmtree(f / "run/checkpoints"), {"checkpoints": "incomplete"}),
    "backbone of a run": ("run", lambda f: shutil.rmtree(f / "run/backbone"), {"backbone": "missing"}),
    "training index": ("run", lambda f: (f / "run/seen.parquet").unlink(), {"seen.parquet": "missing"}),
    "log": ("run", lambda f: (f / "run/log.jsonl").write_text("x\n{}\n"), {"log.jsonl": "damaged"}),
    "head": (
        "cls", lambda f: flip(f / "cls/adapter.safetensors"), {"head": "damaged", "training images": "damaged"}
    ),
    "no head": ("cls", lambda f: (f / "cls/adapter.safetensors").unlink(), {"record": "missing"}),
    "no backbone": ("cls", lambda f: shutil.rmtree(f / "ssl"), {"backbone": "missing"}),
    "vectors": ("idx", lambda f: flip(f / "idx/index.safetensors"), {"index": "damaged"}),
    "image of an index": ("idx", lambda f: flip(first(f / "lesions/images", "*")), {"images": "changed"}),
    "table of predictions": (
        "predicted", lambda f: (f / "predicted/predictions.csv").unlink(), {"predictions.csv": "missing"}
    ),
    "evaluation": ("evaluated", lambda f: (f / "evaluated/metrics.json").write_text("{"), {"metrics.json": "damaged"}),
}  # fmt: skip


def test_each_damage_is_named_with_a_remedy(copy: Path) -> None:
    whole = copy.parent / "whole"
    copy.rename(whole)
    differences: dict[str, dict[str, str]] = {}
    for name, (artefact, damage, expected) in DAMAGE.items():
        shutil.copytree(whole, copy)
        damage(copy)
        report = dinomed.doctor(copy / artefact)
        shutil.rmtree(copy)
        states = wrong(report)
        remedies = all(part.remedy for part in report.parts if part.state != "good")
        is_expected = set(states.values()) == {expected[""]} if "" in expected else states == expected
        if report.sound or not remedies or not is_expected:
            differences[name] = states
    assert differences == {}


def test_every_file_of_an_export_is_verified(tiny_backbone: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    dinomed.export(tiny_backbone, "safetensors", out)
    assert wrong(dinomed.doctor(out)) == {}
    weights = first(out, "*.safetensors")
    flip(weights)
    (out / "README.md").unlink()
    report = dinomed.doctor(out)
    assert wrong(report) == {weights.relative_to(out).as_posix(): "damaged", "README.md": "missing"}
    assert all("dinomed export" in part.remedy for part in report.parts if part.state != "good")
    listed = json.loads((out / "export.json").read_text())
    (out / "export.json").write_text(json.dumps(listed | {"files": {"../model.onnx": ""}}))
    assert wrong(dinomed.doctor(out)) == {"export.json": "damaged"}


def test_an_exported_adapter_has_one_remedy(copy: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    out = copy / "export"
    dinomed.export(copy / "cls", "safetensors", out)
    assert wrong(dinomed.doctor(out)) == {}
    flip(out / "adapter.safetensors")
    assert wrong(dinomed.doctor(out)) == {"adapter.safetensors": "damaged"}
    code, text, _ = run("doctor", out)
    assert (code, text.count("->"), "train again" in text) == (1, 1, False)
    assert "copy the folder again, or run `dinomed export` again with --overwrite" in " ".join(text.split())


def test_images_in_numpy_files_are_no_cache_that_may_be_removed(tmp_path: Path) -> None:
    np.save(tmp_path / "scan_1.npy", np.zeros((8, 8), np.uint16))
    with pytest.raises(UsageError, match="holds nothing that dinomed wrote"):
        dinomed.doctor(tmp_path)


def test_few_shot_results_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "few_shot.json").write_text("{}")
    assert dinomed.doctor(tmp_path).kind == "few-shot results"


def test_a_folder_of_several_results_is_no_cache_whose_files_may_be_removed(made: Path, tmp_path: Path) -> None:
    others = tmp_path / "others" / "data"
    others.mkdir(parents=True)
    shutil.copy(first(made / "curated.stages", "*.arrow"), others / "train-00000.arrow")
    (others / "dataset_info.json").write_text("{}")
    for folder in (made, others, others.parent):
        with pytest.raises(UsageError, match="holds nothing that dinomed wrote"):
            dinomed.doctor(folder)
    mixed = tmp_path / "mixed"  # a folder for features that holds a run too
    shutil.copytree(made / "derm.features", mixed)
    shutil.copytree(made / "run", mixed / "run")
    (mixed / "notes.json").write_text("{}")
    report = dinomed.doctor(mixed)
    assert (report.kind, wrong(report)) == ("feature cache", {})


def test_a_backbone_of_another_library_is_examined(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = dinomed.load_backbone(tiny_backbone, device="cpu")
    described = {"library": "timm", "architecture": "vit_other"}
    frozen.model = OtherModel(described)
    monkeypatch.setattr("dinomed.apps.examine.models.load_backbone", lambda folder: frozen)
    (tmp_path / SHARD_LIST).write_text("{}")
    report = dinomed.doctor(tmp_path)
    assert (report.kind, report.sound, report.facts["architecture"]) == ("backbone", True, described)


class OtherModel(TokenModel):
    """A model that is no ViT of dinomed."""

    def __init__(self, described: dict[str, Any]) -> None:
        super().__init__()
        self.described = described

    def architecture(self) -> dict[str, Any]:
        return self.described

    def forward_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        raise NotImplementedError


def test_the_command_ends_with_1_and_names_the_damage(copy: Path, run: Run) -> None:
    code, out, _ = run("doctor", copy / "derm.parquet", "--json", "--quiet")
    report = json.loads(out)
    assert (code, report["sound"], report["facts"]["images"]) == (0, True, len(read_manifest(copy / "derm.parquet")))
    flip(first(copy / "lesions" / "images", "*"))
    code, out, _ = run("doctor", copy / "derm.parquet", "--quiet")
    assert code == 1
    assert "NOT SOUND" in out
    assert "1 are changed" in out
    assert "-> scan the folder again" in out


def test_what_is_no_artefact_is_a_wrong_request(tmp_path: Path, run: Run) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for place in (tmp_path, tmp_path / "notes.txt", tmp_path / "gone"):
        code, _, err = run("doctor", place)
        assert code == 2
        assert err.count("\n") == 1
