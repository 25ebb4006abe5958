"""A check of the instructions of a pickle of weights, before torch carries out any of them.

torch reads a pickle with ``weights_only=True``, but its list of permitted names belongs to the process: torchvision,
MONAI and others add classes to it. The check permits the names of tensors and of `REPLACED` only, whatever the process
permits. It also refuses values that are nested so deeply that Python would end, and archives whose parts are
compressed, which torch never writes and which can grow without limit.
"""

import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from dinomed.errors import DinomedError

REPLACED = (
    "argparse.Namespace",
    # a path among the arguments; Python 3.13 has another module
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    # a metric or a learning rate that is a number or an array of NumPy; NumPy 2 has another module
    "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
)  # fmt: skip
"""Names in a pickle for which a class of dinomed is built that keeps nothing."""
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
TENSOR_NAMES = (
    "collections.OrderedDict", "_codecs.encode", "torch.Size", "torch.device", "torch.serialization._get_layout",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch.storage.TypedStorage", "torch.storage._TypedStorage", "torch.storage.UntypedStorage",
    *(f"torch.{kind}Storage" for kind in _STORAGES),
    *(f"torch.{kind}" for kind in _TYPES),
)  # fmt: skip
"""Names that tables of tensors contain; quantised and sparse tensors are not among them."""
_PERMITTED = {*TENSOR_NAMES, *REPLACED}
MAX_NESTING, MAX_INSTRUCTIONS = 100, 20_000_000
LEGACY_PARTS = 5
"""Pickles at the start of a file of torch before 1.6: its mark, its version, the machine, the content and the keys."""
_MARK = object()
_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_TO_MARK = {"TUPLE", "LIST", "DICT", "FROZENSET"}
_ADDED = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_ADDED_TO_MARK = {"APPENDS", "SETITEMS", "ADDITEMS"}
_WITHOUT_VALUE = {"PROTO", "FRAME", "STOP"}
_REFUSED = {
    "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER",
}  # fmt: skip


def check_weight_pickle(path: Path) -> None:
    """Check the pickle of a .pth file of either format of torch.

    Raises:
        pickle.UnpicklingError: an instruction or a name is not permitted; the name follows the word GLOBAL.
        DinomedError: a part of the archive is compressed, or values are nested too deeply.
        Exception: any, on damaged bytes.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            for _ in range(LEGACY_PARTS):
                check_instructions(file, path)
            return
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise DinomedError(f"{path}: refused: its parts are compressed, which torch never does; save it with torch")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with archive.open(name) as file:
                    check_instructions(file, path)


def check_instructions(file: IO[bytes], path: Path) -> None:
    """Check one pickle, up to its end; see `check_weight_pickle`."""
    stack: list[Any] = []
    memo: dict[int, list[int]] = {}
    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        name = operation.name
        if name in _REFUSED:
            raise pickle.UnpicklingError(f"the instruction {name} is not read")
        if name == "GLOBAL" and (imported := str(argument).replace(" ", ".")) not in _PERMITTED:
            raise pickle.UnpicklingError(f"GLOBAL {imported.removeprefix('__builtin__.')} is not permitted")
        if number > MAX_INSTRUCTIONS:
            raise DinomedError(f"{path}: refused: a pickle of more than {MAX_INSTRUCTIONS:,} instructions")
        _follow(name, argument, stack, memo)
        if stack and stack[-1] is not _MARK and stack[-1][0] > MAX_NESTING:
            raise DinomedError(f"{path}: refused: its values are nested more than {MAX_NESTING} levels deep")


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, list[int]]) -> None:
    """Carry out an instruction on the nesting of values: each value is a list of one number, the levels below it."""
    if name in _WITHOUT_VALUE:
        return
    if name in _SIZES or name in _TO_MARK:
        parts = [stack.pop() for _ in range(_SIZES[name])] if name in _SIZES else _pop_to_mark(stack)
        stack.append([1 + _deepest(parts)])
    elif name in _ADDED or name in _ADDED_TO_MARK:
        parts = [stack.pop() for _ in range(_ADDED[name])] if name in _ADDED else _pop_to_mark(stack)
        stack[-1][0] = max(stack[-1][0], 1 + _deepest(parts))
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "POP_MARK":
        _pop_to_mark(stack)
    elif name == "POP":
        stack.pop()
    elif name == "DUP":
        stack.append(stack[-1])
    else:  # a number, a text, a name or an empty container
        stack.append([0])


def _pop_to_mark(stack: list[Any]) -> list[list[int]]:
    parts = []
    while (part := stack.pop()) is not _MARK:
        parts.append(part)
    return parts


def _deepest(parts: Iterable[list[int]]) -> int:
    return max((part[0] for part in parts), default=0)
