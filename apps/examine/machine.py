"""Examination of this machine: codecs, GPU, memory, disk and optional packages, and what mends each gap."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dinomed.packages import installed_version

# extra -> its packages, and what needs it; a test compares it with pyproject.toml
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "coco": (("pycocotools",), "annotation files in the COCO format"),
    "dicom": (
        ("pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm", "highdicom"),
        "compressed DICOM, and DICOM segmentations",
    ),
    "volumes": (("nibabel",), "NIfTI files"),
    "transformers": (("transformers",), "backbones in the format of transformers: CLIP, SigLIP, BEiT"),
    "lora": (("peft",), "continued pretraining with LoRA"),
    "faces": (("scikit-image",), "curate: detection of faces"),
    "ray": (("ray",), "curate on many machines"),
    "umap": (("umap-learn",), "show map --method umap"),
    "export": (("onnx", "onnxruntime", "onnxscript"), "export --format onnx"),
    "mlflow": (("mlflow-skinny", "sqlalchemy", "alembic"), "the logger mlflow"),
    "wandb": (("wandb",), "the logger wandb"),
}
CODECS = {
    "JPEG": "1.2.840.10008.1.2.4.50",
    "lossless JPEG": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "HTJ2K": "1.2.840.10008.1.2.4.201",
    "RLE": "1.2.840.10008.1.2.5",
}
"""Compression of DICOM pixels -> a transfer syntax of it."""
LOW_MEMORY, LOW_DISK = 4 * 2**30, 10 * 2**30
"""Bytes below which memory and disk are low: training of a small head, and weights with a cache of features, fit."""
_CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MachineCheck:
    """One ability of the machine.

    Attributes:
        name: what was checked.
        state: ok, low or missing. Nothing of it is needed by all commands.
        about: what is there, or what needs it.
        remedy: what mends it; empty if it is ok.
    """

    name: str
    state: Literal["ok", "low", "missing"]
    about: str
    remedy: str = ""


def check_machine(cache: Path) -> list[MachineCheck]:
    """Check codecs, GPU, memory, disk and extras.

    Args:
        cache: folder of downloaded weights, or the nearest folder above it that exists.
    """
    return [
        _check_codecs(),
        _check_gpu(),
        _check_memory(_free_memory()),
        _check_disk("disk of the cache", cache, "set DINOMED_CACHE to a folder on a larger disk, or remove files"),
        *_check_current_folder(),
        *_check_extras(),
    ]


def _check_codecs() -> MachineCheck:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    from dinomed.images.dicom.codecs import INSTALL

    missing = [name for name, syntax in CODECS.items() if not get_decoder(UID(syntax)).is_available]
    if missing:
        return MachineCheck("DICOM codecs", "missing", f"not readable: {', '.join(missing)}", INSTALL)
    return MachineCheck("DICOM codecs", "ok", ", ".join(CODECS))


def _check_gpu() -> MachineCheck:
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if device is not None:
        try:
            torch.ones(8, device=device).sum().item()
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            return MachineCheck("GPU", "missing", f"torch {torch.__version__} cannot compute on it: {reason}", _TORCH)
        return MachineCheck("GPU", "ok", f"torch {torch.__version__} computes on {device}")
    if shutil.which("nvidia-smi"):
        return MachineCheck("GPU", "missing", f"torch {torch.__version__} cannot use the NVIDIA GPU", _TORCH)
    return MachineCheck("GPU", "missing", "none; all commands run on the CPU", "use a machine with a GPU to pretrain")


_TORCH = "install the build of torch for the driver of this machine (nvidia-smi shows its CUDA version)"


def _free_memory() -> int | None:
    """Return the memory that a process can use, bytes; None where the system does not tell."""
    return min((free for free in (_free_in_system(), _free_in_container()) if free is not None), default=None)


def _free_in_system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_container() -> int | None:
    """Return what the limit of the control group (version 2) leaves, bytes; None without a limit."""
    try:
        limit, used = (int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(kinds["inactive_file"]))  # cached files are dropped when memory is needed
    except (OSError, ValueError, KeyError):  # the limit is "max", or there is no control group
        return None


def _check_memory(free: int | None) -> MachineCheck:
    if free is None:
        return MachineCheck("free memory", "ok", "unknown on this system")
    if free < LOW_MEMORY:
        remedy = "end other programs, or use smaller batches and images"
        return MachineCheck("free memory", "low", f"{free / 2**30:.1f} GiB", remedy)
    return MachineCheck("free memory", "ok", f"{free / 2**30:.1f} GiB")


def _check_disk(name: str, folder: Path, remedy: str) -> MachineCheck:
    free = shutil.disk_usage(folder).free
    about = f"{free / 2**30:.1f} GiB free in {folder}"
    return MachineCheck(name, "low", about, remedy) if free < LOW_DISK else MachineCheck(name, "ok", about)


def _check_current_folder() -> Iterator[MachineCheck]:
    with contextlib.suppress(OSError):  # it was removed
        yield _check_disk("disk of the current folder", Path.cwd(), "remove files, or work on a larger disk")


def _check_extras() -> Iterator[MachineCheck]:
    for extra, (packages, purpose) in EXTRAS.items():
        missing = [package for package in packages if installed_version(package) is None]
        if missing:
            about = f"{purpose}; not installed: {', '.join(missing)}"
            yield MachineCheck(f"extra {extra}", "missing", about, f"pip install 'dinomed[{extra}]'")
        else:
            yield MachineCheck(f"extra {extra}", "ok", purpose)
