"""Guard of a demo's server: who may ask what, how much, and how often."""

import asyncio
import ipaddress
import json
import os
import re
import socket
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dinomed.errors import system_reason
from dinomed.log import logger

MIB = 2**20
MAX_UPLOAD_BYTES = 64 * MIB
MAX_UPLOADS_BYTES = 512 * MIB  # of all visitors: files on the disk and uploads in progress
MAX_BODY_BYTES = MIB  # of other requests
UPLOAD_S = 300  # longest time of an upload
LOGIN_DELAY_S, MAX_LOGIN_DELAY_S = 0.5, 30.0  # after a wrong password; doubled with each further one
MAX_CLIENTS = 1024
LEAST_FILE_BYTES = MIB // 16  # that a file counts, so that many small ones are bounded too
REFUSALS = (AttributeError, LocalProtocolError, LookupError, OverflowError, RecursionError, TypeError, ValueError)
"""Errors on a request that the page would not send; LocalProtocolError: uvicorn has refused its body already."""
PAGES = (
    "/", "/config", "/login", "/logout", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json",
    "/gradio_api/upload", "/gradio_api/component_server", "/gradio_api/startup-events",
)  # fmt: skip
PARTS = ("/assets/", "/static/")
"""What the page asks for. Gradio serves more, such as uploads by their paths, its queue and descriptions of itself."""
MAX_PATH_BYTES = 200  # of an address; systems refuse the name of a file that has over 255
AUTHORITY = re.compile(r"(\[[\da-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII | re.IGNORECASE)
"""Host and port. Anything else, such as `evil.example\\@127.0.0.1`, is read differently by different parsers."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# Gradio needs scripts inside its page, and builds functions from text; everything stays on the server's own origin.
CONTENT_SECURITY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def names_of_server(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """Return the host names under which a server at `host` may be asked; IP addresses are allowed besides.

    A web site can point its own name at this machine (DNS rebinding); its name is then in the request.
    """
    names = {*LOOPBACK_NAMES, host, *more}
    if host not in LOOPBACK_NAMES:
        names |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower() for name in names)


class Guard:
    """ASGI middleware that refuses requests of other sites and bounds uploads, bodies and attempts to log in.

    Args:
        app: the application behind.
        names: from `names_of_server`.
        uploads: folder of the uploads.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], uploads: Path) -> None:
        self.app, self.names, self.uploads = app, names, uploads
        self.upload_bytes = 0  # of uploads in progress, as they were declared
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._logins: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._check(scope)
        answer = GuardedAnswer(send)
        try:
            if refusal is None:
                await self._answer(scope, receive, answer)
            else:
                await answer.refuse(scope, receive, refusal)
        except ClientDisconnect:
            logger.debug("a client left before its request was complete")
        except Exception as error:  # of the server or a handler; it must not end the demo, and visitors get no details
            logger.debug("the request", exc_info=error)
            if _is_refusal(error):
                logger.warning(f"the demo refused a request: {type(error).__name__}; --debug shows where")
                refusal = PlainTextResponse("The server cannot answer this request.", 400)
            else:
                reason = system_reason(error) if isinstance(error, OSError) else "--debug shows where"
                logger.error(f"the demo could not answer: {type(error).__name__}: {reason}")
                refusal = PlainTextResponse("The server failed. Its log has the reason.", 500)
            await answer.refuse(scope, receive, refusal)

    async def _answer(self, scope: Scope, receive: Receive, send: "GuardedAnswer") -> None:
        path = scope["path"].rstrip("/")
        if scope["type"] == "http" and scope["method"] == "POST" and path.endswith("/upload"):
            await self._upload(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and path == "/login":
            await self._login(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> PlainTextResponse | None:
        """Return the answer to a request that is refused."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if not self._is_known(host) or self._has_foreign_name(headers):
            return PlainTextResponse("This server is not known under the name in the request.", 403)
        origin = headers.get("origin")
        method = scope.get("method", "GET")
        foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
        if foreign or (method not in ("GET", "HEAD") and headers.get("sec-fetch-site") == "cross-site"):
            return PlainTextResponse("Requests of other web sites are refused.", 403)
        is_served = path in PAGES or path.rstrip("/") in PAGES or path.startswith(PARTS)
        if not is_served or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
            return PlainTextResponse("There is nothing at this address.", 404)
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        length = headers.get("content-length", "")
        if not length.isdecimal() or len(length) > 18 or "transfer-encoding" in headers:  # this one would prevail
            return PlainTextResponse("The request must state its length.", 411)
        upload = path.rstrip("/").endswith("/upload")
        if int(length) > (MAX_UPLOAD_BYTES + MIB if upload else MAX_BODY_BYTES):
            return PlainTextResponse("The file or request exceeds its maximum allowed size.", 413)
        return None

    def _is_known(self, host: str) -> bool:
        name = _host_name(host)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True  # a web site cannot point an address here, unlike its name

    def _has_foreign_name(self, headers: Headers) -> bool:
        """Return whether Gradio would make addresses of its page from a name that is not the server's.

        A proxy sends `X-Forwarded-Host`; an unknown IP address in it is as foreign as an unknown name.
        Only a Node server of Gradio sends `X-Gradio-Server`; the demo starts none.
        """
        forwarded = headers.get("x-forwarded-host", headers["host"])
        return "x-gradio-server" in headers or (
            forwarded != headers["host"] and _host_name(forwarded) not in self.names
        )

    async def _upload(self, scope: Scope, receive: Receive, send: "GuardedAnswer") -> None:
        length = int(Headers(scope=scope)["content-length"])
        if folder_bytes(self.uploads) + self.upload_bytes + length > MAX_UPLOADS_BYTES:
            busy = PlainTextResponse("The server holds too many uploads; try again in a few minutes.", 503)
            await busy(scope, receive, send)
            return
        self.upload_bytes += length
        try:
            async with asyncio.timeout(UPLOAD_S) as limit:
                await self.app(scope, receive, UploadAnswer(send, self.uploads))
        except TimeoutError:
            if not limit.expired():
                raise
            logger.warning("an upload took too long and was ended")
            await send.refuse(scope, receive, PlainTextResponse("The upload took too long.", 408))
        finally:
            self.upload_bytes -= length
            if not self.upload_bytes:
                remove_unfinished(self.uploads)

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one attempt at a time for each address; after a wrong password the answer is delayed."""
        client = (scope.get("client") or ("unknown", 0))[0]
        async with self._logins[client]:
            answer: list[Message] = []

            async def collect(message: Message) -> None:
                answer.append(message)

            await self.app(scope, receive, collect)
            if answer and answer[0].get("status") in (400, 401):
                failures = self._failures[client] = self._failures.get(client, 0) + 1
                self._failures.move_to_end(client)
                delay = min(LOGIN_DELAY_S * 2 ** (failures - 1), MAX_LOGIN_DELAY_S)
                logger.warning(f"wrong user or password from {client}; attempts: {failures}")
                await asyncio.sleep(delay)
            else:
                self._failures.pop(client, None)
            while len(self._failures) > MAX_CLIENTS:
                self._logins.pop(self._failures.popitem(last=False)[0], None)
            for message in answer:
                await send(message)


def _host_name(authority: str) -> str:
    """Return the host of `host:port` in lower case, without brackets; empty if it is anything else."""
    match = AUTHORITY.fullmatch(authority)
    if match is None or int(match[2] or 0) >= 2**16:
        return ""
    return match[1].strip("[]").lower()


def _is_refusal(error: Exception) -> bool:
    """Return whether Gradio or a parser raises this error on a request that Gradio's own page would not send."""
    cause = error.__cause__  # Starlette wraps a refusal that comes after the start of an answer
    is_refused_late = isinstance(cause, HTTPException) and cause.status_code < 500
    return is_refused_late or isinstance(error, REFUSALS)


class GuardedAnswer:
    """Sends an answer with the security headers.

    Attributes:
        has_begun: the status was sent.
    """

    def __init__(self, send: Send) -> None:
        self.send, self.has_begun = send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
        await self.send(message)

    async def refuse(self, scope: Scope, receive: Receive, refusal: PlainTextResponse) -> None:
        """Send a refusal, unless the answer to a request has begun or it is no HTTP request."""
        if scope["type"] == "http" and not self.has_begun:
            await refusal(scope, receive, self)


class UploadAnswer:
    """Sends the answer to an upload, whose paths become names in the folder of the uploads; see `find_upload`.

    The paths tell visitors the temporary folder of this machine, which can bear the name of a user.
    """

    def __init__(self, send: GuardedAnswer, uploads: Path) -> None:
        self.send, self.uploads = send, uploads.resolve()
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        if self._start["status"] == 200:
            paths = [Path(path).resolve().relative_to(self.uploads) for path in json.loads(self._body)]
            self._body = json.dumps([path.as_posix() for path in paths]).encode()
            MutableHeaders(scope=self._start)["content-length"] = str(len(self._body))
        await self.send(self._start)
        await self.send({"type": "http.response.body", "body": self._body})


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder, each at least `LEAST_FILE_BYTES`; what disappears is left out."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob it does not raise if a folder disappears
        for name in names:
            with suppress(OSError):
                total += max(LEAST_FILE_BYTES, os.stat(os.path.join(parent, name)).st_size)
    return total


def remove_unfinished(uploads: Path) -> None:
    """Remove the parts of uploads that were not completed; complete ones are in folders by their hashes."""
    for path in uploads.iterdir() if uploads.is_dir() else ():
        if path.is_file():
            path.unlink(missing_ok=True)


def app_options(names: frozenset[str], uploads: Path) -> dict[str, Any]:
    """Return the options of Gradio's `launch` for its application, with the guard before it."""
    from starlette.middleware import Middleware

    return {"middleware": [Middleware(Guard, names=names, uploads=uploads)], "docs_url": None, "redoc_url": None}
