"""`dinomed audit`: are test images among the training images?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from dinomed.apps.options import Device, Json, Quiet

if TYPE_CHECKING:
    from dinomed.datasets.manifest import Manifest
    from dinomed.pretrain.curation.audit.audit import Audit, AuditConfig, Pair
    from dinomed.pretrain.curation.audit.training_index import TrainingIndex

_SHOWN = 20  # pairs on the terminal


def audit(
    train: Annotated[Path, Argument(help="Manifest or folder of training images; or a run of `dinomed pretrain`.")],
    test: Annotated[
        Path | None, Argument(help="Manifest or folder of test images. Left out: the other splits of TRAIN.")
    ] = None,
    page: Annotated[
        Path | None, Option("--output", "-o", help="Picture page (.html): the pairs side by side.", show_default=False)
    ] = None,
    train_split: Annotated[str | None, Option("--train-split", help="Only these splits of TRAIN: train,val")] = None,
    test_split: Annotated[str | None, Option("--test-split", help="Only these splits of TEST: test")] = None,
    backbone: Annotated[
        str | None, Option("--backbone", "-b", help="Compare features of this backbone instead of composed ones.")
    ] = None,
    config: Annotated[Path | None, Option("--config", help="YAML file of settings.")] = None,
    overrides: Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")] = None,
    cache: Annotated[
        Path | None, Option("--cache", help="Folder that keeps what was computed: an interrupted audit goes on.")
    ] = None,
    workers: Annotated[int | None, Option("--workers", help="Threads; one a processor by default.", min=1)] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find test images that are in the training set: exact copies, near copies, and shared patients or lesions.

    Near copies are cropped, turned, mirrored, recompressed, recoloured or written over. Against a run, "has this
    backbone seen my test images?" is answered from the hashes it keeps. Exits with 1 if anything is found, 0 if not.
    For research use only.
    """
    from dinomed.apps.output import emit
    from dinomed.config import to_yaml
    from dinomed.errors import UsageError
    from dinomed.io.files import write_text
    from dinomed.io.output_folder import check_writable
    from dinomed.pretrain.curation.audit.audit import audit as run
    from dinomed.pretrain.curation.audit.audit import audit_training_index

    if page is not None:
        if page.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"output {page}: the page is an .html file")
        check_writable(page.parent)
    settings = _settings(config, overrides or [], backbone)
    known, images, tests, names = _sides(train, test, train_split, test_split)
    if known is not None:
        found = audit_training_index(known, tests, settings, workers=workers)
    else:
        assert images is not None
        found = run(images, tests, settings, device=device, workers=workers, cache=cache)
    if page is not None:
        from dinomed.apps.pages.audit import build_audit_page

        write_text(page, build_audit_page(found, images, tests, names, to_yaml(settings)))
    report = _report(found, images, tests, names, page)
    emit(report, as_json, None if as_json else _table(report))
    if found.pairs:
        raise typer.Exit(1)


def _settings(config: Path | None, overrides: list[str], backbone: str | None) -> "AuditConfig":
    from dinomed.config import load_config
    from dinomed.errors import UsageError
    from dinomed.pretrain.curation.audit.audit import AuditConfig

    settings = load_config(AuditConfig, config, overrides)
    if backbone is None:
        return settings
    if settings.descriptor.source.kind != "composed":
        raise UsageError(f"--backbone {backbone}: the config names a descriptor already; give one of the two")
    source = {"kind": "backbone", "backbone": backbone}
    descriptor = settings.descriptor.model_dump() | {"source": source}
    return AuditConfig.model_validate(settings.model_dump() | {"descriptor": descriptor})


def _sides(
    train: Path, test: Path | None, train_split: str | None, test_split: str | None
) -> "tuple[TrainingIndex | None, Manifest | None, Manifest, tuple[str, str]]":
    """(what a run has seen, or None; training images, or None; test images; what the two are called)."""
    from dinomed.datasets.open import open_dataset
    from dinomed.errors import UsageError
    from dinomed.pretrain.curation.audit.training_index import read_training_index
    from dinomed.pretrain.run_folder import CHECKPOINTS, RECORD_FILE, SEEN_FILE

    if train.is_dir() and any((train / name).exists() for name in (SEEN_FILE, RECORD_FILE, CHECKPOINTS)):
        if test is None:
            raise UsageError(f"{train} is a run; name the test images too: dinomed audit {train} TEST.parquet")
        if train_split is not None:
            raise UsageError(f"--train-split {train_split}: {train} is a run, which knows what it was trained on")
        return (
            read_training_index(train),
            None,
            _splits(open_dataset(test, allow_unreadable=True), test, test_split),
            (str(train), _name(test, test_split)),
        )
    images = open_dataset(train, allow_unreadable=True)
    tests = images if test is None else open_dataset(test, allow_unreadable=True)
    if tests.fingerprint == images.fingerprint and train_split is None and test_split is None:
        splits = set(images.column("split")) if images.has("split") else set()
        if "train" not in splits or not splits & {"val", "test"}:
            raise UsageError(
                f"{train} is compared with itself, and every image is a copy of itself; give two sets of images, "
                "or one manifest with splits"
            )
        train_split, test_split = "train", ",".join(name for name in ("val", "test") if name in splits)
    sides = (_splits(images, train, train_split), _splits(tests, test or train, test_split))
    if sides[0].fingerprint == sides[1].fingerprint:
        raise UsageError(f"the two sides are the same {len(sides[0])} images: every image is a copy of itself")
    return None, *sides, (_name(train, train_split), _name(test or train, test_split))


def _splits(manifest: "Manifest", path: Path, names: str | None) -> "Manifest":
    """The rows of some splits, or all."""
    from dinomed.errors import UsageError

    if names is None:
        return manifest
    wanted = {name.strip() for name in names.split(",")}
    column = manifest.column("split")
    unknown = sorted(wanted - set(column))
    if unknown:
        raise UsageError(f"{path} has no image in split {unknown[0]!r}; there are: {', '.join(_known(column))}")
    return manifest.take([row for row, split in enumerate(column) if split in wanted])


def _known(column: list[str | None]) -> list[str]:
    return sorted({split for split in column if split is not None})


def _name(path: Path, splits: str | None) -> str:
    return str(path) if splits is None else f"{path} ({splits})"


def _report(
    found: "Audit", train: "Manifest | None", test: "Manifest", names: tuple[str, str], page: Path | None
) -> dict[str, Any]:
    from dinomed.notice import RESEARCH_USE

    train_images = None if train is None else train.column("image")
    test_images = test.column("image")

    def row(pair: "Pair") -> dict[str, Any]:
        image = None if train_images is None or pair.train is None else train_images[pair.train]
        return {
            "kind": pair.kind, "train": image, "test": test_images[pair.test], "similarity": pair.similarity,
            "distance_bits": pair.distance, "matching_points": pair.matches, "group": pair.group,
        }  # fmt: skip

    return {
        "train": names[0],
        "test": names[1],
        "train_images": found.train_images,
        "test_images": found.test_images,
        "leaked_test_images": found.leaked,
        "counts": found.counts,
        "unreadable": found.unreadable,
        "page": None if page is None else str(page),
        "notes": [*found.notes, RESEARCH_USE],
        "pairs": [row(pair) for pair in found.pairs],
    }


def _table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table

    rows = [
        (pair["kind"], pair["train"] or "(by its hash)", pair["test"], pair["similarity"], pair["matching_points"])
        for pair in report["pairs"][:_SHOWN]
    ]
    more = len(report["pairs"]) - len(rows)
    rows += (
        [("...", f"and {more} more pairs: --json lists all, -o PAGE.html shows them", "", None, None)] if more else []
    )
    counts = ", ".join(f"{kind} {count}" for kind, count in report["counts"].items())
    verdict = "LEAK" if report["pairs"] else "no leak found"
    summary = f"{verdict}: {report['leaked_test_images']} of {report['test_images']} test images ({counts})"
    table = build_table(("kind", "training image", "test image", "similarity", "points"), rows, title=summary)
    table.caption = "; ".join(report["notes"])
    return table
