"""Upload of an export, to a local server that answers as the API of the hub does."""

import base64
import errno
import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dinomed.adapters.export.push import push_export
from dinomed.errors import DinomedError, UsageError

TOKEN = "hf_a_secret_token_of_the_test"
Run = Callable[..., tuple[int, str, str]]


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its visibility and its files; `refuse` has the status for a part of the API."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}
        self.refuse: dict[str, int] = {}
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path.partition("?")[0])
        repository = self.server.repositories.get(self.path.removeprefix("/api/models/").partition("?")[0])
        if repository is None:
            return self.reply(404, {"error": "not found"})
        siblings = [{"rfilename": name} for name in repository["files"]]
        return self.reply(200, {"id": "x", "private": repository["visibility"] == "private", "siblings": siblings})

    def do_PUT(self) -> None:
        self.server.requests.append(self.path)
        self.server.large[self.path.removeprefix("/large/")] = self.body()
        self.reply(200, {})

    def do_POST(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        self.server.requests.append(path)
        if path.startswith("/api/") and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "no token"})
        for part, status in self.server.refuse.items():
            if part in path:
                return self.reply(status, {"error": f"refused {TOKEN}"})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            url = f"http://127.0.0.1:{self.server.server_port}/large/"
            objects = [
                {**item, "actions": {"upload": {"href": url + item["oid"]}}} for item in json.loads(body)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        assert "/commit/" in path
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        repository = self.server.repositories[name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository["files"][value["path"]] = self.server.large[value["oid"]]
        url = f"{constants.ENDPOINT}/{name}/commit/{'c' * 40}"
        return self.reply(200, {"success": True, "commitOid": "c" * 40, "commitUrl": url})

    def create(self, payload: dict[str, Any]) -> None:
        name = f"{payload['organization']}/{payload['name']}"
        if name in self.server.repositories:
            return self.reply(409, {"error": "You already created this model repo"})
        private = payload.get("visibility") == "private" or payload.get("private") is True
        files = {".gitattributes": b""}
        self.server.repositories[name] = {"visibility": "private" if private else "public", "files": files}
        return self.reply(200, {"url": f"http://127.0.0.1:{self.server.server_port}/{name}"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status: int, data: dict[str, Any]) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a storage protocol without a local stand-in
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


@pytest.mark.parametrize("public", [False, True])
def test_an_upload_holds_the_files_of_the_export_and_is_private_by_default(
    hub: Hub, run: Run, tiny_backbone: Path, tmp_path: Path, public: bool
) -> None:
    out, options = tmp_path / "out", ["--public"] if public else []
    code, stdout, errors = run(
        "export", tiny_backbone, "-f", "safetensors", "-o", out, "--push", "lab/vit-s", *options, "--json"
    )
    assert code == 0, errors
    (repository,) = hub.repositories.values()
    assert repository["visibility"] == ("public" if public else "private")
    sent = {name: content for name, content in repository["files"].items() if name != ".gitattributes"}
    assert sent == {path.name: path.read_bytes() for path in out.iterdir()}
    report = json.loads(stdout)
    assert report["pushed"]["files"] == sorted(sent)
    assert (report["pushed"]["private"], report["pushed"]["commit"]) == (not public, "c" * 40)
    assert f"uploading to lab/vit-s ({'public' if public else 'private'}): NOTICE (" in errors
    assert TOKEN not in stdout + errors
    (large,) = hub.large.values()  # weights go through the storage of large files
    assert hashlib.sha256(large).hexdigest() == report["files"]["model.safetensors"]


def test_an_export_without_push_asks_the_hub_nothing(hub: Hub, run: Run, tiny_backbone: Path, tmp_path: Path) -> None:
    assert run("export", tiny_backbone, "-f", "safetensors", "-o", tmp_path / "out")[0] == 0
    assert hub.requests == []


@pytest.fixture(scope="module")
def export_once(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dinomed.apps.api.export import export

    out = tmp_path_factory.mktemp("exports") / "out"
    export(tiny_backbone, "safetensors", out)
    return out


@pytest.fixture
def exported(export_once: Path, tmp_path: Path) -> Path:
    """The folder of an export, for one test."""
    return Path(shutil.copytree(export_once, tmp_path / "out"))


def push(folder: Path) -> dict[str, Any]:
    return push_export(folder, json.loads((folder / "export.json").read_text()), "lab/vit-s", public=False)


@pytest.mark.parametrize(
    ("refused", "kind", "message"),
    [
        (
            {"repos/create": 401},
            UsageError,
            "the hub does not accept the token (401); log in by `hf auth login`, or",
        ),
        ({"repos/create": 403}, UsageError, "the token may not write to lab (403); use a token with write permission"),
        ({"preupload": 403}, UsageError, "the token may not write to lab (403)"),
        ({"repos/create": 404}, UsageError, "the hub knows no lab to which the token may write (404); check the name"),
        ({"preupload": 404}, DinomedError, "the hub refuses the upload to lab/vit-s (404)"),
        ({"commit/": 404}, DinomedError, "the hub refuses the upload to lab/vit-s (404)"),
        ({"info/lfs": 404}, DinomedError, "the hub refuses the upload to lab/vit-s (404)"),
        ({"commit/": 413}, DinomedError, "the hub refuses the upload to lab/vit-s (413)"),
    ],
    ids=[
        "no valid token",
        "no permission to create",
        "no permission to write",
        "no such organisation",
        "no preupload",
        "no commit",
        "no large files",
        "too large",
    ],
)
def test_a_refused_upload_is_one_line_without_the_token_and_can_be_repeated(
    hub: Hub, exported: Path, refused: dict[str, int], kind: type[DinomedError], message: str
) -> None:
    hub.refuse = refused
    with pytest.raises(kind) as refusal:
        push(exported)
    assert type(refusal.value) is kind
    text = str(refusal.value)
    assert message in text
    assert f"the export is complete in {exported}" in text
    assert "\n" not in text
    assert TOKEN not in text
    hub.refuse = {}
    push(exported)  # also into the empty repository that the first call has left
    assert "model.safetensors" in hub.repositories["lab/vit-s"]["files"]


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, and not listening: connections are refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(DinomedError, match=r"^http://127\.0\.0\.1:\d+ cannot be reached \(.*\); the export is"):
            push(exported)


def test_a_file_that_cannot_be_read_is_not_called_a_broken_connection(
    hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(exported / "model.safetensors"))

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", fails)
    with pytest.raises(DinomedError, match=r"^the upload to lab/vit-s stopped: No space left on device; the export is"):
        push(exported)


def test_a_private_repository_is_not_used_for_a_public_upload(hub: Hub, exported: Path) -> None:
    hub.repositories["lab/vit-s"] = {"visibility": "private", "files": {}}
    report = json.loads((exported / "export.json").read_text())
    with pytest.raises(UsageError, match=r"exists already and is private \(409\)"):
        push_export(exported, report, "lab/vit-s", public=True)
    assert hub.repositories["lab/vit-s"] == {"visibility": "private", "files": {}}
    assert [name for name in hub.requests if "preupload" in name or "commit" in name or "large" in name] == []


def test_an_existing_repository_is_not_overwritten_and_not_made_public(hub: Hub, exported: Path) -> None:
    for files, visibility, state in (({"model.bin": b"x"}, "private", "is not empty"), ({}, "public", "is public")):
        hub.repositories["lab/vit-s"] = {"visibility": visibility, "files": dict(files)}
        with pytest.raises(UsageError, match=rf"^the repository lab/vit-s exists already and {state} \(409\)"):
            push(exported)
        assert hub.repositories["lab/vit-s"]["files"] == files


def test_a_folder_with_other_files_or_a_changed_file_is_not_uploaded(hub: Hub, exported: Path) -> None:
    labels, notice = exported / "patients" / "labels.csv", exported / "NOTICE"
    labels.parent.mkdir()
    labels.write_text("Jane Doe")
    with pytest.raises(UsageError, match=r"files that are no part of the export \(patients/labels\.csv\)"):
        push(exported)
    labels.unlink()
    text = notice.read_bytes()
    notice.write_text("Jane Doe")
    with pytest.raises(DinomedError, match="NOTICE was changed after the export"):
        push(exported)
    notice.unlink()
    (exported.parent / "copy").write_bytes(text)
    notice.symlink_to(exported.parent / "copy")
    with pytest.raises(DinomedError, match="NOTICE was changed after the export"):
        push(exported)
    assert hub.requests == []


def test_what_cannot_be_uploaded_is_refused_before_the_export(
    hub: Hub, run: Run, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*options: str) -> str:
        code, _, errors = run("export", tiny_backbone, "-f", "safetensors", "-o", tmp_path / "out", *options)
        assert code == 2, errors
        assert not (tmp_path / "out").exists()
        return errors

    assert "--public is for an upload; give --push too" in refusal("--public")
    assert "is not the name of a repository; write it as ORG/NAME" in refusal("--push", "vit-s")
    assert "is not the name of a repository" in refusal("--push", "lab/../x")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        assert "--push needs a token of the hub; log in by `hf auth login`, or set HF_TOKEN" in refusal("--push", "a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "--push needs the network, but HF_HUB_OFFLINE is set" in refusal("--push", "a/b")
    assert hub.requests == []
