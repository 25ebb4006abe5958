"""The command models, and a head of another package: installed, listed, trained, used."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dinomed import registry
from dinomed.apps import cli
from dinomed.backbones.variants import VARIANTS
from dinomed.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]


def test_models_are_listed_without_heavy_imports(tmp_path: Path) -> None:
    name = "dinov2_vits14"
    release = VARIANTS[name].release
    cached = tmp_path / "weights" / release.file_name
    cached.parent.mkdir()
    cached.touch()
    script = (
        "import sys\nfrom dinomed.apps import cli\n"
        "try: cli.main(['models', '--json'])\nexcept SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'sklearn', 'faiss') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300,
        env={**os.environ, "DINOMED_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.stderr.strip() == "[]"
    report = json.loads(done.stdout)
    backbones = {row["name"]: row for row in report["backbones"]}
    assert set(backbones) == set(VARIANTS)
    assert backbones[name]["licence"] == "Apache-2.0"
    assert backbones[name]["on_disk"] == str(cached)
    assert backbones["dinov2_vitb14"]["on_disk"] is None
    assert backbones["vit_tiny_patch8"]["source"] is None
    assert {"linear"} <= {row["name"] for row in report["adapters"] if row["task"] == "segment"}


def test_every_built_in_head_of_the_list_can_be_built() -> None:
    from dinomed.adapters.catalogue import BUILT_IN
    from dinomed.adapters.fitting.config import adapter_class

    for entry in BUILT_IN:
        assert adapter_class(entry.task, entry.name).task == entry.task


def test_the_table_names_source_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["models"])
    assert not end.value.code
    out = capsys.readouterr().out
    assert "dinov2_vits14" in out
    assert "Apache-2.0" in out
    assert "research use only" in out


@pytest.mark.parametrize(
    ("value", "message"),
    [("dinomed_no_such_module:Head", "No module named"), ("dinomed.errors:NoSuchName", "NoSuchName")],
)
def test_a_plug_in_that_cannot_be_loaded_is_reported_and_skipped(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fruit = registry.Registry("fruit", "dinomed.fruit")
    fruit.register("apple")(object())
    points = [EntryPoint("pear", value, "dinomed.fruit"), EntryPoint("apple", "dinomed.errors:UsageError", "x")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.raises(UsageError, match="unknown fruit 'pear'"):
        fruit["pear"]
    errors = " ".join(capsys.readouterr().err.split())
    assert "cannot be loaded" in errors
    assert message in errors
    assert "fruit 'apple' exists already" in errors
    assert list(fruit) == ["apple"]


@pytest.mark.long
def test_the_example_plug_in_is_installed_listed_trained_and_used(
    tmp_path: Path, lesion_manifest: Path, tiny_backbone: Path
) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source, site = tmp_path / "plugin", tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "plugin", source)  # a build leaves its folders in the tree
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*install, "--target", str(site), str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    out, images = tmp_path / "out", lesion_manifest.parent / "lesions" / "images"
    settings = ["--set", "head.name=mlp", "--set", "head.hidden=16", "--set", "fit.epochs=2"]
    train = ["train", "classify", "-b", str(tiny_backbone), "--data", str(lesion_manifest), "-o", str(out), *settings]
    predict = ["predict", str(out), str(images), "-o", str(tmp_path / "predicted")]
    script = "from dinomed.apps import cli\n" + "".join(
        f"cli.invoke({[*arguments, '--json']!r})\nprint('-----')\n" for arguments in (["models"], train, predict)
    )
    path = os.pathsep.join(filter(None, [str(site), str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    models, _, predicted, _ = done.stdout.split("-----\n")
    (mlp,) = [row for row in json.loads(models)["adapters"] if row["name"] == "mlp"]
    assert mlp["package"] == "dinomed-mlp 0.1.0"
    assert mlp["licence"] == "Apache-2.0"
    assert json.loads(predicted)["images"] == 60
    with pytest.raises(UsageError, match="classify has no head 'mlp'"):  # here the plug-in is not installed
        cli.invoke(["predict", str(out), str(images), "-o", str(tmp_path / "again")])
