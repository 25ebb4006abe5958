"""Serving a demo so that nothing leaves this machine and nothing of it stays behind.

Gradio on its own counts usage, keeps uploads in a shared folder and exits untidily on SIGTERM; here it does not.
"""

import errno
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.errors import DinomedError, UsageError
from dinomed.log import logger

MAX_UPLOAD = "64mb"
MAX_WAITING = 64  # further visitors are told that the demo is busy
CACHE_SWEEP_S = (60, 1800)  # every minute, remove uploads and results that are older than half an hour
FIRST_PORT, PORTS_TRIED = 7860, 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Address:
    """Where to serve and to whom, checked: nothing is loaded for a demo that cannot be served.

    `login` is a user and a password that visitors have to give, or None.
    """

    host: str
    port: int
    login: tuple[str, str] | None = None


def choose_address(
    host: str = "127.0.0.1", port: int | None = None, *, login_file: Path | None = None, anyone: bool = False
) -> Address:
    """The address to serve at.

    Args:
        port: None for the first free one from 7860, 0 for any.
        login_file: a text file with one line, ``USER:PASSWORD``.
        anyone: needed, and warned of, to serve other machines than this one without a login.

    Raises:
        UsageError: a host or port that cannot be; another machine could come in and neither `login_file` nor `anyone`
            is given; no login in `login_file`.
        DinomedError: the port is in use.
    """
    login = None if login_file is None else _read_login(login_file)
    if host not in LOOPBACK:
        if login is None and not anyone:
            raise UsageError(
                f"--host {host}: anyone on the network could use the demo; add --login FILE (a line USER:PASSWORD), "
                "or --anyone if that is meant"
            )
        if login is None:
            logger.warning(f"--host {host}: anyone on the network can use the demo")
        logger.warning("pictures and passwords cross the network unencrypted; put HTTPS in front where that matters")
    return Address(host, _free_port(host, port), login)


def _read_login(path: Path) -> tuple[str, str]:
    try:
        user, _, password = path.read_text(encoding="utf-8").strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--login {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not user or not password or "\n" in password:
        raise UsageError(f"--login {path}: expected one line, USER:PASSWORD")
    return user, password


@contextmanager
def private_environment() -> Iterator[Path]:
    """Settings that Gradio reads when it is imported, and a private folder for uploads that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="dinomed-demo-", ignore_cleanup_errors=True) as folder:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "GRADIO_TEMP_DIR": str(Path(folder) / "uploads"),
            "HF_HUB_OFFLINE": "1",
            # Gradio asks its own server whether it is up; a proxy must not be asked instead.
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), *LOOPBACK])),
        }
        yield Path(folder)


def serve(build: Callable[[], Any], address: Address, *, browser: bool = True) -> None:
    """Serve the Blocks that `build` makes until a signal comes; print the address on stdout once it answers.

    Args:
        build: called inside `private_environment`, so it may import Gradio.
        browser: also open the page in the user's browser.
    """
    from dinomed.apps.demos.look import LOOK  # imports Gradio, so only here

    demo = build()
    demo.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    try:
        _, link, _ = demo.launch(
            server_name=address.host, server_port=address.port, auth=address.login, share=False,
            inbrowser=browser and sys.stdout.isatty(), prevent_thread_lock=True, quiet=True, ssr_mode=False,
            mcp_server=False, footer_links=[], max_file_size=MAX_UPLOAD, max_threads=8,
            state_session_capacity=MAX_WAITING, **LOOK,
        )  # fmt: skip
    except OSError as error:
        raise DinomedError(f"the demo cannot be served at {address.host}:{address.port}: {error}") from None
    try:
        print(link.rstrip("/"), flush=True)
        logger.info("serving the demo; stop it with Ctrl-C")
        while True:  # until SIGINT or SIGTERM raises here
            time.sleep(1)  # not one wait for ever: a signal that arrives just before it would go unheard
    finally:
        demo.close(verbose=False)


def _free_port(host: str, port: int | None) -> int:
    """`port` if nobody listens at it (0: the system's choice); of None, the first free one from `FIRST_PORT` on."""
    for tried in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise UsageError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
        except OverflowError:
            raise UsageError(f"--port {tried}: choose one from 0 to 65535") from None
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(where)
                return int(probe.getsockname()[1])
            except PermissionError:
                raise UsageError(f"--port {tried}: not allowed; choose one above 1023") from None
            except OSError as error:
                last = error
    if last.errno != errno.EADDRINUSE:
        raise UsageError(f"--host {host}: {last.strerror or last}")
    if port is not None:
        raise DinomedError(f"--port {port} is in use; choose another, or leave it out to take any that is free")
    raise DinomedError(
        f"no free port at {host} from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}; give one by --port"
    )
