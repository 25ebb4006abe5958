"""Rules by which a whole video is unlike the training images, or abstained: the share of videos that each rule marks.

    python benchmarks/features/whole_videos.py --backbone runs/ssl --dermoscopy DIR --isic2017 DIR --polyps DIR
        [--image-size 64] [--seed 0]

| rule | a video is marked if |
|---|---|
| most | more than half of its frames are over the limit of a frame |
| half | half of its frames or more are (the rule of dinomed for unlike videos) |
| quarter, tenth | more than 25% or 10% of them are |
| any | one frame is |
| mean | the mean of the frames is over the limit: of their distances, or of their confidences |

No collection at hand has long real videos with labels, so most sequences are made from single images: the images of a
lesion, and four images of a centre (of ISIC 2017: of the collection) that follow each other by name. The sequences of
PolypGen (column `group`) have two or more frames for few groups. Synthetic endoscopies have 40 frames, also those
outside of the body, dark and blurred ones, while their references have frames of the inside only.

Distances are those of the check of dinomed, on mean patch tokens of the last block. A group is never in the reference
and in a video. PolypGen is divided into 5 parts by group, each compared with the other four. Abstention is that of a
logistic regression on class tokens, with the threshold that abstains 20% of the validation lesions; the prediction for
a sequence is by the mean of its probabilities, and *answer* is the rule by the confidence of this mean. *by order* does
not depend on a threshold: the share of wrong classes in the surer half of the sequences, which are ordered by the share
of frames over the limit, by the mean of the confidences (the rule of dinomed for segmenters), or by the confidence of
the answer (its rule for classifiers). The results are printed as JSON.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.synthetic.endoscopy import INSIDE, draw_endoscopy
from dinomed.features.compute import compute_features
from dinomed.features.familiarity.fit import fit_distance
from dinomed.features.familiarity.reference import upper_limit
from dinomed.features.loading import preprocess_batches
from dinomed.metrics.uncertainty.abstention import abstention_table

SHARES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "most": lambda share: share > 0.5, "half": lambda share: share >= 0.5, "quarter": lambda share: share > 0.25,
    "tenth": lambda share: share > 0.1, "any": lambda share: share > 0,
}  # fmt: skip
RUN = 4  # images in a sequence that is made from single images
PARTS = 5
VIDEOS, FRAMES, SIZE = 25, 40, (96, 96)  # synthetic
Sequences = Sequence[np.ndarray]
"""Features of the frames of each video, (frames, C)."""


@torch.inference_mode()
def embed(backbone: FrozenBackbone, images: Iterable[np.ndarray], token: str = "mean") -> np.ndarray:
    """Return the mean patch token or the class token (``cls``) of images, uint8 (H, W, 3), as float64 (N, C)."""
    parts = [
        getattr(compute_features(backbone, pixels, (-1,), False), token).float().numpy()
        for pixels, _ in preprocess_batches(images, backbone.preprocessing, 32)
    ]
    return np.concatenate(parts).astype(np.float64)


def read(folder: Path, names: Iterable[str]) -> Iterable[np.ndarray]:
    """Yield images as uint8 (H, W, 3)."""
    for name in names:
        yield np.asarray(Image.open(folder / name).convert("RGB"))


def table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of labels.csv."""
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_by(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each name, in order."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[name].append(row)
    return rows


def runs_of(rows: Sequence[int]) -> list[list[int]]:
    """Return sequences of `RUN` rows that follow each other."""
    return [list(rows[start : start + RUN]) for start in range(0, len(rows) - RUN + 1, RUN)]


def marked(over: Sequence[np.ndarray], means_over: Sequence[bool]) -> dict[str, Any]:
    """Return the number of videos and the share that each rule marks.

    Args:
        over: bool (frames,) of each video, whether a frame is over the limit.
        means_over: whether the mean of each video is.
    """
    shares = np.array([frames.mean() for frames in over])
    rates = {name: float(rule(shares).mean()) for name, rule in SHARES.items()} | {"mean": float(np.mean(means_over))}
    frames = float(np.mean(np.concatenate(list(over))))
    counts = {"videos": len(over), "frames": sum(map(len, over)), "frames over the limit": round(frames, 3)}
    return counts | {name: round(rate, 3) for name, rate in rates.items()}


def judge(reference: np.ndarray, units: Sequence[str], videos: Sequences) -> tuple[list[np.ndarray], list[bool]]:
    """Return what `marked` takes, of videos compared with a reference (N, C) with these groups."""
    distance, held_out = fit_distance(reference.astype(np.float32), list(units))
    limit = upper_limit(held_out)
    distances = [distance.measure(video.astype(np.float32)) for video in videos]
    return [values > limit for values in distances], [bool(values.mean() > limit) for values in distances]


def judge_all(reference: np.ndarray, units: Sequence[str], kinds: Mapping[str, Sequences]) -> dict[str, Any]:
    """Return the shares for each kind of video."""
    return {name: marked(*judge(reference, units, videos)) for name, videos in kinds.items() if len(videos)}


def judge_polyps(
    means: np.ndarray, rows: Sequence[Mapping[str, str]], foreign: Mapping[str, Sequences]
) -> dict[str, Any]:
    """Return the shares of videos of PolypGen, of a centre that is not in the reference, and of foreign ones."""
    groups, centres = np.array([row["group"] for row in rows]), np.array([row["centre"] for row in rows])
    part = np.random.default_rng(0).permutation(np.unique(groups))
    part_of = {name: place % PARTS for place, name in enumerate(part)}
    parts = np.array([part_of[name] for name in groups])
    found: dict[str, tuple[list[np.ndarray], list[bool]]] = {
        name: ([], []) for name in ("sequences of 2 or more frames", "4 frames of a centre", "another centre", *foreign)
    }

    def add(name: str, reference: np.ndarray, videos: Sequences) -> None:
        if len(videos):
            over, means_over = judge(means[reference], groups[reference].tolist(), videos)
            found[name][0].extend(over)
            found[name][1].extend(means_over)

    for number in range(PARTS):
        inside = np.flatnonzero(parts == number)
        sequences = [rows for rows in rows_by(groups[inside].tolist()).values() if len(rows) > 1]
        add("sequences of 2 or more frames", parts != number, [means[inside[chosen]] for chosen in sequences])
        runs = [run for chosen in rows_by(centres[inside].tolist()).values() for run in runs_of(chosen)]
        add("4 frames of a centre", parts != number, [means[inside[run]] for run in runs])
    for centre in np.unique(centres):
        runs = runs_of(np.flatnonzero(centres == centre).tolist())
        add("another centre", centres != centre, [means[run] for run in runs])
    for name, videos in foreign.items():
        add(name, np.ones(len(means), bool), videos)
    return {name: marked(*values) for name, values in found.items() if values[0]}


def judge_synthetic(backbone: FrozenBackbone) -> dict[str, Any]:
    """Return the shares of synthetic endoscopies, and of the same ones with changed colours."""
    units, reference = list[str](), list[np.ndarray]()
    for seed in range(VIDEOS, 3 * VIDEOS):
        inside = [frame.pixels for frame in draw_endoscopy(12, SIZE, seed) if frame.kind == INSIDE]
        reference += inside
        units += [str(seed)] * len(inside)
    kinds: dict[str, list[np.ndarray]] = {"new videos": [], "red and green exchanged": [], "inverted": []}
    for seed in range(VIDEOS):
        frames = [frame.pixels for frame in draw_endoscopy(FRAMES, SIZE, seed)]
        kinds["new videos"].append(embed(backbone, frames))
        kinds["red and green exchanged"].append(embed(backbone, [frame[..., [1, 0, 2]] for frame in frames]))
        kinds["inverted"].append(embed(backbone, [255 - frame for frame in frames]))
    return judge_all(embed(backbone, reference), units, kinds)


def judge_abstention(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray, list[str]],
    videos: Sequences,
    labels: np.ndarray,
) -> dict[str, Any]:
    """Return for each rule the share of abstained sequences, and the share of wrong classes of the kept ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(*train)
    vectors, truth, units = val
    scores = model.predict_proba(vectors)
    wrong = (model.classes_[scores.argmax(axis=1)] != truth).astype(float)
    rule = abstention_table(scores.max(axis=1), wrong, units, "wrong class").at_coverage(0.8)
    by_frame = [model.predict_proba(video) for video in videos]
    means = np.stack([values.mean(axis=0) for values in by_frame])
    errors = (model.classes_[means.argmax(axis=1)] != labels).astype(float)
    low = [values.max(axis=1) < rule.threshold for values in by_frame]
    shares = np.array([frames.mean() for frames in low])
    mean, answer = np.array([values.max(axis=1).mean() for values in by_frame]), means.max(axis=1)
    abstained = {name: chosen(shares) for name, chosen in SHARES.items()}
    abstained |= {"mean": mean < rule.threshold, "answer": answer < rule.threshold}
    surer = {
        name: np.argsort(-confidence, kind="stable")[: len(errors) // 2]
        for name, confidence in (("share of frames", -shares), ("mean", mean), ("answer", answer))
    }
    results: dict[str, Any] = {
        "sequences": len(by_frame), "wrong of all": round(float(errors.mean()), 3),
        "validation": {"abstained": round(1 - rule.coverage, 3), "wrong of the kept": round(rule.risk, 3)},
        "wrong in the surer half, by order": {
            name: round(float(errors[rows].mean()), 3) for name, rows in surer.items()
        },
    }  # fmt: skip
    for name, left_out in abstained.items():
        kept, rest = errors[~left_out], errors[left_out]
        results[name] = {
            "abstained": round(float(left_out.mean()), 3),
            "wrong of the kept": round(float(kept.mean()), 3) if len(kept) else None,
            "wrong of the abstained": round(float(rest.mean()), 3) if len(rest) else None,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    for name in ("dermoscopy", "isic2017", "polyps"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help="Folder with labels.csv.")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    backbone = load_backbone(arguments.backbone, image_size=arguments.image_size)

    lesions = table(arguments.dermoscopy)
    of_lesion = rows_by([row["lesion_id"] for row in lesions])
    several = [rows for rows in of_lesion.values() if len(rows) > 2]
    single = [rows[0] for rows in of_lesion.values() if len(rows) <= 2]
    several = [several[i] for i in rng.permutation(len(several))[:200]]
    single = [single[i] for i in rng.permutation(len(single))[:1600]]

    def tokens(rows: Sequence[int], token: str = "mean") -> np.ndarray:
        return embed(backbone, read(arguments.dermoscopy, [lesions[row]["image"] for row in rows]), token)

    polyps = table(arguments.polyps)
    of_polyps = embed(backbone, read(arguments.polyps, [row["image"] for row in polyps]))
    isic = [row["image"] for row in table(arguments.isic2017)[:400]]
    of_isic = embed(backbone, read(arguments.isic2017, isic))
    sequences = [tokens(rows) for rows in several]
    centre_runs = [run for rows in rows_by([row["centre"] for row in polyps]).values() for run in runs_of(rows)]
    kinds = {
        "lesions of 3 or more images": sequences,
        "ISIC 2017, 4 images": [of_isic[run] for run in runs_of(range(len(of_isic)))],
        "PolypGen, 4 frames of a centre": [of_polyps[run] for run in centre_runs],
    }
    reference = single[:800]
    results: dict[str, Any] = {
        "dermoscopy": judge_all(tokens(reference), [lesions[row]["lesion_id"] for row in reference], kinds),
        "polyps": judge_polyps(of_polyps, polyps, {"lesions of 3 or more images": sequences}),
        "synthetic endoscopy": judge_synthetic(backbone),
    }
    truth = np.array([row["label"] for row in lesions])
    vectors = tokens(single, "cls")
    results["abstention"] = judge_abstention(
        (vectors[:1000], truth[single[:1000]]),
        (vectors[1000:], truth[single[1000:]], [lesions[row]["lesion_id"] for row in single[1000:]]),
        [tokens(rows, "cls") for rows in several],
        truth[[rows[0] for rows in several]],
    )
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
