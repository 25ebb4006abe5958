"""Export to a MONAI bundle: a TorchScript network with the preprocessing and post-processing `monai.bundle` runs."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dinomed.adapters.export.onnx_file import quiet
from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.source import ExportSource
from dinomed.adapters.inference.dense import DensePredictor
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.monai_maps import monai_literal
from dinomed.errors import DinomedError, UsageError, first_line, system_reason
from dinomed.io.files import write_json
from dinomed.notice import RESEARCH_USE

NETWORK_FILE = "model.ts"


def write_monai(source: ExportSource, folder: Path) -> dict[str, Any]:
    """Write a bundle for ``python -m monai.bundle run``, with the network, its preprocessing and its post-processing.

    The network is TorchScript and takes preprocessed pixels, so it runs without dinomed. The preprocessing and the
    post-processing (resizing to the image, activation, threshold or argmax, file) are in ``configs/inference.json``,
    under the names that MONAI reserves for them.

    Returns:
        The result of `compare`.

    Raises:
        UsageError: channels that are neither gray nor RGB; 16 bits, a window or percentiles.
        DinomedError: the head cannot be traced, or the network, when read again, computes other values.
    """
    reading = source.preprocessing
    if reading.channels not in (1, 3):
        raise UsageError(
            f"`format=monai`: its configs read gray or RGB files, this backbone takes {reading.channels} channels; "
            "use onnx or safetensors"
        )
    if not reading.intensity.is_plain:
        raise UsageError(
            "`format=monai`: its configs read 8-bit files by their full range, this backbone reads them by "
            f"{reading.intensity.model_dump(mode='json', exclude_none=True)}; use onnx or safetensors"
        )
    source = replace(source, logits=isinstance(source.predictor, DensePredictor))
    graph, side = source.graph(reading.image_size), reading.image_size
    example = torch.zeros(2, reading.channels, side, side)
    (folder / "models").mkdir(parents=True)
    path = folder / "models" / NETWORK_FILE
    with torch.no_grad(), quiet():
        try:
            traced = torch.jit.trace(graph, example, check_trace=False)
        except DinomedError:
            raise
        except Exception as error:  # the head of a plug-in and models of other libraries raise many classes
            raise DinomedError(
                f"{source.title} cannot be written as TorchScript: {first_line(error, 200)}; use onnx or safetensors"
            ) from None
        buffer = io.BytesIO()  # torch would end the process on a full disk
        torch.jit.save(traced, buffer)
        try:
            path.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise DinomedError(f"cannot write {path}: {system_reason(error)}") from None
        parity = compare(source, "TorchScript", torch.jit.load(str(path)), [(n, side, side) for n in (2, 1, 3)])
    write_json(folder / "configs" / "metadata.json", _metadata(source))
    write_json(folder / "configs" / "inference.json", _inference(source))
    return parity


def _inference(source: ExportSource) -> dict[str, Any]:
    reading = source.preprocessing
    side, mode = reading.image_size, "RGB" if reading.channels == 3 else "L"
    # As dinomed: upright, transparent pixels on black, resized with 8 bits. MONAI's order of axes is width, height.
    convert = (
        "$lambda image: (lambda upright: Image.alpha_composite(Image.new('RGBA', upright.size, 'black'), "
        "upright.convert('RGBA')) if upright.has_transparency_data else upright)(ImageOps.exif_transpose(image))"
        f".convert('{mode}')"
    )
    resize = (
        f"$lambda x: torch.nn.functional.interpolate(x[None].transpose(-1, -2).byte(), size=({side}, {side}), "
        f"mode='{reading.interpolation}', antialias=True)[0].float()"
    )
    transforms, row = _postprocessing(source)
    names = {} if source.predictor is None else {"classes": list(source.predictor.classes)}
    return {
        "imports": [
            "$import json", "$import pathlib", "$import numpy as np", "$import torch",
            "$from PIL import Image", "$from PIL import ImageOps", "$from monai.data import MetaTensor",
        ],
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
                {"_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "converter": convert},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Lambdad", "keys": "image", "func": resize, "track_meta": True},
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
                {
                    "_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": list(reading.mean),
                    "divisor": list(reading.std), "channel_wise": True,
                },
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@files", "transform": "@preprocessing"},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": transforms},
        # In a list comprehension only the arguments of a function can refer to entries of the config.
        "predictions": (
            f"$(lambda files, dataset, network, inferer, device, finish: [(lambda image, done: {row})(file['image'], "
            "finish({**item, 'pred': inferer(item['image'].as_tensor()[None].to(device), network)[0].detach().cpu()})) "
            "for file, item in zip(files, dataset)])(@files, @dataset, @network, @inferer, @device, @postprocessing)"
        ),
        "run": [
            "$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)",
            "$pathlib.Path(@output_dir, 'predictions.json').write_text(json.dumps({'purpose': @purpose, "
            f"**{monai_literal(names)}, 'images': @predictions}}, indent=2))",
        ],
    }  # fmt: skip


def _postprocessing(source: ExportSource) -> tuple[list[dict[str, Any]], str]:
    """Return the transforms of an output, and the expression of its entry in ``predictions.json``."""
    if source.predictor is None:
        return [], "{'image': image, 'cls': done['pred'][0].tolist()}"
    return find_task(source.task).monai_postprocessing(source.predictor)


def _names(source: ExportSource) -> list[str]:
    return [] if source.predictor is None else list(source.predictor.classes)


def _metadata(source: ExportSource) -> dict[str, Any]:
    import monai
    import numpy as np

    reading = source.preprocessing
    side = reading.image_size
    low = min((0 - mean) / std for mean, std in zip(reading.mean, reading.std, strict=True))
    high = max((1 - mean) / std for mean, std in zip(reading.mean, reading.std, strict=True))
    names = _names(source)
    if source.predictor is None:
        output: dict[str, Any] = {
            "type": "features", "format": "vector", "num_channels": source.backbone.embed_dim
        }  # fmt: skip
    else:
        output = find_task(source.task).monai_output(source.predictor)
    channels = {"channel_def": {str(i): name for i, name in enumerate(names)}}
    output = channels | output
    # with a space before it, MONAI does not take a name that begins with % as a reference
    shown = {key: f" {name}" if name.startswith("%") else name for key, name in output["channel_def"].items()}
    output |= {"channel_def": shown, "dtype": "float32", "is_patch_data": False}
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
            "outputs": {"pred": output},
        },
    }  # fmt: skip


def mode_name(channels: int) -> str:
    """Return the name of the colour mode in the metadata of MONAI."""
    return "RGB" if channels == 3 else "grayscale"
