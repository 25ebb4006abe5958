"""Model card and licence notice of an exported folder."""

from typing import Any

from dinomed.adapters.export.source import ExportSource
from dinomed.adapters.task import find_task
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import MAX_RATIO
from dinomed.backbones.variants import VARIANTS, Release
from dinomed.backbones.vit import VisionTransformer
from dinomed.notice import RESEARCH_USE

_LIBRARY = {
    "onnx": "onnx", "safetensors": "dinomed", "timm": "timm", "transformers": "transformers", "monai": "monai",
}  # fmt: skip
_USE = {
    "onnx": """```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
outputs = session.run(None, {"pixels": pixels})  # float32 (batch, channels, height, width), preprocessed as below
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
It needs MONAI with its command line (`pip install 'monai[fire]'`), PyTorch and Pillow. Images are read by Pillow: 16
bits are not supported. `output/predictions.json` lists the results; masks and maps are beside it.""",
}


def released(source: ExportSource) -> Release | None:
    """Return the release of the weights, as far as name and origin of the backbone show it."""
    if source.backbone.name not in VARIANTS or source.backbone.source is not None:
        return None
    return VARIANTS[source.backbone.name].release


def notice(source: ExportSource) -> str:
    """Return the text of the file NOTICE."""
    release = released(source)
    weights = (
        f"The weights of the backbone are those released by {release.source} ({release.url}), {release.licence}."
        if release is not None
        else "The weights of the backbone were imported into dinomed or trained with it; the publisher of this folder "
        "must state their licence. The terms of the training images and of initial weights may apply."
    )
    head = "" if source.predictor is None else (
        "\nThe head was trained on images and labels whose terms may limit its use.\n"
    )  # fmt: skip
    return f"Exported by dinomed (Apache-2.0).\n\n{weights}\n{head}\n{RESEARCH_USE.capitalize()}.\n"


def card(source: ExportSource, kind: str, parity: dict[str, Any]) -> str:
    """Return the text of README.md, with metadata for model hubs. It names no image, group or path."""
    release, reading, backbone = released(source), source.preprocessing, source.backbone
    licence = release.licence.lower() if release is not None and source.predictor is None else "other"
    pipeline = "image-feature-extraction" if source.predictor is None else find_task(source.task).pipeline_tag
    family = "dinov2, " if isinstance(backbone.model, VisionTransformer) else ""
    head = [
        "---",
        f"license: {licence}",
        f"library_name: {_LIBRARY[kind]}",
        f"tags: [dinomed, {family}medical-imaging]",
    ]
    head += [f"pipeline_tag: {pipeline}", "---"]
    what = (
        f"A frozen {source.backbone.name} backbone" if source.predictor is None
        else f"An ensemble of {len(source.members)} {source.task} adapters ({source.heads}) on {source.backbone.name}"
        if source.members
        else f"A {source.task} adapter ({source.heads}) on the frozen backbone {source.backbone.name}"
    )  # fmt: skip
    lines = [*head, f"# {what}", "", f"**{RESEARCH_USE.capitalize()}.** Exported by dinomed as {kind}.", "", "## Use"]
    lines += [_own_use(source) if kind == "safetensors" else _USE[kind], "", "## Input"]
    side, how = reading.image_size, f"({reading.interpolation}, antialiased)"
    lines += [
        f"- {reading.channels} channels, 0 to 1, "
        + (
            f"the whole image resized to {side} x {side} px {how}"
            if reading.aspect == "square"
            else f"the whole image resized so that its shorter side has {side} px {how}, but its longer side at most "
            f"{MAX_RATIO * side} px, both rounded to multiples of {backbone.patch_size} px"
            if reading.aspect == "keep"
            else f"the whole image resized so that its longer side has {side} px {how}, in the centre of a square of "
            f"{side} x {side} px of the mean colour; output maps are of this square"
        ),
        f"- range of samples in files: {_samples(source)}",
        f"- normalised per channel: mean {list(reading.mean)}, standard deviation {list(reading.std)}",
        "",
        "## Model",
        f"- ViT: {backbone.depth} blocks, {backbone.embed_dim} channels, patch {backbone.patch_size}, "
        f"{_kind(backbone)}",
        f"- fingerprint of backbone and preprocessing: `{source.backbone.fingerprint}`",
    ]
    if source.predictor is not None:
        lines += _about_head(source)
    if kind in ("timm", "transformers"):
        lines += [
            f"- the position embedding is for {reading.image_size} px; at other sizes this library resizes it by its "
            "own rule, and features differ slightly from those of dinomed"
        ]
    lines += ["", "## Comparison", _checked(parity), "", "## Licence", "See NOTICE.", ""]
    return "\n".join(lines)


def _kind(backbone: FrozenBackbone) -> str:
    if not isinstance(backbone.model, VisionTransformer):
        return backbone.model.family
    return f"{backbone.vit.config.num_registers} registers, {backbone.vit.config.feed_forward}"


def _samples(source: ExportSource) -> str:
    """Return the rule by which samples of a file become 0 to 1."""
    intensity = source.preprocessing.intensity
    depth = f"{intensity.bits or 8} bits"
    if intensity.window is not None:
        return f"{depth}; {intensity.window[0]:g} becomes 0 and {intensity.window[1]:g} becomes 1"
    if intensity.percentiles is not None:
        return f"{depth}; of each image and channel, percentile {intensity.percentiles[0]:g} becomes 0, percentile " \
            f"{intensity.percentiles[1]:g} becomes 1"  # fmt: skip
    return f"{depth}, the full range of the bit depth of the file"


def _own_use(source: ExportSource) -> str:
    if source.predictor is None:
        return (
            '```python\nfrom dinomed.backbones.load import load_backbone\nbackbone = load_backbone("THIS_FOLDER")\n```'
        )
    return (
        "```python\nfrom dinomed.adapters.inference.loader import load_adapter\n"
        'adapter = load_adapter("THIS_FOLDER")\n```\n'
        "or `dinomed predict THIS_FOLDER IMAGES -o OUT`."
    )


def _about_head(source: ExportSource) -> list[str]:
    assert source.predictor is not None
    record = source.predictor.metadata
    lines = [f"- classes, in the order of the output: {', '.join(record['classes'])}"]
    several = bool(source.members)
    if several:
        lines.append(
            f"- each output is the mean of those of {len(source.members)} adapters, which cross-validation trained; "
            "`export.json` describes each of them"
        )
    if record["threshold"] is not None:
        origin = "mean of the thresholds of the members" if several else "threshold"
        lines.append(f"- {origin}: {record['threshold']:.4f}")
    lines += find_task(source.task).export_lines(source.predictor)
    if record["tuned"] is not None:
        whose = "each member has its own tuned backbone" if several else "the backbone was tuned with the head"
        lines.append(f"- {whose} ({record['tuned']['how']}); the tuned weights are in this file")
    if source.predictor.export_note:
        lines.append(f"- {source.predictor.export_note}")
    values = {name: value for name, value in record["validation"].items() if isinstance(value, int | float)}
    shown = ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    images = (
        "out of fold, each image by the member that was not trained on it" if several else "on its validation images"
    )
    images += ", before it was trained again on them too" if record.get("training", {}).get("refitted_on") else ""
    return [*lines, f"- {images}: {shown or 'nothing measured'}"]


def _checked(parity: dict[str, Any]) -> str:
    if parity.get("compared_with") is None:
        return f"Not compared: {parity.get('note', 'no reference')}."
    return (
        f"{parity['compared_with']} read this folder and computed the same values as dinomed: largest "
        f"difference {parity['largest_difference']:.2g}, relative to the largest value"
        + (f" (allowed {parity['tolerance']:g})." if "tolerance" in parity else ".")
    )
