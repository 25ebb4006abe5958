"""Mutated HTTP requests for the server of a demo: valid ones that are changed in their line, headers, body or JSON."""

import json
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, -1, 0, 2**63, 10**400, -0.0, 1e308, float("inf"), float("nan"), "", " ", "\x00", "\ud800",
    "é" * 50,
    "x" * 100_000, [], {}, [[]], [None] * 1_000, {"": {}}, {"path": "/etc/passwd",
    "meta": {"_type": "gradio.FileData"}},
    "../" * 12 + "etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/", "example 1", "__class__",
    "%2e%2e%2f", "\r\nX-Injected: 1", "<script>alert(1)</script>",
]  # fmt: skip
METHODS = [
    "GET",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PATCH",
    "get",
    "",
    "A" * 300,
    "PO ST",
    "\x00",
]
PATHS = [
    "/", "//", "*", "/%", "/%00", "/\x7f", "/..%2f..%2fetc/passwd", "/" + "a" * 60_000, "/config?" + "a=b&" * 5_000,
    "/config/", "/config?deep_link=../../../etc/passwd", "/config?deep_link=%00", "/config?page=../x", "/?page=%ff",
    "/?deep_link=" + "../" * 20 + "etc/passwd", "/?__theme=<script>", "http://evil.example/config", "/login/",
    "/login?_target=http://evil.example", "/logout", "/logout?all_session=x", "/logout?all_session=0",
    "/theme.css?x=%00", "/favicon.ico", "/robots.txt", "/manifest.json", "/static/", "/static/img",
    "/static/../../x", "/static/%2e%2e/%2e%2e/gradio/package.json", "/static//etc/passwd",
    "/static/..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "/static/%2fetc%2fpasswd", "/static/%00", "/static/C:\\x", "/static/" + "a" * 5_000, "/static/" + "a/" * 5_000,
    "/assets/..%2f..%2f..%2fetc/passwd", "/assets/../index.html", "/assets//etc/passwd", "/assets/%ff%fe",
    "/gradio_api/upload?upload_id=x", "/gradio_api/upload?upload_id=../x", "/gradio_api/upload/",
    "/gradio_api/component_server/", "/gradio_api/component_server?x=" + "y" * 5_000, "/gradio_api/startup-events",
    "/gradio_api/../gradio_api/config", "/gradio_api/upload/../file=/etc/passwd",
]  # fmt: skip
CLOSED_PATHS = [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=", "/gradio_api/file=%2Fetc%2Fpasswd", "/file/etc/passwd",
    "/gradio_api/file=../../../../etc/passwd", "/gradio_api/stream/x/y/z/w.m3u8",
    "/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/queue/data?session_hash=x", "/gradio_api/queue/join",
    "/gradio_api/deep_link?session_hash=../x",
    "/gradio_api/download/etc/passwd", "/custom_component/../x/client/y/z.js",
    "/gradio_api/upload_progress?upload_id=x", "/gradio_api/heartbeat/x", "/gradio_api/vibe-editor",
    "/gradio_api/run/x", "/gradio_api/cancel", "/monitoring",
    "/token", "/app_id", "/gradio_api/token", "/gradio_api/app_id", "/gradio_api/info", "/gradio_api/openapi.json",
]  # fmt: skip
"""Addresses of Gradio that the page of the demo does not use."""
HEADERS = [
    ("Content-Length", "-1"), ("Content-Length", "0x10"), ("Content-Length", "9" * 30), ("Content-Length", "5"),
    ("Content-Length", "1000000"), ("Content-Length", "1, 2"), ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "x"),
    ("Host", ""), ("Host", "evil.example"), ("Host", "[::1"), ("Host", "127.0.0.1:99999999"), ("Host", "a" * 5_000),
    ("Content-Type", ""), ("Content-Type", "multipart/form-data"), ("Content-Type", "multipart/form-data; boundary="),
    ("Content-Type", "multipart/form-data; boundary=" + "b" * 5_000), ("Content-Type",
    "application/json; charset=utf-16"),
    ("Content-Type", "text/plain"), ("Cookie", "session=" + "\xff" * 50), ("Cookie", "access-token-unsecure=x; =;;"),
    ("Range", "bytes=0-"), ("Range", "bytes=-5,9-1,x"), ("Expect", "100-continue"), ("Connection", "upgrade"),
    ("Upgrade", "websocket"), ("Origin", "null"), ("Origin", "http://[::1"), ("Referer", "\xe9" * 100), ("X",
    "a" * 70_000),
    ("Accept-Encoding", "gzip;q=x"), ("Accept-Language", "*" * 1_000), ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Host", "6.6.6.6"), ("X-Forwarded-Host", "evil.example\\@127.0.0.1"),
    ("X-Forwarded-Host", "127.0.0.1:x"), ("X-Forwarded-Host", "localhost"),
    ("X-Forwarded-Proto", "evil.example"), ("X-Forwarded-Proto", "wss"),
    ("X-Forwarded-Proto", "https"), ("X-Forwarded-Prefix", "//evil.example"), ("X-Forwarded-Port", "x"),
    ("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "[::1"), ("Forwarded", "host=evil.example;proto=x"),
    ("Host", "evil.example\\@127.0.0.1"), ("X-Gradio-Server", "http://evil.example"),
    ("Authorization", "Bearer x"), ("a b", "c"), ("", "empty name"),
]  # fmt: skip


STREAM_S = 2.0  # silence after which an answer that has begun is taken for a stream of events


@dataclass
class HttpRequest:
    """A request as its parts, which `encode` joins without any check."""

    method: str
    path: str
    body: bytes = b""
    kind: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_cut_off(self) -> bool:
        """Whether the server waits for more than the body."""
        lengths = [value for name, value in self.headers if name == "Content-Length" and value.isdecimal()]
        chunked = any(name == "Transfer-Encoding" for name, _ in self.headers)
        return chunked or any(int(length) > len(self.body) for length in lengths)

    def encode(self, host: str) -> bytes:
        names = {name for name, _ in self.headers}
        lines = [("Host", host), ("Connection", "close"), ("Content-Type", self.kind)]
        lines += [("Content-Length", str(len(self.body)))] if self.body else []
        lines = [line for line in lines if line[0] not in names] + self.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"{self.method} {self.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace") + self.body


def upload_request(data: bytes, name: str = "image.png", boundary: str = "edge") -> HttpRequest:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode("utf-8", "surrogatepass") + data + f"\r\n--{boundary}--\r\n".encode()
    return HttpRequest("POST", "/gradio_api/upload", body, f"multipart/form-data; boundary={boundary}")


def json_request(path: str, content: Any) -> HttpRequest:
    return HttpRequest("POST", path, json.dumps(content).encode("utf-8", "surrogatepass"))


def change_json(content: Any, rng: random.Random) -> Any:
    """Replace, remove, rename or double one value anywhere in a JSON value."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        name = rng.choice(list(content))
        change = rng.random()
        if change < 0.1:
            return {key: value for key, value in content.items() if key != name}
        if change < 0.2:
            return {**content, rng.choice(["__proto__", "", name.upper(), "x" * 5_000]): content[name]}
        return {**content, name: change_json(content[name], rng)}
    if isinstance(content, list) and content and rng.random() < 0.7:
        place = rng.randrange(len(content))
        return [*content[:place], change_json(content[place], rng), *content[place + 1 :]]
    if rng.random() < 0.1:
        for _ in range(rng.choice([3, 5_000])):
            content = [content]
        return content
    return rng.choice(HOSTILE)


def dump_json(content: Any) -> bytes:
    """Encode JSON of any depth; json.dumps refuses deep lists, the server must too."""
    depth = 0
    while isinstance(content, list) and len(content) == 1:
        content, depth = content[0], depth + 1
    text = "[" * depth + json.dumps(content) + "]" * depth
    return text.encode("utf-8", "surrogatepass")


class Mutator:
    """Draws mutated requests.

    Args:
        valid: functions that return a valid request, with its JSON or None.
        seed: of the drawing.
    """

    def __init__(self, valid: list[Callable[[], tuple[HttpRequest, Any]]], seed: int) -> None:
        self.valid, self.rng = valid, random.Random(seed)

    def draw(self) -> HttpRequest:
        rng = self.rng
        request, content = rng.choice(self.valid)()
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            kind = rng.random()
            if content is not None and kind < 0.45:
                content = change_json(content, rng)
                request.body = _try_dump(content)
            elif kind < 0.55:
                request.path = rng.choice(PATHS)
            elif kind < 0.65:
                request.method = rng.choice(METHODS)
            elif kind < 0.8:
                request.headers.append(rng.choice(HEADERS))
            elif kind < 0.83:
                request.headers += [(f"X-{number}", "y") for number in range(2_000)]
            elif request.body:
                request.body = self._damage(request.body)
        return request

    def _damage(self, body: bytes) -> bytes:
        rng = self.rng
        place = rng.randrange(len(body))
        change = rng.random()
        if change < 0.3:
            return body[:place]
        if change < 0.6:
            return body[:place] + bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 100]))) + body[place:]
        if change < 0.8:
            return body.replace(b"\r\n", rng.choice([b"\n", b"\r", b"\r\n\r\n", b""]), rng.choice([1, 3, -1]))
        if change < 0.9:
            return body.replace(b"image.png", rng.choice(NAMES))
        return body * rng.choice([0, 2, 20])


NAMES = [
    b"", b"../../../evil.png", b"/etc/passwd", b"a\x00b.png", b"\xff\xfe.png", b"x" * 3_000, b'a"; filename="b.png',
    b"..",
    b"con.png", b"a\r\nX-Injected: 1", "\u202egnp.exe".encode(),
]  # fmt: skip


def _try_dump(content: Any) -> bytes:
    try:
        return dump_json(content)
    except (RecursionError, ValueError):  # a number of more digits than Python prints
        return b'{"data": 1' + b"0" * 5_000 + b"}"


def send(address: tuple[str, int], request: HttpRequest, timeout: float) -> bytes:
    """Send a request and return what the server answers (at most 4 MiB, and of an endless stream its beginning).

    The sending side is closed only after a request that is cut off: the server takes a client whose side is closed
    for gone, and does not answer.

    Raises:
        TimeoutError: the server neither answered nor closed the connection.
    """
    answer = b""
    with socket.create_connection(address, timeout=timeout) as connection:
        try:
            connection.sendall(request.encode(":".join(map(str, address))))
            if request.is_cut_off:
                connection.shutdown(socket.SHUT_WR)
            while len(answer) < 2**22 and (part := connection.recv(2**16)):
                answer += part
                connection.settimeout(STREAM_S)
        except ConnectionError:
            pass  # the server refused the rest
        except TimeoutError:
            if not answer:
                raise
    return answer
