"""Comparison of DINOv2 training steps on a GPU: images per second, peak memory and model FLOPs utilisation.

    python benchmarks/pretrain/gpu.py [--peer PYTHON] [--model vits14 vitl14] [--rounds 5] [--compile]
    python benchmarks/pretrain/gpu.py --device cpu --model tiny --largest 8 --rounds 1       # a trial without a GPU

It compares our step, our step without packing, slicing and fused attention (`slow.py`), and, with ``--peer``, the
Python of an environment with lightly-train, its step. `contenders.py` holds what they share. Each value comes
from a process of its own. First the batch size of each step doubles until memory is full, or up to ``--largest``; the
best batch size is the one with the most images per second. Then rounds alternate: each step at its best batch size, and
all at the largest batch size that all of them can hold, where memory can be compared. Ratios are ours to theirs, of the
same round. The claim of the paper (section 5) is 2 times the images per second and a third of the memory of iBOT.

Utilisation (MFU) of each step is the FLOP of our step for the same number of images (see `flops.py`), divided by the
dense peak of the device: results that are computed and dropped do not count. It is left out if the peak is unknown.
``--compile`` and ``--checkpoint-activations`` apply to our step only.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from contenders import MODELS, STEPS, Figures, Setting, compare_rounds, measure_apart, run_rounds, spread

Try = Callable[[int], Figures]  # batch size -> result of `measure`


def try_batches(attempt: Try, smallest: int, largest: int) -> dict[int, float | None]:
    """Measure images per second at `smallest`, twice that, and so on, up to `largest` or until memory is full
    (None)."""
    speeds: dict[int, float | None] = {}
    batch = smallest
    while batch <= largest:
        figures = attempt(batch)
        speeds[batch] = None if figures.get("full") else figures["images_per_second"]
        print(f"  batch {batch}: {'memory is full' if speeds[batch] is None else f'{speeds[batch]:.4g} images/s'}",
              file=sys.stderr)  # fmt: skip
        if speeds[batch] is None:
            break
        batch *= 2
    return speeds


def best_of(speeds: Mapping[int, float | None]) -> int | None:
    """Return the batch size with the most images per second; None if none fits."""
    fitting = {batch: speed for batch, speed in speeds.items() if speed is not None}
    return max(fitting, key=fitting.__getitem__) if fitting else None


def compare(
    setting: Setting, contenders: Mapping[str, str], *, smallest: int, largest: int, rounds: int, peak: float | None
) -> dict[str, Any]:
    """Compare the steps of one model. `contenders` maps names to Pythons; `peak` is in FLOP/s."""
    speeds, best = {}, {}
    for who, python in contenders.items():
        print(f"{setting.model}, {who}", file=sys.stderr)
        step_setting = settings_of(who, setting)
        speeds[who] = try_batches(partial(_attempt, who, step_setting, python), smallest, largest)
        batch = best_of(speeds[who])
        if batch is None:
            print(f"{who}: no batch fits, not even {smallest}; left out", file=sys.stderr)
        else:
            best[who] = replace(step_setting, batch=batch)
    report: dict[str, Any] = {"images_per_second_by_batch": speeds}
    if not best:
        return report
    held = [max(batch for batch, speed in speeds[who].items() if speed is not None) for who in best]
    equal = {who: replace(chosen, batch=min(held)) for who, chosen in best.items()}
    report["best_batch"] = _rounds(best, contenders, rounds, peak)
    report["one_batch"] = report["best_batch"] if equal == best else _rounds(equal, contenders, rounds, peak)
    return report


def _attempt(who: str, setting: Setting, python: str, batch: int) -> Figures:
    return measure_apart(who, replace(setting, batch=batch), python)


def settings_of(who: str, setting: Setting) -> Setting:
    """Return the setting of a contender; compilation and checkpointing apply to ``dinomed`` only."""
    return setting if who == "dinomed" else replace(setting, compile=False, checkpoint_activations=False)


def _rounds(
    settings: Mapping[str, Setting], contenders: Mapping[str, str], rounds: int, peak: float | None
) -> dict[str, Any]:
    runs = run_rounds(settings, contenders, rounds)
    full = [who for who, figures in runs.items() if any(round_figures.get("full") for round_figures in figures)]
    for who in full:  # a batch that fitted once may not fit later if other work shares the device
        print(f"{who}: memory was full in a later round; left out of the comparison", file=sys.stderr)
        del runs[who]
    table = {who: _summary(settings[who], figures, peak) for who, figures in runs.items()}
    ratios = {
        who: {key: compare_rounds(runs["dinomed"], figures, key) for key in ("images_per_second", "gib")}
        for who, figures in runs.items()
        if who != "dinomed" and "dinomed" in runs
    }
    return {"figures": table, "ours_to_theirs": ratios}


def _summary(setting: Setting, figures: list[Figures], peak: float | None) -> dict[str, Any]:
    from flops import count_flops

    needed = count_flops(setting) / setting.batch
    speed = spread([round_figures["images_per_second"] for round_figures in figures])
    summary = {
        "batch": setting.batch,
        "images_per_second": speed,
        "gib": spread([round_figures["gib"] for round_figures in figures]),
        "model_teraflop_per_image": needed / 1e12,
        "teraflop_per_second": needed * speed["median"] / 1e12,
    }
    return summary if peak is None else summary | {"mfu": needed * speed["median"] / peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["vits14", "vitl14"])
    parser.add_argument(
        "--who", nargs="+", choices=STEPS, help="steps to compare; default: all, lightly only with --peer"
    )
    parser.add_argument("--peer", metavar="PYTHON", help="Python of an environment with lightly-train")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), help="default: bfloat16, on a CPU float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--drop-path", type=float, default=0.3, help="rate of stochastic depth")
    parser.add_argument("--smallest", type=int, default=4, help="first batch size")
    parser.add_argument("--largest", type=int, default=4096, help="last batch size, if memory is sufficient")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each process")
    arguments = parser.parse_args()
    if min(arguments.smallest, arguments.rounds, arguments.steps) < 1 or arguments.largest < arguments.smallest:
        parser.error("--rounds, --steps and --smallest are at least 1, and --largest no less than --smallest")
    who = arguments.who or [name for name in STEPS if name != "lightly" or arguments.peer]
    if "lightly" in who and arguments.peer is None:
        parser.error("--who lightly needs --peer, the Python of an environment with lightly-train")

    import torch
    from flops import peak_flops

    from dinomed.device import resolve_device
    from dinomed.errors import UsageError
    from dinomed.pretrain.run_folder import describe_device

    try:
        device = resolve_device(arguments.device)
    except UsageError as error:
        parser.error(str(error))
    precision = arguments.precision or ("bfloat16" if device.type == "cuda" else "float32")
    name = describe_device(device)
    peak = peak_flops(name, precision)
    pythons = {name: arguments.peer if name == "lightly" else sys.executable for name in who}
    report: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "precision": precision,
        "peak_teraflop_per_second": None if peak is None else peak / 1e12,
    }
    for model in arguments.model:
        setting = Setting(
            model=model,
            device=str(device),
            precision=precision,
            drop_path=arguments.drop_path,
            compile=arguments.compile,
            checkpoint_activations=arguments.checkpoint_activations,
            steps=arguments.steps,
        )
        report[model] = compare(
            setting,
            pythons,
            smallest=arguments.smallest,
            largest=arguments.largest,
            rounds=arguments.rounds,
            peak=peak,
        )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
