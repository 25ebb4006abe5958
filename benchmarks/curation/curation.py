"""Evaluation of `dinomed curate` on a real pool in which copies, junk and test images are planted.

    python benchmarks/curation/curation.py --lesions runs/derm.parquet --others runs/polyps.parquet \\
        --unlabelled runs/isic.parquet --backbone runs/ssl --images 1500 -o runs/curation
    python benchmarks/curation/curation.py ... --judge        # only the tables of the last run

The query set holds training images of `--lesions`; the evaluation set holds one image of each of some test lesions. The
pool holds other lesions, images of the other data sets, and the images that `planting.py` plants. A planted copy is
found if it and its original are not both kept; junk and test images are found if they are not kept. A test image is
recognised if the reason names it. Precision is computed for every reason: the share of the images that it removes
rightly. Exact copies and images of the same group that are already in the data sets count as right.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planting import JUNK, Planted, plant, read_planted
from tables import format_table

from dinomed.apps.cli import invoke
from dinomed.datasets.manifest import read_manifest
from dinomed.io.files import to_json
from dinomed.pretrain.curation.decisions import (
    EXACT_COPY,
    EXCLUDED_COPY,
    EXCLUDED_GROUP,
    EXCLUDED_LINK,
    NEAR_COPY,
    NEAR_EXACT_COPY,
    NOT_RETRIEVED,
    NOT_SAMPLED,
    UNLIKE,
)
from dinomed.pretrain.curation.filters.quality import QUALITY_REASONS
from dinomed.pretrain.curation.output.read import CurationResult, load_result

TEST = (EXCLUDED_COPY, EXCLUDED_GROUP, EXCLUDED_LINK)
COPY = (EXACT_COPY, NEAR_EXACT_COPY, NEAR_COPY)
ASKED = (UNLIKE, NOT_RETRIEVED, NOT_SAMPLED)
SPOILT = ("blur", "rescale", "brightness", "mixed")  # kinds of copies that a quality filter may remove rightly
FOUND_BY = {"quality": QUALITY_REASONS, "a copy": COPY, "of a test image": TEST, "not asked for": ASKED}


@dataclass
class Row:
    """An image of the pool after curation."""

    name: str
    planted: Planted
    keep: bool
    reason: str | None
    like: str  # image kept in its place, or its original in the evaluation set


def read_rows(outcome: CurationResult, planted: dict[str, Planted]) -> dict[str, Row]:
    names = [Path(name).name for name in outcome.manifest.column("image")]
    references = outcome.references.column("image") if outcome.references is not None else []
    rows = {}
    for place, name in enumerate(names):
        if name in planted:
            kept, out = int(outcome.rows["duplicate_of"][place]), int(outcome.rows["reference"][place])
            like = names[kept] if kept >= 0 else Path(references[out]).name if out >= 0 else ""
            rows[name] = Row(name, planted[name], bool(outcome.keep[place]), outcome.reason[place], like)
    return rows


def recall_of(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """Return a row for every planted kind: how many are found, and by which reason."""
    lines = []
    for kind, how in dict.fromkeys((row.planted.kind, row.planted.how) for row in rows.values()):
        kind_rows = [row for row in rows.values() if (row.planted.kind, row.planted.how) == (kind, how)]
        if kind == "copy":
            removed_rows = [row for row in kind_rows if not (row.keep and rows[row.planted.of].keep)]
        elif kind in ("test copy", "test group", "junk"):
            removed_rows = [row for row in kind_rows if not row.keep]
        else:
            continue
        # the original may be removed in place of the copy
        removed = [row if not row.keep else rows[row.planted.of] for row in removed_rows]
        by = Counter(word for row in removed for word, group in FOUND_BY.items() if row.reason in group)
        lines.append(
            {
                "planted": kind,
                "how": how,
                "images": len(kind_rows),
                "found": len(removed_rows),
                "recall": len(removed_rows) / len(kind_rows),
            }
            | {word: by[word] for word in FOUND_BY}
        )
    order = ["copy", "test copy", "test group", "junk"]
    return sorted(lines, key=lambda line: order.index(line["planted"]))


def families(rows: dict[str, Row]) -> Iterator[set[str]]:
    """Return the images of the pool that are true copies of each other: an original and its planted copies."""
    family: dict[str, set[str]] = {}
    for row in rows.values():
        if row.planted.kind == "copy":
            family.setdefault(row.planted.of, {row.planted.of}).add(row.name)
    return iter(family.values())


def precision_of(rows: dict[str, Row], same: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row for each group of reasons: planted images that it removes, others that it removes rightly, and wrong
    ones.

    Args:
        same: content of each image of the pool: files that are equal are true copies, planted or not.
    """
    family = {name: number for number, names in enumerate(families(rows)) for name in names}
    lines = []
    for word, group in FOUND_BY.items():
        removed = [row for row in rows.values() if row.reason in group]
        counts = Counter(_deserved(row, word, rows, family, same) for row in removed)
        clear = counts["planted"] + counts["related"] + counts["wrong"]
        share = (clear - counts["wrong"]) / clear if clear else None
        wrong = [asdict(row) for row in removed if _deserved(row, word, rows, family, same) == "wrong"]
        lines.append(
            {"removed as": word, "images": len(removed), "planted": counts["planted"],
             "related": counts["related"], "wrong": counts["wrong"], "precision": share, "wrong_images": wrong}
        )  # fmt: skip
    return lines


def _deserved(row: Row, word: str, rows: dict[str, Row], family: dict[str, int], same: dict[str, str]) -> str:
    """Return "planted", "related" (not planted, but a copy or of the same lesion), or "wrong"."""
    kind = row.planted.kind
    if word == "quality":  # a blurred or small copy counts as junk
        return "planted" if kind == "junk" else "related" if row.planted.how in SPOILT else "wrong"
    if word == "a copy":
        original = rows.get(row.like)
        if row.name in family and family[row.name] == family.get(row.like):
            return "planted"
        if kind == "junk" or (original is not None and original.planted.kind == "junk"):
            return "planted"  # one black picture is a copy of another, and a blurred lesion of that lesion
        equal = original is not None and same[row.name] == same[original.name]
        mine = _group(row, rows)
        return "related" if equal or (original is not None and mine and mine == _group(original, rows)) else "wrong"
    if word == "of a test image":
        return "planted" if kind in ("test copy", "test group") else "wrong"
    return "planted" if kind in ("other", "junk") else "wrong"


def _group(row: Row, rows: dict[str, Row]) -> str:
    """Return the lesion or patient of an image of the pool, if it is known."""
    return rows[row.planted.of].planted.group if row.planted.kind == "copy" else row.planted.group


def shares_kept(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """Count clean real images by data set, and how many of them are retrieved."""
    lines = []
    for kind in ("lesion", "unlabelled", "other"):
        kind_rows = [row for row in rows.values() if row.planted.kind == kind]
        clean = [row for row in kind_rows if row.keep or row.reason in ASKED]
        kept = sum(row.keep for row in kind_rows)
        lines.append({"set": kind, "images": len(kind_rows), "clean": len(clean), "kept": kept,
                      "retrieved": kept / len(clean) if clean else None})  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=Path, required=True, help="manifest with groups and splits")
    parser.add_argument("--others", type=Path, nargs="+", required=True, help="manifests of other modalities")
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[], help="manifests of the same modality")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/curation"))
    parser.add_argument("--images", type=int, default=1500, help="approximate number of images in the pool")
    parser.add_argument("--backbone", help="as in dinomed curate")
    parser.add_argument("--weights")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="as in dinomed curate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge", action="store_true", help="only print the tables of an earlier curation")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    folder, output = arguments.output, arguments.output / "curated.parquet"
    if not arguments.judge:
        other_sets, unlabelled = (
            [read_manifest(path) for path in paths] for paths in (arguments.others, arguments.unlabelled)
        )
        plant(read_manifest(arguments.lesions), other_sets, unlabelled, folder, arguments.images, arguments.seed)
        command = ["curate", "--pool", f"{folder}/pool.parquet", "--trusted", f"{folder}/trusted.parquet"]
        command += ["--exclude", f"{folder}/exclude.parquet", "-o", str(output), "--overwrite"]
        command += [f"--{name}={value}" for name in ("backbone", "weights") if (value := getattr(arguments, name))]
        if invoke([*command, *(f"--set={setting}" for setting in arguments.settings)]):
            parser.exit(1)
    outcome = load_result(output)
    rows = read_rows(outcome, read_planted(folder))
    pool = read_manifest(folder / "pool.parquet")
    same = dict(zip(pool.column("image"), pool.column("sha256"), strict=True))
    tables = {"recall": recall_of(rows), "precision": precision_of(rows, same), "kept": shares_kept(rows)}
    if arguments.json:
        print(to_json({"images": len(outcome.keep), "seed": arguments.seed, "junk": list(JUNK), **tables}, indent=2))
        return
    for lines in tables.values():
        print("\n" + format_table(lines, leave_out=["wrong_images"]))


if __name__ == "__main__":
    main()
