"""The server of a demo under mutated HTTP requests: it lives, gives no file away, and answers visitors rightly."""

import json
import re
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from http_fuzz import CLOSED_PATHS, HttpRequest, Mutator, json_request, send, upload_request
from test_demo_server import Client, encode, square, status, uploads

pytestmark = pytest.mark.slow

FUNCTIONS = ("look", "mask", "save", "batch_list", "batch_predict", "batch_keep", "batch_close")
PAGES = ("/", "/config", "/login", "/logout", "/theme.css", "/static/img/logo.svg")
REQUESTS = 300
MAX_GROWTH_MIB = 150  # of a server that has answered each kind of request; one kept upload or answer a request is more


@pytest.fixture(scope="module")
def demo(serve, stand_in: list[str], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "secret.txt").write_text("the secret of the server")
    with serve([*stand_in, "--batch", "--save", str(folder / "saved")], folder / "tmp") as demo:
        yield demo


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("the memory of a process is read from /proc")
    return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) / 1024


def valid_requests(client: Client) -> list[Any]:
    """Functions that return a valid request with its JSON: for pages, a login, an upload and the page's functions."""
    path = client.upload("image.png", encode(square(12)))
    key = client.look(path)["key"]
    config = json.loads(client.ask("/config"))
    component = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "app")

    def call(name: str) -> tuple[HttpRequest, Any]:
        data = {
            "id": "fuzz", "visit": "fuzz", "path": path, "panels": None, "settings": {"segment": {}}, "key": key,
            "threshold": 0.5, "file": True, "min_share": 0, "largest_only": False, "decision": "accepted",
            "reviewer": "", "position": None,
        }  # fmt: skip
        content = {"data": data, "fn_name": name, "component_id": component, "session_hash": "fuzz"}
        return json_request("/gradio_api/component_server", content), content

    def login() -> tuple[HttpRequest, Any]:
        return HttpRequest("POST", "/login", b"username=a&password=b", "application/x-www-form-urlencoded"), None

    def page(address: str) -> tuple[HttpRequest, Any]:
        return HttpRequest("GET", address), None

    functions = [lambda name=name: call(name) for name in FUNCTIONS]
    pages = [lambda address=address: page(address) for address in PAGES]
    return [*functions, *functions, login, lambda: (upload_request(encode(square(9))), None), *pages]


FORGED = (
    ("mask", "threshold", 10**400), ("mask", "min_share", 10**400), ("mask", "edits", [0, 10**30, 1]),
    ("mask", "edits", [0, 4800, 1, 0, 4800, 1]), ("mask", "edits", [-5, 3, 1]), ("mask", "edits", {"a": 1}),
    ("look", "frame", -1), ("look", "frame", 10**400), ("look", "frame", 1.5), ("look", "frame", True),
    ("look", "panels", ["batch", "x"]), ("look", "panels", "segment"), ("look", "panels", [["segment"]]),
    ("look", "panels", {"x": 1}), ("look", "settings", "x"), ("look", "settings", {"segment": "x"}),
    ("look", "settings", {"segment": {"which": {}}}), ("look", "path", "\0"), ("look", "path", "a/../../../secret.txt"),
    ("save", "decision", "../../x"), ("save", "reviewer", "\ud800"), ("batch_keep", "position", "x"),
    ("batch_predict", "settings", []), ("batch_list", "path", ["x"]), ("batch_close", "path", "/etc/passwd"),
    ("rank", "path", {"x": 1}), ("values", "frame", 2**63),
)  # fmt: skip


def test_forged_values_are_refused_in_one_line(demo) -> None:
    client = Client(demo.address)
    path = client.upload("image", encode(square(12)))
    key = client.look(path)["key"]
    log = demo.temporary.parent / "stderr.txt"
    before = len(log.read_text())
    valid = {
        "key": key, "path": path, "panels": None, "settings": {"segment": {}}, "threshold": 0.5, "min_share": 0,
        "largest_only": False, "decision": "accepted", "reviewer": "", "position": None,
    }  # fmt: skip
    answers = {
        (name, field, str(value)[:20]): client.call(name, **{**valid, field: value}) for name, field, value in FORGED
    }
    refusal = re.compile("does not know|was removed")
    assert {call: answer for call, answer in answers.items() if not refusal.search(answer.get("error", ""))} == {}
    assert "could not answer" not in log.read_text()[before:]
    assert client.look(path)["key"]


def test_a_panel_that_is_named_often_is_computed_once(demo) -> None:
    client = Client(demo.address)
    path, log = client.upload("image", encode(square(12))), demo.temporary.parent / "stderr.txt"
    before = log.read_text().count("model called")
    assert set(client.call("look", path=path, panels=["segment"] * 50, settings={})["panels"]) == {"segment"}
    assert log.read_text().count("model called") - before == 1


def test_a_chunked_body_does_not_pass_a_stated_length(demo) -> None:
    host, _, port = demo.address.removeprefix("http://").partition(":")
    head = f"POST /gradio_api/component_server HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            f"{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 411")


def test_addresses_that_the_page_does_not_use_are_closed(demo) -> None:
    client, secret = Client(demo.address), demo.temporary.parent / "secret.txt"
    path = client.upload("image.png", encode(square(12)))
    files = [
        f"/gradio_api/file={name}" for name in (path, uploads(demo) / path, secret, f"{path}/../../../{secret.name}")
    ]
    addresses = [*CLOSED_PATHS, *files]
    for data in (None, b"{}"):
        assert {code: address for address in addresses if (code := status(client, address, data)) != 404} == {}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))])
def test_the_server_survives_mutated_requests(demo, seed: int) -> None:
    client, secret = Client(demo.address), demo.temporary.parent / "secret.txt"
    host, _, port = demo.address.removeprefix("http://").partition(":")
    mutator = Mutator(valid_requests(client), seed)
    failed: list[tuple[str, bytes]] = []
    statuses: Counter[str] = Counter()
    memory = 0.0
    for number in range(REQUESTS):
        request = mutator.draw()
        answer = send((host, int(port)), request, timeout=120)
        statuses[answer[9:12].decode("latin-1")] += 1
        assert secret.read_bytes() not in answer
        assert b"root:" not in answer
        assert b"evil.example" not in answer
        assert b"6.6.6.6" not in answer
        assert b"\r\nX-Injected" not in answer.partition(b"\r\n\r\n")[0]
        status = answer[9:12]
        if status.startswith(b"5") and status not in (b"501", b"503", b"505"):
            failed.append(
                (
                    f"{request.method[:20]} {request.path[:80]} {request.headers[:2]} {request.body[:300]!r}",
                    answer[:300],
                )
            )
        if number % 100 == 50:
            memory = memory or resident_mib(demo.process.pid)
            visitor = Client(demo.address)
            mask = visitor.mask(visitor.look(visitor.upload("good.png", encode(square(20)))))
            assert np.array_equal(mask, square(20)[..., 0] == 51)
    assert demo.process.poll() is None
    assert resident_mib(demo.process.pid) - memory < MAX_GROWTH_MIB
    assert not re.search("Traceback|could not answer", (demo.temporary.parent / "stderr.txt").read_text())
    assert not failed
    assert statuses[""] < 0.2 * REQUESTS, statuses  # those that are cut off or no HTTP at all
    assert statuses["200"] > 0.1 * REQUESTS, statuses  # 18 to 25% by the seed
    assert {path.name for path in demo.temporary.parent.iterdir()} <= {"tmp", "saved", "secret.txt", "stderr.txt"}
    assert all(path.resolve().is_relative_to(uploads(demo).resolve()) for path in uploads(demo).rglob("*"))
