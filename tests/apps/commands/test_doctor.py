"""`dinomed doctor` without an artefact: what this machine has, and what it lacks."""

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest
import torch

from dinomed.apps import cli
from dinomed.apps.examine import machine


def test_doctor_reports_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    cli.invoke(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (
        report["packages"]["torch"] == torch.__version__.partition("+")[0]
        or report["packages"]["torch"] in torch.__version__
    )
    assert len(report["devices"]) == torch.cuda.device_count() + torch.backends.mps.is_available()
    assert report["auto"] in ("cpu", "cuda:0", "mps")
    cli.invoke(["doctor"])
    out = capsys.readouterr().out
    assert "cache of weights" in out
    assert report["packages"]["gradio"] in out


def test_every_extra_for_users_is_judged_by_its_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    named = {
        name: {re.split(r"[\[<>=~!;]", requirement)[0].strip() for requirement in extras[name]}
        for name in extras.keys() - {"test", "docs", "dev"}
    }
    assert {name: set(packages) for name, (packages, _) in machine.EXTRAS.items()} == named


def test_what_is_missing_is_said_with_what_mends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"nibabel": None, "peft": "1"}
    monkeypatch.setattr(machine, "installed_version", lambda package: versions.get(package, "2"))
    monkeypatch.setattr(machine, "_free_memory", lambda: 2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**40))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: "nvidia-smi" if name == "nvidia-smi" else None)
    monkeypatch.setattr(
        "pydicom.pixels.get_decoder", lambda syntax: SimpleNamespace(is_available=syntax.name != "RLE Lossless")
    )
    cli.invoke(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["extra volumes"]["state"] == "missing"
    assert checks["extra volumes"]["remedy"] == "pip install 'dinomed[volumes]'"
    assert checks["extra lora"] == {"name": "extra lora", "state": "ok", "about": ANY, "remedy": ""}
    assert (checks["free memory"]["state"], checks["free memory"]["about"]) == ("low", "1.0 GiB")
    assert checks["disk of the cache"]["state"] == checks["disk of the current folder"]["state"] == "ok"
    assert "cannot use the NVIDIA GPU" in checks["GPU"]["about"]
    assert checks["DICOM codecs"]["about"] == "not readable: RLE"
    assert all(bool(check["remedy"]) == (check["state"] != "ok") for check in checks.values())
    assert cli.invoke(["doctor"]) == 0
    assert "-> pip install 'dinomed[volumes]'" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a test may run as root, who may write everywhere
    cli.invoke(["doctor"])
    assert "(not writable)" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "free"), [("max", 2**40), (str(3 * 2**30), 2**31), (str(2**20), 0)])
def test_the_limit_of_a_container_bounds_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int
) -> None:
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(machine, "_free_in_system", lambda: 2**40)
    assert machine._free_memory() == 2**40  # no control group
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**29}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2**30}\ninactive_file {2**29}\n")
    assert machine._free_memory() == free


def test_a_removed_current_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed() -> Path:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "cwd", removed)
    names = [check.name for check in machine.check_machine(tmp_path)]
    assert "disk of the cache" in names
    assert "disk of the current folder" not in names
