"""Folders that stand alone: dinomed's own format with the backbone inside, and a bundle that MONAI runs."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from dinomed.adapters.bundle import HEADER, RECORD_FILE, WEIGHTS_FILE, read_record
from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.source import Source, load_source
from dinomed.adapters.reference import find_backbone
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import to_json, write_json
from dinomed.io.tensor_file import read_tensors, write_tensors
from dinomed.notice import RESEARCH_USE

BACKBONE_FOLDER = "backbone"
NETWORK_FILE = "model.ts"


def write_safetensors(source: Source, folder: Path, backbone: str | None = None) -> dict[str, Any]:
    """A backbone as `load_backbone` reads it; an adapter with its backbone in a folder inside, whole by itself.

    Raises:
        DinomedError: what is read back has another fingerprint, or predicts something else.
    """
    if source.folder is None:
        frozen, place = source.backbone, folder
    else:
        record = read_record(source.folder)
        size = record.preprocessing.image_size
        frozen, place = find_backbone(source.folder, record.backbone, size, backbone), folder / BACKBONE_FOLDER
    notes = {"name": frozen.name, **frozen.metadata}
    save_backbone(place, frozen.vit, frozen.preprocessing, notes)
    if source.folder is not None:
        inside = record.backbone.model_copy(update={"path": BACKBONE_FOLDER, "weights": None})
        data = record.model_copy(update={"backbone": inside}).model_dump(mode="json")
        write_tensors(folder / WEIGHTS_FILE, read_tensors(source.folder / WEIGHTS_FILE), {HEADER: to_json(data)})
        write_json(folder / RECORD_FILE, data)
    again = load_backbone(place)
    if again.fingerprint != frozen.fingerprint:
        raise DinomedError("what was written is read back as another backbone; nothing is kept")
    found = Source(again) if source.folder is None else load_source(str(folder))
    side = source.preprocessing.image_size
    parity = compare(source, "dinomed", found.reference, [(2, side, side)])
    return {**parity, "fingerprint": found.backbone.fingerprint}


def write_monai(source: Source, folder: Path) -> dict[str, Any]:
    """``python -m monai.bundle run --config_file configs/inference.json --bundle_root FOLDER --dataset_dir IMAGES``.

    The network is TorchScript with preprocessed pixels in, so that neither dinomed nor a class of its has to be there;
    what happens to an image before stands in the config.

    Raises:
        UsageError: channels that are neither gray nor RGB; 16 bits, a window or percentiles.
        DinomedError: the head cannot be traced, or the network as it is read back gives something else.
    """
    reading = source.preprocessing
    if reading.channels not in (1, 3):
        raise UsageError(
            f"--format monai: its configs read gray or RGB files, this backbone takes {reading.channels} channels; "
            "take onnx or safetensors"
        )
    if not reading.intensity.is_plain:
        raise UsageError(
            "--format monai: its configs read files of 8 bits by their full range, this backbone reads them by "
            f"{reading.intensity.model_dump(mode='json', exclude_none=True)}; take onnx or safetensors"
        )
    graph, side = source.graph(reading.image_size), reading.image_size
    example = torch.zeros(2, reading.channels, side, side)
    (folder / "models").mkdir(parents=True)
    path = folder / "models" / NETWORK_FILE
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        try:
            traced = torch.jit.trace(graph, example, check_trace=False)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["RuntimeError"])[0][:200]
            raise DinomedError(
                f"{source.title} cannot be written as TorchScript: {reason}; take onnx or safetensors"
            ) from None
        buffer = io.BytesIO()  # by itself torch ends the whole process where the disk is full
        torch.jit.save(traced, buffer)
        try:
            path.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise DinomedError(f"cannot write {path}: {error.strerror or error}") from None
        parity = compare(source, "TorchScript", torch.jit.load(str(path)), [(n, side, side) for n in (2, 1, 3)])
    write_json(folder / "configs" / "metadata.json", _metadata(source))
    write_json(folder / "configs" / "inference.json", _inference(source))
    return parity


def _inference(source: Source) -> dict[str, Any]:
    reading = source.preprocessing
    side, mode = reading.image_size, "RGB" if reading.channels == 3 else "L"
    resize = (
        f"$lambda x: torch.nn.functional.interpolate(x[None].float(), size=({side}, {side}), mode='bicubic', "
        "antialias=True)[0].clamp(0, 255).round()"
    )
    # Of a list comprehension only what stands in a function of its own sees MONAI's references.
    write, result = _writer(source)
    return {
        "imports": ["$import json", "$import pathlib", "$import torch", "$from PIL import Image"],
        "purpose": RESEARCH_USE,
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/output'",
        "suffixes": [".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"],
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "files": (
            "$(lambda folder, suffixes: [{'image': str(p)} for p in sorted(pathlib.Path(folder).rglob('*')) "
            "if p.suffix.lower() in suffixes])(@dataset_dir, @suffixes)"
        ),
        "network": f"$torch.jit.load(@bundle_root + '/models/{NETWORK_FILE}', map_location=@device).eval()",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "reverse_indexing": False,
                    "converter": f"$lambda image: image.convert('{mode}')",
                },
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Lambdad", "keys": "image", "func": resize, "track_meta": True},
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
                {
                    "_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": list(reading.mean),
                    "divisor": list(reading.std), "channel_wise": True,
                },
                {"_target_": "ToTensord", "keys": "image", "track_meta": False},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@files", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "write": write,
        "predictions": (
            "$(lambda files, loader, network, inferer, device, write, out: [write(one['image'], "
            "inferer(batch['image'].to(device), network), out) for one, batch in zip(files, loader)])"
            "(@files, @dataloader, @network, @inferer, @device, @write, @output_dir)"
        ),
        "run": [
            "$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)",
            f"$pathlib.Path(@output_dir, 'predictions.json').write_text(json.dumps({result}, indent=2))",
        ],
    }  # fmt: skip


def _writer(source: Source) -> tuple[str, str]:
    """What is done with one answer, and what the list of them is written as."""
    if source.task == "features":
        return (
            "$lambda image, found, out: {'image': image, 'cls': found[0][0].tolist()}",
            "{'purpose': @purpose, 'images': @predictions}",
        )
    if source.task == "classify":
        return (
            "$lambda image, found, out: {'image': image, 'probabilities': found[0].tolist()}",
            f"{{'purpose': @purpose, 'classes': {_names(source)!r}, 'images': @predictions}}",
        )
    size = "Image.open(image).size[::-1]"
    stretch = f"torch.nn.functional.interpolate(found.detach().cpu(), size={size}, mode='bilinear')[0]"
    if isinstance(source.predictor, SegmentPredictor):
        kept, suffix = _decision(source.predictor, stretch), ".png"
    else:
        kept, suffix = f"{stretch}[0].numpy().astype('float32')", ".tif"
    return (
        f"$lambda image, found, out: {{'image': image, 'file': (lambda name: (Image.fromarray({kept}).save(name), "
        f"name)[1])(str(pathlib.Path(out, pathlib.Path(image).name + '{suffix}')))}}",
        f"{{'purpose': @purpose, 'classes': {_names(source)!r}, 'images': @predictions}}",
    )


def _decision(predictor: SegmentPredictor, maps: str) -> str:
    """The words that make a picture of the probabilities `maps` (classes, height, width), as `dinomed predict` does: 0
    and 255 of one class, values of classes that exclude each other, sums of bits of others."""
    schema = predictor.schema
    if len(schema.names) == 1:
        return f"({maps}[0].numpy() >= {predictor.threshold!r}).astype('uint8') * 255"
    codes = [code if isinstance(code, int) else 2**i for i, code in enumerate(schema.codes)]
    kind = "uint8" if (max(codes) if schema.exclusive else sum(codes)) < 256 else "uint16"
    if schema.exclusive:
        return f"torch.tensor({codes})[{maps}.argmax(0)].numpy().astype('{kind}')"
    cuts = f"torch.tensor({list(predictor.thresholds)})[:, None, None]"
    return f"(({maps} >= {cuts}) * torch.tensor({codes})[:, None, None]).sum(0).numpy().astype('{kind}')"


def _names(source: Source) -> list[str]:
    return [] if source.predictor is None else list(source.predictor.classes)


def _metadata(source: Source) -> dict[str, Any]:
    import monai
    import numpy as np

    reading = source.preprocessing
    side = reading.image_size
    low = min((0 - mean) / std for mean, std in zip(reading.mean, reading.std, strict=True))
    high = max((1 - mean) / std for mean, std in zip(reading.mean, reading.std, strict=True))
    names = _names(source)
    answer: dict[str, Any] = {
        "features": {"type": "features", "format": "vector", "num_channels": source.backbone.embed_dim},
        "classify": {"type": "probabilities", "format": "classes", "num_channels": len(names), "value_range": [0, 1]},
        "segment": {
            "type": "probabilities", "format": "segmentation", "num_channels": len(names), "value_range": [0, 1],
            "spatial_shape": [side, side],
        },
        "depth": {"type": "image", "format": "depth", "num_channels": 1, "spatial_shape": [side, side]},
    }[source.task]  # fmt: skip
    answer |= {"dtype": "float32", "is_patch_data": False, "channel_def": {str(i): n for i, n in enumerate(names)}}
    colours = ("R", "G", "B") if reading.channels == 3 else ("luma",)
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by dinomed"},
        "monai_version": monai.__version__.split("+")[0],
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {},
        "name": f"dinomed {source.task}",
        "task": source.task,
        "description": f"A frozen {source.backbone.name} backbone{' with a light head' if source.predictor else ''}.",
        "authors": "",
        "copyright": "",
        "intended_use": RESEARCH_USE,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": mode_name(reading.channels), "num_channels": reading.channels,
                    "spatial_shape": [side, side], "dtype": "float32", "value_range": [low, high],
                    "is_patch_data": False, "channel_def": {str(i): name for i, name in enumerate(colours)},
                }
            },
            "outputs": {"pred": answer},
        },
    }  # fmt: skip


def mode_name(channels: int) -> str:
    """What MONAI's metadata calls the colours."""
    return "RGB" if channels == 3 else "grayscale"
