"""Download of released weights from a local HTTP server: cache, checksum, continued downloads, errors without a
network."""

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dinomed.backbones.hub import cached_weights
from dinomed.backbones.load import load_backbone
from dinomed.backbones.variants import VARIANTS, Release, Variant
from dinomed.errors import DinomedError, UsageError

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Server(ThreadingHTTPServer):
    """Serves CONTENT; breaks off after `limit` bytes if told, and keeps what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.limit: int | None = None
        self.ranges = True
        self.asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path != "/tiny.pth":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.limit])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("DINOMED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    release(monkeypatch, f"http://127.0.0.1:{server.server_port}/tiny.pth")
    yield server
    server.shutdown()
    server.server_close()


def release(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str | None = None) -> None:
    sha256 = sha256 or hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(VARIANTS._items, "tiny", Variant(16, 1, 2, patch_size=8, release=Release(url, sha256)))


def left_over(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_weights_are_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = cached_weights("tiny")
    assert path.read_bytes() == CONTENT
    assert cached_weights("tiny") == path
    assert server.asked == [None]
    assert left_over(tmp_path) == ["tiny.pth"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_continued(server: Server, ranges: bool, tmp_path: Path) -> None:
    server.limit, server.ranges = 3_000_000, ranges
    with pytest.raises(DinomedError, match=r"closed before the end.*`weights=FILE`"):
        cached_weights("tiny")
    assert left_over(tmp_path) == ["tiny.pth.part"]
    server.limit = None
    assert cached_weights("tiny").read_bytes() == CONTENT
    assert server.asked[1] == "bytes=3000000-"


def test_a_complete_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    (folder / "tiny.pth.part").write_bytes(CONTENT)
    assert cached_weights("tiny").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_removed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(monkeypatch, f"http://127.0.0.1:{server.server_port}/tiny.pth", sha256="0" * 64)
    with pytest.raises(DinomedError, match=r"checksum .* instead of 0000000000000000"):
        cached_weights("tiny")
    assert left_over(tmp_path) == []


def test_a_missing_file_reports_the_answer_of_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    release(monkeypatch, f"http://127.0.0.1:{server.server_port}/gone.pth")
    with pytest.raises(DinomedError, match="answers 404"):
        cached_weights("tiny")


def test_a_missing_network_is_reported_with_a_remedy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/tiny.pth"  # the discard port: nothing listens
    release(monkeypatch, url)
    with pytest.raises(DinomedError) as caught:
        load_backbone("tiny")
    assert str(caught.value).startswith("no network for the weights of tiny")
    assert f"download {url} on another machine and use `weights=FILE`" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_reported(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setenv("DINOMED_CACHE", str(tmp_path / "locked"))
    with pytest.raises(DinomedError, match="set DINOMED_CACHE to another folder"):
        cached_weights("tiny")


def test_a_missing_home_folder_is_reported(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file, so that no folder can be made in it, not even by root")
    monkeypatch.delenv("DINOMED_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DinomedError, match="set DINOMED_CACHE to another folder") as caught:
        cached_weights("tiny")
    assert server.asked == []
    assert "\n" not in str(caught.value)


def test_a_variant_without_released_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="no released weights"):
        cached_weights("vit_tiny_patch8")


def test_every_release_has_an_official_address_and_a_checksum() -> None:
    releases = {name: VARIANTS[name].release for name in VARIANTS if name.startswith("dinov2_")}
    assert len(releases) == 8
    for release in releases.values():
        assert release is not None
        assert release.url.startswith("https://dl.fbaipublicfiles.com/dinov2/")
        assert len(bytes.fromhex(release.sha256)) == 32
        assert release.licence == "Apache-2.0"
    assert len({release.sha256 for release in releases.values() if release}) == 8
