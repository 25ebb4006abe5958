"""The demo's server as strangers may use it: too much at once, too large, without a login. Needs no browser."""

import base64
import http.cookiejar
import io
import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

MIB = 2**20


@dataclass
class Client:
    """A visitor without a browser: uploads, asks, reads answers."""

    address: str
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), jar)

    def ask(self, path: str, data: bytes | None = None, kind: str = "application/json", **headers: str) -> bytes:
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": kind, **headers})
        with self.opener.open(request, timeout=300) as answer:
            return answer.read()

    def upload(self, name: str, data: bytes) -> str:
        """The name that the server gave the file."""
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + data + b"\r\n--edge--\r\n"
        return json.loads(self.ask("/gradio_api/upload", body, "multipart/form-data; boundary=edge"))[0]

    def call(self, function: str, **request: Any) -> dict[str, Any]:
        """The answer to a request of the page."""
        config = json.loads(self.ask("/config"))
        component = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "app")
        body = {"data": {"id": "mine", "visit": self.session, **request}, "fn_name": function}
        body |= {"component_id": component, "session_hash": self.session}
        return json.loads(self.ask("/gradio_api/component_server", json.dumps(body).encode()))

    def look(self, path: str) -> dict[str, Any]:
        """What the page would show in the tab of the segmenter, or the error."""
        answer = self.call("look", path=path, panels=None, settings={})
        return answer if "error" in answer else answer["panels"]["segment"]

    def mask(self, look: dict[str, Any], threshold: float = 0.5) -> np.ndarray:
        """The mask of full size, bool (H, W)."""
        rules = {"min_share": 0, "largest_only": False}
        answer = self.call("mask", key=look["key"], threshold=threshold, file=True, **rules)
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["file"])))) == 255
        assert mask.sum() == answer["area"]
        return mask


def encode(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", **options)
    return file.getvalue()


def square(side: int) -> np.ndarray:
    """A dark square on pale skin: uint8 (60, 80, 3)."""
    pixels = np.full((60, 80, 3), 204, np.uint8)
    pixels[5 : 5 + side, 9 : 9 + side] = 51
    return pixels


def peak_mib(process) -> float:
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024


@pytest.fixture(scope="module")
def demo(serve, stand_in: list[str], tmp_path_factory: pytest.TempPathFactory):
    with serve(stand_in, tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo


def area(client: Client, look: dict[str, Any]) -> int:
    return int(client.mask(look).sum())


def status(client: Client, path: str, data: bytes | None = None, **headers: str) -> int:
    try:
        client.ask(path, data, **headers)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def test_twenty_clients_at_once_all_get_right_answers(demo) -> None:
    def visit(side: int) -> bool:
        client = Client(demo.address)
        mask = client.mask(client.look(client.upload("image", encode(square(side)))))
        return bool((mask == (square(side)[..., 0] == 51)).all())

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(visit, range(11, 31)))


def test_an_upload_over_the_limit_is_refused_and_the_server_lives(demo) -> None:
    client = Client(demo.address)
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refused:
        client.upload("large.png", bytes(66 * MIB))
    if isinstance(refused.value, urllib.error.HTTPError):  # else the server closed before all was sent
        assert refused.value.code == 413
    assert area(client, client.look(client.upload("small.png", encode(square(10))))) == 100


def test_a_bomb_is_refused_before_it_is_decoded(demo) -> None:
    client = Client(demo.address)
    client.look(client.upload("small.png", encode(square(10))))
    before = peak_mib(demo.process)
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, format="PNG")  # 400 megapixels, 1.2 GB as RGB, in 50 kB
    assert "400 megapixels, over the limit of 30" in client.look(client.upload("bomb.png", file.getvalue()))["error"]
    assert peak_mib(demo.process) - before < 100
    assert area(client, client.look(client.upload("next.png", encode(square(10))))) == 100


def test_names_and_exif_stay_out_of_the_answer(demo) -> None:
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE 1950"
    client = Client(demo.address)
    path = client.upload("DOE_JANE.png", encode(square(20), exif=exif))
    answer = client.call("look", path=path, panels=None, settings={})
    preview = base64.b64decode(answer["preview"].partition(",")[2])
    assert Image.open(io.BytesIO(preview)).size == (80, 60)
    assert b"DOE" not in preview
    assert "DOE" not in json.dumps(answer)


def test_the_answer_bears_the_id_of_its_request(demo) -> None:
    client = Client(demo.address)
    path = client.upload("mine.png", encode(square(20)))
    assert client.call("look", id="another", path=path, panels=None, settings={})["id"] == "another"


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "http://127.0.0.1:9/picture.png", "../../../../etc/passwd", "/" + "x" * 5_000, "", 7, None]
)
def test_only_uploads_are_read(demo, path: Any) -> None:
    if isinstance(path, str) and len(path) > 5_000:
        path = f"{uploads(demo)}{path}"
    answer = Client(demo.address).call("look", path=path, panels=None, settings={})
    assert set(answer) == {"id", "error"}
    assert "does not know" in answer["error"] or "was removed" in answer["error"]


def test_no_answer_has_a_path_of_the_server(demo) -> None:
    client = Client(demo.address)
    answers = [name := client.upload("mine.png", encode(square(20)))]
    answers += [json.dumps(client.call("look", path=path, panels=None, settings={})) for path in (name, f"{name}/x")]
    answers += [client.ask(path).decode() for path in ("/", "/config")]
    assert [answer[:200] for answer in answers if str(demo.temporary) in answer] == []
    assert "panels" in answers[1]


@pytest.mark.parametrize("data", [None, 7, [], {}, {"id": "x" * 100}, {"id": "a", "path": [], "panels": "none"}])
def test_requests_that_the_page_would_not_send_are_refused_in_one_line(demo, data: Any) -> None:
    client = Client(demo.address)
    config = json.loads(client.ask("/config"))
    component = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "app")
    for function in ("look", "mask"):
        body = {"data": data, "fn_name": function, "component_id": component, "session_hash": "s"}
        answer = json.loads(client.ask("/gradio_api/component_server", json.dumps(body).encode()))
        assert "does not know" in answer["error"]
    assert "Traceback" not in (demo.temporary.parent / "stderr.txt").read_text()


def test_requests_of_other_sites_are_refused(demo) -> None:
    client = Client(demo.address)
    for name in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        assert status(client, "/config", Host=name) == 403
    host = demo.address.removeprefix("http://")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://{host}.evil.example"):
        assert status(client, "/gradio_api/upload", b"x", Origin=origin) == 403
    assert status(client, "/gradio_api/upload", b"x", **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert status(client, "/config", Origin=demo.address) == 200
    assert status(client, "/config", Host=host.replace("127.0.0.1", "localhost")) == 200


def test_addresses_of_the_page_follow_no_header_of_a_stranger(demo) -> None:
    client = Client(demo.address)
    for name in ("evil.example", "6.6.6.6", "evil.example\\@127.0.0.1"):
        assert status(client, "/config", **{"X-Forwarded-Host": name}) == 403
        assert status(client, "/logout", **{"X-Gradio-Server": f"http://{name}"}) == 403
    for name in ("Prefix", "Port", "Server", "Proto", "For"):
        answer = client.ask("/config", **{f"X-Forwarded-{name}": "evil.example", "Forwarded": "host=evil.example"})
        assert b"evil.example" not in answer
        assert json.loads(answer)["root"] == demo.address


def test_answers_have_security_headers(demo) -> None:
    with urllib.request.urlopen(demo.address, timeout=60) as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]


def test_an_upload_that_is_broken_off_leaves_no_file(demo) -> None:
    host, _, port = demo.address.removeprefix("http://").partition(":")
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000000\r\n"
            b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n" + head + bytes(3_000_000)
        )
        wait_for(lambda: any(path.is_file() for path in uploads(demo).glob("tmp*")))
    wait_for(lambda: not any(path.is_file() for path in uploads(demo).glob("tmp*")))


def test_abandoned_requests_do_not_delay_the_next_visitor(demo) -> None:
    slow = square(10)
    slow[0, 0] = (255, 0, 0)  # three seconds
    client = Client(demo.address)
    path = client.upload("slow.png", encode(slow))
    config = json.loads(client.ask("/config"))
    component = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "app")
    host, _, port = demo.address.removeprefix("http://").partition(":")
    calls = model_calls(demo)
    for number in range(20):
        data = {"id": f"abandoned {number}", "path": path, "panels": None, "settings": {}}
        body = {"data": data, "fn_name": "look", "component_id": component, "session_hash": f"s{number}"}
        text = json.dumps(body).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = f"Host: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            connection.sendall(b"POST /gradio_api/component_server HTTP/1.1\r\n" + head.encode() + text)
    assert area(client, client.look(client.upload("mine.png", encode(square(20))))) == 400
    assert model_calls(demo) - calls <= 5  # of 21: those that had begun before their client left


def uploads(demo) -> Path:
    return next(demo.temporary.glob("dinomed-demo-*")) / "uploads"


def model_calls(demo) -> int:
    return (demo.temporary.parent / "stderr.txt").read_text().count("model called")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_uploads_are_removed_after_a_while(serve, stand_in: list[str], tmp_path: Path) -> None:
    with serve([*stand_in, "--sweep", "2"], tmp_path / "tmp") as demo:
        client = Client(demo.address)
        look = client.look(client.upload("mine.png", encode(square(20))))
        wait_for(lambda: not any(path.is_file() for path in uploads(demo).rglob("*")))
        assert area(client, look) == 400  # of the map in memory
        assert client.call("look", path="example 1", panels=None, settings={})["size"] == [64, 48]


@pytest.mark.long
def test_with_a_login_nobody_else_comes_in(serve, stand_in: list[str], tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.write_text("ada:secret\n")
    with serve([*stand_in, "--login", str(login)], tmp_path / "tmp") as demo:
        client = Client(demo.address)
        for path in ("/gradio_api/upload", "/gradio_api/component_server"):
            assert status(client, path, b"{}") == 401
        form = "application/x-www-form-urlencoded"
        with pytest.raises(urllib.error.HTTPError):
            client.ask("/login", urllib.parse.urlencode({"username": "ada", "password": "wrong1"}).encode(), form)
        client.ask("/login", urllib.parse.urlencode({"username": "ada", "password": "secret"}).encode(), form)
        assert area(client, client.look(client.upload("mine.png", encode(square(20))))) == 400
    log = (tmp_path / "stderr.txt").read_text()
    assert "wrong user or password from 127.0.0.1" in log
    assert "secret" not in log
    assert "wrong1" not in log
