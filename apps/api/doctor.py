"""Description of this machine, and examination of an artefact: a manifest, a run, an adapter, an index, a cache."""

import os
import platform
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch

from dinomed.apps.api.inputs import FolderLike, folder_path
from dinomed.apps.examine.machine import MachineCheck, check_machine
from dinomed.backbones.hub import cache_folder
from dinomed.device import resolve_device
from dinomed.errors import UsageError
from dinomed.layers.packed_attention import choose_kernel
from dinomed.notice import RESEARCH_USE
from dinomed.packages import installed_version

if TYPE_CHECKING:
    from dinomed.apps.examine.report import ArtefactReport

PACKAGES = (
    "dinomed", "torch", "torchvision", "xformers", "monai", "segmentation-models-pytorch", "albumentations",
    "faiss-cpu", "gradio", "typer", "pydantic", "pyarrow", "scikit-learn", "safetensors", "numpy", "pillow",
)  # fmt: skip


@dataclass(frozen=True)
class DeviceReport:
    """An accelerator: its name for the argument `device`, and a description."""

    name: str
    about: str


@dataclass(frozen=True)
class CacheReport:
    """The folder of downloaded weights."""

    folder: str
    writable: bool


@dataclass(frozen=True)
class DoctorReport:
    """A machine as dinomed sees it.

    Attributes:
        python, system: versions.
        packages: package -> its version, None if it is not installed.
        processors: number of processors; None if unknown.
        threads: threads that torch uses.
        devices: accelerators that torch can use.
        auto: the device of ``device="auto"``.
        attention: implementation of attention in pretraining on CUDA.
        cache: folder of downloaded weights.
        checks: codecs, GPU, memory, disk and extras: ok, low or missing, and what mends it.
        chromium: path of Chromium, which only the browser tests need; None if it is not installed.
        note: notice of research use.
    """

    python: str
    system: str
    packages: dict[str, str | None]
    processors: int | None
    threads: int
    devices: list[DeviceReport]
    auto: str
    attention: str
    cache: CacheReport
    checks: list[MachineCheck]
    chromium: str | None
    note: str = RESEARCH_USE


@overload
def doctor(path: None = None) -> DoctorReport: ...


@overload
def doctor(path: FolderLike) -> "ArtefactReport": ...


def doctor(path: FolderLike | None = None) -> "DoctorReport | ArtefactReport":
    """Return versions, devices, cache and gaps of this machine, or examine an artefact.

    An artefact is a manifest, a curated manifest, a run folder, a backbone of dinomed, an adapter, an index, a feature
    cache, a feature table, or the output of ``predict``, ``evaluate``, ``probe``, ``search`` or ``export``. Every
    stored checksum of images, weights, vectors and cached features is verified, also that of the backbone of an adapter
    or an index. Masks and the files of an evaluation or an export have no checksums. Nothing is changed.

    The command is ``dinomed doctor``; with an artefact its exit code is 1 if a part is missing, damaged, changed or
    incomplete.

    Args:
        path: the artefact; None for the machine.

    Returns:
        The report. ``dataclasses.asdict`` of it is what ``dinomed doctor --json`` prints. Of an artefact, ``sound``
        says whether every part is good, and ``parts`` holds what is wrong and what to do.

    Raises:
        UsageError: `path` does not exist, or is none of these artefacts.

    Example:
        >>> report = dinomed.doctor()
        >>> report.packages["dinomed"] == dinomed.__version__, report.processors > 0
        (True, True)
        >>> manifest = dinomed.doctor("lesions.parquet")
        >>> manifest.kind, manifest.sound
        ('manifest', True)
    """
    if path is not None:
        from dinomed.apps.examine.artefact import examine

        return examine(folder_path(path))
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return DoctorReport(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: installed_version(name) for name in PACKAGES},
        processors=os.cpu_count(),
        threads=torch.get_num_threads(),
        devices=_devices(),
        auto=str(resolve_device("auto")),
        attention=_attention(),
        cache=CacheReport(str(folder), os.access(existing, os.W_OK)),
        checks=check_machine(existing),
        chromium=shutil.which("chromium") or shutil.which("chromium-browser"),
    )


def _devices() -> list[DeviceReport]:
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        memory = f"{about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
        devices.append(DeviceReport(f"cuda:{index}", f"{about.name}, {memory}"))
    if torch.backends.mps.is_available():
        devices.append(DeviceReport("mps", "Apple GPU"))
    return devices


def _attention() -> str:
    """Return the back-end of packed sequences, from the same trial as in pretraining."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return f"{choose_kernel(torch.bfloat16, 64, device)} ({device}, bfloat16)"
    except UsageError as error:
        return str(error)
