"""Server of a demo: nothing leaves this machine, and no upload remains after the end.

By default Gradio counts usage, keeps uploads in a shared folder and does not end cleanly on SIGTERM.
"""

import errno
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.errors import DinomedError, UsageError, system_reason
from dinomed.io.output_folder import locked
from dinomed.log import logger

MAX_UPLOAD = "64mb"
SWEEP_S, KEPT_S = 60.0, 1800.0  # every minute, remove uploads that are older than half an hour
LEFT_S = 86_400  # a folder without a lock is left by a killed server if it is a day old
PREFIX = "dinomed-demo-"  # of private folders
FIRST_PORT, PORTS_TRIED, LAUNCH_ATTEMPTS = 7860, 100, 10
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Address:
    """A checked address for a demo.

    Attributes:
        login: (user, password) of visitors, or None.
        is_port_given: the user chose the port.
        names: further host names under which the demo may be reached, such as that of a proxy.
    """

    host: str
    port: int
    login: tuple[str, str] | None = None
    is_port_given: bool = True
    names: tuple[str, ...] = ()


def choose_address(
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    login_file: Path | None = None,
    anyone: bool = False,
    names: Sequence[str] = (),
) -> Address:
    """Return a checked address.

    Args:
        host: address to serve at.
        port: None for the first free port from 7860, 0 for any.
        login_file: a text file with one line, ``USER:PASSWORD``.
        anyone: allow other machines without a login; a warning is written.
        names: further host names under which the demo may be reached, such as that of a proxy.

    Raises:
        UsageError: the host or port is not possible; other machines could connect and neither `login_file` nor
            `anyone` is given; or `login_file` has no login.
        DinomedError: the port is in use.
    """
    login = None if login_file is None else _read_login(login_file)
    if host not in LOOPBACK:
        if login is None and not anyone:
            raise UsageError(
                f"--host {host}: anyone on the network could use the demo; add --login FILE (one line USER:PASSWORD) "
                "or --anyone"
            )
        if login is None:
            logger.warning(f"--host {host}: anyone on the network can use the demo")
        logger.warning("pictures and passwords cross the network unencrypted; put HTTPS in front where that matters")
    return Address(host, _free_port(host, port), login, is_port_given=port is not None, names=tuple(names))


def _read_login(path: Path) -> tuple[str, str]:
    try:
        user, _, password = path.read_text(encoding="utf-8").strip().partition(":")
    except UnicodeDecodeError:
        raise UsageError(f"--login {path} is not UTF-8 text; expected one line, USER:PASSWORD") from None
    except OSError as error:
        raise UsageError(f"--login {path} cannot be read: {system_reason(error)}") from None
    if not user or not password or "\n" in password:
        raise UsageError(f"--login {path}: expected one line, USER:PASSWORD")
    return user, password


@contextmanager
def private_environment() -> Iterator[Path]:
    """Set the environment that Gradio reads at its import, and yield a private folder that is removed at the end.

    Folders that killed servers have left are removed first.
    """
    sweep_folders(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder, locked(folder):
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "GRADIO_TEMP_DIR": str(Path(folder) / "uploads"),
            "HF_HUB_OFFLINE": "1",
            # Gradio requests a page from its own server; the request must not go to a proxy.
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), *LOOPBACK])),
        }
        yield Path(folder)


def sweep_folders(parent: Path) -> None:
    """Remove the folders of servers that were killed: their lock is free. Those of other users are left alone."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if (
                folder.is_symlink()
                or not folder.is_dir()
                or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid())
            ):
                continue
            if not (folder / ".lock").exists() and time.time() - folder.stat().st_mtime < LEFT_S:
                continue  # a server that has just started
            with locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, DinomedError):  # in use, or removed by another server
            continue


def sweep_uploads(uploads: Path, kept_s: float) -> None:
    """Remove uploads that are older than `kept_s` seconds, complete or not, and folders that are empty so long.

    An upload makes its folder just before its file is moved there, so that a new empty folder is kept.
    """
    oldest = time.time() - kept_s
    for parent, folders, files in os.walk(uploads, topdown=False):  # unlike rglob it does not raise if one disappears
        for remove, names in ((os.unlink, files), (os.rmdir, folders)):
            for name in names:
                path = os.path.join(parent, name)
                with suppress(OSError):  # not empty, or removed meanwhile
                    if os.stat(path).st_mtime < oldest:
                        remove(path)


def serve(build: Callable[[], Any], address: Address, *, browser: bool = True) -> None:
    """Serve the page that `build` returns until a signal arrives, and print the address on stdout.

    Args:
        build: returns the Gradio page; called inside `private_environment`.
        address: from `choose_address`.
        browser: open the page in the browser of the user.
    """
    from dinomed.apps.demos.guard import app_options, names_of_server
    from dinomed.apps.demos.look import look  # imports Gradio, so only here

    demo, uploads = build(), Path(os.environ["GRADIO_TEMP_DIR"])
    guarded = app_options(names_of_server(address.host, address.names), uploads)
    port, attempts = address.port, 1 if address.is_port_given else LAUNCH_ATTEMPTS
    while True:
        try:
            _, link, _ = demo.launch(
                server_name=address.host, server_port=port, auth=address.login, share=False,
                inbrowser=browser and sys.stdout.isatty(), prevent_thread_lock=True, quiet=True, ssr_mode=False,
                mcp_server=False, footer_links=[], max_file_size=MAX_UPLOAD, max_threads=8,
                state_session_capacity=64, enable_monitoring=False, app_kwargs=guarded, **look(),
                _frontend=False,  # only leaves out a request that must be answered within 3 s, also on a busy machine
            )  # fmt: skip
            break
        except OSError as error:
            attempts -= 1
            if not attempts:
                raise DinomedError(f"the demo cannot be served at {address.host}:{port}: {error}") from None
            port = _free_port(address.host, None)  # another program took the port since it was chosen
    try:
        print(link.rstrip("/"), flush=True)
        logger.info("serving the demo; stop it with Ctrl-C")
        sweep_until_signal(uploads)
    finally:
        demo.close(verbose=False)


def sweep_until_signal(uploads: Path) -> None:
    """Remove old uploads from time to time, until SIGINT or SIGTERM raises here."""
    swept = time.monotonic()
    while True:
        time.sleep(min(1, SWEEP_S))  # a single endless wait would miss a signal that arrives just before it
        if time.monotonic() - swept >= SWEEP_S:
            sweep_uploads(uploads, KEPT_S)
            swept = time.monotonic()


def _free_port(host: str, port: int | None) -> int:
    """Return `port` if it is free (0: the system chooses), or for None the first free port from `FIRST_PORT` on."""
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
