"""Mutations of image files that keep their structure: tags, elements, segments and chunks get wrong values.

Random bytes rarely get past the first check of a reader. These mutations change one part of a valid file, and keep the
rest consistent (the CRC of a PNG chunk is computed again).
"""

import random
import struct
import zlib
from collections.abc import Callable

NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 255, 256, 4095, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
VALUE_TYPES = (b"CS", b"CQ", b"SQ", b"OB", b"UN", b"US", b"DS", b"IS", b"AT", b"FD", b"PN", b"\0\0")
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD", b"OL", b"UC", b"UR", b"OV", b"SV", b"UV")


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return the file with one to three changes, sometimes cut off."""
    for _ in range(rng.randint(1, 3)):
        special = _by_format(content)
        change = special if special is not None and rng.random() < 0.8 else _bytes
        content = change(content, rng)
    return content[: rng.randrange(len(content))] if content and rng.random() < 0.1 else content


def _by_format(content: bytes) -> Callable[[bytes, random.Random], bytes] | None:
    if content.startswith(b"\xff\xd8"):
        return _jpeg
    if content.startswith(b"\x89PNG"):
        return _png
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff
    if content[128:132] == b"DICM":
        return _dicom
    return None


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes, mostly near the start, or repeat or remove a part."""
    data = bytearray(content)
    if not data:
        return content
    end = min(len(data), rng.choice((64, 512, len(data))))
    place, kind = rng.randrange(end), rng.random()
    if kind < 0.7:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(end)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind < 0.85:
        data[place:place] = data[place : place + rng.randint(1, 64)] * rng.randint(1, 40)
    else:
        del data[place : place + rng.randint(1, 64)]
    return bytes(data)


def _tiff(content: bytes, rng: random.Random) -> bytes:
    """Change the number, type, count or value of a tag of one page, or the place of the next page."""
    order, big = "<" if content[:2] == b"II" else ">", content[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQQ" if big else "HHLL"))
    size = 8 if big else 2
    data = bytearray(content)
    start = int.from_bytes(content[8:16] if big else content[4:8], "little" if order == "<" else "big")
    tags = int.from_bytes(content[start : start + size], "little" if order == "<" else "big")
    if not 0 < tags < 200 or start + size + tags * entry.size > len(data):
        return _bytes(content, rng)
    place = start + size + rng.randrange(tags) * entry.size
    fields = list(entry.unpack_from(data, place))
    field = rng.choice((1, 2, 3, 3, 3))
    top = (2**16 - 1, 2**16 - 1, 2 ** (64 if big else 32) - 1, 2 ** (64 if big else 32) - 1)[field]
    number = rng.randrange(20) if field == 1 else rng.choice((*NUMBERS, start, len(data), rng.randrange(len(data))))
    fields[field] = min(number, top)
    entry.pack_into(data, place, *fields)
    if rng.random() < 0.1:
        next_page = start + size + tags * entry.size
        code = order + ("Q" if big else "L")
        if next_page + struct.calcsize(code) <= len(data):
            struct.pack_into(code, data, next_page, rng.choice((start, 8, len(data) // 2)))
    return bytes(data)


def _dicom(content: bytes, rng: random.Random) -> bytes:
    """Change the type, length or value of an element in explicit little endian, or repeat or remove it."""
    data, elements, place = bytearray(content), [], 132
    while place + 8 <= len(data):
        long = bytes(data[place + 4 : place + 6]) in _LONG
        if long and place + 12 > len(data):
            break
        length = int.from_bytes(data[place + 8 : place + 12] if long else data[place + 6 : place + 8], "little")
        head = 12 if long else 8
        elements.append((place, head, length))
        if length > len(data):
            break
        place += head + length
    if not elements:
        return _bytes(content, rng)
    place, head, length = rng.choice(elements)
    kind = rng.random()
    if kind < 0.4:
        data[place + 4 : place + 6] = rng.choice((*VALUE_TYPES, rng.randbytes(2)))
    elif kind < 0.7:
        width = 4 if head == 12 else 2
        number = rng.choice((*NUMBERS, length + 1, max(length - 1, 0), 2 * length))
        data[place + head - width : place + head] = min(number, 256**width - 1).to_bytes(width, "little")
    elif kind < 0.9 and 0 < length < len(data):
        value = place + head
        data[value : value + length] = (rng.randbytes(length), b"9" * length, b"\\" * length, b"\xff" * length)[
            rng.randrange(4)
        ]
    elif kind < 0.95:
        data[place:place] = data[place : place + head + min(length, len(data))]
    else:
        del data[place : place + head + min(length, len(data))]
    return bytes(data)


def _jpeg(content: bytes, rng: random.Random) -> bytes:
    """Change the marker, the length or a byte of a segment, or repeat or remove it; repeat the last scan."""
    data, segments, place = bytearray(content), [], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append((place, 2 + length))
        if data[place + 1] == 0xDA:
            place = content.find(b"\xff\xda", place + 2)
            if place < 0:
                break
            continue
        place += 2 + length
    if not segments:
        return _bytes(content, rng)
    place, length = rng.choice(segments)
    kind = rng.random()
    if kind < 0.2:
        data[place + 1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDA, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xD9))
    elif kind < 0.4:
        data[place + 2 : place + 4] = min(rng.choice(NUMBERS), 65535).to_bytes(2, "big")
    elif kind < 0.7 and place + 4 < min(place + length, len(data)):
        data[rng.randrange(place + 4, min(place + length, len(data)))] = rng.choice((0, 1, 255, rng.randrange(256)))
    elif kind < 0.8:
        data[place:place] = data[place : place + length] * rng.randint(1, 5)
    elif kind < 0.9:
        del data[place : place + length]
    else:
        scan = content.rfind(b"\xff\xda")
        data[scan:-2] = data[scan:-2] * rng.choice((2, 20, 300)) if scan > 0 else data[scan:-2]
    return bytes(data)


def _png(content: bytes, rng: random.Random) -> bytes:
    """Change the type, the content or the length of a chunk, or repeat, move or remove it."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return _bytes(content, rng)
    index, kind = rng.randrange(len(chunks)), rng.random()
    name, data = chunks[index]
    if kind < 0.2:
        names = (b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iCCP", b"eXIf")
        chunks[index] = (rng.choice(names), data)
    elif kind < 0.6 and data:
        changed = bytearray(data)
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 2, 16, 255, rng.randrange(256)))
        chunks[index] = (name, bytes(changed))
    elif kind < 0.75:
        chunks.insert(rng.randrange(len(chunks)), chunks[index])
    elif kind < 0.9:
        del chunks[index]
    else:
        bomb = b"key\0\0" + zlib.compress(bytes(10**6))
        chunks.insert(1, (rng.choice((b"zTXt", b"iCCP", b"iTXt")), bomb))
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return content[:8] + b"".join(packed)
