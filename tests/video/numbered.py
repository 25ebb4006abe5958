"""Videos whose frames show their number, for the tests of this folder."""

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT, FRAMES, FPS = 160, 96, 90, 25
_BITS, _CELL = 8, 20


def numbered(number: int) -> np.ndarray:
    """An RGB frame with its number as black and white cells in the first row."""
    frame = np.full((HEIGHT, WIDTH, 3), 70, np.uint8)
    frame[40:70, number : number + 30] = (200, 60, 60)
    for bit in range(_BITS):
        frame[:_CELL, bit * _CELL : (bit + 1) * _CELL] = 255 if number >> bit & 1 else 0
    return frame


def number_in(pixels: np.ndarray) -> int:
    """The number that a frame shows."""
    cells = [pixels[4 : _CELL - 4, bit * _CELL + 4 : (bit + 1) * _CELL - 4].mean() for bit in range(_BITS)]
    return sum(1 << bit for bit, value in enumerate(cells) if value > 127)


def write_numbered(path: Path, codec: str) -> bool:
    """Write a video; False if this build of OpenCV cannot encode it."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        return False
    for number in range(FRAMES):
        writer.write(cv2.cvtColor(numbered(number), cv2.COLOR_RGB2BGR))
    writer.release()
    return True


def set_mp4_durations(data: bytes, runs: list[tuple[int, int]]) -> bytes:
    """Replace the durations of the frames of an MP4, (frames, ticks) for each run, as of a variable rate."""
    changed, places = bytearray(data), []
    start, end = 0, len(data)
    for wanted in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        start, end = next((place + 8, place + size) for place, size, kind in _boxes(data, start, end) if kind == wanted)
        places.append(start - 8)
    table = struct.pack(">I4sII", 16 + 8 * len(runs), b"stts", 0, len(runs))
    table += b"".join(struct.pack(">II", *run) for run in runs)
    grown = len(table) - (end - places[-1])
    changed[places[-1] : end] = table
    for place in places[:-1]:
        struct.pack_into(">I", changed, place, struct.unpack_from(">I", data, place)[0] + grown)
    return bytes(changed)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield start, size, kind
        start += size


def drop_matroska_rate(data: bytes, shifts_ms: list[int]) -> bytes:
    """Shift the times of the frames of a WebM, and drop its rate and its duration, as browsers record it."""
    changed = bytearray(data)
    for name in (b"\x23\xe3\x83", b"\x44\x89"):  # DefaultDuration, Duration
        place = changed.index(name)
        length = len(name) + (changed[place + len(name)] & 127)  # of the void element
        changed[place : place + 2] = bytes([0xEC, 0x80 | (length - 1)])
    place = changed.index(b"\x1f\x43\xb6\x75")  # Cluster
    for shift in shifts_ms:
        while changed[place] != 0xA3 or (block := _simple_block(changed, place + 1)) is None:
            place += 1
        start, place = block
        struct.pack_into(">h", changed, start + 1, struct.unpack_from(">h", changed, start + 1)[0] + shift)
    return bytes(changed)


def _simple_block(data: bytearray, place: int) -> tuple[int, int] | None:
    """Return start and end of the content of a block of track 1 whose size is at `place`; None for other bytes."""
    width = 9 - data[place].bit_length()
    size = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    start = place + width
    return (start, start + size) if data[start] == 0x81 and 4 < size <= len(data) - start else None


def set_avi_count(data: bytes, frames: int) -> bytes:
    """Replace the number of frames in both headers of an AVI."""
    changed = bytearray(data)
    struct.pack_into("<I", changed, data.index(b"avih") + 8 + 16, frames)
    struct.pack_into("<I", changed, data.index(b"strh") + 8 + 32, frames)
    return bytes(changed)


def shift_avi_index(data: bytes, by: int) -> bytes:
    """Let each entry of the index of an AVI name the place of a later frame."""
    changed, start = bytearray(data), data.rindex(b"idx1") + 8
    for row in range(FRAMES - by):
        place, source = start + 16 * row + 8, start + 16 * (row + by) + 8
        changed[place : place + 8] = data[source : source + 8]
    return bytes(changed)
