"""The server of a demo under mutated HTTP requests: it lives, gives no file away, and answers visitors rightly."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from http_fuzz import HttpRequest, Mutator, json_request, send, upload_request
from test_demo_server import Client, encode, square, uploads

pytestmark = pytest.mark.slow

FUNCTIONS = ("look", "mask", "save", "batch_list", "batch_predict", "batch_keep", "batch_close")
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


def valid_requests(client: Client, secret: Path) -> list[Any]:
    """Functions that return a valid request with its JSON: for pages, files, an upload and the page's functions."""
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

    def join() -> tuple[HttpRequest, Any]:
        content = {"data": [], "fn_index": 0, "session_hash": "fuzz", "event_data": None, "trigger_id": 1}
        return json_request("/gradio_api/queue/join", content), content

    def page(address: str) -> tuple[HttpRequest, Any]:
        return HttpRequest("GET", address), None

    functions = [lambda name=name: call(name) for name in FUNCTIONS]
    files = [
        f"/gradio_api/file={path}",
        f"/gradio_api/file={secret}",
        f"/gradio_api/file={path}/../../../../{secret.name}",
    ]
    pages = [lambda address=address: page(address) for address in ("/", "/config", *files)]
    return [*functions, *functions, join, lambda: (upload_request(encode(square(9))), None), *pages]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))])
def test_the_server_survives_mutated_requests(demo, seed: int) -> None:
    client, secret = Client(demo.address), demo.temporary.parent / "secret.txt"
    host, _, port = demo.address.removeprefix("http://").partition(":")
    mutator = Mutator(valid_requests(client, secret), seed)
    failed: list[tuple[str, bytes]] = []
    statuses: Counter[str] = Counter()
    memory = 0.0
    for number in range(REQUESTS):
        request = mutator.draw()
        answer = send((host, int(port)), request, timeout=120)
        statuses[answer[9:12].decode("latin-1")] += 1
        assert secret.read_bytes() not in answer
        assert b"root:" not in answer
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
    assert statuses["200"] > 0.1 * REQUESTS, statuses  # 18 to 30% by the seed
    assert {path.name for path in demo.temporary.parent.iterdir()} <= {"tmp", "saved", "secret.txt", "stderr.txt"}
    assert all(path.resolve().is_relative_to(uploads(demo).resolve()) for path in uploads(demo).rglob("*"))
