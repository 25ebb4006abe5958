"""Mutations of NIfTI files and videos that keep their structure: fields of the header and boxes get wrong values."""

import gzip
import random
import struct

INTEGERS = (0, -1, 1, 2, 3, 4, 7, 8, 16, 64, 255, 348, 540, 768, 2304, 32767, -32768)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-40, 1e38, -1e38, float("nan"), float("inf"), float("-inf"), 347.0, 352.0, 2.0**31)
FIELDS = {  # of NIfTI-1 and of NIfTI-2: offset, format, count (nifti1.h, nifti2.h)
    1: [(0, "<i", 1), (40, "<h", 8), (70, "<h", 2), (76, "<f", 8), (108, "<f", 1), (112, "<f", 2), (123, "<b", 1),
        (252, "<h", 2), (256, "<f", 6), (280, "<f", 12), (344, "<b", 4)],
    2: [(0, "<i", 1), (4, "<b", 8), (12, "<h", 2), (16, "<q", 8), (104, "<d", 8), (168, "<q", 1), (176, "<d", 2),
        (344, "<i", 2), (352, "<d", 6), (400, "<d", 12), (500, "<i", 1)],
}  # fmt: skip


def mutate_nifti(content: bytes, rng: random.Random) -> bytes:
    """Change one to three fields of the header, or bytes of the compressed data, sometimes cut off."""
    packed = content[:2] == b"\x1f\x8b"
    data = bytearray(gzip.decompress(content) if packed else content)
    version = 1 if data[:4] == b"\x5c\x01\0\0" else 2
    for _ in range(rng.randint(1, 3)):
        offset, kind, count = rng.choice(FIELDS[version])
        place = offset + rng.randrange(count) * struct.calcsize(kind)
        if kind[1] in "fd":
            struct.pack_into(kind, data, place, rng.choice(REALS))
        else:
            top = 2 ** (8 * struct.calcsize(kind) - 1) - 1
            number = rng.choice((*INTEGERS, 2**31 - 1, 2**40, 2**62))
            struct.pack_into(kind, data, place, max(-top - 1, min(number, top)))
    data = bytearray(gzip.compress(bytes(data), mtime=0)) if packed else data
    kind_of_damage = rng.random()
    if packed and kind_of_damage < 0.2:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind_of_damage < 0.3:
        data = data[: rng.randrange(len(data))]
    elif kind_of_damage < 0.4:
        data += data[rng.randrange(len(data)) :]
    return bytes(data)


BOXES = (b"moov", b"mvhd", b"trak", b"mdhd", b"stsd", b"stts", b"stsz", b"stco", b"stss", b"ctts", b"mp4v", b"avih",
         b"strh", b"strf", b"LIST", b"idx1", b"movi", b"00dc")  # fmt: skip


def mutate_video(content: bytes, rng: random.Random) -> bytes:
    """Change numbers in or before a box of MP4 or a chunk of AVI, or bytes anywhere; sometimes cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        places = [place for name in BOXES if (place := content.find(name)) > 4]
        if places and rng.random() < 0.7:
            place = rng.choice(places) + rng.choice((-4, 4, 8, 12, 16, 20, 24, 32, 36))
            number = rng.choice((0, 1, 7, 255, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**16)))
            struct.pack_into(rng.choice("<>") + "I", data, min(max(place, 0), len(data) - 4), number)
        else:
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)
