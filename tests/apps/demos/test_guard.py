"""The guard of the demo's server and the turns of its visitors, without a server."""

import asyncio
import json
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from h11 import LocalProtocolError

from dinomed.apps.demos import guard
from dinomed.apps.demos.guard import MIB, Guard, names_of_server
from dinomed.apps.demos.page import App
from dinomed.apps.demos.turns import Busy, Gone, Turns


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread: a browser test in the same process leaves a loop of events in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


class Server:
    """A guarded application that answers with a status, and what it answered."""

    def __init__(self, uploads: Path, status: int = 200, host: str = "127.0.0.1", **names: Any) -> None:
        self.status, self.reached, self.body = status, 0, b"[]"
        self.guard = Guard(self._app, names_of_server(host, **names), uploads)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})

    def ask(self, path: str = "/", method: str = "GET", host: str = "127.0.0.1:7860", **headers: str) -> int:
        lines = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        raw = [(name.encode(), value.encode()) for name, value in lines.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("10.0.0.9", 5)}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        run(self.guard(scope, None, send))
        self.answer = b"".join(message.get("body", b"") for message in sent)
        return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200), ("localhost:7860", 200), ("LOCALHOST", 200), ("[::1]:7860", 200), ("10.1.2.3:80", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("evil.example:7860", 403), ("", 403), ("[::1", 403),
        ("evil.example\\@127.0.0.1", 403), ("a@127.0.0.1", 403), ("127.0.0.1/x", 403), ("127.0.0.1:99999", 403),
    ],
)  # fmt: skip
def test_only_the_names_of_the_server_are_answered(tmp_path: Path, host: str, status: int) -> None:
    server = Server(tmp_path)
    assert server.ask(host=host) == status
    assert server.reached == (status == 200)


def test_a_name_that_was_given_is_answered_too(tmp_path: Path) -> None:
    server = Server(tmp_path, host="0.0.0.0", more=("Demo.Clinic.example",))
    assert server.ask(host="demo.clinic.example") == 200
    assert server.ask(host="other.clinic.example") == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1", "http://[::1", "127.0.0.1:7860"]
)
def test_requests_that_other_sites_send_are_refused(tmp_path: Path, origin: str) -> None:
    server = Server(tmp_path)
    assert server.ask("/gradio_api/upload", "POST", origin=origin, content_length="5") == 403
    assert server.ask("/gradio_api/upload", "POST", sec_fetch_site="cross-site", content_length="5") == 403
    assert server.reached == 0
    same_origin = {"origin": "http://127.0.0.1:7860", "sec_fetch_site": "same-origin"}
    assert server.ask("/gradio_api/upload", "POST", content_length="5", **same_origin) == 200


def test_a_name_that_a_proxy_forwards_is_checked_too(tmp_path: Path) -> None:
    server = Server(tmp_path, host="0.0.0.0", more=("demo.clinic.example",))
    foreign = (
        "evil.example", "evil.example, demo.clinic.example", "demo.clinic.example, evil.example", "6.6.6.6",
        "6.6.6.6:80", "[2001:db8::1]", "evil.example\\@127.0.0.1", "x@demo.clinic.example", "demo.clinic.example/x",
        "localhost?x", "localhost#x", "localhost:x", "localhost:99999", "",
    )  # fmt: skip
    assert {name: status for name in foreign if (status := server.ask(x_forwarded_host=name)) != 403} == {}
    for name in ("http://evil.example", "http://127.0.0.1:7860", ""):
        assert server.ask(x_gradio_server=name) == 403
    assert server.reached == 0
    for name in ("demo.clinic.example:443", "DEMO.clinic.example", "localhost", "[::1]:7860", "127.0.0.1:7860"):
        assert server.ask(x_forwarded_host=name) == 200
    assert server.ask(host="10.1.2.3:80", x_forwarded_host="10.1.2.3:80") == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/queue/data", "/gradio_api/info", "/openapi.json", "/monitoring",
        "/gradio_api/uploads", "/static", "//", "/config/x", "*", "", "/static/" + "a" * 256, "/assets/" + "é" * 128,
    ],
)  # fmt: skip
def test_only_what_the_page_asks_for_is_answered(tmp_path: Path, path: str) -> None:
    server = Server(tmp_path)
    assert server.ask(path) == server.ask(path, "POST", content_length="5") == 404
    assert server.reached == 0
    assert server.ask("/gradio_api/component_server/", "POST", content_length="5") == 200
    assert server.ask("/assets/index-x.js") == server.ask("/", "HEAD") == 200


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/component_server"])
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyError("the name of a patient"), 400, "the demo refused a request: KeyError; --debug shows where"),
        (OSError(28, "x"), 500, f"the demo could not answer: OSError: {os.strerror(28)}"),
        (RuntimeError("the name of a patient"), 500, "the demo could not answer: RuntimeError: --debug shows where"),
    ],
)
def test_a_request_on_which_the_application_fails_gets_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, error: Exception, status: int, line: str
) -> None:
    server = Server(tmp_path)

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise error

    server.guard.app = fail
    assert server.ask(path, "POST", content_length="5") == status
    assert server.guard.upload_bytes == 0
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == [line]


def test_a_refusal_that_comes_after_the_one_of_uvicorn_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def send(message: Any) -> None:
        raise LocalProtocolError("can't handle event type Response when role=SERVER and state=MUST_CLOSE")

    scope = {"type": "http", "method": "GET", "path": "/config", "headers": [(b"host", b"evil.example")]}
    run(Server(tmp_path).guard(scope, None, send))
    line = "the demo refused a request: LocalProtocolError; --debug shows where"
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == [line]


def test_bodies_state_their_length_and_are_bounded(tmp_path: Path) -> None:
    server = Server(tmp_path)
    assert server.ask("/gradio_api/upload", "POST") == 411
    assert server.ask("/gradio_api/upload", "POST", content_length="1e3") == 411
    assert server.ask("/gradio_api/upload", "POST", content_length=str(70 * MIB)) == 413
    assert server.ask("/gradio_api/component_server", "POST", content_length=str(2 * MIB)) == 413
    assert server.ask("/gradio_api/component_server", "POST", content_length="5", transfer_encoding="chunked") == 411
    assert server.reached == 0


def test_all_uploads_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_UPLOADS_BYTES", 1000)
    monkeypatch.setattr(guard, "LEAST_FILE_BYTES", 100)
    server = Server(tmp_path)
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash" / "image").write_bytes(bytes(600))
    assert server.ask("/gradio_api/upload", "POST", content_length="300") == 200
    assert server.ask("/gradio_api/upload", "POST", content_length="500") == 503
    server.guard.upload_bytes = 300  # of another upload in progress
    assert server.ask("/gradio_api/upload", "POST", content_length="300") == 503
    server.guard.upload_bytes = 0
    for number in range(5):
        (tmp_path / "hash" / str(number)).write_bytes(b"small")
    assert server.ask("/gradio_api/upload", "POST", content_length="5") == 503


def test_an_upload_is_answered_with_its_name_and_no_folder_of_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.body = json.dumps([str(tmp_path / "hash" / name) for name in ("image", "a\u00fc")]).encode()
    assert server.ask("/gradio_api/upload", "POST", content_length="5") == 200
    assert json.loads(server.answer) == ["hash/image", "hash/a\u00fc"]
    server.status = 413
    server.body = b"the file is too large"
    assert server.ask("/gradio_api/upload", "POST", content_length="5") == 413
    assert server.answer == server.body


def test_parts_of_uploads_are_removed_when_none_is_in_progress(tmp_path: Path) -> None:
    (tmp_path / "hash").mkdir()
    for path in (tmp_path / "hash" / "image", tmp_path / "tmpabc"):
        path.write_bytes(b"x")
    Server(tmp_path).ask("/gradio_api/upload", "POST", content_length="5")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["hash", "image"]


def test_each_wrong_password_is_delayed_longer_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    delays: list[float] = []

    async def note(delay: float) -> None:
        delays.append(delay)

    monkeypatch.setattr(guard.asyncio, "sleep", note)
    server = Server(tmp_path, status=400)
    for _ in range(9):
        assert server.ask("/login", "POST", content_length="30") == 400
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert "wrong user or password from 10.0.0.9; attempts: 9" in capsys.readouterr().err
    server.status = 200
    server.ask("/login", "POST", content_length="30")
    server.status = 400
    server.ask("/login", "POST", content_length="30")
    assert delays[-1] == 0.5  # a right one ends the series


def test_one_request_is_computed_at_a_time_and_each_gets_its_own_answer() -> None:
    running = threading.Lock()

    def compute(number: int) -> int:
        assert running.acquire(blocking=False)
        running.release()
        return number

    async def here() -> bool:
        return False

    async def visit() -> list[int]:
        turns = Turns()
        return await asyncio.gather(*(turns.run(lambda number=number: compute(number), here) for number in range(20)))

    assert run(visit()) == list(range(20))


def test_a_request_whose_client_has_gone_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from dinomed.apps.demos import turns as module

    monkeypatch.setattr(module, "CHECK_S", 0.01)
    computed: list[str] = []
    release = threading.Event()

    async def visit() -> None:
        turns, left = Turns(), asyncio.Event()

        async def here() -> bool:
            return False

        async def gone() -> bool:
            return left.is_set()

        def first() -> None:
            release.wait(30)
            computed.append("first")

        tasks = [asyncio.ensure_future(turns.run(first, here))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.ensure_future(turns.run(lambda: computed.append("abandoned"), gone)) for _ in range(3)]
        tasks.append(asyncio.ensure_future(turns.run(lambda: computed.append("last"), here)))
        await asyncio.sleep(0.05)
        left.set()
        results = await asyncio.gather(*tasks[1:4], return_exceptions=True)
        assert [type(result) for result in results] == [Gone] * 3
        release.set()
        await asyncio.gather(tasks[0], tasks[4])
        assert turns.waiting == 0

    run(visit())
    assert computed == ["first", "last"]


def test_further_requests_are_refused_when_many_wait() -> None:
    release = threading.Event()

    async def visit() -> None:
        turns = Turns(max_waiting=2)

        async def here() -> bool:
            return False

        tasks = []
        for _ in range(3):  # one is computed, two wait
            tasks.append(asyncio.ensure_future(turns.run(lambda: release.wait(30), here)))
            await asyncio.sleep(0.05)
        with pytest.raises(Busy):
            await turns.run(lambda: None, here)
        release.set()
        await asyncio.gather(*tasks)

    run(visit())


def test_a_visit_with_the_name_none_does_not_end_requests_that_have_no_visit() -> None:
    class Client:
        async def is_disconnected(self) -> bool:
            return False

    async def visit() -> Any:
        app = App([])
        client: Any = Client()
        await app.look({"id": "first", "visit": "None", "path": "x"}, client)
        return await app.in_turn(lambda request: {"done": True}, {"id": "second"}, client)

    assert run(visit()) == {"id": "second", "done": True}
