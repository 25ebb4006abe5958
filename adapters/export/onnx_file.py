"""ONNX: one file, for any batch, checked with ONNX Runtime before it counts as written."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.export.source import Source
from dinomed.errors import DinomedError, UsageError
from dinomed.files import to_json

MODEL_FILE = "model.onnx"
OPSET = 18  # the first in which Resize is antialiased
TOLERANCE = 1e-4
"""Largest difference to the original, relative to the largest value (at least 1). Float32 sums in another order differ
by about 1e-6; what fails this is another computation."""
_LARGEST = 1 << 31  # bytes that a file of protobuf can hold; larger weights lie beside it


def write_onnx(source: Source, folder: Path, *, dynamic_size: bool = False) -> dict[str, Any]:
    """Write `model.onnx`: `pixels` float32 (batch, channels, height, width), preprocessed, in.

    Args:
        dynamic_size: for any height and width that the patch divides, not for the backbone's own square alone.

    Returns:
        What was compared, and the largest difference found.

    Raises:
        UsageError: the packages are not installed, or the head cannot be traced for any size.
        DinomedError: ONNX Runtime gives something else than the original.
    """
    onnx, runtime = _packages()
    reading, patch = source.preprocessing, source.backbone.patch_size
    size = None if dynamic_size else reading.image_size
    graph = source.graph(size)
    side = reading.image_size
    example = torch.randn(2, reading.channels, side, side + (patch if dynamic_size else 0))
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=65536)}
    if dynamic_size:
        axes |= {2: patch * torch.export.Dim("rows", min=1, max=1024)}
        axes |= {3: patch * torch.export.Dim("columns", min=1, max=1024)}
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph, (example,), dynamo=True, opset_version=OPSET, verbose=False, input_names=["pixels"],
                output_names=list(source.outputs), dynamic_shapes={"pixels": axes},
            )  # fmt: skip
    except Exception as error:  # the exporter raises its own kinds, and whatever a plug-in's head raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        remedy = "; try without --dynamic-size" if dynamic_size else ""
        raise UsageError(f"this {source.task} model cannot be written as ONNX: {reason}{remedy}") from None
    assert program is not None
    path = folder / MODEL_FILE
    large = sum(p.numel() * p.element_size() for p in graph.parameters()) > _LARGEST * 0.9
    program.save(str(path), external_data=large)
    if not large:  # beside external data it would have to be loaded whole
        model = onnx.load(str(path))
        facts = {name: value if isinstance(value, str) else to_json(value) for name, value in source.describe().items()}
        onnx.helper.set_model_props(model, facts)
        onnx.save(model, str(path))
    return _compare(source, path, runtime, dynamic_size)


def _compare(source: Source, path: Path, runtime: Any, dynamic_size: bool) -> dict[str, Any]:
    """ONNX Runtime against the original on random images: one, several, and of other sizes where these are allowed."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    reading, patch = source.preprocessing, source.backbone.patch_size
    side, generator = reading.image_size, torch.Generator().manual_seed(0)
    shapes = [(1, side, side), (3, side, side)]
    if dynamic_size:
        shapes += [(2, max(side // 2 // patch, 1) * patch, side), (1, side + patch, side + 3 * patch)]
    worst = 0.0
    for count, height, width in shapes:
        pixels = torch.randn(count, reading.channels, height, width, generator=generator)
        found = [torch.from_numpy(one) for one in session.run(None, {"pixels": pixels.numpy()})]
        worst = max(worst, difference(found, source.reference(pixels)))
    if not worst <= TOLERANCE:
        raise DinomedError(
            f"ONNX Runtime gives other values than dinomed: they differ by {worst:.2g} (allowed: {TOLERANCE:g}); "
            "nothing is written"
        )
    return {"compared_with": "ONNX Runtime", "batches": shapes, "largest_difference": worst, "tolerance": TOLERANCE}


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of any output, relative to its largest value (at least 1); nan of other shapes or nan."""
    if [one.shape for one in found] != [one.shape for one in expected]:
        return float("nan")
    parts = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in parts)


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch needs it)
    except ImportError as error:
        raise UsageError(f"--format onnx needs the package {error.name}: pip install 'dinomed[export]'") from None
    return onnx, onnxruntime


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its own story on stdout, by warnings and in the log."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
