"""Speed and output of image loading and augmentation, compared with the reference recipe of torchvision on PIL images.

    python benchmarks/pretrain/loading.py [--size 1024x768 ...] [--workers 1] [--rounds 5] [--images 32]

The reference is DINOv2's DataAugmentationDINO: RandomResizedCrop (bicubic), flip, ColorJitter, grayscale, GaussianBlur,
solarize; 2 x 224 + 8 x 98 px; blur as in the paper in both. Also compared are our crops with the colours of
albumentations, and with those of torchvision on tensors (v2). All read the same JPEG files (synthetic lesions, quality
90) with the same number of DataLoader workers. Rounds alternate, and a ratio is of the same round; on a busy machine
processor time is more reliable than wall-clock time. The views are compared too: channel means and deviations,
quantiles, and the Kolmogorov-Smirnov distance (0 to 1) between the distributions of values of each view.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.images.read import read_image
from dinomed.pretrain.data.config import CropConfig
from dinomed.pretrain.data.crops import MultiCrop, random_resized_crop

Views = tuple[np.ndarray, np.ndarray]  # 2, 224, 224, 3 and 8, 98, 98, 3; uint8
Load = Callable[[Path, int], Views]
CONFIG = CropConfig()
SIZES = ("1024x768", "200x150")


def ours(config: CropConfig = CONFIG) -> Load:
    crops = MultiCrop(config)
    at_least = config.smallest_area() if config.reduced_decoding else None
    return lambda path, seed: crops(read_image(path, at_least=at_least), seed)


def reference() -> Load:
    """The augmentation of dinov2/data/augmentations.py with torchvision on PIL images, without the final
    normalisation."""
    import torch
    from PIL import Image
    from torchvision import transforms as T
    from torchvision.transforms import InterpolationMode

    jitter = T.RandomApply([T.ColorJitter(*CONFIG.jitter)], p=CONFIG.jitter_probability)
    colour = [jitter, T.RandomGrayscale(p=CONFIG.gray_probability)]

    def blur(probability: float) -> Any:
        return T.RandomApply([T.GaussianBlur(CONFIG.blur_kernel, CONFIG.blur_sigma)], p=probability)

    def crop(size: int, scale: tuple[float, float]) -> Any:
        bicubic = T.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
        return [bicubic, T.RandomHorizontalFlip(p=CONFIG.horizontal_flip)]

    first, second, local = CONFIG.blur_probabilities()
    large, small = crop(CONFIG.global_size, CONFIG.global_scale), crop(CONFIG.local_size, CONFIG.local_scale)
    solarize = T.RandomSolarize(threshold=128, p=CONFIG.solarize_probability)
    views = [T.Compose([*large, *colour, blur(first)]), T.Compose([*large, *colour, blur(second), solarize])]
    locals_ = T.Compose([*small, *colour, blur(local)])

    def load(path: Path, seed: int) -> Views:
        torch.manual_seed(seed)
        image = Image.open(path).convert("RGB")
        return (
            np.stack([np.asarray(view(image)) for view in views]),
            np.stack([np.asarray(locals_(image)) for _ in range(CONFIG.num_local)]),
        )

    return load


def albumentations() -> Load:
    """Our windows and resizing, albumentations' flips, colours, blur and solarisation."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # without it, it looks for updates on the network
    import albumentations as A

    def around(strength: float) -> tuple[float, float]:
        return 1 - strength, 1 + strength

    def colours(blur: float, solarize: float = 0.0) -> Any:
        brightness, contrast, saturation, hue = CONFIG.jitter
        return A.Compose([
            A.HorizontalFlip(p=CONFIG.horizontal_flip),
            A.ColorJitter(around(brightness), around(contrast), around(saturation), (-hue, hue), p=0.8),
            A.ToGray(p=CONFIG.gray_probability),
            A.GaussianBlur((CONFIG.blur_kernel, CONFIG.blur_kernel), CONFIG.blur_sigma, p=blur),
            A.Solarize(threshold_range=(0.5, 0.5), p=solarize),
        ])  # fmt: skip

    first, second, local = CONFIG.blur_probabilities()
    return _with(
        [colours(first), colours(second, CONFIG.solarize_probability)],
        colours(local),
        lambda compose, crop: compose(image=crop)["image"],
    )


def tensors() -> Load:
    """Our windows and resizing, torchvision's colours (v2) on uint8 tensors."""
    import torch
    from torchvision.transforms import v2 as T

    torch.set_num_threads(1)

    def colours(blur: float, solarize: float = 0.0) -> Any:
        return T.Compose([
            T.RandomHorizontalFlip(p=CONFIG.horizontal_flip),
            T.RandomApply([T.ColorJitter(*CONFIG.jitter)], p=CONFIG.jitter_probability),
            T.RandomGrayscale(p=CONFIG.gray_probability),
            T.RandomApply([T.GaussianBlur(CONFIG.blur_kernel, CONFIG.blur_sigma)], p=blur),
            T.RandomSolarize(threshold=128, p=solarize),
        ])  # fmt: skip

    first, second, local = CONFIG.blur_probabilities()

    def apply(compose: Any, crop: np.ndarray) -> np.ndarray:
        return np.asarray(compose(torch.from_numpy(crop).permute(2, 0, 1)).permute(1, 2, 0).numpy())

    return _with([colours(first), colours(second, CONFIG.solarize_probability)], colours(local), apply)


def _with(views: Sequence[Any], local: Any, apply: Callable[[Any, np.ndarray], np.ndarray]) -> Load:
    at_least = CONFIG.smallest_area()

    def load(path: Path, seed: int) -> Views:
        image, rng = read_image(path, at_least=at_least), np.random.default_rng(seed)

        def cut(size: int, scale: tuple[float, float]) -> np.ndarray:
            return random_resized_crop(image, size, scale, rng)

        return (
            np.stack([apply(view, cut(CONFIG.global_size, CONFIG.global_scale)) for view in views]),
            np.stack([apply(local, cut(CONFIG.local_size, CONFIG.local_scale)) for _ in range(CONFIG.num_local)]),
        )

    return load


LOADERS: dict[str, Callable[[], Load]] = {
    "ours": ours,
    "ours, whole JPEG": lambda: ours(CropConfig(reduced_decoding=False)),
    "reference (PIL)": reference,
    "albumentations": albumentations,
    "torchvision v2": tensors,
}


class Views10:
    """Data set of the views of each image; the loader is built in the worker."""

    def __init__(self, name: str, paths: list[Path], passes: int) -> None:
        self.name, self.paths, self.passes, self.load = name, paths, passes, None

    def __len__(self) -> int:
        return len(self.paths) * self.passes

    def __getitem__(self, index: int) -> tuple[Views, float]:
        if self.load is None:
            self.load = LOADERS[self.name]()
        began = time.process_time()
        views = self.load(self.paths[index % len(self.paths)], index)
        return views, time.process_time() - began


def speed(name: str, paths: list[Path], workers: int, passes: int) -> dict[str, float]:
    """Measure images per second of DataLoader workers after their start, by wall-clock and by processor time."""
    from torch.utils.data import DataLoader

    data = Views10(name, paths, passes + 1)
    loader = iter(DataLoader(data, batch_size=len(paths) // 4, num_workers=workers, collate_fn=list))  # type: ignore[arg-type]
    for _ in range(4):  # warm-up
        next(loader)
    began = time.perf_counter()
    spent = [seconds for batch in loader for _, seconds in batch]
    return {"clock": len(spent) / (time.perf_counter() - began), "core": len(spent) / sum(spent)}


def write_images(folder: Path, size: str, count: int) -> list[Path]:
    """Write synthetic lesions as JPEG files of ``WIDTHxHEIGHT`` px."""
    from PIL import Image

    from dinomed.datasets.synthetic.lesions import write_lesions

    width, height = (int(side) for side in size.split("x"))
    write_lesions(folder / "drawn", count=count, seed=0, size=(height, width), broken=0)
    paths = []
    for index, path in enumerate(sorted((folder / "drawn" / "images").iterdir())):
        paths.append(folder / f"{index}.jpg")
        Image.open(path).convert("RGB").save(paths[-1], quality=90)
    return paths


def describe(views: np.ndarray) -> dict[str, np.ndarray]:
    """Compute statistics of each view (N, s, s, 3) uint8 that depend on the augmentation."""
    x = views.astype(np.float32)
    statistics_of_views = {f"mean {c}": x[..., i].mean((1, 2)) for i, c in enumerate("RGB")}
    statistics_of_views |= {f"deviation {c}": x[..., i].std((1, 2)) for i, c in enumerate("RGB")}
    luma = x @ np.array([0.299, 0.587, 0.114], np.float32)
    statistics_of_views["colourfulness"] = np.abs(x - luma[..., None]).mean((1, 2, 3))
    statistics_of_views["sharpness"] = np.log1p(np.abs(np.diff(luma, axis=2)).mean((1, 2)))
    return statistics_of_views


def compare(paths: list[Path], passes: int) -> dict[str, Any]:
    """Compare the statistics of the views of two loaders."""
    from scipy.stats import ks_2samp

    report: dict[str, Any] = {}
    kinds = {}
    for name in ("ours", "ours, whole JPEG", "reference (PIL)"):
        load = LOADERS[name]()
        made = [load(path, 1000 * turn + i) for turn in range(passes) for i, path in enumerate(paths)]
        kinds[name] = {
            "first global": np.stack([v[0][0] for v in made]),
            "second global": np.stack([v[0][1] for v in made]),
            "local": np.concatenate([v[1][:2] for v in made]),
        }
    theirs = kinds["reference (PIL)"]
    for name in ("ours", "ours, whole JPEG"):
        report[name] = {}
        for kind, views in kinds[name].items():
            a, b = describe(views), describe(theirs[kind])
            report[name][kind] = {
                "channel mean": [_round(v.mean((0, 1, 2)).tolist()) for v in (views, theirs[kind])],
                "channel deviation": [_round(v.std((0, 1, 2)).tolist()) for v in (views, theirs[kind])],
                "quantiles 5 25 50 75 95": [
                    _round(np.percentile(v[..., 1], [5, 25, 50, 75, 95]).tolist()) for v in (views, theirs[kind])
                ],
                "gray": [_round(float((describe_gray(v)).mean()), 3) for v in (views, theirs[kind])],
                "ks": {key: _round(float(ks_2samp(a[key], b[key]).statistic), 3) for key in a},
                "ks at p = 0.01": _round(1.63 * (2 / len(views)) ** 0.5, 3),
            }
    return report


def describe_gray(views: np.ndarray) -> np.ndarray:
    """Return which views are gray."""
    return np.asarray((views == views[..., :1]).all((1, 2, 3)))


def compare_windows(size: str, draws: int = 4000) -> dict[str, Any]:
    """Compute the KS distances of scale and aspect ratio between our windows and RandomResizedCrop of torchvision."""
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    from dinomed.pretrain.data.crops import _window

    width, height = (int(side) for side in size.split("x"))
    rng, blank = np.random.default_rng(0), torch.empty(1, height, width)
    report = {}
    for kind, scale in (("global", CONFIG.global_scale), ("local", CONFIG.local_scale)):
        mine = np.array([_window(height, width, scale, (3 / 4, 4 / 3), rng) for _ in range(draws)], float)
        theirs = np.array(
            [RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(draws)], float
        )
        report[kind] = {
            "scale": _ks(ks_2samp, mine[:, 2] * mine[:, 3], theirs[:, 2] * theirs[:, 3]),
            "aspect": _ks(ks_2samp, mine[:, 3] / mine[:, 2], theirs[:, 3] / theirs[:, 2]),
            "top": _ks(ks_2samp, mine[:, 0], theirs[:, 0]),
            "left": _ks(ks_2samp, mine[:, 1], theirs[:, 1]),
        }
    return report | {"at p = 0.01": _round(1.63 * (2 / draws) ** 0.5, 3)}


def _ks(test: Any, a: np.ndarray, b: np.ndarray) -> float:
    return round(float(test(a, b).statistic), 3)


def _round(value: Any, digits: int = 1) -> Any:
    return [round(v, digits) for v in value] if isinstance(value, list) else round(value, digits)


def shares(draws: int = 4000) -> dict[str, Any]:
    """Compare the expected with the counted frequency of each augmentation."""
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None], (1, 3))[None].repeat(64, 0)
    tinted = (ramp * np.array([1.0, 0.6, 0.3])).astype(np.uint8)
    base = {"jitter_probability": 0.0, "gray_probability": 0.0, "solarize_probability": 0.0, "horizontal_flip": 0.0,
            "global_size": 64, "global_scale": (1.0, 1.0), "num_local": 0, "blur": "released"}  # fmt: skip
    frequencies = {}
    for name, changes, picture in (
        ("flipped", {"horizontal_flip": 0.5}, tinted),
        ("gray", {"gray_probability": 0.2}, tinted),
        ("solarized", {"solarize_probability": 0.2}, tinted),
    ):
        crops = MultiCrop(CropConfig(**{**base, **changes, "blur_sigma": (0.1, 0.1)}))  # type: ignore[arg-type]
        view = 1 if name == "solarized" else 0
        changed = [bool((crops(picture, seed)[0][view] != picture).any()) for seed in range(draws)]
        frequencies[name] = round(statistics.fmean(changed), 3)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for blur in ("paper", "released"):
        crops = MultiCrop(CropConfig(**{**base, "blur": blur, "blur_sigma": (1.0, 2.0)}))  # type: ignore[arg-type]
        made = [crops(noise, seed)[0] for seed in range(draws)]
        frequencies[f"blurred, {blur}"] = [
            round(statistics.fmean(bool((m[view] != noise).any()) for m in made), 3) for view in (0, 1)
        ]
    return frequencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=list(SIZES), help="size of the JPEG files, WIDTHxHEIGHT px")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--passes", type=int, default=1, help="passes over the images in each round for each loader")
    parser.add_argument("--distribution-passes", type=int, default=8, help="views of each image that are compared")
    parser.add_argument("--draws", type=int, default=4000, help="number of windows, flips and so on that are counted")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"shares": shares(arguments.draws)}
    for size in arguments.size:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_images(Path(folder), size, arguments.images)
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in LOADERS}
            for turn in range(arguments.rounds):
                for name in LOADERS if turn % 2 == 0 else reversed(LOADERS):
                    rounds[name].append(speed(name, paths, arguments.workers, arguments.passes))
                print(f"{size}, round {turn + 1}: { {k: v[-1] for k, v in rounds.items()} }", file=sys.stderr)
            report[size] = {
                "distributions": compare(paths, arguments.distribution_passes),
                "windows": compare_windows(size, arguments.draws),
            }
            for kind in ("clock", "core") if rounds["ours"] else ():
                made = {name: [turn_speeds[kind] for turn_speeds in turns] for name, turns in rounds.items()}
                slow = made["reference (PIL)"]
                report[size][f"images per second, {kind}"] = {name: _spread(values) for name, values in made.items()}
                report[size][f"times the reference, {kind}"] = {
                    name: _spread([a / b for a, b in zip(values, slow, strict=True)]) for name, values in made.items()
                }
    print(json.dumps(report, indent=1))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


if __name__ == "__main__":
    main()
