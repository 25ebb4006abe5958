import json

import pytest
import torch

from dinomed.apps import cli


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


def test_a_cache_that_cannot_be_written_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a test may run as root, who may write everywhere
    cli.invoke(["doctor"])
    assert "(not writable)" in capsys.readouterr().out
