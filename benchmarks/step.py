"""One training step of ViT-S/14 beside lightly-train's: batch 4, 2 x 224 + 8 x 98 px, stochastic depth 0.3, float32.

    python benchmarks/step.py compare --peer PYTHON [--rounds 5] [--json]

PYTHON is that of an environment that holds lightly-train (`pip install lightly-train`).
Each round starts one process for each, in turn, on the same threads; a process takes 2 steps unmeasured and then 3. The
objective is the same in both: centring, one head of 65,536 prototypes for both terms, KoLeo on both views. Random
pixels: reading images is not part of it. Memory is the peak of the process, libraries included.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BATCH, STEPS, UNMEASURED = 4, 3, 2


def dinomed_step() -> Callable[[], None]:
    import numpy as np
    import torch

    from dinomed.pretrain.config import PretrainConfig
    from dinomed.pretrain.data import Collate, Sample
    from dinomed.pretrain.engine import Engine

    config = PretrainConfig.model_validate({
        "objective": {"targets": "centering", "untied_heads": False},
        "run": {"batch_size": BATCH, "steps": 1000},
    })  # fmt: skip
    engine = Engine(config, torch.device("cpu"))
    rng = np.random.default_rng(0)

    def pixels(count: int, size: int) -> Any:
        return rng.integers(0, 256, (count, size, size, 3), np.uint8)

    samples = [Sample(index, pixels(2, 224), pixels(8, 98), str(index), []) for index in range(BATCH)]
    raw = Collate(config.masks, (16, 16), 0)(samples)
    state = {"step": 20}  # past the steps in which prototypes are frozen

    def step() -> None:
        assert engine.step(raw, state["step"]).finite
        state["step"] += 1

    return step


def lightly_step() -> Callable[[], None]:
    from types import SimpleNamespace

    import torch
    from lightly_train._methods.dinov2.dinov2 import DINOv2, DINOv2AdamWViTArgs, DINOv2Args
    from lightly_train._methods.dinov2.utils import get_optimizer_with_decay
    from lightly_train._models.dinov2_vit.dinov2_vit_package import DINOv2ViTPackage
    from lightly_train._models.embedding_model import EmbeddingModel

    torch.manual_seed(0)
    vit = DINOv2ViTPackage.get_model("vits14-noreg", model_args={"drop_path_rate": 0.3}, load_weights=False)
    arguments, optimizer_arguments = DINOv2Args(), DINOv2AdamWViTArgs()
    embedding = EmbeddingModel(DINOv2ViTPackage.get_model_wrapper(vit))
    method = DINOv2(arguments, optimizer_arguments, embedding, BATCH, 3)
    method._trainer = SimpleNamespace(global_step=20, estimated_stepping_batches=1000, max_epochs=1)
    method.train()
    for module in (method.teacher_embedding_model, method.teacher_head):
        module.eval()
    optimizer = get_optimizer_with_decay(
        optim_args=optimizer_arguments,
        trainable_modules=method.trainable_modules(),
        layerwise_decay=arguments.layerwise_decay,
        patch_embed_lr_multiplier=arguments.patch_embed_lr_multiplier,
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    views = [torch.randn(BATCH, 3, 224, 224) for _ in range(2)] + [torch.randn(BATCH, 3, 98, 98) for _ in range(8)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = method.training_step_impl({"views": views}, 0).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, arguments.gradient_clip_val)
        optimizer.step()
        method.on_train_batch_end(None, {"views": views}, 0)

    return step


def measure(who: str) -> dict[str, float]:
    """Wall and CPU seconds of a step (medians of a few) and the peak memory of this process, GiB."""
    step = {"dinomed": dinomed_step, "lightly": lightly_step}[who]()
    walls, cpus = [], []
    for index in range(UNMEASURED + STEPS):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        if index >= UNMEASURED:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": statistics.median(walls), "cpu_seconds": statistics.median(cpus), "gib": peak}


def compare(peer: str, rounds: int) -> dict[str, Any]:
    """Both in turn; ratios are of the same round, ours to theirs."""
    results: dict[str, list[dict[str, float]]] = {"dinomed": [], "lightly": []}
    for turn in range(rounds):
        order = ("dinomed", "lightly") if turn % 2 == 0 else ("lightly", "dinomed")
        for who in order:
            python = sys.executable if who == "dinomed" else peer
            done = subprocess.run([python, __file__, "run", who], capture_output=True, text=True, check=True)
            results[who].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {turn + 1}, {who}: {results[who][-1]}", file=sys.stderr)
    ratios = {
        key: [ours[key] / theirs[key] for ours, theirs in zip(results["dinomed"], results["lightly"], strict=True)]
        for key in ("seconds", "cpu_seconds", "gib")
    }
    return {
        "runs": results,
        "ratio": {key: {"median": statistics.median(v), "min": min(v), "max": max(v)} for key, v in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure one of the two in this process")
    run.add_argument("who", choices=("dinomed", "lightly"))
    both = commands.add_parser("compare", help="measure both, in turn")
    both.add_argument("--peer", required=True, help="Python of the environment with lightly-train")
    both.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = measure(arguments.who) if arguments.command == "run" else compare(arguments.peer, arguments.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
