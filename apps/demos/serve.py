"""Serving a demo so that nothing leaves this machine and nothing of it stays behind.

Gradio on its own counts usage, keeps uploads in a shared folder and exits untidily on SIGTERM; here it does not.
"""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dinomed.errors import DinomedError, UsageError
from dinomed.progress import say, warn

MAX_UPLOAD = "64mb"
MAX_WAITING = 16  # further visitors are told that the demo is busy
CACHE_SWEEP_S = (600, 3600)  # every ten minutes, drop what is older than an hour
FIRST_PORT, PORTS_TRIED = 7860, 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")


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


def serve(build: Callable[[], Any], *, host: str = "127.0.0.1", port: int | None = None, browser: bool = True) -> None:
    """Serve the Blocks that `build` makes until a signal comes; print the address on stdout once it answers.

    Args:
        build: called inside `private_environment`, so it may import Gradio.
        port: the first to try; the next free one is taken, and said, if it is in use. None: any from 7860.
        browser: also open the page in the user's browser.
    """
    chosen = _free_port(host, port or FIRST_PORT)
    if port and chosen != port:
        say(f"port {port} is in use; taking {chosen}")
    if host not in LOOPBACK:
        warn(f"--host {host}: anyone who reaches this machine can use the demo and see pictures put into it")
    from dinomed.apps.demos.look import LOOK  # imports Gradio, so only here

    demo = build()
    demo.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    try:
        _, address, _ = demo.launch(
            server_name=host, server_port=chosen, share=False, inbrowser=browser and sys.stdout.isatty(),
            prevent_thread_lock=True, quiet=True, ssr_mode=False, mcp_server=False, footer_links=[],
            max_file_size=MAX_UPLOAD, max_threads=8, state_session_capacity=MAX_WAITING, **LOOK,
        )  # fmt: skip
    except OSError as error:
        raise DinomedError(f"the demo cannot be served at {host}:{chosen}: {error}") from None
    try:
        print(address.rstrip("/"), flush=True)
        say("serving the demo; stop it with Ctrl-C")
        while True:  # until SIGINT or SIGTERM raises here
            time.sleep(1)  # not one wait for ever: a signal that arrives just before it would go unheard
    finally:
        demo.close(verbose=False)


def _free_port(host: str, first: int) -> int:
    """The first port from `first` on that nobody listens at."""
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise UsageError(f"--host {host}: {error.strerror or error}") from None
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(where)
                return port
            except PermissionError:
                raise UsageError(f"--port {port}: not allowed; choose one above 1023") from None
            except OSError as error:
                last = error
    raise DinomedError(f"no free port at {host} from {first} on ({last.strerror or last})")
