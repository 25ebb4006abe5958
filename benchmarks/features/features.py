"""Speed of frozen features compared with timm and transformers, and the cost of a second adapter on the same pass.

    python benchmarks/features/features.py libraries|adapters [--name dinov2_vits14] [--image-size 224] [--rounds 5]
        [--device cpu] [--json]

Random weights of the same architecture, a batch of 8 random images, float32, from pixels to all tokens of the last
block. Each round runs all of them, and ratios are of the same round. On a CPU, seconds are processor seconds over all
threads, so that other load on the machine affects all of them equally.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from dinomed.adapters.adapter import FeatureSpec, HeadConfig
from dinomed.adapters.heads.linear import LinearClassifier, LinearClassifierConfig, LinearSegmenter
from dinomed.adapters.inference.shared import shared_features
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import VARIANTS, build_vit

BATCH = 8
Run = Callable[[torch.Tensor], Any]


def of_libraries(name: str, image_size: int, device: torch.device) -> dict[str, Run]:
    import timm
    from transformers import Dinov2Config, Dinov2Model

    variant = VARIANTS[name]
    frozen = FrozenBackbone(build_vit(name, image_size=image_size), Preprocessing(image_size=image_size), name)
    frozen.to(device)
    theirs = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=image_size, patch_size=variant.patch_size,
        embed_dim=variant.embed_dim, depth=variant.depth, num_heads=variant.num_heads,
    ).eval().to(device)  # fmt: skip
    dinov2 = Dinov2Model(
        Dinov2Config(
            hidden_size=variant.embed_dim, num_hidden_layers=variant.depth, num_attention_heads=variant.num_heads,
            image_size=image_size, patch_size=variant.patch_size,
        )
    ).eval().to(device)  # fmt: skip
    return {
        "dinomed": lambda pixels: frozen(pixels),
        "timm": lambda pixels: theirs.forward_features(pixels),
        "transformers": lambda pixels: dinov2(pixels).last_hidden_state,
    }


def of_adapters(name: str, image_size: int, device: torch.device) -> dict[str, Run]:
    """Measure one linear classifier, and with it a linear segmenter on the last block, on one pass and on two."""
    frozen = FrozenBackbone(build_vit(name, image_size=image_size), Preprocessing(image_size=image_size), name)
    frozen.to(device)
    classifier = LinearClassifier(LinearClassifierConfig(), frozen.embed_dim, 7).eval().to(device)
    segmenter = LinearSegmenter(HeadConfig(), frozen.embed_dim, 1).eval().to(device)

    def run(*heads: Any) -> Run:
        def together(pixels: torch.Tensor) -> None:
            needs = [FeatureSpec((-1,), head.feature_spec.patches) for head in heads]
            for head, features in zip(heads, shared_features(frozen, pixels, needs), strict=True):
                head(features)

        return together

    classify, segment = run(classifier), run(segmenter)

    def apart(pixels: torch.Tensor) -> None:
        classify(pixels)
        segment(pixels)

    return {"one": classify, "two_shared": run(classifier, segmenter), "two_apart": apart}


def measure(runs: dict[str, Run], image_size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    pixels = torch.randn(BATCH, 3, image_size, image_size, device=device)
    first = next(iter(runs))
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # with one thread: seconds of an idle core
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            order = list(runs) if turn % 2 else list(runs)[::-1]
            for name in order:
                _wait(device)
                began = clock()
                runs[name](pixels)
                _wait(device)
                if turn:  # the first round warms up
                    seconds[name].append(clock() - began)
    ratios = {
        name: [value / first_seconds for value, first_seconds in zip(seconds[name], seconds[first], strict=True)]
        for name in runs
    }
    return {
        name: {
            "images_per_s": BATCH / statistics.median(seconds[name]),
            f"seconds_to_{first}": statistics.median(ratios[name]),
            "min": min(ratios[name]),
            "max": max(ratios[name]),
        }
        for name in runs
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("libraries", "adapters"))
    parser.add_argument("--name", default="dinov2_vits14")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    make = of_libraries if arguments.what == "libraries" else of_adapters
    results = measure(
        make(arguments.name, arguments.image_size, device), arguments.image_size, arguments.rounds, device
    )
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "device": arguments.device, "results": results}))
        return
    for name, row in results.items():
        print(name, {key: round(value, 3) for key, value in row.items()})


if __name__ == "__main__":
    main()
