"""Selected frames of videos, with their manifest, and the options of their selection."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.apps.api.inputs import PathLike
from dinomed.datasets.scan.videos import find_videos, name_groups, name_patients
from dinomed.errors import UsageError
from dinomed.io.pseudonyms import chosen_key
from dinomed.log import logger

if TYPE_CHECKING:
    from dinomed.pretrain.curation.frames.write import FramesResult


def frames(
    videos: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    fps: float = 1.0,
    scene_change: float | None = None,
    duplicate_bits: int = 24,
    duplicate_cosine: float = 0.7,
    min_luminance: float = 16.0,
    min_sharpness: float = 4.0,
    min_tissue: float = 0.25,
    keep_ids: bool = False,
    id_key: PathLike | None = None,
    mask_text: bool = False,
    overwrite: bool = False,
) -> "FramesResult":
    """Write selected frames of videos as PNG files with a manifest, in which each video or patient is a group.

    Videos are MP4, MOV, AVI, Matroska, WebM and MPEG files, and DICOM files of several frames. ``manifest.csv`` has the
    columns ``video``, ``frame`` (number from 0) and ``time_s``; ``dropped.csv`` has the frames that were left out, with
    reasons. The group of a DICOM file is its patient, or else the study. The command is ``dinomed frames``.

    Args:
        videos: path of a video or of a folder of videos, or several of them.
        out: folder to write.
        fps: frames a second; 0 for every frame.
        scene_change: also take a frame whose mean grey difference to the frame before is above this, 0 to 255.
        duplicate_bits: drop a frame whose hash differs in at most so many of 256 bits from that of a kept one; -1
            keeps near-duplicates.
        duplicate_cosine: drop also a frame whose descriptor has a cosine above this with that of a kept one, as the
            curation compares images; 1 for hashes only.
        min_luminance: mean grey level, 0 to 255, below which a frame is black; 0 keeps frames of one colour too.
        min_sharpness: variance of the Laplacian below which a frame is blurred.
        min_tissue: share of reddish pixels, 0 to 1, below which a colour frame is outside of the body; 0 for no
            limit, such as for narrow-band imaging.
        keep_ids: call videos like their files, instead of numbers.
        id_key: file with a secret key, as for `scan`: videos are pseudonyms of their contents, patients
            of their IDs.
        mask_text: fill burned-in text that the detector finds (`dinomed.burned_in_text`) in the written pictures. It
            misses text, and is no de-identification.
        overwrite: replace an earlier result in `out`.

    Returns:
        The folder, the manifest, the name and the group of each video, the numbers of dropped frames by reason,
        (path, reason) of damaged videos, and the counts of masked text.

    Raises:
        UsageError: there is no video, a setting is out of its range, no frame is kept, or `out` is in use.
        DinomedError: no video can be read, or nothing can be written.

    Example:
        >>> written = dinomed.frames("clip.avi", out="frames", fps=5)
        >>> written.manifest.column("frame")[0], "black" in written.dropped
        ('10', True)
    """
    from dinomed.burned_in_text.mask import TextMask
    from dinomed.pretrain.curation.frames.selection import build_frame_config
    from dinomed.pretrain.curation.frames.write import RESERVED, write_frames

    settings = {
        "fps": fps, "scene_change": scene_change, "duplicate_bits": duplicate_bits,
        "duplicate_cosine": duplicate_cosine, "min_luminance": min_luminance, "min_sharpness": min_sharpness,
        "min_tissue": min_tissue,
    }  # fmt: skip
    key = chosen_key(id_key, keep_ids)
    config = build_frame_config(settings)
    files = find_videos([Path(path) for path in ([videos] if isinstance(videos, str | Path) else videos)])
    names, patients = name_groups(files, keep_ids, RESERVED, key), name_patients(files, key)
    if patients.count(None) > 1:
        logger.info(
            "videos that are no DICOM are a group each: name the patient of each video in a table of `dinomed scan`"
        )
    return write_frames(
        files, names, patients, out, config, mask=TextMask() if mask_text else None, overwrite=overwrite
    )


def with_frame_rule(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a scan with the rule of the selection of frames in place of its settings.

    Raises:
        UsageError: a setting is out of its range, or is given without `videos`.
    """
    from dinomed.pretrain.curation.frames.config import FrameConfig

    settings = {name: options[name] for name in FrameConfig.model_fields if name in options}
    rest = {name: value for name, value in options.items() if name not in (*settings, "videos")}
    if not options.get("videos"):
        for name, value in settings.items():
            if value != FrameConfig.model_fields[name].default:
                raise UsageError(f"`{name}={value}` selects frames of videos; add `videos=True`")
        return rest
    from dinomed.pretrain.curation.frames.selection import build_rule

    return rest | {"frame_rule": build_rule(settings)}
