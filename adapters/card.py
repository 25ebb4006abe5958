"""The model card of a bundle: its parts and data, its metrics, and its limits.

It is written from the record alone, and therefore contains no image, group or path. The front matter follows the
Hugging Face hub.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import find_task
from dinomed.adapters.training_images import NOTHING_STORED
from dinomed.backbones.variants import VARIANTS
from dinomed.html.words import format_value
from dinomed.notice import RESEARCH_USE

CARD_FILE = "card.md"
_ASPECT = {
    "square": "resized to a square",
    "pad": "resized by its longer side and padded to a square",
    "keep": "resized to a rectangle with this shorter side",
}
_UNKNOWN = "unknown: it depends on the data and weights of the pretraining"


def build_card(record: AdapterRecord) -> str:
    """Return the card as Markdown with YAML front matter."""
    licence = backbone_licence(record)
    task = find_task(record.task)
    metrics = _numbers(record.validation)
    front: dict[str, Any] = {
        "library_name": "dinomed",
        "pipeline_tag": task.pipeline_tag,
        "tags": [
            "medical-imaging",
            "dinov2",
            "frozen-backbone" if record.tuned is None else "tuned-backbone",
            "research-only",
        ],
        "license": "other",
        "license_name": "backbone-and-data",
        "model-index": [
            {
                "name": f"{record.head['name']} {task.title} on {record.backbone.name}",
                "results": [
                    {
                        "task": {"type": task.pipeline_tag},
                        "dataset": {
                            "name": "folds of the training manifest, out of fold"
                            if "folds" in record.training
                            else "validation split of the training manifest",
                            "type": "private",
                        },
                        "metrics": [{"type": name, "value": round(value, 4)} for name, value in metrics],
                    }
                ],
            }
        ],
    }
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    parts = [
        f"# A {task.title} on {'frozen' if record.tuned is None else 'tuned'} features",
        f"**{RESEARCH_USE.capitalize()}.** It has no clearance as a medical device, and was measured only on the data "
        "below.",
        "## What it is",
        _table(("", ""), _what(record, licence)),
        "## Data",
        "Images are recorded as counts and hashes, by which the manifest can be verified.",
        _table(("split", "images", "hash of the manifest's rows"), _data(record)),
        _split_rule(record.training.get("data", {})),
        *_classes(record),
        *_measured(record),
        _table(("metric", "value"), [(name, format_value(value)) for name, value in metrics]),
        *_tried(record),
        "## Limits",
        _limits(record),
    ]
    return f"---\n{head}---\n" + "\n\n".join(part for part in parts if part) + "\n"


def backbone_licence(record: AdapterRecord) -> str:
    """Return the licence of released weights; that of other weights is unknown."""
    reference = record.backbone
    if reference.path is None and reference.name in VARIANTS:
        release = VARIANTS[reference.name].release
        if release is not None:
            return f"{release.licence} ({release.source})"
    return _UNKNOWN


def _what(record: AdapterRecord, licence: str) -> list[tuple[str, str]]:
    rows = [
        ("task", record.task),
        ("head", _head(record)),
        ("classes", ", ".join(record.classes)),
        ("backbone", _backbone(record)),
        ("licence of the backbone", licence),
        ("image size", f"{record.preprocessing.image_size} px, whole image {_ASPECT[record.preprocessing.aspect]}"),
    ]
    rows += find_task(record.task).card_rows(record)
    versions = record.training.get("versions", {})
    rows.append(("made", f"{record.training.get('written', '')} with dinomed {versions.get('dinomed', '')}"))
    return rows


def _head(record: AdapterRecord) -> str:
    if "folds" in record.training:
        return f"mean of {record.training['folds']} adapters: {', '.join(record.head.get('members', ()))}"
    return f"{record.head['name']}, blocks {', '.join(map(str, record.head.get('blocks', ())))}"


def _measured(record: AdapterRecord) -> list[str]:
    """Return the title and the text above the metrics."""
    if "folds" in record.training:
        return [
            "## Measured out of fold",
            f"Each image was predicted by the one of {record.training['folds']} adapters that was not trained on it; "
            "these metrics are of single adapters, not of their mean. `cross_validation.json` has intervals and the "
            "value of each fold. Epoch and temperature of an adapter were chosen on its fold: measure on a test split "
            "with `dinomed evaluate`.",
        ]
    images = record.training.get("refitted_on")
    note = (
        f" The head was then trained again on all {images} images of train and val, with the same settings. These "
        "metrics, the thresholds and the table of abstention are of the head before, which did not see val."
    )
    return [
        "## Measured on val",
        "The settings, and where val has enough groups the epoch, the temperature and thresholds were chosen on these "
        "images: metrics on other images are lower. `dinomed evaluate` reports intervals, subgroups and cases on a "
        "test split." + (note if images else ""),
    ]


def _backbone(record: AdapterRecord) -> str:
    base = f"{record.backbone.name}, {{}}; fingerprint `{record.backbone.fingerprint[:16]}`"
    if record.tuned is None:
        return base.format("frozen")
    tuned = record.tuned
    if "folds" in record.training:
        return base.format("base of the tuning") + f"; tuned ({tuned.how}): each adapter has its own changed weights"
    return (
        base.format("base of the tuning")
        + f"; tuned ({tuned.how}, {tuned.weights:,} weights changed, in this bundle): `{tuned.fingerprint[:16]}`"
    )


def _data(record: AdapterRecord) -> list[tuple[str, str, str]]:
    data = record.training.get("data", {})
    return [
        (split, format_value(data[split]["images"]), f"`{data[split]['manifest'][:16]}`")
        for split in ("train", "val", "folds")
        if split in data
    ]


def _split_rule(data: Mapping[str, Any]) -> str:
    rule = (
        "Split by group: no patient, lesion or video is in two splits."
        if data.get("by_group")
        else "The manifest has no groups: images of one patient may be in two splits, and the metrics too high."
    )
    return rule + (" Val was set aside from train for this fit." if data.get("val_made_here") else "")


def _classes(record: AdapterRecord) -> list[str]:
    counts = record.training.get("classes")
    if not counts:
        return []
    unit = "groups" if record.usage.get("unit") == "group" and "folds" not in record.training else "images"
    split = "all folds" if "folds" in record.training else "train"
    return [_table(("class", f"{unit} in {split}"), [(name, format_value(count)) for name, count in counts.items()])]


def _tried(record: AdapterRecord) -> list[str]:
    """Return the section of the heads among which ``--head auto`` chose."""
    tried = record.training.get("tried")
    if not tried:
        return []
    metric = next(name for name in tried[0] if name not in ("head", "seconds", "kept"))
    rows = [(row["head"], format_value(row[metric]), "kept" if row["kept"] else "") for row in tried]
    return [
        "## Heads that were compared",
        f"Each was fitted on train; the one with the best {metric} on val was kept. It is the best of {len(rows)} "
        "values, so it is higher than on other images.",
        _table(("head", f"{metric} on val", ""), rows),
    ]


def _limits(record: AdapterRecord) -> str:
    lines = [
        "It was not tested on images of other devices, centres, populations or body sites than the training data.",
        "Probabilities are calibrated for images like those of val; where the frequencies of classes differ, they are "
        "wrong.",
        "The bundle holds hashes of the training images, so that an evaluation recognises them.",
        _unlike_check(**record.training.get("unlike_check", {})),
    ]
    rare = [name for name, count in (record.training.get("classes") or {}).items() if count < 30]
    if rare:
        lines.append(f"Fewer than 30 training examples of: {', '.join(rare)}.")
    lines += [f"No {name}: {reason}." for name, reason in (record.training.get("left_out") or {}).items()]
    if "knn" in (record.head.get("name"), *record.head.get("members", ())):
        lines.append("The bundle holds the features of every training image (no images, no names).")
    return "\n".join(f"- {line}" for line in lines)


def _unlike_check(*, stored: bool = False, problem: str | None = NOTHING_STORED) -> str:
    """Return the line about the check of unlike images: whether its features are stored, and why it is switched off."""
    features = "mean features of at most 1,000 training images, with their covariance"
    if problem is None:
        return (
            f"The bundle holds {features}, so that images that are unlike them are recognised: those further away than "
            "99% of training images of other groups. About 1% of images of the same kind are too."
        )
    holds = f" The bundle holds {features}, for this check." if stored else ""
    return f"Images that are unlike the training images are not recognised: {problem}.{holds}"


def _numbers(validation: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the metrics that are a defined number."""
    return [
        (name, float(value))
        for name, value in validation.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escape(text) for text in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)])


def _escape(text: str) -> str:
    """Escape a text, such as the name of a class, so that it starts no table cell, line or HTML element."""
    plain = " ".join(str(text).split())
    return plain.replace("|", "\\|").replace("<", "&lt;")
