"""Reading of files of weights (safetensors, .pth, .bin) without running code from them.

A .pth file is a pickle. Its instructions are checked first (`dinomed.io.pickle_check`); then torch reads it with
``weights_only=True``. Training checkpoints also hold the arguments of the script. Their classes are listed in
`REPLACED`: each of them becomes `Omitted`, a class of dinomed that keeps nothing. So no listed class and no function of
NumPy is called with values of the file. While a file is read, torch permits no names that other libraries have added.
"""

import errno
import pickle
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinomed.errors import DinomedError, system_reason
from dinomed.io.pickle_check import REPLACED, check_weight_pickle

AGAIN = "copy or download it again"
TABLES = ("teacher", "state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "student")
"""Names under which training checkpoints keep tables of weights. The first one in this order is used."""
MAX_LEVELS = 4
"""Tables within tables that are looked through."""
_NAME_LENGTH = 60  # characters of a name in a message


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
            _only_replaced(),
        ):
            check_weight_pickle(path)
            # of a zip archive only the tensors that are used are read; a bare pickle has no parts
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except SafetensorError as error:
        raise DinomedError(f"{path}: a damaged safetensors file ({_first_sentence(error)}); {AGAIN}") from None
    except pickle.UnpicklingError as error:
        name = re.search(r"\bGLOBAL ([\w.]+)", str(error))
        if name is None:
            raise DinomedError(
                f"{path}: a pickle that cannot be read without running code from it; save it again with "
                "torch.save(state_dict, FILE), or as safetensors, where you trust it"
            ) from None
        raise DinomedError(
            f"{path}: refused: it holds more than tensors and the arguments of a training ({name[1]}), and reading "
            "that may run its code; save its state dict as safetensors where you trust it"
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
    for levels in range(MAX_LEVELS, 0, -1):
        key = next((key for key in TABLES if isinstance(data, dict) and _is_table(dict.get(data, key), levels)), None)
        if key is None:
            break
        used.append(key)
        ignored += [_shorten(name) for name in dict.keys(data) if name != key]
        data = dict.get(data, key)
    if not _is_table(data, 1):
        raise DinomedError(f"{path}: holds no table of tensors; give the state dict of a ViT")
    ignored += [_shorten(name) for name, value in dict.items(data) if _is_number(value)]
    size = path.stat().st_size
    state: dict[str, Tensor] = {}
    for name in list(dict.keys(data)):
        value = dict.pop(data, name)
        if _is_number(value):
            continue
        if not isinstance(value, Tensor):
            raise DinomedError(f"{path}: holds no table of tensors; give the state dict of a ViT")
        if not isinstance(name, str) or not is_plain(value, size):
            raise DinomedError(f"{path}: {_shorten(name)} is no tensor of plain numbers that the file holds; {AGAIN}")
        state[name] = value.clone()  # no views of the file
    return state, used, ignored


def _shorten(name: object) -> str:
    """Return a name of a file for a message, at most `_NAME_LENGTH` characters."""
    text = repr(name)
    return text if len(text) <= _NAME_LENGTH else f"{text[: _NAME_LENGTH - 3]}..."


def _is_number(value: object) -> bool:
    """Return whether a value beside tensors holds none: a number or text, such as an epoch."""
    return value is None or isinstance(value, bool | int | float | str | Omitted)


def _is_table(value: Any, levels: int) -> bool:
    """Return whether a value is a table of tensors, or holds one under a name of `TABLES`, at most `levels` below."""
    if not isinstance(value, dict):
        return False
    if any(isinstance(inner, Tensor) for inner in dict.values(value)):
        return True
    return levels > 1 and any(_is_table(dict.get(value, key), levels - 1) for key in TABLES)


@contextmanager
def _only_replaced() -> Iterator[None]:
    """Permit only `REPLACED` inside the context; the names that the process permits are restored afterwards."""
    permitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals([(Omitted, name) for name in REPLACED])
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(permitted)


def is_plain(tensor: Any, size: int) -> bool:
    """Return whether a value is a tensor on the CPU whose numbers fit into a file of `size` bytes, and nothing more.

    A forged tensor can repeat one number without end, have no memory, or replace its own functions.
    """
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not vars(tensor)
        and tensor.numel() * tensor.element_size() <= size
    )


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of the error of a library, at most 200 characters."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"\.\s", line)[0].removesuffix(".")[:200]
