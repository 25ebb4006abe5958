"""Golden values of all steps from scan to curation, to prove that a restructuring changed no result.

Usage, before a change and after it, on the same machine and with the same library versions::

    .venv/bin/python tests/golden/record.py before.json
    .venv/bin/python tests/golden/record.py after.json
    .venv/bin/python tests/golden/record.py --compare before.json after.json

Every value is measured through the command line, whose commands and options are stable; one thread makes the numbers
exactly repeatable. It takes about five minutes on two cores. The values depend on the processor and the versions of the
libraries, so no file of values is kept in the repository.

Values of the state before a restructuring are recorded in a clone of that state, with a copy of this script in its
tests/golden/. Start it in the folder of the clone with ``PYTHONPATH=.``, so that the clone is imported. The script has
one import of dinomed, for synthetic lesions; it may need the old module name, such as ``dinomed.datasets.synthetic``.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# few passes over small images: the values must be equal, not good
SHORT = ("--set", "fit.epochs=2", "--set", "fit.min_steps=10", "--set", "image_size=96", "--set", "fit.batch_size=8")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_command(*words: object) -> dict[str, Any]:
    """Run one dinomed command in a process of its own and return the JSON that it prints."""
    command = [sys.executable, "-m", "dinomed", *map(str, words), "--json", "--quiet"]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}


def hash_tensors(file: Path) -> str:
    """Return a hash of the names, types, shapes and values of a safetensors file, without its metadata."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def hash_image(file: Path) -> str:
    """Return a hash of the pixels of an image file, however it is compressed."""
    pixels = np.asarray(Image.open(file))
    return hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def add_depth(folder: Path) -> None:
    """Give each synthetic lesion a depth map: its mask, blurred, in 0 to 1000."""
    import cv2

    (folder / "depth").mkdir()
    with open(folder / "labels.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        mask = np.asarray(Image.open(folder / row["mask"])).astype(np.float32)
        depth = 200 + 800 * cv2.GaussianBlur(mask, (15, 15), 0)
        row["depth"] = f"depth/{Path(row['mask']).name}"
        Image.fromarray(depth.astype(np.uint16)).save(folder / row["depth"])
    with open(folder / "labels.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def record(folder: Path) -> dict[str, Any]:
    """Run all steps in an empty folder and return what must not change."""
    from dinomed.datasets.synthetic.lesions import write_lesions

    values: dict[str, Any] = {}
    write_lesions(folder / "lesions", count=90, size=(60, 80), broken=2)
    add_depth(folder / "lesions")
    write_lesions(folder / "pool", count=120, seed=1, size=(60, 80), broken=0)
    manifest, pool = folder / "lesions.parquet", folder / "pool.parquet"
    run_command("scan", folder / "lesions", "--labels", "labels.csv", "--group", "lesion_id", "-o", manifest)
    run_command("scan", folder / "pool", "--labels", "labels.csv", "--group", "lesion_id", "-o", pool)
    print("scanned", file=sys.stderr)

    ssl = folder / "ssl"
    result = run_command(
        "pretrain", "configs/pretrain/vit_tiny_cpu.yaml", "--data", manifest, "-o", ssl, "--set", "run.steps=20",
        "--set", "run.batch_size=16", "--set", "run.log_every=5", "--set", "run.checkpoint_every=10", "--set",
        "run.workers=0", "--device", "cpu",
    )  # fmt: skip
    values["pretrain"] = {
        "losses": result["losses"],
        "backbone": hash_tensors(next((ssl / "backbone").glob("*.safetensors"))),
        "untrained": hash_tensors(next((ssl / "untrained").glob("*.safetensors"))),
    }
    print("pretrained", file=sys.stderr)

    common = ("--backbone", ssl, "--data", manifest, "--device", "cpu")
    values["probe"] = pick_numbers(run_command("probe", ssl, "--data", manifest, "--device", "cpu"))
    heads = {
        "classify linear": ("classify", "--head", "linear"),
        "classify logistic": ("classify", "--head", "logistic"),
        "classify knn": ("classify", "--head", "knn"),
        "classify grid": ("classify", "--head", "grid"),
        "classify attentive": ("classify", "--head", "attentive", "--set", "fit.epochs=2"),
        "segment linear": ("segment", "--head", "linear", *SHORT),
        "segment unet": ("segment", "--head", "unet", *SHORT),
        "segment dpt": ("segment", "--head", "dpt", "--set", "head.channels=8", *SHORT),
        "depth linear": ("depth", "--head", "linear", *SHORT),
    }
    values["heads"] = {}
    for name, words in heads.items():
        out = folder / name.replace(" ", "_")
        run_command("train", *words, *common, "-o", out)
        report = run_command("evaluate", out, "--data", manifest, "--split", "test", "--device", "cpu")
        values["heads"][name] = pick_numbers(report)
        print("trained and evaluated", name, file=sys.stderr)

    image = sorted((folder / "lesions" / "images").glob("SYN*.jpg"))[0]
    run_command("predict", folder / "segment_linear", image, "-o", folder / "masks", "--device", "cpu")
    masks = sorted((folder / "masks").rglob("*.png"))
    values["predicted masks"] = {mask.name: hash_image(mask) for mask in masks}
    run_command("index", manifest, "--backbone", ssl, "-o", folder / "index", "--device", "cpu")
    answer = run_command("search", image, "--index", folder / "index", "-k", "5", "--device", "cpu")
    values["search"] = [
        [result["image"], result["similarity"]] for query in answer["queries"] for result in query["results"]
    ]

    curated = folder / "curated.parquet"
    values["curate"] = run_command(
        "curate", "--pool", pool, "--trusted", manifest, "-o", curated, "--backbone", ssl, "--device", "cpu",
    )["counts"]  # fmt: skip
    import pyarrow.parquet as parquet

    columns = ["keep", "reason", "duplicate_of", "component", "source", "retrieved_for"]
    decisions = parquet.read_table(curated).select(["image", *columns]).to_pylist()
    values["decisions"] = hashlib.sha256(json.dumps(decisions, sort_keys=True).encode()).hexdigest()
    return values


def pick_numbers(tree: Any) -> Any:
    """Keep the numbers of a report; names of files and other text may change."""
    if isinstance(tree, dict):
        picked = {name: pick_numbers(value) for name, value in tree.items() if name != "seconds"}
        return {name: value for name, value in picked.items() if value is not None}
    if isinstance(tree, list):
        return [pick_numbers(value) for value in tree]
    return tree if isinstance(tree, int | float) else None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree by their path."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if pairs is None:
        return {prefix: tree}
    return {name: leaf for key, value in pairs for name, leaf in flatten(value, f"{prefix}/{key}").items()}


def compare(before: Path, after: Path) -> int:
    """Print each value that differs; return how many do."""
    old, new = (flatten(json.loads(file.read_text())) for file in (before, after))
    lines = [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if repr(old.get(name)) != repr(new.get(name))  # repr, since nan is not equal to nan
    ]
    print("\n".join(lines) or f"all {len(old)} values are equal")
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", type=Path, help="file to write; with --compare the two files")
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    if arguments.compare:
        sys.exit(1 if compare(*arguments.files) else 0)
    with tempfile.TemporaryDirectory() as folder:
        values = record(Path(folder))
    arguments.files[0].write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
