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
from torch import Tensor

from dinomed.errors import DinomedError, system_reason

AGAIN = "copy or download it again"
TABLES = ("teacher", "state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "student")
"""Names under which files of trainings keep tables of weights. The first one in this order is used."""
_NAME_LENGTH = 60  # characters of a name in a message

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


def find_tensor_table(data: Any, path: Path) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the table of weights in the content of a file; `data` may lose its tensors.

    Args:
        data: the content, as of `read_weight_file`.
        path: the file, for messages.

    Returns:
        The tensors, the names of the dictionaries around them, and the names of the entries beside them.

    Raises:
        DinomedError: the content holds no table of tensors.
    """
    used: list[str] = []
    ignored: list[str] = []
    while isinstance(data, dict) and (key := next((key for key in TABLES if _is_table(data.get(key))), None)):
        used.append(key)
        ignored += [_shorten(name) for name in data if name != key]
        data = data[key]
    beside = [name for name, value in data.items() if _is_number(value)] if isinstance(data, dict) else []
    ignored += map(_shorten, beside)
    data = {name: value for name, value in data.items() if not _is_number(value)} if beside else data
    if not _is_table(data) or not all(isinstance(value, Tensor) for value in data.values()):
        raise DinomedError(f"{path}: holds no table of tensors; give the state dict of a ViT")
    return {name: data.pop(name).clone() for name in list(data)}, used, ignored  # no views of the file


def _shorten(name: object) -> str:
    """Return a name of a file for a message, at most `_NAME_LENGTH` characters."""
    text = repr(name)
    return text if len(text) <= _NAME_LENGTH else f"{text[: _NAME_LENGTH - 3]}..."


def _is_number(value: object) -> bool:
    """Return whether a value beside tensors holds none: a number or text, such as an epoch."""
    return value is None or isinstance(value, bool | int | float | str | Omitted)


def _is_table(value: Any) -> bool:
    """Return whether a value is a table of tensors, or holds one under a name of `TABLES`."""
    if not isinstance(value, dict):
        return False
    return any(isinstance(inner, Tensor) for inner in value.values()) or any(
        _is_table(value.get(key)) for key in TABLES
    )


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of the error of a library, at most 200 characters."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"\.\s", line)[0].removesuffix(".")[:200]
