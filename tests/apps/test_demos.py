"""What of the demos needs no browser."""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from dinomed.apps.demos.launch import NUM_EXAMPLES, choose_examples
from dinomed.apps.demos.serve import _free_port, private_environment
from dinomed.errors import UsageError


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert port < _free_port("127.0.0.1", port) < port + 100


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no\.such\.host\.invalid"):
        _free_port("no.such.host.invalid", 7860)


def test_uploads_go_to_a_private_folder_that_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with private_environment() as folder:
        assert os.environ["GRADIO_TEMP_DIR"].startswith(str(folder))
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert folder.stat().st_mode & 0o077 == 0  # nobody else reads it
    assert not folder.exists()


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (8, 6)).save(folder / f"{i:02d}.png")


def test_examples_are_those_given_else_the_adapter_s_else_synthetic(tmp_path: Path) -> None:
    adapter, given = tmp_path / "adapter", tmp_path / "given"
    adapter.mkdir()
    synthetic = choose_examples(adapter, None, tmp_path / "scratch")
    assert len(synthetic) == NUM_EXAMPLES
    write_pictures(adapter / "examples", 2)
    assert [path.name for path in choose_examples(adapter, None, tmp_path / "s2")] == ["00.png", "01.png"]
    write_pictures(given, 20)
    assert len(choose_examples(adapter, given, tmp_path / "s3")) == NUM_EXAMPLES
    with pytest.raises(UsageError, match="no pictures"):
        choose_examples(adapter, tmp_path / "scratch", tmp_path / "s4")


def test_the_drop_zone_takes_files_only_and_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    import gradio as gr
    from gradio.data_classes import FileData

    from dinomed.apps.demos.segment import _take_as_is

    zone = gr.Image(type="filepath")
    _take_as_is(zone)
    with pytest.raises(gr.Error, match="files only"):
        asyncio.run(zone.async_move_resource_to_block_cache("https://example.org/a.png"))
    file = tmp_path / "garbage.png"
    file.write_text("not a picture")  # reading it, and saying what is wrong, is ours
    assert zone.preprocess(FileData(path=str(file))) == str(file)
    assert zone.preprocess(None) is None
