"""Options that several commands share, each with one name and one help text.

They are used as annotations: ``def probe(data: Data, device: Device = "auto", as_json: Json = False) -> None``.
"""

from pathlib import Path
from typing import Annotated

from typer import BadParameter, Context, Option


def output_place(value: Path | None) -> Path | None:
    """Check that an output can be written, before the command is imported and starts its work."""
    if value is not None:
        from dinomed.io.output_folder import check_place

        check_place(value)
    return value


def _quiet(context: Context, value: bool) -> bool:
    """Set the level of messages for this command, not for what the process does after it."""
    from dinomed.log import default_level, set_level

    set_level("warning" if value else default_level())
    context.call_on_close(lambda: set_level(default_level()))
    return value


def _numbers(context: Context, value: str | None) -> tuple[float, ...] | None:
    """Return the numbers of a text such as 0.5,0.5,0.5."""
    if value is None or not isinstance(value, str):
        return value
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise BadParameter(f"{value!r}: expected numbers with commas between them, such as 0.5,0.5,0.5") from None


Data = Annotated[Path, Option("--data", help="Manifest (.parquet or .csv), or a folder of images.", show_default=False)]
BACKBONE_HELP = (
    "Run folder, folder of a backbone (of dinomed, timm or transformers), file of weights, or a name: dinov2_vits14, "
    "timm/NAME, hf-hub:ORG/NAME."
)
Backbone = Annotated[str, Option("--backbone", "-b", help=BACKBONE_HELP)]
Weights = Annotated[Path | None, Option("--weights", help="Weights file of a backbone that is given by name.")]
Mean = Annotated[
    str | None,
    Option("--mean", help="Mean of each channel, 0 to 1, for weights that name none: 0.5,0.5,0.5.", callback=_numbers),
]
Std = Annotated[
    str | None,
    Option("--std", help="Standard deviation of each channel, for weights that name none.", callback=_numbers),
]
Output = Annotated[
    Path, Option("--output", "-o", help="File or folder to write.", show_default=False, callback=output_place)
]
Device = Annotated[str, Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Seed = Annotated[int, Option("--seed", help="Seed of the random numbers.", min=0)]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an earlier result of dinomed in the output.")]
Resume = Annotated[bool, Option("--resume", help="Continue an interrupted run.")]
Json = Annotated[bool, Option("--json", help="Print the report as JSON on stdout; messages go to stderr.")]
Quiet = Annotated[
    bool, Option("--quiet", "-q", help="Show only warnings and errors, no progress and no notes.", callback=_quiet)
]
Verbose = Annotated[bool, Option("--verbose", help="Show details too (works after any command; or DINOMED_LOG=debug).")]
Debug = Annotated[bool, Option("--debug", help="Show tracebacks; also after the command, or by DINOMED_DEBUG=1.")]
ImageSize = Annotated[
    int | None, Option("--image-size", help="Side of the square to which images are resized, px.", min=8)
]
Aspect = Annotated[
    str | None,
    Option(
        "--aspect", help="square: resize to squares; pad: keep proportions, pad to squares; keep: rectangles [square]."
    ),
]
Cache = Annotated[Path | None, Option("--cache", help="Folder of cached features [NAME.features beside the manifest].")]
Fps = Annotated[float, Option("--fps", help="Frames a second; 0 for every frame.", min=0)]
SceneChange = Annotated[
    float | None,
    Option(
        "--scene-change",
        help="Also take a frame whose mean grey difference to the frame before is above this, 0 to 255; try 30.",
        min=0,
        max=255,
    ),
]
DuplicateBits = Annotated[
    int,
    Option(
        "--duplicate-bits",
        help="Drop a frame whose hash differs in at most so many of 256 bits from a kept one; -1 keeps all.",
        min=-1,
        max=255,
    ),
]
DuplicateCosine = Annotated[
    float,
    Option(
        "--duplicate-cosine",
        help="Also drop a frame whose descriptor has a cosine above this with that of a kept one; 1 for hashes only.",
        min=0,
        max=1,
    ),
]
MaskText = Annotated[
    bool,
    Option(
        "--mask-text",
        help="Fill text in the pixels that the detector finds, in written pictures. It misses some: docs/clinical.md.",
    ),
]
MinLuminance = Annotated[
    float, Option("--min-luminance", help="Drop black frames: mean grey level below this, 0 to 255.", min=0)
]
MinSharpness = Annotated[
    float, Option("--min-sharpness", help="Drop blurred frames: variance of the Laplacian below this.", min=0)
]
MinTissue = Annotated[
    float,
    Option(
        "--min-tissue",
        help="Drop colour frames out of the body: share of reddish pixels below this; 0 for narrow-band light.",
        min=0,
        max=1,
    ),
]
