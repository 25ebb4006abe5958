"""`dinomed frames`: selected frames of videos as images with a manifest."""

from collections import Counter
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import Json, Output, Overwrite, Quiet


def frames(
    videos: Annotated[list[Path], Argument(help="Videos, or folders of videos.", show_default=False)],
    out: Output,
    fps: Annotated[float, Option("--fps", help="Frames a second; 0 for every frame.", min=0)] = 1.0,
    scene_change: Annotated[
        float | None,
        Option(
            "--scene-change",
            help="Also take a frame whose mean grey difference to the frame before is above this, 0 to 255; try 30.",
            min=0,
            max=255,
        ),
    ] = None,
    duplicate_bits: Annotated[
        int,
        Option(
            "--duplicate-bits",
            help="Drop a frame whose hash differs in at most so many of 256 bits from a kept one; -1 keeps all.",
            min=-1,
            max=255,
        ),
    ] = 24,
    min_luminance: Annotated[
        float, Option("--min-luminance", help="Drop black frames: mean grey level below this, 0 to 255.", min=0)
    ] = 16.0,
    min_sharpness: Annotated[
        float, Option("--min-sharpness", help="Drop blurred frames: variance of the Laplacian below this.", min=0)
    ] = 4.0,
    min_tissue: Annotated[
        float,
        Option(
            "--min-tissue",
            help="Drop colour frames out of the body: share of reddish pixels below this; 0 for narrow-band light.",
            min=0,
            max=1,
        ),
    ] = 0.25,
    keep_ids: Annotated[
        bool, Option("--keep-ids", help="Call groups like the files of the videos, not by numbers.")
    ] = False,
    id_key: Annotated[
        Path | None,
        Option(
            "--id-key",
            help="File with a secret key: groups are keyed hashes of the names of the videos.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write selected frames of videos as PNG files, with a manifest in which each video is a group.

    Videos are MP4, MOV, AVI, Matroska, WebM and MPEG files, and DICOM files of several frames. manifest.csv has the
    columns frame (number from 0) and time_s, dropped.csv the frames that were left out, with reasons. All other
    commands read the manifest. If a video is damaged or cannot be read to its end, the exit code is 1; the frames that
    were read are written. After an interruption nothing half-written stays. For research use only.
    """
    arguments = locals()
    from dinomed.apps.api.data.frames import frames as write_frames
    from dinomed.apps.output import api_arguments, build_table, emit
    from dinomed.errors import DinomedError
    from dinomed.notice import RESEARCH_USE
    from dinomed.pretrain.curation.frames.write import DROPPED_FILE, MANIFEST_FILE

    written = write_frames(**api_arguments(arguments))
    report = {
        "output": str(written.folder),
        "manifest": str(written.folder / MANIFEST_FILE),
        "dropped_list": str(written.folder / DROPPED_FILE),
        "videos": written.groups,
        "frames": len(written.manifest),
        "dropped": written.dropped,
        "problems": [{"video": video, "reason": reason} for video, reason in written.problems],
        "note": RESEARCH_USE,
    }
    rows = [("videos", len(written.groups)), ("frames", len(written.manifest))]
    rows += [(f"dropped: {reason}", count) for reason, count in sorted(written.dropped.items())]
    rows += [(f"problem: {reason}", count) for reason, count in Counter(r for _, r in written.problems).items()]
    emit(report, as_json, build_table(("", "count"), rows, title=str(report["manifest"])))
    if written.problems:
        first, reason = written.problems[0]
        raise DinomedError(
            f"{len(written.problems)} of {len(written.groups)} videos are damaged or cannot be read to their end (the "
            f"first: {first}: {reason}); the frames that were read are written"
        )
