"""Backbones and adapters in the formats of other libraries, and their upload to the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomed.apps.api.inputs import FolderLike, HasFolder, PathLike, folder_path


def export(
    source: FolderLike,
    format: str,
    out: PathLike,
    *,
    dynamic_size: bool = False,
    weights: PathLike | None = None,
    backbone: PathLike | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    overwrite: bool = False,
    push: str | None = None,
    public: bool = False,
) -> dict[str, Any]:
    """Write a backbone, an adapter or an ensemble in the format of another library, and compare it with the original.

    The folder holds the model, a card (README.md), a NOTICE and export.json. Nothing is written if the other library
    gives different values. The command is ``dinomed export``.

    Args:
        source: folder of an adapter or ensemble, run folder, backbone folder, or the name of a backbone.
        format: onnx, safetensors, timm, transformers or monai.
        out: folder to write.
        dynamic_size: for onnx, accept images of any size.
        weights: file with the weights of a backbone that is given by name.
        backbone: for an adapter, path of its backbone, if that was moved.
        image_size: side of the square to which images are resized, px.
        mean: mean of each channel in 0 to 1, for the weights of a backbone whose files name none; the export names it.
        std: standard deviation of each channel.
        overwrite: replace an earlier export in `out`.
        push: ORG/NAME on the Hugging Face hub: create this repository, and upload the files of the export to it. The
            token is that of ``HF_TOKEN`` or of ``hf auth login``. None: nothing leaves the machine.
        public: with `push`, let everybody see the repository; by default it is private.

    Returns:
        The report of export.json, with ``output``, ``files`` and ``parity`` (the largest difference); with `push` also
        ``pushed``: the repository, its ``url``, ``private``, ``commit`` and the uploaded files.

    Raises:
        UsageError: the format does not fit, a package is not installed, or `out` is in use. With `push`: there is no
            token, it does not permit the upload, the repository exists, or `out` holds other files.
        DinomedError: the exported model gives other values than the original, or the hub cannot be reached.

    Example:
        >>> report = dinomed.export("runs/ssl", "safetensors", out="exported")
        >>> "model.safetensors" in report["files"]
        True
    """
    from dinomed.adapters.export.push import check_push, push_export
    from dinomed.adapters.export.run import check_format
    from dinomed.adapters.export.run import export as write_export
    from dinomed.adapters.export.source import load_source

    check_format(format)
    check_push(push, public)
    moved = None if backbone is None else str(backbone)
    path = str(folder_path(source)) if isinstance(source, HasFolder) else str(source)
    loaded = load_source(
        path, weights=None if weights is None else Path(weights), backbone=moved, image_size=image_size,
        mean=mean, std=std,
    )  # fmt: skip
    report = write_export(loaded, format, out, dynamic_size=dynamic_size, backbone=moved, overwrite=overwrite)
    pushed = {} if push is None else {"pushed": push_export(Path(out), report, push, public=public)}
    return {"output": str(out), **report, **pushed}
