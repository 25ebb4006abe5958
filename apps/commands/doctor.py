"""`dinomed doctor`: versions, devices and cache of this machine, or the examination of an artefact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from dinomed.apps.options import Json, Quiet

if TYPE_CHECKING:
    from dinomed.apps.api.doctor import DoctorReport
    from dinomed.apps.ending import Proposal, Step
    from dinomed.apps.examine.report import ArtefactReport


def doctor(
    path: Annotated[
        Path | None,
        Argument(help="Manifest, run, backbone, adapter, index, cache or output folder to examine [this machine]."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show versions, devices and gaps of this machine, or examine an artefact.

    For the machine it judges DICOM codecs, GPU, free memory and disk, and each extra: ok, low or missing, with the
    command that mends it. All of them are optional, so the exit code is 0.

    For an artefact it reports what it holds and was made from, which parts are missing, damaged, changed or incomplete,
    and what to do. Stored checksums are verified. Nothing is changed. The exit code is 1 if any part is not good.
    """
    from dataclasses import asdict

    from dinomed.apps.api.doctor import doctor as examine
    from dinomed.apps.ending import print_end
    from dinomed.apps.output import emit

    if path is None:
        machine = examine()
        for table in [None] if as_json else [_machine_table(machine), _checks_table(machine)]:
            emit(asdict(machine), as_json, table)
        print_end([], (["quickstart"], {"no_demo": True}), as_json=as_json)
        return
    report = examine(path)
    emit({**asdict(report), "sound": report.sound}, as_json, None if as_json else _artefact_table(report))
    if not report.sound:
        raise typer.Exit(1)
    print_end([], lambda: _next_step(report), as_json=as_json)


def _next_step(report: "ArtefactReport") -> "Step | Proposal | None":
    """Return what a sound artefact is used for; None where that needs other files."""
    from dinomed.apps.ending import after_images, after_manifest, demo_of
    from dinomed.datasets.manifest import read_manifest

    if report.kind in ("adapter", "ensemble"):
        return demo_of(report.path)
    if report.kind == "index":
        return ["demo", "retrieve"], {"index": report.path}
    if report.kind == "curated manifest":
        return after_images(report.path)
    if report.kind == "manifest":
        manifest = read_manifest(report.path)
        return after_manifest(report.path, manifest, masks=manifest.has("mask"))
    return None


def _machine_table(report: "DoctorReport") -> Any:
    from dinomed.apps.output import build_table

    writable = "writable" if report.cache.writable else "not writable"
    rows = [("python", report.python), ("system", report.system)]
    rows += [(name, number or "not installed") for name, number in report.packages.items()]
    rows += [("processors", f"{report.processors}, of which torch uses {report.threads}")]
    rows += [(device.name, device.about) for device in report.devices]
    rows += [
        ("used by --device auto", report.auto),
        ("attention on CUDA", report.attention),
        ("cache of weights", f"{report.cache.folder} ({writable})"),
        ("Chromium (browser tests only)", report.chromium or "not found: apt-get install chromium fonts-dejavu-core"),
    ]
    return build_table(("", ""), rows)


def _checks_table(report: "DoctorReport") -> Any:
    from dinomed.apps.output import build_table

    rows: list[tuple[str, str, str]] = []
    for check in report.checks:
        rows.append((check.state, check.name, check.about))
        rows += [("", "", f"-> {check.remedy}")] if check.remedy else []
    return build_table(("state", "part", ""), rows, title="What this machine has, and what mends what is missing")


def _artefact_table(report: "ArtefactReport") -> Any:
    from dinomed.apps.output import build_table

    rows: list[tuple[Any, ...]] = [("", name, _short(value)) for name, value in report.facts.items()]
    for part in report.parts:
        rows.append((part.state, part.name, part.about))
        rows += [("", "", f"-> {part.remedy}")] if part.remedy else []
    state = "sound" if report.sound else "NOT SOUND"
    return build_table(("state", "part", ""), rows, title=f"{report.kind} {report.path}: {state}")


def _short(value: Any) -> str:
    text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 300 else text[:300] + "..."
