"""`export`: a folder in another tool's format, ready to be pushed to a hub; written whole, after a check, or not."""

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from dinomed.adapters.export.bundles import write_monai, write_safetensors
from dinomed.adapters.export.card import card, notice
from dinomed.adapters.export.libraries import write_timm, write_transformers
from dinomed.adapters.export.onnx_file import write_onnx
from dinomed.adapters.export.source import Source
from dinomed.datasets.manifest import leaves_root
from dinomed.errors import DinomedError, UsageError, did_you_mean
from dinomed.io.files import read_json, sha256_file, sync, write_json, write_text
from dinomed.io.output_folder import locked, prepare_output
from dinomed.notice import RESEARCH_USE

FORMATS = ("onnx", "safetensors", "timm", "transformers", "monai")
OF_BACKBONES = ("timm", "transformers")
REPORT_FILE, STAGE = "export.json", ".unfinished"


def check_format(word: str) -> None:
    """Raises a `UsageError` that names the nearest if there is no such format."""
    if word not in FORMATS:
        raise UsageError(f"--format {word!r}{did_you_mean(word, FORMATS)}")


def export(
    source: Source,
    kind: str,
    out: str | Path,
    *,
    dynamic_size: bool = False,
    backbone: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `source` to the folder `out` as `kind`, with a card, a NOTICE and `export.json` (what was compared, and the
    hash of each file). The files gather in a folder inside, and are moved once the check has passed.

    Args:
        dynamic_size: ONNX only: any image size, not the backbone's own alone.
        backbone: where the backbone of an adapter is, if it was moved.

    Raises:
        UsageError: a format that cannot hold this, a package that is missing, `out` in use.
        DinomedError: what was written gives other values than the original; nothing of it stays.
    """
    check_format(kind)
    if source.predictor is not None and kind in OF_BACKBONES and source.predictor.metadata["tuned"]:
        source = Source(source.backbone)  # the one that has learned with the head is nowhere else
    if source.predictor is not None and kind in OF_BACKBONES:
        raise UsageError(f"--format {kind} holds a backbone; give the backbone that the adapter was trained on")
    if dynamic_size and kind != "onnx":
        raise UsageError("--dynamic-size is for --format onnx")
    out = Path(out)
    for place in (source.folder, source.backbone.source):
        if place is not None and out.resolve() == Path(place).resolve():
            raise UsageError(f"output {out} is what is to be exported; choose another folder")
    unfinished = (out / STAGE).is_dir() and not (out / REPORT_FILE).exists()
    prepare_output(out, overwrite=overwrite or unfinished, marker=STAGE if unfinished else REPORT_FILE)
    with locked(out):
        stage = out / STAGE
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        writers: dict[str, Callable[[], dict[str, Any]]] = {
            "onnx": lambda: write_onnx(source, stage, dynamic_size=dynamic_size),
            "safetensors": lambda: write_safetensors(source, stage, backbone),
            "timm": lambda: write_timm(source.backbone, stage),
            "transformers": lambda: write_transformers(source.backbone, stage),
            "monai": lambda: write_monai(source, stage),
        }
        try:
            parity = writers[kind]()
            write_text(stage / "README.md", card(source, kind, parity))
            write_text(stage / "NOTICE", notice(source))
            report = _report(source, kind, parity, stage)
            write_json(stage / REPORT_FILE, report)
            _remove_earlier(out)
            _publish(stage, out, [*report["files"], REPORT_FILE])
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return report


def _report(source: Source, kind: str, parity: dict[str, Any], stage: Path) -> dict[str, Any]:
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
                name: _version(name)
                for name in ("dinomed", "torch", "onnx", "onnxruntime", "timm", "transformers", "monai")
            },
        },
    }


def _publish(stage: Path, out: Path, names: list[str]) -> None:
    """The report goes last: without it the folder is no whole export."""
    try:
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / name, out / name)
        sync(out)
    except OSError as error:
        raise DinomedError(f"cannot write {out}: {error.strerror or error}") from None


def _remove_earlier(out: Path) -> None:
    """What an earlier export lists, and nothing else."""
    if not (out / REPORT_FILE).exists():
        return
    earlier = read_json(out / REPORT_FILE)
    names = earlier.get("files") if isinstance(earlier, dict) else None
    (out / REPORT_FILE).unlink()
    for name in names if isinstance(names, dict) else ():
        if not leaves_root(name):
            (out / name).unlink(missing_ok=True)
            for parent in PurePosixPath(name).parents:
                if str(parent) != "." and (out / parent).is_dir() and not any((out / parent).iterdir()):
                    (out / parent).rmdir()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
