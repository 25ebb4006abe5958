"""Export to ONNX, compared with the original in ONNX Runtime."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.source import ExportSource
from dinomed.errors import DinomedError, UsageError, first_line, system_reason
from dinomed.io.files import to_json

MODEL_FILE = "model.onnx"
OPSET = 18  # the first opset with antialiased Resize
_MAX_BYTES = 1 << 31  # limit of a protobuf file; larger weights are stored in a second file


def write_onnx(source: ExportSource, folder: Path, *, dynamic_size: bool = False) -> dict[str, Any]:
    """Write `model.onnx`, whose input `pixels` is float32 (batch, channels, height, width), preprocessed.

    Args:
        dynamic_size: accept any height and width that the patch size divides, not only the image size of the backbone.

    Returns:
        The result of `compare`.

    Raises:
        UsageError: a package is missing.
        DinomedError: the model cannot be traced or written, or ONNX Runtime computes other values than dinomed.
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
        with torch.no_grad(), quiet():
            # Without this, torch.onnx tries three methods; the last one fixes batch and image size.
            traced = torch.export.export(graph, (example,), dynamic_shapes={"pixels": axes})
            program = torch.onnx.export(
                traced, (), dynamo=True, opset_version=OPSET, verbose=False, input_names=["pixels"],
                output_names=list(source.outputs),
            )  # fmt: skip
    except UsageError:  # raised by the head
        raise
    except Exception as error:  # the exporter and the head of a plug-in raise many classes
        raise _refused(source, error, dynamic_size) from None
    assert program is not None
    path = folder / MODEL_FILE
    large = sum(p.numel() * p.element_size() for p in graph.parameters()) > _MAX_BYTES * 0.9
    try:
        program.save(str(path), external_data=large)
        if not large:  # a model with external data would be loaded completely
            model = onnx.load(str(path))
            facts = {
                name: value if isinstance(value, str) else to_json(value) for name, value in source.describe().items()
            }
            onnx.helper.set_model_props(model, facts)
            onnx.save(model, str(path))
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {system_reason(error)}") from None
    return _compare(source, path, runtime, dynamic_size)


def _refused(source: ExportSource, error: Exception, dynamic_size: bool) -> DinomedError:
    """Return the error for a model that the exporter or ONNX Runtime does not support."""
    remedy = "leave `dynamic_size` out" if dynamic_size else "try `format=monai` or safetensors"
    size = "for any image size" if dynamic_size else f"at {source.preprocessing.image_size} px"
    return DinomedError(f"{source.title} cannot be written as ONNX {size}: {first_line(error, 200)}; {remedy}")


def _compare(source: ExportSource, path: Path, runtime: Any, dynamic_size: bool) -> dict[str, Any]:
    """Compare ONNX Runtime with the original: one image, several images, and other sizes if they are allowed."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions too
    side, patch = source.preprocessing.image_size, source.backbone.patch_size
    shapes = [(1, side, side), (3, side, side)]
    if dynamic_size:
        shapes += [(2, max(side // 2 // patch, 1) * patch, side), (1, side + patch, side + 3 * patch)]
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return compare(source, "ONNX Runtime", lambda pixels: session.run(None, {"pixels": pixels.numpy()}), shapes)
    except (DinomedError, UsageError):
        raise
    except Exception as error:  # ONNX Runtime has a class for each code, without a common base class
        raise _refused(source, error, dynamic_size) from None


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch needs it)
    except ImportError as error:
        raise UsageError(f"`format=onnx` needs the package {error.name}: pip install 'dinomed[export]'") from None
    return onnx, onnxruntime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, which writes to stdout, to warnings and to many loggers."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
