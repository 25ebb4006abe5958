"""Export of a backbone or an adapter to the format of another tool, checked before it is published."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dinomed.adapters.export.card import card, notice
from dinomed.adapters.export.libraries import write_timm, write_transformers
from dinomed.adapters.export.monai_bundle import write_monai
from dinomed.adapters.export.native import write_safetensors
from dinomed.adapters.export.onnx_file import write_onnx
from dinomed.adapters.export.source import ExportSource
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import leaves_root
from dinomed.errors import DinomedError, UsageError, did_you_mean
from dinomed.io.files import read_json, sha256_file, write_json, write_text
from dinomed.io.output_folder import open_output_folder
from dinomed.io.publish import publish
from dinomed.notice import RESEARCH_USE
from dinomed.packages import installed_version

FORMATS = ("onnx", "safetensors", "timm", "transformers", "monai")
BACKBONE_FORMATS = ("timm", "transformers")
SQUARE_FORMATS = (*BACKBONE_FORMATS, "monai")
"""Formats whose files describe the preprocessing, as resizing to the square."""
GRAPH_FORMATS = ("onnx", "monai")
REPORT_FILE = "export.json"


def check_format(word: str) -> None:
    """Raise a `UsageError` that names the nearest format if there is no such format."""
    if word not in FORMATS:
        raise UsageError(f"`format={word!r}`{did_you_mean(word, FORMATS)}")


def export(
    source: ExportSource,
    kind: str,
    out: str | Path,
    *,
    dynamic_size: bool = False,
    backbone: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export `source` to the folder `out`, with a card, a NOTICE and `export.json` (comparison, hash of each file).

    The files are collected in a stage inside `out` and are moved after the comparison has passed. After a failure
    nothing of the export stays; an earlier export in `out` is not changed.

    Args:
        kind: one of `FORMATS`.
        dynamic_size: ONNX only: accept any image size, not only that of the backbone.
        backbone: path of the backbone of an adapter, if it was moved.

    Returns:
        The content of `export.json`.

    Raises:
        UsageError: the format does not support the source, a package is missing, or `out` is in use.
        DinomedError: the exported model computes other values than the original.
    """
    check_format(kind)
    if source.members and kind in BACKBONE_FORMATS and source.predictor is not None:
        each = "each member of an ensemble has its own tuned one; export a member, such as fold_1"
        raise UsageError(
            f"`format={kind}` holds only one backbone; "
            + (each if source.predictor.metadata["tuned"] else "give the backbone on which the ensemble was trained")
        )
    if source.predictor is not None and kind in BACKBONE_FORMATS and source.predictor.metadata["tuned"]:
        source = ExportSource(source.backbone)  # the tuned backbone exists only in the adapter
    if source.predictor is not None and kind in BACKBONE_FORMATS:
        raise UsageError(f"`format={kind}` holds only a backbone; give the backbone on which the adapter was trained")
    if source.predictor is not None and kind in GRAPH_FORMATS and (reason := source.predictor.export_refusal):
        raise UsageError(
            f"`format={kind}` holds one pass over one image, but this is another adapter: {reason}; use "
            "`format=safetensors`, or train a head of one pass"
        )
    if kind in SQUARE_FORMATS and source.preprocessing.aspect != "square":
        raise UsageError(
            f"`format={kind}`: its files describe images that are resized to the square, but this backbone "
            f"{'pads them' if source.preprocessing.aspect == 'pad' else 'keeps their proportions'} "
            f"(aspect {source.preprocessing.aspect}); use onnx or safetensors"
        )
    if kind == "onnx" and source.preprocessing.aspect == "keep" and not dynamic_size:
        is_own_vit = isinstance(source.backbone.model, VisionTransformer)
        raise UsageError(
            "`format=onnx` of one image size takes squares only, but this backbone takes rectangles (aspect keep); "
            + ("add `dynamic_size`" if is_own_vit else "use `format=safetensors`")
        )
    if dynamic_size and kind != "onnx":
        raise UsageError("`dynamic_size` is for `format=onnx`")
    out = Path(out)
    for place in (source.folder, source.backbone.source):
        if place is not None and out.resolve() == Path(place).resolve():
            raise UsageError(f"output {out} is the folder of the source; choose another folder")
    writers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "onnx": lambda stage: write_onnx(source, stage, dynamic_size=dynamic_size),
        "safetensors": lambda stage: write_safetensors(source, stage, backbone),
        "timm": lambda stage: write_timm(source.backbone, stage),
        "transformers": lambda stage: write_transformers(source.backbone, stage),
        "monai": lambda stage: write_monai(source, stage),
    }
    with open_output_folder(out, marker=REPORT_FILE, overwrite=overwrite) as stage:
        earlier = _earlier_files(out)
        parity = writers[kind](stage)
        write_text(stage / "README.md", card(source, kind, parity))
        write_text(stage / "NOTICE", notice(source))
        report = _report(source, kind, parity, stage)
        write_json(stage / REPORT_FILE, report)
        # the report is removed first and moved last: it marks the export as complete
        publish(stage, out, [*report["files"], REPORT_FILE], remove=[REPORT_FILE, *earlier])
    return report


def _report(source: ExportSource, kind: str, parity: dict[str, Any], stage: Path) -> dict[str, Any]:
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    return {
        "purpose": RESEARCH_USE,
        "format": kind,
        "parity": parity,
        "source": source.describe(),
        "files": {path.relative_to(stage).as_posix(): sha256_file(path) for path in files},
        "written": {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **{
                name: installed_version(name)
                for name in ("dinomed", "torch", "onnx", "onnxruntime", "timm", "transformers", "monai")
            },
        },
    }


def _earlier_files(out: Path) -> list[str]:
    """Return the files that an earlier export in the folder lists and that are there, and no others.

    Raises:
        UsageError: the list cannot be read.
    """
    if not (out / REPORT_FILE).exists():
        return []
    try:
        earlier = read_json(out / REPORT_FILE)
    except DinomedError:
        raise UsageError(
            f"output folder {out} holds a damaged {REPORT_FILE}, which lists the files to replace; choose another "
            "folder"
        ) from None
    names = earlier.get("files") if isinstance(earlier, dict) else None
    names = names if isinstance(names, dict) else {}
    return [name for name in names if not leaves_root(name) and (out / name).is_file()]
