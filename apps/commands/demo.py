"""`dinomed demo`: adapters and indexes in the browser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from dinomed.apps.expand import expand
from dinomed.apps.options import Device, MaskText, Quiet

Adapter = Annotated[Path, Option("--adapter", "-a", help="Adapter folder, as `dinomed train` writes it.")]
Index = Annotated[Path, Option("--index", "-i", help="Folder, as `dinomed index` writes it.")]
Save = Annotated[
    Path | None,
    Option("--save", help="Folder for corrected masks and corrections.parquet, for `dinomed train segment --data`."),
]
Abstain = Annotated[
    float | None,
    Option(
        "--abstain",
        help="Give no answer for the least confident pictures: the threshold that does so with this share of the "
        "validation images, such as 0.2.",
    ),
]
MaxRisk = Annotated[
    float | None,
    Option("--max-risk", help="The same, with the threshold whose kept validation images have this mean loss."),
]
Beside = Annotated[Path | None, Option("--index", "-i", help="Index whose similar cases are shown beside the classes.")]


@dataclass(frozen=True)
class Serving:
    """The options that all demos share."""

    backbone: Annotated[str | None, Option("--backbone", "-b", help="Path of the backbone, if it was moved.")] = None
    examples: Annotated[Path | None, Option("--examples", help="Folder of example pictures.")] = None
    host: Annotated[str, Option("--host", help="Address to serve at; by default this machine only.")] = "127.0.0.1"
    port: Annotated[
        int | None,
        Option("--port", help="Port to serve at; 0 for any [the first free port from 7860].", min=0, max=65535),
    ] = None
    login: Annotated[
        Path | None, Option("--login", help="File with one line USER:PASSWORD, which visitors must enter.")
    ] = None
    anyone: Annotated[bool, Option("--anyone", help="Let anyone on the network in at --host, without a login.")] = False
    names: Annotated[
        list[str] | None,
        Option("--name", help="Host name that visitors use, such as that of a proxy; may be given several times."),
    ] = None
    mask_text: MaskText = False
    no_browser: Annotated[bool, Option("--no-browser", help="Do not open a browser window.")] = False
    device: Device = "auto"
    quiet: Quiet = False


def _serve(serving: Serving, **shown: Any) -> None:
    from dinomed.apps.api.demo import demo
    from dinomed.apps.demos.corrections import MANIFEST_FILE
    from dinomed.apps.ending import after_corrections, print_end
    from dinomed.apps.output import api_arguments

    options = vars(serving) | shown | {"browser": not serving.no_browser}
    corrections = None if shown.get("save") is None else Path(shown["save"]) / MANIFEST_FILE
    before = _changed_at(corrections)
    try:
        demo(**api_arguments(options, without=["no_browser"]))
    finally:  # Ctrl-C ends the demo
        if corrections is not None and _changed_at(corrections) != before:
            adapter = shown["segment"]
            print_end(
                [corrections], None if adapter is None else after_corrections(corrections, adapter, serving.backbone)
            )


def _changed_at(file: Path | None) -> int | None:
    """Return when a file was last changed, ns; None without one."""
    return file.stat().st_mtime_ns if file is not None and file.is_file() else None


@expand
def segment(
    adapter: Adapter, serving: Serving, save: Save = None, abstain: Abstain = None, max_risk: MaxRisk = None
) -> None:
    """Segment pictures that you drop into the browser; with --save, correct the masks and keep them.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; uploads and
    results are removed after half an hour and at the end. For research use only, not for diagnosis.
    """
    _serve(serving, segment=adapter, save=save, abstain=abstain, max_risk=max_risk)


@expand
def classify(
    adapter: Adapter, serving: Serving, index: Beside = None, abstain: Abstain = None, max_risk: MaxRisk = None
) -> None:
    """Classify pictures that you drop into the browser, and show similar cases.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; uploads are removed after half
    an hour and at the end. With --index, visitors see its pictures and labels. For research use only, not for
    diagnosis.
    """
    _serve(serving, classify=adapter, index=index, retrieve=False, abstain=abstain, max_risk=max_risk)


@expand
def retrieve(index: Index, serving: Serving) -> None:
    """Show the most similar cases of an index for pictures that you drop into the browser.

    Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; uploads are removed after half
    an hour and at the end. Visitors see pictures and labels of the index, and values by which cases are filtered. For
    research use only, not for diagnosis.
    """
    _serve(serving, index=index)


@expand
def every(
    serving: Serving,
    segment: Annotated[Path | None, Option("--segment", help="Adapter of `dinomed train segment`.")] = None,
    classify: Annotated[Path | None, Option("--classify", help="Adapter of `dinomed train classify`.")] = None,
    adapters: Annotated[
        list[Path] | None, Option("--adapter", "-a", help="Adapter of any task; may be given several times.")
    ] = None,
    index: Annotated[Path | None, Option("--index", "-i", help="Folder, as `dinomed index` writes it.")] = None,
    save: Save = None,
    abstain: Abstain = None,
    max_risk: MaxRisk = None,
) -> None:
    """Show segmentation, classes, values of other tasks and similar cases on one page, each in a tab.

    Give one or more of --segment, --classify, --adapter and --index. A shared backbone is loaded once and runs once for
    a picture. Prints its address on stdout, then serves until Ctrl-C. Nothing leaves this machine; uploads and results
    are removed after half an hour and at the end. With --index, visitors see its pictures and labels. For research use
    only, not for diagnosis.
    """
    shown = {"segment": segment, "classify": classify, "adapters": adapters, "index": index, "save": save}
    _serve(serving, **shown, abstain=abstain, max_risk=max_risk)
