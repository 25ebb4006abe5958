"""Options that several commands share, each with one name, one meaning and one help text.

Use as annotations: ``def probe(data: Data, device: Device = "auto", as_json: Json = False) -> None``.
"""

import os
from pathlib import Path
from typing import Annotated

from typer import Option


def _quiet(value: bool) -> bool:
    from dinomed.log import default_level, set_level

    set_level("warning" if value else default_level())
    return value


def _verbose(value: bool) -> bool:
    if value:
        from dinomed.log import set_level

        os.environ["DINOMED_LOG"] = "debug"  # for the processes of a command too
        set_level("debug")
    return value


Data = Annotated[Path, Option("--data", help="Manifest (.parquet or .csv), or a folder of images.", show_default=False)]
Backbone = Annotated[
    str, Option("--backbone", "-b", help="Run folder, backbone folder, or a name such as dinov2_vits14.")
]
Weights = Annotated[Path | None, Option("--weights", help="Weights file for a backbone that is given by name.")]
Output = Annotated[Path, Option("--output", "-o", help="Where to write.", show_default=False)]
Device = Annotated[str, Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Seed = Annotated[int, Option("--seed", help="Seed of everything random.", min=0)]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an earlier result of dinomed in the output folder.")]
Resume = Annotated[bool, Option("--resume", help="Go on where an interrupted run stopped.")]
Json = Annotated[bool, Option("--json", help="Data as JSON on stdout; everything else goes to stderr.")]
Quiet = Annotated[
    bool, Option("--quiet", "-q", help="Show warnings and errors only: no progress, no notes.", callback=_quiet)
]
Verbose = Annotated[bool, Option("--verbose", help="Show details too (works before any command).", callback=_verbose)]
Debug = Annotated[bool, Option("--debug", help="Show tracebacks (works after any command; or DINOMED_DEBUG=1).")]
ImageSize = Annotated[
    int | None, Option("--image-size", help="Side of the square that images are resized to, px.", min=8)
]
Cache = Annotated[
    Path | None, Option("--cache", help="Folder for computed features [beside the manifest: NAME.features].")
]
