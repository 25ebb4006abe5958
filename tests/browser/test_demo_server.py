"""The demo's server as strangers may use it: too much at once, too large, without a login. Needs no browser."""

import http.cookiejar
import io
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

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

    def ask(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        url = path if path.startswith("http") else f"{self.address}{path}"
        with self.opener.open(urllib.request.Request(url, data, {"Content-Type": kind}), timeout=300) as answer:
            return answer.read()

    def upload(self, name: str, data: bytes) -> str:
        """The path that the server gave the file."""
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + data + b"\r\n--edge--\r\n"
        return json.loads(self.ask("/gradio_api/upload", body, "multipart/form-data; boundary=edge"))[0]

    def look(self, path: str, threshold: float = 0.5) -> list:
        """What the page would show: [outline, HTML of numbers, button of the mask]."""
        config = json.loads(self.ask("/config"))
        event = next(dependency for dependency in config["dependencies"] if dependency["targets"][0][1] == "change")
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        wanted = {"data": [picture, threshold, "Filled", None, 0, "lesion", "lesion"], "fn_index": event["id"]}
        self.ask("/gradio_api/queue/join", json.dumps({**wanted, "session_hash": self.session}).encode())
        events = self.ask(f"/gradio_api/queue/data?session_hash={self.session}").decode()
        events_sent = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
        done = next(event for event in events_sent if event["msg"] == "process_completed")
        assert done["success"], done
        return done["output"]["data"][2:5]


def encode(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", **options)
    return file.getvalue()


def square(side: int) -> np.ndarray:
    """A dark square on pale skin: uint8 (60, 80, 3)."""
    pixels = np.full((60, 80, 3), 204, np.uint8)
    pixels[5 : 5 + side, 9 : 9 + side] = 51
    return pixels


def area(numbers: str) -> int:
    return int(re.search(r'id="area-px">([\d,]+)<', numbers)[1].replace(",", ""))


def button(update: dict) -> dict:
    """The file of a download button: as a whole component, or as an update of one."""
    return update.get("value", update)


def peak_mib(process) -> float:
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024


@pytest.fixture(scope="module")
def demo(serve, stand_in: list[str], tmp_path_factory: pytest.TempPathFactory):
    with serve(stand_in, tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo


def test_twenty_clients_at_once_all_get_right_answers(demo) -> None:
    def visit(side: int) -> tuple[int, int, bool]:
        client = Client(demo.address)
        _, numbers, taken = client.look(client.upload(f"{side}.png", encode(square(side))))
        mask = np.asarray(Image.open(io.BytesIO(client.ask(button(taken)["url"]))))
        return side, area(numbers), bool(((mask == 255) == (square(side)[..., 0] == 51)).all())

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(visit, range(11, 31)))
    assert answers == [(side, side**2, True) for side in range(11, 31)]


def test_an_upload_over_the_limit_is_refused_and_the_server_lives(demo) -> None:
    client = Client(demo.address)
    with pytest.raises(urllib.error.HTTPError) as refused:
        client.upload("large.png", bytes(65 * MIB))
    assert refused.value.code == 413
    assert "maximum allowed size" in refused.value.read().decode()
    assert area(client.look(client.upload("small.png", encode(square(10))))[1]) == 100


def test_a_bomb_is_refused_before_it_is_decoded(demo) -> None:
    client = Client(demo.address)
    client.look(client.upload("small.png", encode(square(10))))
    before = peak_mib(demo.process)
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, format="PNG")  # 400 megapixels, 1.2 GB as RGB, in 50 kB
    outline, numbers, _ = client.look(client.upload("bomb.png", file.getvalue()))
    assert outline is None
    assert "400 megapixels, over the limit of 30" in numbers
    assert peak_mib(demo.process) - before < 100
    assert area(client.look(client.upload("next.png", encode(square(10))))[1]) == 100


def test_names_and_exif_stay_out_of_what_is_taken_away(demo) -> None:
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE 1950"
    client = Client(demo.address)
    outline, numbers, taken = client.look(client.upload("DOE_JANE.png", encode(square(20), exif=exif)))
    assert [Path(file["url"]).name for file in (outline, button(taken))] == ["outline_1.jpg", "mask_1.png"]
    for response in (json.dumps([outline, taken]).encode(), numbers.encode()):
        assert b"DOE" not in response
    for file in (outline, button(taken)):
        assert b"DOE" not in client.ask(file["url"])


def test_uploads_and_results_are_removed_after_a_while(serve, stand_in: list[str], tmp_path: Path) -> None:
    with serve([*stand_in, "--sweep", "2"], tmp_path / "tmp") as demo:

        def files() -> set[str]:
            return {path.name for path in demo.temporary.glob("dinomed-demo-*/uploads/**/*") if path.is_file()}

        client = Client(demo.address)
        client.look(client.upload("mine.png", encode(square(20))))
        assert {"mine.png", "outline_1.jpg", "mask_1.png"} <= files()
        deadline = time.monotonic() + 20
        while files() - {"example.png"} and time.monotonic() < deadline:
            time.sleep(0.5)
        assert files() == {"example.png"}  # which the page offers still


def test_with_a_login_nobody_else_comes_in(serve, stand_in: list[str], tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.write_text("ada:secret\n")
    with serve([*stand_in, "--login", str(login)], tmp_path / "tmp") as demo:
        client = Client(demo.address)
        with pytest.raises(urllib.error.HTTPError) as refused:
            client.upload("mine.png", encode(square(20)))
        assert refused.value.code == 401
        form = "application/x-www-form-urlencoded"
        with pytest.raises(urllib.error.HTTPError):
            client.ask("/login", urllib.parse.urlencode({"username": "ada", "password": "wrong"}).encode(), form)
        client.ask("/login", urllib.parse.urlencode({"username": "ada", "password": "secret"}).encode(), form)
        assert area(client.look(client.upload("mine.png", encode(square(20))))[1]) == 400
    assert "secret" not in (tmp_path / "stderr.txt").read_text()
