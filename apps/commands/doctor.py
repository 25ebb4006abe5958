"""`dinomed doctor`: versions, devices and cache of this machine, for example for a problem report."""

from typing import Any

from dinomed.apps.options import Json

PACKAGES = (
    "dinomed", "torch", "torchvision", "xformers", "monai", "segmentation-models-pytorch", "albumentations",
    "faiss-cpu", "gradio", "typer", "pydantic", "pyarrow", "scikit-learn", "safetensors", "numpy", "pillow",
)  # fmt: skip


def doctor(as_json: Json = False) -> None:
    """Show versions, devices and the cache of this machine."""
    from dinomed.apps.output import build_table, emit

    report = examine()
    chromium = report["chromium"] or "not found: apt-get install chromium fonts-dejavu-core"
    writable = "writable" if report["cache"]["writable"] else "not writable"
    rows = [("python", report["python"]), ("system", report["system"])]
    rows += [(name, number or "not installed") for name, number in report["packages"].items()]
    rows += [("processors", f"{report['processors']}, of which torch uses {report['threads']}")]
    rows += [(device["name"], device["about"]) for device in report["devices"]]
    rows += [
        ("used by --device auto", report["auto"]),
        ("attention on CUDA", report["attention"]),
        ("cache of weights", f"{report['cache']['folder']} ({writable})"),
        ("Chromium (browser tests only)", chromium),
    ]
    emit(report, as_json, None if as_json else build_table(("", ""), rows))


def examine() -> dict[str, Any]:
    """Return the report that `dinomed doctor --json` prints."""
    import os
    import platform
    import shutil

    import torch

    from dinomed.backbones.hub import cache_folder
    from dinomed.device import resolve_device
    from dinomed.notice import RESEARCH_USE
    from dinomed.packages import installed_version

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: installed_version(name) for name in PACKAGES},
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "auto": str(resolve_device("auto")),
        "attention": _attention(),
        "cache": {"folder": str(folder), "writable": os.access(existing, os.W_OK)},
        "chromium": shutil.which("chromium") or shutil.which("chromium-browser"),
        "note": RESEARCH_USE,
    }


def _devices() -> list[dict[str, str]]:
    """Return each accelerator that torch can use, by its name for ``--device``."""
    import torch

    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        memory = f"{about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
        devices.append({"name": f"cuda:{index}", "about": f"{about.name}, {memory}"})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "about": "Apple GPU"})
    return devices


def _attention() -> str:
    """Return the back-end of packed sequences, from the same trial as in pretraining."""
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device; the CPU uses torch's own"
    from dinomed.layers.attention import xformers_works

    return "xformers" if xformers_works(torch.bfloat16, 64) else "torch's own (xformers does not run here)"
