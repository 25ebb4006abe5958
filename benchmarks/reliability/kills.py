"""A pretraining that is stopped at random moments, resumed each time, and compared with one that was never stopped.

    python benchmarks/reliability/kills.py [--stops 100] [--steps 1500] [--seed 0] [--folder DIR] [--json]

The stops are of five kinds, in a random order, each at a random moment after the first step:

- kill: SIGKILL;
- terminate: SIGTERM;
- interrupt: SIGINT;
- full: the file system of the run is filled, and emptied after the command has ended (a tmpfs of its own; root only);
- read-only: nobody may create a file in the run folder until the command has ended.

After each stop `dinomed pretrain --resume` continues. If a run ends before all stops were made, the next run begins.
At the end of each run all tensors of the last checkpoint (student, teacher, optimiser) are compared with those of the
unbroken run, bit for bit, and the steps and losses of the log. As root, the command runs without capabilities
(`setpriv`), since root may write everywhere.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dinomed.config import build_config, to_yaml
from dinomed.datasets.manifest import write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.io.checkpoint import list_checkpoints
from dinomed.pretrain.config import PretrainConfig

SMALL: dict[str, Any] = {
    "backbone": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "drop_path": 0.1, "num_registers": 1},
    "crops": {"global_size": 32, "local_size": 16, "num_local": 2, "blur_kernel": 3},
    "objective": {
        "dino_head": {"prototypes": 48, "hidden": 32, "bottleneck": 16},
        "ibot_head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
    },
    "optimizer": {"lr": 1e-3, "lr_scaling": "none"},
    "run": {"batch_size": 4, "workers": 1, "checkpoint_every": 5, "log_every": 1, "pca_images": 0},
}
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
EXIT_CODES = {"kill": {-9}, "terminate": {143}, "interrupt": {130}, "full": {1}, "read-only": {1}}
LONGEST_S = 4.0
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


class Training:
    """The pretraining command in its own session; `folder` is its run folder."""

    def __init__(self, config: Path, data: Path, folder: Path, *, resume: bool) -> None:
        words = ["-m", "dinomed", "pretrain", str(config), "--data", str(data), "-o", str(folder)]
        words += ["--device", "cpu", *(["--resume"] if resume else [])]
        self.folder, self.errors = folder, data.with_name("stderr.txt")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*(WITHOUT_CAPABILITIES if IS_ROOT else ()), sys.executable, *words], stdout=subprocess.DEVNULL,
                stderr=errors, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def wait(self) -> int:
        return self.process.wait(600)

    def message(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def wait_for_step(self, lines: int) -> bool:
        """Wait until the log has more than `lines` lines; return False if the command ended."""
        while self.process.poll() is None:
            if count_lines(self.folder / "log.jsonl") > lines:
                return True
            time.sleep(0.02)
        return False


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of 64 MiB at `folder`; yield whether that was possible."""
    mounted = IS_ROOT and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True
    ).returncode == 0  # fmt: skip
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until the file system is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            return


def stop(training: Training, kind: str) -> int:
    """Stop the command as `kind` says and return its exit code; a condition holds until it has ended."""
    if kind in SIGNALS:
        number = SIGNALS[kind]
        if number == signal.SIGKILL:
            os.killpg(training.process.pid, number)
        else:
            training.process.send_signal(number)
        return training.wait()
    if kind == "full":
        filler = training.folder.parent / "filler"
        fill(filler)
        code = training.wait()
        filler.unlink()
        return code
    folders = [training.folder, *(path for path in training.folder.rglob("*") if path.is_dir())]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o555)
    code = training.wait()
    for folder, mode in zip(folders, modes, strict=True):
        if folder.exists():
            folder.chmod(mode)
    return code


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of the newest checkpoint."""
    folder = list_checkpoints(run / "checkpoints")[-1]
    return {f"{p.stem}.{k}": v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def differences(whole: Path, cut: Path) -> list[str]:
    """List what differs between two runs."""
    expected, actual = tensors(whole), tensors(cut)
    differing = sorted(expected.keys() ^ actual.keys())
    differing += [name for name in expected.keys() & actual.keys() if not torch.equal(expected[name], actual[name])]
    return differing + (["log"] if losses(whole) != losses(cut) else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1_500, help="steps of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder for the runs; by default a temporary one")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        with small_disk(root) as can_fill:
            report = measure(root, arguments.stops, arguments.steps, rng, can_fill)
    if arguments.json:
        print(json.dumps(report))
    else:
        print(f"{report['stops']} stops ({report['kinds']}), {report['runs']} runs of {arguments.steps} steps")
        print(
            f"runs that differ from the unbroken one: {report['different']}; unexpected exits: {report['unexpected']}"
        )
    raise SystemExit(bool(report["different"] or report["unexpected"]))


def measure(root: Path, stops: int, steps: int, rng: random.Random, can_fill: bool) -> dict[str, Any]:
    write_lesions(root / "lesions", count=40, seed=1, size=(48, 64), broken=0)
    data, config = root / "lesions.parquet", root / "small.yaml"
    write_manifest(scan(root / "lesions", labels=root / "lesions" / "labels.csv").manifest, data)
    settings = SMALL | {"run": SMALL["run"] | {"steps": steps}}
    config.write_text(to_yaml(build_config(PretrainConfig, settings, "small")))
    whole = Training(config, data, root / "whole", resume=False)
    if whole.wait():
        raise SystemExit(f"the unbroken run failed: {whole.message()}")
    kinds = [*SIGNALS, "read-only", *(["full"] if can_fill else [])]
    order = [kinds[number % len(kinds)] for number in range(stops)]
    rng.shuffle(order)
    made: Counter[str] = Counter()
    different: list[dict[str, Any]] = []
    unexpected: list[dict[str, Any]] = []
    runs = 0
    while order:
        cut = root / f"cut_{runs}"
        runs += 1
        resume = False
        while True:
            training = Training(config, data, cut, resume=resume)
            if order and training.wait_for_step(count_lines(cut / "log.jsonl") if resume else 0):
                time.sleep(rng.uniform(0, LONGEST_S))
                if training.process.poll() is None:
                    kind = order.pop()
                    code = stop(training, kind)
                    if code == 0:  # it was at its end
                        order.append(kind)
                        break
                    made[kind] += 1
                    if code not in EXIT_CODES[kind]:
                        unexpected.append({"kind": kind, "code": code, "message": training.message()[-500:]})
                    resume = True
                    print(f"{sum(made.values())} of {stops}: {kind}, exit {code}, {training.message()[-160:].strip()}",
                          file=sys.stderr)  # fmt: skip
                    continue
            if training.wait() == 0:
                break
            raise SystemExit(f"a resumed run failed: {training.message()}")
        differing = differences(root / "whole", cut)
        if differing:
            different.append({"run": runs, "differing": differing[:10]})
    return {"stops": sum(made.values()), "kinds": dict(made), "runs": runs, "different": different,
            "unexpected": unexpected}  # fmt: skip


if __name__ == "__main__":
    main()
