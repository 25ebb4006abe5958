"""`dinomed demo`: a result in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from dinomed.apps.options import Device, Quiet

Adapter = Annotated[Path, typer.Option("--adapter", "-a", help="Adapter folder, as `dinomed train` writes it.")]
Host = Annotated[str, typer.Option("--host", help="Address to serve at; the default is this machine only.")]
Port = Annotated[
    int | None,
    typer.Option("--port", help="Port to serve at; 0 for any [the first free one from 7860].", min=0, max=65535),
]
Login = Annotated[
    Path | None, typer.Option("--login", help="File with a line USER:PASSWORD, which visitors have to give.")
]
Anyone = Annotated[bool, typer.Option("--anyone", help="Serve the network at --host without a login.")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Do not open a browser window.")]


def segment(
    adapter: Adapter,
    backbone: Annotated[str | None, typer.Option("--backbone", "-b", help="Instead of the one it was made on.")] = None,
    examples: Annotated[Path | None, typer.Option("--examples", help="Folder of pictures to offer.")] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    login: Login = None,
    anyone: Anyone = False,
    no_browser: NoBrowser = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Outline lesions in pictures that you drop into the browser.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; what was put in and what came
    out is removed after half an hour, and at the end. For research use only, not for diagnosis.
    """
    from dinomed.apps.demos.launch import serve_segment
    from dinomed.apps.demos.serve import choose_address

    address = choose_address(host, port, login_file=login, anyone=anyone)
    serve_segment(adapter, backbone=backbone, examples=examples, address=address, browser=not no_browser, device=device)


def classify(
    adapter: Adapter,
    index: Annotated[
        Path | None, typer.Option("--index", "-i", help="Index whose most similar cases are shown beside.")
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", "-b", help="Instead of the one it was made on.")] = None,
    examples: Annotated[Path | None, typer.Option("--examples", help="Folder of pictures to offer.")] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    login: Login = None,
    anyone: Anyone = False,
    no_browser: NoBrowser = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Say how probable each class is of pictures that you drop into the browser, and show cases that look alike.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; what was put in is removed
    after half an hour, and at the end. With --index, visitors see its pictures and labels. For research use only, not
    for diagnosis.
    """
    from dinomed.apps.demos.launch import serve_classify
    from dinomed.apps.demos.serve import choose_address

    address = choose_address(host, port, login_file=login, anyone=anyone)
    serve_classify(
        adapter, index=index, backbone=backbone, examples=examples, address=address, browser=not no_browser,
        device=device,
    )  # fmt: skip


def retrieve(
    index: Annotated[Path, typer.Option("--index", "-i", help="Folder, as `dinomed index` writes it.")],
    backbone: Annotated[str | None, typer.Option("--backbone", "-b", help="Instead of the one it was made on.")] = None,
    examples: Annotated[Path | None, typer.Option("--examples", help="Folder of pictures to offer.")] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    login: Login = None,
    anyone: Anyone = False,
    no_browser: NoBrowser = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Show the most similar cases of an index for pictures that you drop into the browser.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; what was put in is removed
    after half an hour, and at the end. Visitors see pictures and labels of the index. For research use only, not for
    diagnosis.
    """
    from dinomed.apps.demos.launch import serve_retrieve
    from dinomed.apps.demos.serve import choose_address

    address = choose_address(host, port, login_file=login, anyone=anyone)
    serve_retrieve(index, backbone=backbone, examples=examples, address=address, browser=not no_browser, device=device)
