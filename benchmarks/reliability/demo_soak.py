"""A demo under many requests of five kinds of clients: its memory and disk, and whether each answer is right.

    python benchmarks/reliability/demo_soak.py [--requests 10000] [--clients 8] [--adapter FOLDER] [--seed 0] [--json]

The clients of one request each:

- good: uploads a picture and asks for its result, which must equal the first answer for this picture;
- slow: the same, in small pieces with pauses;
- abandoning: asks, and leaves before the answer;
- garbage: uploads bytes that are no picture, asks for files of the server, or sends broken JSON;
- oversized: announces an upload over the limit.

The server is `dinomed demo segment` in a process of its own. Without `--adapter` a backbone (two steps) and a linear
segmenter are trained on synthetic lesions first. A good or slow client that is told "busy" asks again, at most 20
times.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dinomed
from dinomed.datasets.synthetic.lesions import write_lesions

SHARES = {"good": 0.4, "slow": 0.1, "abandoning": 0.2, "garbage": 0.2, "oversized": 0.1}
LIMIT_S = 300
WARM_UP = 0.1  # share of the requests after which memory is compared


class Visitor:
    """Sends requests as the page does.

    Args:
        address: host and port of the demo.
        component: number of the page's component.
    """

    def __init__(self, address: tuple[str, int], component: int) -> None:
        self.address, self.component = address, component

    def post(self, path: str, body: bytes, kind: str, pause_s: float = 0) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=LIMIT_S)
        try:
            connection.putrequest("POST", path)
            connection.putheader("Content-Type", kind)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            step = max(len(body) // 8, 1) if pause_s else len(body) or 1
            for start in range(0, len(body), step):
                time.sleep(pause_s)
                connection.send(body[start : start + step])
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, data: bytes, pause_s: float = 0) -> str:
        head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="image"\r\n\r\n'
        status, answer = self.post(
            "/gradio_api/upload", head + data + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge", pause_s
        )
        if status != 200:
            raise ConnectionError(f"upload: {status}")
        return str(json.loads(answer)[0])

    def request(self, identity: str, path: Any) -> bytes:
        data = {"id": identity, "visit": identity, "path": path, "panels": None, "settings": {}}
        return json.dumps(
            {"data": data, "fn_name": "look", "component_id": self.component, "session_hash": identity}
        ).encode()

    def look(self, identity: str, path: Any, pause_s: float = 0) -> dict[str, Any]:
        status, answer = self.post(
            "/gradio_api/component_server", self.request(identity, path), "application/json", pause_s
        )
        if status != 200:
            raise ConnectionError(f"look: {status}")
        content: dict[str, Any] = json.loads(answer)
        return content


class Soak:
    """All clients, and what became of their requests."""

    def __init__(self, visitor: Visitor, pictures: list[bytes], seed: int) -> None:
        self.visitor, self.pictures, self.rng = visitor, pictures, random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.times_s: list[float] = []
        self.expected = [self.result(self.ask(f"first {number}", number)) for number in range(len(pictures))]
        self._lock = threading.Lock()

    @staticmethod
    def result(answer: dict[str, Any]) -> Any:
        """Return what must be the same in each answer for a picture; the key of the map is new each time."""
        panel = answer["panels"]["segment"]
        return {name: value for name, value in panel.items() if name != "key"}

    def ask(self, identity: str, picture: int, pause_s: float = 0) -> dict[str, Any]:
        path = self.visitor.upload(self.pictures[picture], pause_s)
        for _ in range(20):
            answer = self.visitor.look(identity, path, pause_s)
            if "is busy" not in answer.get("error", ""):
                return answer
            self.outcomes["busy, asked again"] += 1
            time.sleep(0.5)
        return answer

    def run(self, number: int) -> None:
        with self._lock:
            kind = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
            picture = self.rng.randrange(len(self.pictures))
            draw = self.rng.random()
        start = time.perf_counter()
        try:
            outcome = getattr(self, kind)(f"visitor {number}", picture, draw)
        except Exception as error:  # counted as a lost request
            outcome = f"lost: {type(error).__name__}: {error}"
        with self._lock:
            self.outcomes[f"{kind}: {outcome}"] += 1
            if outcome.startswith(("lost", "wrong")):
                self.faults.append(f"{kind}: {outcome}")
            if kind == "good":
                self.times_s.append(time.perf_counter() - start)

    def good(self, identity: str, picture: int, draw: float, pause_s: float = 0) -> str:
        answer = self.ask(identity, picture, pause_s)
        if "error" in answer:
            return f"lost: {answer['error'][:100]}"
        right = answer["id"] == identity and self.result(answer) == self.expected[picture]
        return "right" if right else "wrong"

    def slow(self, identity: str, picture: int, draw: float) -> str:
        return self.good(identity, picture, draw, pause_s=0.05)

    def abandoning(self, identity: str, picture: int, draw: float) -> str:
        body = self.visitor.request(identity, self.visitor.upload(self.pictures[picture]))
        host = ":".join(map(str, self.visitor.address))
        head = f"POST /gradio_api/component_server HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection(self.visitor.address, timeout=LIMIT_S) as connection:
            connection.sendall(
                f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: round(draw * 2 * len(body))]
            )
        return "left"

    def garbage(self, identity: str, picture: int, draw: float) -> str:
        if draw < 0.4:
            answer = self.visitor.look(identity, self.visitor.upload(random.Random(draw).randbytes(2_000)))
        elif draw < 0.7:
            answer = self.visitor.look(identity, ["/etc/passwd", None, {}, "../x"][round(draw * 100) % 4])
        else:
            body = self.visitor.request(identity, "x")[: round(draw * 80)]
            status, _ = self.visitor.post("/gradio_api/component_server", body, "application/json")
            return "refused" if 400 <= status < 500 else f"wrong: status {status}"
        return "refused" if "error" in answer else "wrong: an answer for garbage"

    def oversized(self, identity: str, picture: int, draw: float) -> str:
        connection = http.client.HTTPConnection(*self.visitor.address, timeout=LIMIT_S)
        try:
            connection.putrequest("POST", "/gradio_api/upload")
            connection.putheader("Content-Type", "multipart/form-data; boundary=edge")
            connection.putheader("Content-Length", str(70 * 2**20 + round(draw * 2**30)))
            connection.endheaders()
            status = connection.getresponse().status
        finally:
            connection.close()
        return "refused" if status == 413 else f"wrong: status {status}"


def train_segmenter(folder: Path) -> Path:
    """Train a linear segmenter on an untrained backbone."""
    write_lesions(folder / "lesions", count=40, seed=1, size=(96, 128), broken=0)
    dinomed.scan(folder / "lesions", labels=folder / "lesions" / "labels.csv", out=folder / "lesions.parquet")
    backbone = dinomed.pretrain(
        "vit_tiny_cpu", folder / "lesions.parquet", folder / "ssl", settings={"run.steps": 2, "run.batch_size": 8}
    ).folder
    settings = {"fit.epochs": 2, "fit.min_steps": 20, "augment": "none"}
    return dinomed.train("segment", backbone, folder / "lesions.parquet", folder / "seg", settings=settings).folder


def memory_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8, help="clients at a time")
    parser.add_argument("--adapter", type=Path, help="a segmenter; by default one is trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = measure(Path(temporary), arguments)
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, count in report["outcomes"].items():
            print(f"{count:7,}  {name}")
        first, last, highest = report["memory_mib"]
        print(f"memory: {first:.0f} MiB after a tenth of the requests, {last:.0f} at the end, {highest:.0f} at most")
        print(f"uploads on the disk at the end: {report['uploads_mib']:.1f} MiB")
        print(f"median time of a good client: {report['median_s']:.2f} s")
        print("\n".join(report["faults"][:10]) or "no answer was lost or wrong")
    raise SystemExit(bool(report["faults"]))


@contextmanager
def served(folder: Path, adapter: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Visitor]]:
    """Serve `dinomed demo segment` in a process of its own, with a visitor of its page.

    Its temporary files are in ``folder/tmp``, its log in ``folder/stderr.txt``.
    """
    (folder / "tmp").mkdir()
    log = folder / "stderr.txt"
    command = [sys.executable, "-m", "dinomed", "demo", "segment", "-a", str(adapter)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0", "--no-browser", "--device", "cpu"], stdout=subprocess.PIPE, stderr=errors,
            text=True, env=os.environ | {"TMPDIR": str(folder / "tmp")} | environment,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address.startswith("http://"):
            raise SystemExit(f"the demo did not start: {log.read_text()}")
        host, _, port = address.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=LIMIT_S)
        connection.request("GET", "/config")
        config = json.loads(connection.getresponse().read())
        component = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "app")
        yield process, Visitor((host, int(port)), component)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    adapter = arguments.adapter or train_segmenter(folder)
    write_lesions(folder / "pictures", count=6, seed=2, size=(150, 200), broken=0)
    pictures = [path.read_bytes() for path in sorted((folder / "pictures" / "images").iterdir())[:6]]
    with served(folder, adapter, OMP_NUM_THREADS="1") as (process, visitor):
        soak = Soak(visitor, pictures, arguments.seed)
        memory = [0.0, 0.0, 0.0]
        with ThreadPoolExecutor(arguments.clients) as pool:
            for number, _ in enumerate(pool.map(soak.run, range(arguments.requests)), 1):
                if number % 50 == 0:
                    memory[2] = max(memory[2], memory_mib(process.pid))
                    print(f"\r{number:,} of {arguments.requests:,}", end="", file=sys.stderr)
                if number == round(WARM_UP * arguments.requests):
                    memory[0] = memory_mib(process.pid)
        memory[1] = memory_mib(process.pid)
        uploads = sum(path.stat().st_size for path in (folder / "tmp").rglob("*") if path.is_file()) / 2**20
        if re.search("Traceback", (folder / "stderr.txt").read_text()):
            soak.faults.append("a traceback in the log of the server")
        return {
            "outcomes": dict(sorted(soak.outcomes.items())), "faults": soak.faults, "memory_mib": memory,
            "uploads_mib": uploads, "median_s": statistics.median(soak.times_s),
        }  # fmt: skip


if __name__ == "__main__":
    main()
