"""Messages between a program and its decoding processes: a length, a JSON text, and the bytes of an array.

Nothing is unpickled: an answer comes from a process that has read a file of unknown origin.
"""

import json
import struct
from typing import Any, BinaryIO

import numpy as np

_LENGTHS = struct.Struct("<QQ")
_MAX_TEXT = 2**26


def write_message(stream: BinaryIO, content: Any, array: np.ndarray | None = None) -> None:
    """Write a message.

    Args:
        content: of JSON types.
        array: sent with its shape and type.
    """
    layout = None if array is None else [array.dtype.str, list(array.shape)]
    text = json.dumps([content, layout]).encode()
    pixels = b"" if array is None else np.ascontiguousarray(array).data.cast("B")
    stream.write(_LENGTHS.pack(len(text), len(pixels)) + text)
    stream.write(pixels)
    stream.flush()


def read_message(stream: BinaryIO, max_bytes: int) -> tuple[Any, np.ndarray | None]:
    """Read a message: its content, and its array if it has one.

    Raises:
        EOFError: the other process has ended.
        ValueError: the message is damaged, or its array has more than `max_bytes` bytes.
    """
    text_bytes, array_bytes = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    if text_bytes > _MAX_TEXT or array_bytes > max_bytes:
        raise ValueError("the answer is too large")
    content, layout = json.loads(_read(stream, text_bytes))
    if layout is None:
        return content, None
    dtype = np.dtype(layout[0])
    if dtype.hasobject:
        raise ValueError("the answer holds objects")
    return content, np.frombuffer(_read(stream, array_bytes), dtype).reshape(layout[1])


def _read(stream: BinaryIO, count: int) -> bytearray:
    """Read exactly `count` bytes into memory that the array keeps: pixels of gigabytes are not copied."""
    data, done = bytearray(count), 0
    while done < count:
        number = stream.readinto(memoryview(data)[done:])  # type: ignore[attr-defined]
        if not number:
            raise EOFError
        done += number
    return data
