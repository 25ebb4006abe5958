"""Examination of manifests, feature caches and feature tables."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.apps.examine.report import ArtefactReport, State
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import DinomedError, first_line
from dinomed.features.cache import CACHE_NAME
from dinomed.images.decode import UnreadableImage
from dinomed.images.frames import image_file
from dinomed.images.unchanged import content_digest
from dinomed.io.artifacts import check_file
from dinomed.io.files import read_json
from dinomed.pretrain.curation.output.read import STAGES_SUFFIX, load_result, stages_path, summary_path
from dinomed.progress import bar

_LISTED = 5  # files of a kind that are named


def examine_manifest(path: Path) -> ArtefactReport:
    """Read a manifest, and compare each image with its size and checksum at the time of the scan."""
    curated = summary_path(path).is_file() and stages_path(path).is_dir()
    report = ArtefactReport(str(path), "curated manifest" if curated else "manifest")
    again = "run the same `dinomed curate` again" if curated else "scan the folder again"
    manifest = report.check(path.name, lambda: read_manifest(path), lambda read: f"{len(read):,} rows", again)
    if manifest is None:
        return report
    report.facts.update(fingerprint=manifest.fingerprint, root=str(manifest.root), **_counts(manifest))
    add_images(report, manifest, again)
    if curated:
        report.check(
            summary_path(path).name, lambda: load_result(path), "summary and rows belong to the manifest", again
        )
        report.file_exists(path.with_suffix(".html"), f"{again} with --overwrite; its stages are cached")
    return report


def _counts(manifest: Manifest) -> dict[str, object]:
    counts: dict[str, object] = {"images": len(manifest), "groups": len(set(manifest.groups()) - {None})}
    for name in ("split", "label", "keep"):
        if manifest.has(name):
            values = Counter(str(value) for value in manifest.column(name) if value is not None)
            counts[f"{name}s" if name != "keep" else "keep"] = dict(sorted(values.items())[:30])
    return counts


def add_images(report: ArtefactReport, manifest: Manifest, remedy: str) -> None:
    """Add the images and the masks of a manifest: how many are unchanged, and which are not."""
    lists: dict[State, list[str]] = {"missing": [], "changed": []}
    names = manifest.column("image")
    with bar("checking images", len(manifest)) as progress:
        for row, (size, digest) in enumerate(zip(manifest.column("bytes"), manifest.column("sha256"), strict=True)):
            path = manifest.path(row)
            try:
                if not image_file(path).is_file():
                    lists["missing"].append(names[row])
                elif image_file(path).stat().st_size != size or content_digest(path) != digest:
                    lists["changed"].append(names[row])
            except OSError:
                lists["missing"].append(names[row])
            except UnreadableImage:  # of a frame: its video cannot be decoded there any more
                lists["changed"].append(names[row])
            progress.advance()
    for state, wrong in lists.items():
        if wrong:
            report.add("images", f"{len(wrong):,} are {state}: {some(wrong)}", state, remedy)
    if not any(lists.values()):
        report.add("images", f"{len(manifest):,} files have the size and the checksum of the scan")
    if manifest.has("mask"):
        masks = [mask for mask in manifest.column("mask") if mask is not None]
        gone = [mask for mask in masks if not (manifest.root / mask).is_file()]
        if gone:
            report.add("masks", f"{len(gone):,} are missing: {some(gone)}", "missing", remedy)
        else:
            report.add("masks", f"{len(masks):,} files are there (masks have no checksum)")


def some(names: list[str]) -> str:
    """Return the first names of a list, for a message."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def find_cache(folder: Path) -> list[Path]:
    """Return the folders of artifacts of a feature cache, or of the stages of a curation; none if it is neither.

    A folder of features has a hash as its name. Other folders are not looked into: a remedy removes files of a cache.
    """
    if folder.suffix == STAGES_SUFFIX or folder.parent.suffix == STAGES_SUFFIX:
        return [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    inside = [path for path in (folder, *sorted(folder.iterdir())) if CACHE_NAME.fullmatch(path.name)]
    return [path for path in inside if next(path.glob("*.cls.npy"), None) is not None]


def examine_cache(folder: Path) -> ArtefactReport:
    """Compare every file of a feature cache, or of the stages of a curation, with its checksum."""
    report = ArtefactReport(str(folder), "feature cache")
    remedy = "remove the file or the folder; the next command computes it again"
    whole, keys, size = 0, set(), 0
    places = find_cache(folder)
    records = sorted(path for place in places for path in place.glob("*.json"))
    for record_path in records:
        try:
            record = read_json(record_path)
            for name, expected in record["files"].items():
                check_file(record_path.parent / name, expected)
                size += int(expected["bytes"])
        except (DinomedError, OSError, KeyError, TypeError, AttributeError) as error:
            reason = (
                str(error) if isinstance(error, DinomedError) else f"{record_path} is not the record of an artifact"
            )
            report.add(str(record_path.relative_to(folder)), reason, "damaged", remedy)
            continue
        whole += 1
        if isinstance(record.get("key"), dict) and "backbone" in record["key"]:
            keys.add(str(record["key"]["backbone"]))
    if whole:
        report.add("artifacts", f"{whole:,} have the size and the checksum of their records")
    known = {path.parent / path.name.split(".")[0] for path in records}
    arrays = sorted(path for place in places for path in place.glob("*.npy"))
    loose = [path for path in arrays if path.parent / path.name.split(".")[0] not in known]
    if loose:
        names = some([path.name for path in loose])
        report.add("unfinished files", f"{len(loose)} files without a record: {names}", "incomplete", remedy)
    report.facts.update(artifacts=whole, bytes=size, backbones=sorted(keys))
    return report


def examine_table(path: Path) -> ArtefactReport:
    """Read a table of features."""
    report = ArtefactReport(str(path), "feature table")

    def read() -> pa.Table:
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise DinomedError(f"{path} is damaged or cut off ({first_line(error)})") from None
        if not {"image", "feature"} <= set(table.column_names):
            raise DinomedError(f"{path} has no columns image and feature")
        return table

    table = report.check(path.name, read, lambda table: f"{len(table):,} rows", "run dinomed features again")
    if table is not None:
        notes = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in
                 (table.schema.metadata or {}).items()}  # fmt: skip
        report.facts.update(
            images=len(table), **{k: notes[k] for k in ("backbone", "fingerprint", "tokens") if k in notes}
        )
    return report
