"""All heads side by side on one frozen backbone, each trained and judged by the commands of dinomed.

    python benchmarks/head_table.py runs/derm.parquet --backbone runs/ssl --images 600 -o runs/heads
    python benchmarks/head_table.py runs/polyps.parquet --backbone runs/ssl --task segment --test-where centre=C4

For each head: its parameters, the seconds of its training (features computed before are not counted), and on test the
metric with its 95% interval over patients or lesions. Of a large collection a part is drawn, by group. Stopped and
started again it goes on where it was.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.catalogue import BUILT_IN
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.progress import say, warn

METRICS = {"classify": ("auroc", "balanced_accuracy"), "segment": ("dice", "iou")}


def hold_out(manifest: Manifest, column: str, value: str) -> Manifest:
    """The rows with this value as test, and val (a sixth of the groups) made of the others."""
    groups = manifest.column("group")
    others = sorted({group for group, there in zip(groups, manifest.column(column), strict=True) if there != value})
    val = set(others[::6])
    split = ["test" if there == value else "val" if group in val else "train"
             for group, there in zip(groups, manifest.column(column), strict=True)]  # fmt: skip
    columns = {name: manifest.column(name) for name in manifest.columns} | {"split": split}
    return build_manifest(columns, manifest.root)


def draw(manifest: Manifest, images: int | None, seed: int) -> Manifest:
    """About `images` of each split, whole groups, in a random order that `seed` decides."""
    if images is None:
        return manifest
    groups = manifest.column("group") if manifest.has("group") else manifest.column("image")
    rows: list[int] = []
    for split in ("train", "val", "test"):
        members: dict[str, list[int]] = {}
        for row, (group, where) in enumerate(zip(groups, manifest.column("split"), strict=True)):
            if where == split:
                members.setdefault(group, []).append(row)
        names = sorted(members)
        taken = 0
        for index in np.random.default_rng(seed).permutation(len(names)):
            if taken >= images:
                break
            rows += members[names[index]]
            taken += len(members[names[index]])
    return manifest.take(sorted(rows))


def run(*arguments: object) -> dict[str, Any]:
    """A command of dinomed, and what it reports."""
    command = [sys.executable, "-m", "dinomed.apps.cli", *map(str, arguments), "--json", "-q"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise subprocess.CalledProcessError(result.returncode, command)
    return json.loads(result.stdout)


def count_parameters(adapter: Path) -> int:
    from safetensors import safe_open

    with safe_open(adapter / "adapter.safetensors", "np") as file:
        names = [name for name in file.keys() if name.startswith("head.")]  # noqa: SIM118  (no mapping)
        return int(sum(np.prod(file.get_slice(name).get_shape()) for name in names))


def measure(
    task: str, head: str, data: Path, backbone: str, out: Path, seed: int, options: list[str]
) -> dict[str, Any]:
    """One head, trained twice: the first time for one epoch, so that the second finds its features."""
    done = out.with_suffix(".json")
    if done.exists():
        return json.loads(done.read_text())
    train = ("train", task, "--head", head, "-b", backbone, "--data", data, "-o", out, "--seed", seed, "--overwrite")
    extra = [part for option in options for part in ("--set", option)]
    run("train", task, "--head", head, "-b", backbone, "--data", data, "-o", out, "--overwrite", "--set",
        "fit.epochs=1", "--set", "fit.min_steps=1")  # fmt: skip
    began = time.monotonic()
    run(*train, *extra)
    seconds = time.monotonic() - began
    report = run("evaluate", out, "--data", data, "--split", "test", "-o", out.with_suffix(".evaluation"))
    row = {"parameters": count_parameters(out), "seconds": round(seconds, 1), "metrics": report["metrics"]}
    row["intervals"] = report.get("intervals", {})
    done.write_text(json.dumps(row, indent=1))
    return row


def table(task: str, rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a head."""
    names = METRICS[task]
    lines = ["| head | parameters | seconds | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for head, row in rows.items():
        cells = []
        for name in names:
            interval = row["intervals"].get(name)
            ends = (interval["low"], interval["high"]) if isinstance(interval, dict) else interval
            cells.append(f"{row['metrics'][name]:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""))
        lines.append(f"| {head} | {row['parameters']:,} | {row['seconds']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="manifest with labels or masks, and splits")
    parser.add_argument("--backbone", "-b", required=True)
    parser.add_argument("--task", choices=sorted(METRICS), default="segment")
    parser.add_argument("--heads", nargs="*", help="all that are there, if not given")
    parser.add_argument("--images", type=int, help="about so many of each split")
    parser.add_argument("--test-where", metavar="COLUMN=VALUE", help="these rows are test, the others train and val")
    parser.add_argument("--set", dest="options", action="append", default=[], help="a setting of every training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/heads"))
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(arguments.data)
    if arguments.test_where:
        manifest = hold_out(manifest, *arguments.test_where.split("=", 1))
    data = arguments.output / f"data_{arguments.task}.parquet"
    if not data.exists():
        write_manifest(draw(manifest, arguments.images, arguments.seed), data)
    heads = arguments.heads or [entry.name for entry in BUILT_IN if entry.task == arguments.task]
    rows = {}
    for head in heads:
        say(f"{arguments.task} --head {head}")
        out = arguments.output / f"{arguments.task}_{head}"
        try:
            rows[head] = measure(arguments.task, head, data, arguments.backbone, out, arguments.seed, arguments.options)
        except subprocess.CalledProcessError as error:
            warn(f"{head} failed with exit code {error.returncode}; it has no row")
    print(table(arguments.task, rows))


if __name__ == "__main__":
    main()
