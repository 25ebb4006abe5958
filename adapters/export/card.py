"""The card of an exported folder: what it is, how it is loaded, what it was measured on, whose licence holds."""

from typing import Any

from dinomed.adapters.export.source import Source
from dinomed.adapters.inference.loader import ClassifyPredictor, DepthPredictor, SegmentPredictor
from dinomed.backbones.variants import VARIANTS, Release
from dinomed.notice import RESEARCH_USE

_LIBRARY = {
    "onnx": "onnx", "safetensors": "dinomed", "timm": "timm", "transformers": "transformers", "monai": "monai",
}  # fmt: skip
_USE = {
    "onnx": """```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
found = session.run(None, {"pixels": pixels})  # float32 (batch, channels, height, width), preprocessed as below
```""",
    "timm": """```python
import timm
model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True)
tokens = model.forward_features(pixels)
```""",
    "transformers": """```python
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained("THIS_FOLDER")
tokens = model(pixels).last_hidden_state
```""",
    "monai": """```
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES
```
It needs MONAI, PyTorch and Pillow. Images are read by Pillow: 16 bits and EXIF orientation are not handled here.""",
}


def released(source: Source) -> Release | None:
    """The release whose weights the backbone has, as far as its name and origin tell."""
    if source.backbone.name not in VARIANTS or source.backbone.source is not None:
        return None
    return VARIANTS[source.backbone.name].release


def notice(source: Source) -> str:
    """The text of the file NOTICE."""
    release = released(source)
    weights = (
        f"The weights of the backbone are those released by {release.source} ({release.url}), {release.licence}."
        if release is not None
        else "The weights of the backbone were given to dinomed or trained with it; who publishes this folder states "
        "their licence. Where they were trained on others' images, or from others' weights, their terms may hold here."
    )
    head = "" if source.predictor is None else (
        "\nThe head was trained on images and labels whose terms may limit what may be done with it.\n"
    )  # fmt: skip
    return f"Exported by dinomed (Apache-2.0).\n\n{weights}\n{head}\n{RESEARCH_USE.capitalize()}.\n"


def card(source: Source, kind: str, parity: dict[str, Any]) -> str:
    """README.md, headed by what model hubs read. It names no image, group or path."""
    release, reading, config = released(source), source.preprocessing, source.backbone.vit.config
    licence = release.licence.lower() if release is not None and source.predictor is None else "other"
    task = {"classify": "image-classification", "segment": "image-segmentation", "depth": "depth-estimation"}
    head = ["---", f"license: {licence}", f"library_name: {_LIBRARY[kind]}", "tags: [dinomed, dinov2, medical-imaging]"]
    head += [f"pipeline_tag: {task.get(source.task, 'image-feature-extraction')}", "---"]
    what = (
        f"A frozen {source.backbone.name} backbone" if source.predictor is None
        else f"A {source.task} adapter ({source.predictor.metadata['head'].get('name')}) on the frozen backbone "
        f"{source.backbone.name}"
    )  # fmt: skip
    lines = [*head, f"# {what}", "", f"**{RESEARCH_USE.capitalize()}.** Exported by dinomed as {kind}.", "", "## Use"]
    lines += [_own_use(source) if kind == "safetensors" else _USE[kind], "", "## What goes in"]
    lines += [
        f"- {reading.channels} channels, 0 to 1, the whole image squashed to {reading.image_size} x "
        f"{reading.image_size} px (bicubic, antialiased)",
        f"- samples of files: {_samples(source)}",
        f"- minus mean {list(reading.mean)}, divided by {list(reading.std)}, channel by channel",
        "",
        "## What it is",
        f"- ViT: {config.depth} blocks, {config.embed_dim} channels, patch {config.patch_size}, {config.num_registers} "
        f"registers, {config.feed_forward}",
        f"- fingerprint of backbone and preprocessing: `{source.backbone.fingerprint}`",
    ]
    if source.predictor is not None:
        lines += _about_head(source)
    if kind in ("timm", "transformers"):
        lines += [
            f"- positions are written for {reading.image_size} px; at other sizes this library resizes them by its own "
            "rule, and features differ slightly from dinomed's"
        ]
    lines += ["", "## Checked", _checked(parity), "", "## Licence", "See NOTICE.", ""]
    return "\n".join(lines)


def _samples(source: Source) -> str:
    """How what a file holds becomes 0 to 1."""
    found = source.preprocessing.intensity
    depth = f"{found.bits or 8} bits"
    if found.window is not None:
        return f"{depth}; {found.window[0]:g} becomes 0 and {found.window[1]:g} becomes 1"
    if found.percentiles is not None:
        return f"{depth}; of each image and channel, percentile {found.percentiles[0]:g} becomes 0, percentile " \
            f"{found.percentiles[1]:g} becomes 1"  # fmt: skip
    return f"{depth}, the full range of the file's own depth"


def _own_use(source: Source) -> str:
    if source.predictor is None:
        return (
            '```python\nfrom dinomed.backbones.load import load_backbone\nbackbone = load_backbone("THIS_FOLDER")\n```'
        )
    return (
        '```python\nfrom dinomed.adapters.inference.loader import load_adapter\nadapter = load_adapter("THIS_FOLDER")\n```\n'
        "or `dinomed predict THIS_FOLDER IMAGES -o OUT`."
    )


def _about_head(source: Source) -> list[str]:
    assert source.predictor is not None
    record = source.predictor.metadata
    lines = [f"- classes, in the order of the output: {', '.join(record['classes'])}"]
    if record["threshold"] is not None:
        lines.append(f"- threshold that was best on validation: {record['threshold']:.4f}")
    if isinstance(source.predictor, ClassifyPredictor):
        lines += _about_answer(source.predictor)
    elif isinstance(source.predictor, SegmentPredictor):
        lines += _about_masks(source.predictor)
    elif isinstance(source.predictor, DepthPredictor):
        unit = f" {source.predictor.source.unit}" if source.predictor.source.unit else ", in the unit of its maps"
        lines.append(f"- depths from {source.predictor.low:g} to {source.predictor.high:g}{unit}")
    if record["tuned"] is not None:
        lines.append(
            f"- the backbone has learned with the head ({record['tuned']['how']}); its weights are in this file"
        )
    if source.task != "classify":
        lines.append(
            "- one pass over the whole image; mirror images and windows, where dinomed uses them, are not in it"
        )
    values = {name: value for name, value in record["validation"].items() if isinstance(value, int | float)}
    shown = ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    return [*lines, f"- on its validation images: {shown or 'nothing measured'}"]


def _about_answer(predictor: ClassifyPredictor) -> list[str]:
    answer = predictor.answer
    kind = "a sigmoid for each label" if answer.multilabel else "one softmax over the classes"
    heat = "no temperature" if answer.temperature is None else f"temperature {answer.temperature:.4f}"
    lines = [f"- probabilities: {kind}, {heat} (applied already)"]
    if any(cut is not None for cut in answer.thresholds):
        cuts = zip(predictor.classes, answer.thresholds, strict=True)
        told = ", ".join(f"{name} {'none' if cut is None else f'{cut:.4f}'}" for name, cut in cuts)
        lines.append(f"- thresholds with the largest sensitivity + specificity on validation: {told}")
    if answer.unit == "group":
        lines.append(
            "- made for groups of images (" + ("their features averaged" if answer.pool == "mean" else
            f"the features of {answer.width} beside each other") + "); here each image is a group of one"
        )  # fmt: skip
    return lines


def _about_masks(predictor: SegmentPredictor) -> list[str]:
    schema = predictor.schema
    if schema.exclusive:
        return ["- every pixel has one class, the most probable one"]
    if len(schema.names) == 1:
        return []
    cuts = ", ".join(f"{name} {cut:.4f}" for name, cut in zip(schema.names, predictor.thresholds, strict=True))
    return [f"- classes may overlap; thresholds that were best on validation: {cuts}"]


def _checked(parity: dict[str, Any]) -> str:
    if parity.get("compared_with") is None:
        return f"Not checked: {parity.get('note', 'no reference')}."
    return (
        f"Before this folder was written, {parity['compared_with']} read it and gave what dinomed gives: largest "
        f"difference {parity['largest_difference']:.2g}, relative to the largest value"
        + (f" (allowed {parity['tolerance']:g})." if "tolerance" in parity else ".")
    )
