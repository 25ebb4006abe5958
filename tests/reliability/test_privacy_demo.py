"""Marks in files, names and tables are in nothing that a quickstart writes or a demo serves, logs and saves."""

import base64
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dinomed.apps.quickstart import run as quickstart
from dinomed.apps.quickstart.report import demo_arguments

Run = Callable[..., tuple[int, str, str]]
HERE = Path(__file__).parent
marks = runpy.run_path(str(HERE / "test_privacy.py"))
MARK, NAME_MARK, UID_ROOT, DATE, OTHER = (marks[name] for name in ("MARK", "NAME_MARK", "UID_ROOT", "DATE", "OTHER"))
holds, files_with, files_with_age, plant_images, plant_video, plant = (
    marks[name] for name in ("holds", "files_with", "files_with_age", "plant_images", "plant_video", "plant")
)
TINY = runpy.run_path(str(HERE.parent / "apps" / "quickstart" / "test_quickstart.py"))["TINY"]
"""Settings of a pretraining of a second."""
NAMED = ("images.parquet", "index/index.safetensors")
"""Outputs of a quickstart that name files by design: the table of images, and the index of its images."""
OWN = "OWNNAME"
"""Mark of the name that a visitor gives an upload."""
RULES = {"threshold": 0.5, "min_share": 0, "largest_only": False}


class Client:
    """A visitor who sends what the page sends, and keeps all bytes that the server answers."""

    def __init__(self, address: str) -> None:
        self.address, self.visit = address.replace("0.0.0.0", "127.0.0.1"), uuid.uuid4().hex
        self.answers, self.sent = list[bytes](), list[bytes]()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": kind})
        try:
            with self.opener.open(request, timeout=300) as answer:
                self.answers.append(str(answer.headers).encode() + answer.read())
        except urllib.error.HTTPError as refusal:
            self.answers.append(str(refusal.headers).encode() + refusal.read())
        return self.answers[-1].partition(b"\n\n")[2]

    def upload(self, content: bytes, name: str = "image") -> str:
        """Send a file as the page does, which gives every file the same name; return its name on the server."""
        self.sent.append(content)
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        answer = self.ask(
            "/gradio_api/upload", head + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"
        )
        return str(json.loads(answer)[0])

    def call(self, function: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request of the page."""
        config = json.loads(self.ask("/config"))
        component = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "app")
        body = {"data": {"id": "mine", "visit": self.visit, **request}, "fn_name": function}
        body |= {"component_id": component, "session_hash": self.visit}
        answer: dict[str, Any] = json.loads(self.ask("/gradio_api/component_server", json.dumps(body).encode()))
        return answer


def packed_in(answers: list[bytes]) -> Iterator[bytes]:
    """Yield answers, and the files that stand in them as Base64 without a prefix."""
    for answer in answers:
        yield answer
        for text in answer.split(b'"'):
            if len(text) > 60 and len(text) % 4 == 0:
                try:
                    yield base64.b64decode(text, validate=True)
                except ValueError:
                    continue


def served(command: list[object], scratch: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a demo whose temporary files are in a folder; return its process and address."""
    scratch.mkdir()
    with open(scratch.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from dinomed.apps.cli import main; main()", *map(str, command)], text=True,
            stdout=subprocess.PIPE, stderr=log, env={**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://"), scratch.with_suffix(".log").read_text()
    return process, address


def visit_with(client: Client, files: list[bytes], archive: bytes) -> None:
    """Open each file in all tabs, ask for its mask, values and decision, and predict all in a batch."""
    rules = RULES
    for content in files:
        path = client.upload(content)
        look = client.call("look", path=path, panels=None, settings={})
        assert "panels" in look, look
        key = look["panels"]["segment"]["key"]
        assert "file" in client.call("mask", key=key, file=True, **rules)
        client.call("values", path=path)
        saved = client.call("save", path=path, key=key, decision="accepted", reviewer="R", **rules)
        assert "saved" in saved, saved
        assert "values" in client.call(
            "batch_predict", path=client.upload(content), position=None, settings={"segment": rules}
        )
        client.call("rank", path=client.upload(content), settings=rules)
    path = client.upload(archive)
    listed = client.call("batch_list", path=path)
    assert "files" in listed, listed
    for file in listed["files"]:
        client.call("batch_predict", path=path, position=file["position"], settings={"segment": rules})
    client.call("look", path=client.upload(f"no picture {MARK}".encode()), panels=None, settings={})
    client.call("look", path=f"/{MARK}", panels=[MARK], settings={})  # refused
    client.ask("/")


def look_around(client: Client, files: list[Path]) -> bytes:
    """Ask for all that shows images of the server: examples, cases, the map, the page and its lists, and files by their
    paths, which are refused. Return the selection of images, which is no part of the answers."""
    for path in (client.upload(files[0].read_bytes()), "example 1"):
        for mode in ("similarity", "pca", "attention", "match", "map"):
            client.call("look", path=path, panels=["explore"], settings={"explore": {"mode": mode}})
        for regions in (True, False):
            client.call("look", path=path, panels=["retrieve", "classify"], settings={"retrieve": {"regions": regions}})
    while "computing" in (points := client.call("map_points", method="pca")):
        continue
    assert points["total"] > 9
    assert client.call("map_thumbnails", places=list(range(9)))["thumbnails"][0]
    for file in files:
        for path in (str(file), f"../../../{file.name}", f"{client.upload(b'no picture')}/../{file.name}", file.name):
            client.call("look", path=path, panels=None, settings={})
            client.ask(f"/gradio_api/file={urllib.request.pathname2url(path)}")
    for page in ("/", "/config", "/theme.css", "/gradio_api/info", "/nothing", "/gradio_api/openapi.json"):
        client.ask(page)
    client.call("batch_keep", path=client.upload(b"no ZIP"), position=0)
    client.call("map_save", places=[0, 1])
    selection = client.answers.pop()
    assert b"csv" in selection
    return selection


def answers_with(words: list[str], *clients: Client) -> list[tuple[str, bytes]]:
    """Return the words that are in the answers that visitors got, each with the end of its answer."""
    found = []
    for client in clients:
        for answer in client.answers:
            found += [(word, answer[-300:]) for word in words if any(holds(part, word) for part in packed_in([answer]))]
    return found


def test_the_search_finds_marks_in_files_of_an_answer() -> None:
    packed = json.dumps({"file": base64.b64encode(f"{MARK} of a file ".encode() * 9).decode()}).encode()
    assert not holds(packed, MARK)
    assert any(holds(part, MARK) for part in packed_in([packed]))


@pytest.mark.long
def test_no_mark_is_in_a_quickstart_nor_in_what_a_demo_serves_logs_and_saves(
    user_folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesions, out, clip = tmp_path / "lesions", tmp_path / "out", tmp_path / f"{NAME_MARK}.mp4"
    shutil.copytree(user_folder / "lesions", lesions)
    assert plant_images(lesions) > 2000
    plant(lesions)
    plant_video(clip)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "head.yaml").write_text("fit: {epochs: 2, min_steps: 20}\n")
    monkeypatch.setattr(quickstart, "CONFIG", str(tmp_path / "tiny.yaml"))
    monkeypatch.setattr(quickstart, "SEGMENT_CONFIG", str(tmp_path / "head.yaml"))
    code, stdout, stderr = run(
        "quickstart", "--json", "--data", lesions, "--group", "patient", "-o", out, "--device", "cpu"
    )
    assert code == 0, stderr
    assert not holds((stdout + stderr).encode(), MARK)
    for mark in (MARK, UID_ROOT, DATE, OTHER["TM"]):
        assert files_with(out, mark) == [], mark
    assert files_with_age(out) == []
    assert [name for name in files_with(out, NAME_MARK) if not name.startswith(NAMED)] == []
    assert (out / "report.html").is_file()

    shown = demo_arguments(json.loads(stdout))
    assert {*shown} == {"segment", "classify", "index", "examples"}
    command: list[object] = ["demo", "all", *(word for name, value in shown.items() for word in (f"--{name}", value))]
    scratch, saved = tmp_path / "scratch", tmp_path / "saved"
    command += ["--port", 0, "--no-browser", "--device", "cpu"]
    images = [next(lesions.rglob(f"{NAME_MARK}*{suffix}")) for suffix in (".jpg", ".png", ".dcm")]
    process, address = served([*command, "--save", saved], scratch)
    try:
        client, packed = Client(address), io.BytesIO()
        sent = [next(lesions.rglob(f"*{suffix}")).read_bytes() for suffix in (".dcm", ".tif", ".png", ".jpg")]
        sent.append(clip.read_bytes())
        with zipfile.ZipFile(packed, "w") as archive:
            for number, content in enumerate(sent[:2]):
                archive.writestr(f"{number}.bin", content)
        visit_with(client, sent, packed.getvalue())
        assert NAME_MARK.encode() in look_around(client, images)  # of visitors on this machine
        kept = [path for path in scratch.rglob("*") if path.is_file()]
        held = [path for path in kept if path.read_bytes() not in client.sent]  # an upload is kept as it is
        assert [str(path) for path in held if holds(path.read_bytes(), MARK)] == []
        assert [str(path) for path in kept if NAME_MARK in str(path.relative_to(scratch))] == []
    finally:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    log = scratch.with_suffix(".log").read_text()
    for mark in (MARK, UID_ROOT, DATE):
        assert not holds((printed + log).encode(), mark), mark
        assert [answer[:200] for answer in packed_in(client.answers) if holds(answer, mark)] == [], mark
        assert files_with(saved, mark) == [], mark
    assert files_with_age(saved) == files_with(saved, NAME_MARK) == []
    assert [path for path in scratch.rglob("*") if path.is_file()] == []  # uploads are removed at the end
    assert len(client.answers) > 50
    assert answers_with([NAME_MARK, str(tmp_path)], client) == []

    scratch = tmp_path / "outside"
    process, address = served([*command, "--host", "0.0.0.0", "--anyone"], scratch)  # other machines may connect
    try:
        client, other = Client(address), Client(address)
        path = client.upload(sent[3], f"{OWN}.jpg")
        key = client.call("look", path=path, panels=None, settings={})["panels"]["segment"]["key"]
        client.call("mask", key=key, file=True, **RULES)
        client.call("batch_predict", path=path, position=None, settings={"segment": RULES})
        for visitor in (client, other):
            selection = look_around(visitor, images)
            assert b"row" in selection
            visitor.answers.append(selection)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert answers_with([MARK, NAME_MARK, UID_ROOT, DATE, str(tmp_path)], client, other) == []
    assert answers_with([OWN], other) == []
    assert answers_with([OWN], client) != []  # the search finds what is there
