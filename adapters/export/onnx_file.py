"""ONNX: one file, for any batch, checked with ONNX Runtime before it counts as written."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.source import Source
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import to_json

MODEL_FILE = "model.onnx"
OPSET = 18  # the first in which Resize is antialiased
_LARGEST = 1 << 31  # bytes that a file of protobuf can hold; larger weights lie beside it


def write_onnx(source: Source, folder: Path, *, dynamic_size: bool = False) -> dict[str, Any]:
    """Write `model.onnx`: `pixels` float32 (batch, channels, height, width), preprocessed, in.

    Args:
        dynamic_size: for any height and width that the patch divides, not for the backbone's own square alone.

    Returns:
        What was compared, and the largest difference found.

    Raises:
        UsageError: the packages are not installed.
        DinomedError: the model cannot be traced or written, or ONNX Runtime gives something else than dinomed.
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
            # By itself torch.onnx would try three ways, of which the last keeps the batch and size that it saw.
            traced = torch.export.export(graph, (example,), dynamic_shapes={"pixels": axes})
            program = torch.onnx.export(
                traced, (), dynamo=True, opset_version=OPSET, verbose=False, input_names=["pixels"],
                output_names=list(source.outputs),
            )  # fmt: skip
    except UsageError:  # of the head itself, in its own words
        raise
    except Exception as error:  # the exporter raises its own kinds, and whatever a plug-in's head raises
        raise _refused(source, error, dynamic_size) from None
    assert program is not None
    path = folder / MODEL_FILE
    large = sum(p.numel() * p.element_size() for p in graph.parameters()) > _LARGEST * 0.9
    try:
        program.save(str(path), external_data=large)
        if not large:  # beside external data it would have to be loaded whole
            model = onnx.load(str(path))
            facts = {
                name: value if isinstance(value, str) else to_json(value) for name, value in source.describe().items()
            }
            onnx.helper.set_model_props(model, facts)
            onnx.save(model, str(path))
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {error.strerror or error}") from None
    return _compare(source, path, runtime, dynamic_size)


def _refused(source: Source, error: Exception, dynamic_size: bool) -> DinomedError:
    """What is said of a model that the exporter or ONNX Runtime cannot take."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    remedy = "leave --dynamic-size out" if dynamic_size else "--format monai or safetensors may hold it"
    size = "for any image size" if dynamic_size else f"at {source.preprocessing.image_size} px"
    return DinomedError(f"{source.title} cannot be written as ONNX {size}: {reason}; {remedy}")


def _compare(source: Source, path: Path, runtime: Any, dynamic_size: bool) -> dict[str, Any]:
    """ONNX Runtime against the original: one image, several, and other sizes where these are allowed."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what it says of errors on stderr comes again as an exception
    side, patch = source.preprocessing.image_size, source.backbone.patch_size
    shapes = [(1, side, side), (3, side, side)]
    if dynamic_size:
        shapes += [(2, max(side // 2 // patch, 1) * patch, side), (1, side + patch, side + 3 * patch)]
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return compare(source, "ONNX Runtime", lambda pixels: session.run(None, {"pixels": pixels.numpy()}), shapes)
    except (DinomedError, UsageError):
        raise
    except Exception as error:  # ONNX Runtime has a class for each code, with no common one but this
        raise _refused(source, error, dynamic_size) from None


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
    """The exporter tells its own story on stdout, by warnings and in many logs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
