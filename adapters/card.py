"""The model card beside a bundle: what it was made of, how it was measured, what it is not for.

Written from the record of the bundle alone, so that it can say no more than that: no image, group or path is in it. The
front matter is that of the Hugging Face hub.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dinomed.adapters.record import AdapterRecord
from dinomed.backbones.variants import VARIANTS
from dinomed.html.words import cell
from dinomed.notice import RESEARCH_USE

CARD_FILE = "card.md"
PIPELINES = {"classify": "image-classification", "segment": "image-segmentation", "depth": "depth-estimation"}
_KINDS = {"classify": "classifier", "segment": "segmenter", "depth": "depth estimator"}
_UNKNOWN = "not known: that of the data and weights it was pretrained on"


def build_card(record: AdapterRecord) -> str:
    """Markdown with YAML in front."""
    licence = backbone_licence(record)
    metrics = _numbers(record.validation)
    front: dict[str, Any] = {
        "library_name": "dinomed",
        "pipeline_tag": PIPELINES[record.task],
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
                "name": f"{record.head['name']} {_KINDS[record.task]} on {record.backbone.name}",
                "results": [
                    {
                        "task": {"type": PIPELINES[record.task]},
                        "dataset": {"name": "validation split of the training manifest", "type": "private"},
                        "metrics": [{"type": name, "value": round(value, 4)} for name, value in metrics],
                    }
                ],
            }
        ],
    }
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    parts = [
        f"# A {_KINDS[record.task]} on {'frozen' if record.tuned is None else 'tuned'} features",
        f"**{RESEARCH_USE.capitalize()}.** It has no clearance as a medical device, and was measured on the data below "
        "alone.",
        "## What it is",
        _table(("", ""), _what(record, licence)),
        "## Data",
        "Images are known here by counts and hashes; whoever has the manifest can check that it is the one.",
        _table(("split", "images", "hash of the manifest's rows"), _data(record)),
        _split_rule(record.training.get("data", {})),
        *_classes(record),
        "## Measured on val",
        "Settings, the temperature and thresholds were chosen on these images: expect less on others. "
        "`dinomed evaluate` gives intervals, subgroups and cases on a test split.",
        _table(("metric", "value"), [(name, cell(value)) for name, value in metrics]),
        "## Limits",
        _limits(record),
    ]
    return f"---\n{head}---\n" + "\n\n".join(part for part in parts if part) + "\n"


def backbone_licence(record: AdapterRecord) -> str:
    """Of released weights what their publisher says; of any others nothing is known here."""
    reference = record.backbone
    if reference.path is None and reference.name in VARIANTS:
        release = VARIANTS[reference.name].release
        if release is not None:
            return f"{release.licence} ({release.source})"
    return _UNKNOWN


def _what(record: AdapterRecord, licence: str) -> list[tuple[str, str]]:
    rows = [
        ("task", record.task),
        ("head", f"{record.head['name']}, blocks {', '.join(map(str, record.head.get('blocks', ())))}"),
        ("classes", ", ".join(record.classes)),
        ("backbone", _backbone(record)),
        ("licence of the backbone", licence),
        ("image size", f"{record.preprocessing.image_size} px, whole image squashed to a square"),
    ]
    usage = record.usage
    if record.task == "classify":
        labels = "labels that do not exclude each other" if usage.get("multilabel") else "one class of several"
        rows.append(("answer", f"{labels}, for {'a group of images' if usage.get('unit') == 'group' else 'an image'}"))
        temperature = usage.get("temperature")
        rows.append(("temperature", "none" if temperature is None else f"{temperature:.3f}, fitted on val"))
    elif record.threshold is not None:
        rows.append(("threshold", f"{record.threshold:g}, chosen on val"))
    versions = record.training.get("versions", {})
    rows.append(("made", f"{record.training.get('written', '')} with dinomed {versions.get('dinomed', '')}"))
    return rows


def _backbone(record: AdapterRecord) -> str:
    base = f"{record.backbone.name}, {{}}; fingerprint `{record.backbone.fingerprint[:16]}`"
    if record.tuned is None:
        return base.format("frozen")
    tuned = record.tuned
    return (
        base.format("from which it was tuned")
        + f"; tuned ({tuned.how}, {tuned.weights:,} weights changed, in this bundle): `{tuned.fingerprint[:16]}`"
    )


def _data(record: AdapterRecord) -> list[tuple[str, str, str]]:
    data = record.training.get("data", {})
    return [
        (split, cell(data[split]["images"]), f"`{data[split]['manifest'][:16]}`")
        for split in ("train", "val")
        if split in data
    ]


def _split_rule(data: Mapping[str, Any]) -> str:
    rule = (
        "Split by group: no patient, lesion or video is in two splits."
        if data.get("by_group")
        else "The manifest has no groups: images of one patient may be in two splits, and the metrics too good."
    )
    return rule + (" Val was set aside from train for this fit." if data.get("val_made_here") else "")


def _classes(record: AdapterRecord) -> list[str]:
    counts = record.training.get("classes")
    if not counts:
        return []
    unit = "groups" if record.usage.get("unit") == "group" else "images"
    return [_table(("class", f"{unit} in train"), [(name, cell(count)) for name, count in counts.items()])]


def _limits(record: AdapterRecord) -> str:
    lines = [
        "Pictures of other devices, centres, populations or body sites than those of the training data were not tried.",
        "Probabilities say how sure the model is for images such as those of val; where classes are more or less "
        "common, they are off.",
        "The images it was fitted on are kept as hashes, so that it is not measured on them unawares.",
    ]
    rare = [name for name, count in (record.training.get("classes") or {}).items() if count < 30]
    if rare:
        lines.append(f"Fewer than 30 training examples of: {', '.join(rare)}.")
    if record.head.get("name") == "knn":
        lines.append("The bundle holds the features of every training image (no pictures, no names).")
    return "\n".join(f"- {line}" for line in lines)


def _numbers(validation: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The metrics that are one defined number."""
    return [
        (name, float(value))
        for name, value in validation.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escape(one) for one in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)])


def _escape(text: str) -> str:
    """A name of a class may hold anything: no cell, no line and no HTML of its own."""
    plain = " ".join(str(text).split())
    return plain.replace("|", "\\|").replace("<", "&lt;")
