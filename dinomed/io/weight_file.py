"""Reading of files of weights (safetensors, .pth, .bin) without running code from them.

A .pth file is a pickle. torch reads it with ``weights_only=True``: its unpickler knows tensors, containers and numbers,
and refuses every other global before it is looked up. Files of training scripts also hold the arguments of the script.
Their classes are listed in `REPLACED`: each of them becomes `Omitted`, a class of dinomed that keeps nothing. So no
listed class and no function of NumPy is called with values of the file.
"""

import errno
import pickle
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dinomed.errors import DinomedError, system_reason

AGAIN = "copy or download it again"

REPLACED = (
    "argparse.Namespace",
    # a path among the arguments; Python 3.13 has another module
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    # a metric or a learning rate that is a number or an array of NumPy; NumPy 2 has another module
    "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
)  # fmt: skip
"""Names in a pickle for which `Omitted` is built; all other names that torch does not know are refused."""


class Omitted:
    """A value of a file that is not read. It takes any arguments and any state, and keeps none."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> "Omitted":
        """Return an empty object."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignore the state."""


_lock = threading.Lock()  # the list of torch is one for all threads


def read_weight_file(path: Path) -> Any:
    """Read a file of weights: the tensors of a safetensors file, or the content of a .pth file on the CPU.

    In the content, a value of one of the classes `REPLACED` is `Omitted`. Its tensors may be views of the file, which
    must stay as it is: clone what is kept.

    Raises:
        DinomedError: the file is cut off, damaged, or no file of weights, or it is a pickle that would run code.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            return load_file(path)
        if not start.startswith((b"PK", b"\x80")):  # neither a zip archive nor a pickle
            what = "an empty file" if not start else "not a file of weights (.pth or .safetensors)"
            raise DinomedError(f"{path}: {what}")
        with (
            warnings.catch_warnings(action="ignore"),  # about pickle protocols
            _lock,
            torch.serialization.safe_globals([(Omitted, name) for name in REPLACED]),
        ):
            # of a zip archive only the tensors that are used are read; a bare pickle has no parts
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except SafetensorError as error:
        raise DinomedError(f"{path}: a damaged safetensors file ({_first_sentence(error)}); {AGAIN}") from None
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise DinomedError(
            f"{path}: refused: it holds more than tensors and the arguments of a training"
            f"{f' ({name[1]})' if name else ''}, and reading that may run its code; save its state dict as safetensors "
            "where you trust it"
        ) from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch seeks in a zip archive that is cut off
            raise DinomedError(f"{path}: cut off or damaged; {AGAIN}") from None
        raise DinomedError(f"{path} cannot be read: {system_reason(error)}") from None
    except DinomedError:
        raise
    except Exception as error:  # an unpickler raises any error on damaged bytes
        why = f"cut off, damaged, or not a file of weights ({_first_sentence(error)})"
        raise DinomedError(f"{path}: {why}; {AGAIN}") from None


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of the error of a library, at most 200 characters."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"\.\s", line)[0].removesuffix(".")[:200]
