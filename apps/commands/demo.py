"""`dinomed demo`: a result in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from dinomed.apps.options import Device, Quiet

Adapter = Annotated[Path, typer.Option("--adapter", "-a", help="Adapter folder, as `dinomed train` writes it.")]
Host = Annotated[str, typer.Option("--host", help="Address to serve at; the default is this machine only.")]
Port = Annotated[int | None, typer.Option("--port", help="First port to try; any free one from 7860 if not given.")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Do not open a browser window.")]


def segment(
    adapter: Adapter,
    backbone: Annotated[str | None, typer.Option("--backbone", "-b", help="Instead of the one it was made on.")] = None,
    examples: Annotated[Path | None, typer.Option("--examples", help="Folder of pictures to offer.")] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    no_browser: NoBrowser = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Outline lesions in pictures that you drop into the browser.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine, and uploads are removed at
    the end. For research use only, not for diagnosis.
    """
    from dinomed.apps.demos.launch import serve_segment

    serve_segment(
        adapter, backbone=backbone, examples=examples, host=host, port=port, browser=not no_browser, device=device
    )
