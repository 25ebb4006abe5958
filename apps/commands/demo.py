"""`dinomed demo`: a result in the browser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from dinomed.apps.expand import expand
from dinomed.apps.options import Device, Quiet

Adapter = Annotated[Path, Option("--adapter", "-a", help="Adapter folder, as `dinomed train` writes it.")]
Index = Annotated[Path, Option("--index", "-i", help="Folder, as `dinomed index` writes it.")]
Beside = Annotated[Path | None, Option("--index", "-i", help="Index whose most similar cases are shown beside.")]


@dataclass(frozen=True)
class Serving:
    """What all demos can be told."""

    backbone: Annotated[str | None, Option("--backbone", "-b", help="Instead of the one it was made on.")] = None
    examples: Annotated[Path | None, Option("--examples", help="Folder of pictures to offer.")] = None
    host: Annotated[str, Option("--host", help="Address to serve at; the default is this machine only.")] = "127.0.0.1"
    port: Annotated[
        int | None,
        Option("--port", help="Port to serve at; 0 for any [the first free one from 7860].", min=0, max=65535),
    ] = None
    login: Annotated[
        Path | None, Option("--login", help="File with a line USER:PASSWORD, which visitors have to give.")
    ] = None
    anyone: Annotated[bool, Option("--anyone", help="Serve the network at --host without a login.")] = False
    no_browser: Annotated[bool, Option("--no-browser", help="Do not open a browser window.")] = False
    device: Device = "auto"
    quiet: Quiet = False


def _serve(serving: Serving, **shown: Any) -> None:
    from dinomed.apps.demos.launch import serve_demo
    from dinomed.apps.demos.serve import choose_address

    address = choose_address(serving.host, serving.port, login_file=serving.login, anyone=serving.anyone)
    serve_demo(
        **shown, backbone=serving.backbone, examples=serving.examples, address=address, browser=not serving.no_browser,
        device=serving.device,
    )  # fmt: skip


@expand
def segment(adapter: Adapter, serving: Serving) -> None:
    """Outline lesions in pictures that you drop into the browser.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; what was put in and what came
    out is removed after half an hour, and at the end. For research use only, not for diagnosis.
    """
    _serve(serving, segment=adapter)


@expand
def classify(adapter: Adapter, serving: Serving, index: Beside = None) -> None:
    """Say how probable each class is of pictures that you drop into the browser, and show cases that look alike.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; what was put in is removed
    after half an hour, and at the end. With --index, visitors see its pictures and labels. For research use only, not
    for diagnosis.
    """
    _serve(serving, classify=adapter, index=index, retrieve=False)


@expand
def retrieve(index: Index, serving: Serving) -> None:
    """Show the most similar cases of an index for pictures that you drop into the browser.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; what was put in is removed
    after half an hour, and at the end. Visitors see pictures and labels of the index. For research use only, not for
    diagnosis.
    """
    _serve(serving, index=index)


@expand
def every(
    serving: Serving,
    segment: Annotated[Path | None, Option("--segment", help="Adapter of `dinomed train segment`.")] = None,
    classify: Annotated[Path | None, Option("--classify", help="Adapter of `dinomed train classify`.")] = None,
    index: Annotated[Path | None, Option("--index", "-i", help="Folder, as `dinomed index` writes it.")] = None,
) -> None:
    """Show several results on one page, each in a tab: the outline, the classes, the similar cases.

    One or more of --segment, --classify and --index. A picture is dropped once for all; a backbone that they share is
    loaded once and looks at it once. Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this
    machine; what was put in and what came out is removed after half an hour, and at the end. With --index, visitors
    see its pictures and labels. For research use only, not for diagnosis.
    """
    _serve(serving, segment=segment, classify=classify, index=index)
