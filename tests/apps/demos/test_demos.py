"""What of the demos needs no browser."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.apps import cli
from dinomed.apps.demos import serve
from dinomed.apps.demos.guard import LEAST_FILE_BYTES, folder_bytes
from dinomed.apps.demos.launch import NUM_EXAMPLES, choose_examples
from dinomed.apps.demos.segment import Recent, VisitedPicture
from dinomed.apps.demos.serve import private_environment
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.errors import DinomedError, UsageError
from dinomed.images.intensity import IntensityConfig
from dinomed.io.output_folder import locked


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        yield busy.getsockname()[1]


def test_a_port_in_use_is_an_error_before_anything_is_loaded(
    busy_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "segment", "--adapter", "no/such/adapter", "--port", str(busy_port)])
    assert end.value.code == 1
    assert capsys.readouterr().err == (
        f"error: --port {busy_port} is in use; choose another, or leave it out to take any that is free\n"
    )


@pytest.mark.parametrize(("port", "why"), [("-1", "0"), ("65536", "65535"), ("70000", "65535"), ("http", "integer")])
def test_a_port_that_cannot_be_is_refused(port: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "segment", "--adapter", "no/such/adapter", "--port", port])
    assert end.value.code == 2
    assert re.match(f"error: .*--port.* {why}", capsys.readouterr().err)


def test_without_a_port_the_next_free_one_is_taken(busy_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "FIRST_PORT", busy_port)
    assert busy_port < serve.choose_address().port < busy_port + 100
    assert serve.choose_address(port=0).port > 0


def test_a_port_that_another_program_takes_after_the_choice_is_replaced_by_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "sweep_until_signal", stop)
    monkeypatch.setattr("gradio.networking.url_ok", lambda _: False)  # as on a busy machine
    with socket.socket() as occupant, private_environment():
        import gradio

        def build() -> gradio.Blocks:
            with gradio.Blocks() as page:
                gradio.Markdown("a page")
            return page

        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        address = serve.Address("127.0.0.1", occupant.getsockname()[1], is_port_given=False)
        with pytest.raises(KeyboardInterrupt):
            serve.serve(build, address, browser=False)
        assert re.match(rf"http://127.0.0.1:(?!{address.port}\b)\d+\n", capsys.readouterr().out)
        chosen_port = serve.Address("127.0.0.1", address.port)
        with pytest.raises(DinomedError, match=f"cannot be served at 127.0.0.1:{address.port}"):
            serve.serve(build, chosen_port, browser=False)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 300])
def test_a_host_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=f"--host {host}"):
        serve.choose_address(host, anyone=True)


def test_the_network_is_let_in_by_login_or_by_an_option_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="anyone on the network could use the demo; add --login FILE"):
        serve.choose_address("0.0.0.0", 0)
    assert serve.choose_address("0.0.0.0", 0, anyone=True).login is None
    warning = capsys.readouterr().err
    assert "anyone on the network can use the demo" in warning
    login = tmp_path / "login"
    login.write_text("ada:a:b\n")
    assert serve.choose_address("0.0.0.0", 0, login_file=login).login == ("ada", "a:b")
    warning = capsys.readouterr().err
    assert "anyone" not in warning
    assert "unencrypted" in warning
    assert "a:b" not in warning


@pytest.mark.parametrize("text", [None, "", "ada", ":secret", "ada:", "ada:x\nbob:secret", b"\xff\xfe"])
def test_a_login_file_without_a_login_is_refused_and_not_shown(tmp_path: Path, text: str | bytes | None) -> None:
    login = tmp_path / "login"
    if text is not None:
        login.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match="--login") as refused:
        serve.choose_address("0.0.0.0", 0, login_file=login)
    assert "secret" not in str(refused.value)


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
        Image.new("RGB", (8, 6), (i, 0, 0)).save(folder / f"{i:02d}.png")


def test_examples_are_those_given_else_the_adapter_s_else_synthetic(tmp_path: Path) -> None:
    adapter, user_examples = tmp_path / "adapter", tmp_path / "given"
    adapter.mkdir()
    assert len(choose_examples([adapter], None, tmp_path / "s1")) == NUM_EXAMPLES
    write_pictures(adapter / "examples", 2)
    assert len(choose_examples([adapter], None, tmp_path / "s2")) == 2
    write_pictures(user_examples, 20)
    copies = choose_examples([adapter], user_examples, tmp_path / "s3")
    assert [path.name for path in copies] == [f"example_{n}.jpg" for n in range(1, NUM_EXAMPLES + 1)]
    assert {path.parent for path in copies} == {tmp_path / "s3" / "examples"}
    (tmp_path / "empty").mkdir()
    for nothing, why in (("empty", "no pictures"), ("none", "not a folder")):
        with pytest.raises(UsageError, match=why):
            choose_examples([adapter], tmp_path / nothing, tmp_path / "s4")


def test_examples_are_chosen_by_content_and_carry_no_name_and_no_exif(tmp_path: Path) -> None:
    user_examples = tmp_path / "given"
    write_pictures(user_examples, 1)
    (user_examples / "00.png").rename(user_examples / "DOE_JANE_scan")  # a picture, whatever it is called
    (user_examples / "a.png").write_text("<html>not a picture</html>")
    (user_examples / "b.jpg").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(user_examples / "c.png")  # a bomb
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "DOE^JANE 1950", 6  # description; turned by a quarter
    Image.new("RGB", (30, 20)).save(user_examples / "d.jpg", exif=exif, comment=b"DOE^JANE")
    copies = choose_examples([tmp_path], user_examples, tmp_path / "scratch")
    assert [path.name for path in copies] == ["example_1.jpg", "example_2.jpg"]
    assert sorted(Image.open(path).size for path in copies) == [(8, 6), (20, 30)]  # the second upright
    for path in copies:
        assert b"DOE" not in path.read_bytes()
        assert not Image.open(path).getexif()
        assert "comment" not in Image.open(path).info


def visited(pixels: int, value: float = 0.0) -> VisitedPicture:
    return VisitedPicture(np.full((1, pixels), value, np.float32))


def test_maps_in_memory_are_bounded_and_the_longest_unused_go() -> None:
    recent = Recent(max_pixels=100)
    first, second = recent.put(visited(40, 1)), recent.put(visited(40, 2))
    assert recent.get(first).probability[0, 0] == 1  # used: the second is now the older one
    third = recent.put(visited(40, 3))
    assert recent.get(second) is None
    large = recent.put(visited(1000, 4))  # alone it may be larger than all
    assert [recent.get(key) is None for key in (first, third, large)] == [True, True, False]


def test_the_predictor_gets_what_the_backbone_reads_and_not_the_picture_as_shown(tmp_path: Path) -> None:
    with private_environment():
        from dinomed.apps.demos.page import App
        from dinomed.apps.demos.segment import SegmentPanel

        inputs: list[np.ndarray] = []

        class Spy:
            threshold = 0.5

            def probability(self, image: np.ndarray) -> np.ndarray:
                inputs.append(image)
                return np.zeros(image.shape[:2], np.float32)

        Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
        reads = Preprocessing(mean=(0.5,), std=(0.5,), channels=1, intensity=IntensityConfig(bits=16))
        app = App([SegmentPanel(Spy(), reads)])
        upload = Path(os.environ["GRADIO_TEMP_DIR"]) / "hash" / "image"
        upload.parent.mkdir(parents=True)
        (tmp_path / "deep.png").rename(upload)
        assert app.answer({"id": "a", "path": str(upload)})["size"] == [8, 6]
        (image,) = inputs
        assert (image.shape, image.dtype) == ((6, 8, 1), np.float32)
        assert image == pytest.approx(40_000 / 65_535, abs=1e-4)


def test_a_page_of_nothing_and_adapters_of_another_task_are_refused(
    tmp_path: Path, lesion_manifest: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*command: object) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, command), "--no-browser"])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "one or more of --segment, --classify, --adapter and --index" in refusal("demo", "all")
    out = tmp_path / "cls"
    cli.invoke(["train", "classify", "-b", str(tiny_backbone), "--data", str(lesion_manifest), "-o", str(out), "-q"])
    capsys.readouterr()
    assert refusal("demo", "all", "--segment", out) == (
        f"error: {out} is a classify adapter; this needs one made by `dinomed train segment`\n"
    )


def test_folders_of_killed_servers_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    killed, used, new, foreign = (
        tmp_path / name for name in ("dinomed-demo-a", "dinomed-demo-b", "dinomed-demo-c", "x")
    )
    for folder in (killed, used, new, foreign):
        (folder / "uploads").mkdir(parents=True)
        (folder / "uploads" / "image").write_bytes(b"of a patient")
    (killed / ".lock").touch()
    with locked(used):
        serve.sweep_folders(tmp_path)
    assert [folder.exists() for folder in (killed, used, new, foreign)] == [False, True, True, True]


def test_old_uploads_are_removed_complete_or_not(tmp_path: Path) -> None:
    old, new, part, begun = (tmp_path / name for name in ("h1/image", "h2/image", "tmpabc", "h3"))
    for path in (old, new, part):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    begun.mkdir()  # of an upload whose file is moved there next
    for path in (old, part):
        os.utime(path, (1, 1))
    serve.sweep_uploads(tmp_path, 1800)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["h1", "h2", "h3", "image"]
    os.utime(old.parent, (1, 1))
    serve.sweep_uploads(tmp_path, 1800)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["h2", "h3", "image"]


def test_a_folder_that_disappears_while_uploads_are_counted_or_swept_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").write_bytes(b"12345")
    scan = os.scandir

    def scan_after_another_thread(path: Any = ".") -> Any:
        if os.path.basename(os.fspath(path)) == "gone":
            raise FileNotFoundError(2, "No such file or directory", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_after_another_thread)
    assert folder_bytes(tmp_path) == LEAST_FILE_BYTES
    serve.sweep_uploads(tmp_path, -1)
    assert not (tmp_path / "kept" / "image").exists()
