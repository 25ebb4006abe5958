"""Small valid images of every format and kind that dinomed reads, and bombs; all made by code."""

import io
import lzma
import struct
import zlib
from collections.abc import Callable

import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (24, 40, 3), np.uint8)
GRAY = np.ascontiguousarray(COLOR[..., 0])
DEEP = (GRAY.astype(np.uint16) * 16).reshape(24, 40)
BANDS = RNG.integers(0, 4096, (24, 40, 5), np.uint16)


def encode(pixels: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    """An image as a file of Pillow."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    """An image as a file of tifffile."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    """An array as a NumPy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def dicom(
    pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, frame: bytes | None = None, **elements: object
) -> bytes:
    """A DICOM file of gray (H, W) or colour (H, W, 3) pixels, or of one encoded frame."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientName = CTImageStorage, "1.2.3", "Planted^Name"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() if frame is None else encapsulate([frame])
    dataset["PixelData"].VR = "OB" if frame is not None or pixels.dtype.itemsize == 1 else "OW"
    if frame is not None:
        dataset["PixelData"].is_undefined_length = True
    for name, value in elements.items():
        setattr(dataset, name, value)
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _window() -> dict[str, object]:
    return {"WindowCenter": 2000, "WindowWidth": 4000, "RescaleSlope": 1, "RescaleIntercept": -1024}


def _frames(format: str) -> bytes:
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (250, 10, 120)]
    return encode(frames[0], format, save_all=True, append_images=frames[1:])


SEEDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(COLOR, "JPEG"),
    "jpeg-progressive": lambda: encode(COLOR, "JPEG", progressive=True),
    "jpeg-gray": lambda: encode(GRAY, "JPEG"),
    "jpeg-cmyk": lambda: encode(Image.fromarray(COLOR).convert("CMYK"), "JPEG"),
    "png": lambda: encode(COLOR, "PNG"),
    "png-palette": lambda: encode(Image.fromarray(COLOR).quantize(16), "PNG"),
    "png-16": lambda: encode(DEEP, "PNG"),
    "png-alpha": lambda: encode(Image.fromarray(COLOR).convert("RGBA"), "PNG"),
    "png-frames": lambda: _frames("PNG"),
    "gif-frames": lambda: _frames("GIF"),
    "webp": lambda: encode(COLOR, "WEBP"),
    "webp-frames": lambda: _frames("WEBP"),
    "bmp": lambda: encode(COLOR, "BMP"),
    "tiff": lambda: encode(COLOR, "TIFF"),
    "tiff-pages": lambda: _frames("TIFF"),
    "tiff-lzw": lambda: encode(COLOR, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: encode(COLOR, "TIFF", compression="jpeg"),
    "tiff-deflate": lambda: encode(COLOR, "TIFF", compression="tiff_adobe_deflate"),
    "tiff-group4": lambda: encode(Image.fromarray(GRAY).convert("1"), "TIFF", compression="group4"),
    "tiff-big": lambda: tiff(COLOR, bigtiff=True, photometric="rgb"),
    "tiff-gray-pages": lambda: tiff(np.stack([DEEP, DEEP]), photometric="minisblack"),
    "tiff-bands": lambda: tiff(BANDS, photometric="minisblack", planarconfig="contig"),
    "tiff-bands-planes": lambda: tiff(np.moveaxis(BANDS, -1, 0), photometric="minisblack", planarconfig="separate"),
    "tiff-bands-deflate": lambda: tiff(BANDS, photometric="minisblack", planarconfig="contig", compression="zlib"),
    "tiff-bands-lzma": lambda: tiff(BANDS, photometric="minisblack", planarconfig="contig", compression="lzma"),
    "tiff-bands-tiles": lambda: tiff(
        BANDS, photometric="minisblack", planarconfig="contig", compression="zlib", tile=(16, 16), predictor=True
    ),
    "npy": lambda: npy(BANDS),
    "npy-float": lambda: npy(np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12, 1)),
    "dicom": lambda: dicom(DEEP, **_window()),
    "dicom-implicit": lambda: dicom(DEEP, ImplicitVRLittleEndian, **_window()),
    "dicom-deflated": lambda: dicom(DEEP, DeflatedExplicitVRLittleEndian, **_window()),
    "dicom-rle": lambda: dicom(GRAY, RLELossless),
    "dicom-color": lambda: dicom(COLOR),
    "dicom-frames": lambda: dicom(GRAY[:12], NumberOfFrames=2, PixelData=GRAY.tobytes()),
    "dicom-jpeg": lambda: dicom(GRAY, JPEGBaseline8Bit, encode(GRAY, "JPEG")),
    "dicom-jpeg-2000": lambda: dicom(GRAY, JPEG2000Lossless, encode(GRAY, "JPEG2000", no_jp2=True)),
}
"""Name -> function that makes a valid file."""


def bands_bomb(method: str, size: int, planes: bool = False) -> bytes:
    """An 8x8 px TIFF of 5 bands, each strip of which decompresses to `size` bytes of zeros."""
    small = tiff(
        np.zeros((5, 8, 8) if planes else (8, 8, 5), np.uint8), photometric="minisblack",
        planarconfig="separate" if planes else "contig", compression="zlib",
    )  # fmt: skip
    content = lzma.compress(bytes(size)) if method == "lzma" else zlib.compress(bytes(size), 9)
    with tifffile.TiffFile(io.BytesIO(small)) as file:
        tags = file.pages.first.tags
        places = {name: tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts", "Compression")}
        count = tags["StripOffsets"].count
        kinds = {name: {3: "<H", 4: "<I", 16: "<Q"}[tags[name].dtype] for name in places}
    bomb = bytearray(small)
    values = {"StripOffsets": len(small), "StripByteCounts": len(content)}
    if method == "lzma":
        values["Compression"] = 34925
    for name, value in values.items():
        for strip in range(1 if name == "Compression" else count):
            if kinds[name] == "<H" and value > 0xFFFF:
                raise ValueError("make the bomb smaller")
            struct.pack_into(kinds[name], bomb, places[name] + strip * struct.calcsize(kinds[name]), value)
    return bytes(bomb) + content


def deflated_dicom_bomb(size: int) -> bytes:
    """A deflated DICOM of 24x40 px whose pixel data has `size` bytes of zeros."""
    return dicom(DEEP, DeflatedExplicitVRLittleEndian, PixelData=bytes(size))


def jpeg_of_scans(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = encode(RNG.integers(0, 256, (side, side), np.uint8), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (scans - whole.count(b"\xff\xda") + 1) + whole[-2:]


def tiff_of_pages(pages: int, loop: bool = False) -> bytes:
    """A TIFF of many 1x1 px pages that share their pixel."""
    tags = [
        (256, 3, 1, 1),
        (257, 3, 1, 1),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (278, 3, 1, 1),
        (279, 4, 1, 1),
    ]
    size = 2 + 12 * len(tags) + 4
    entries = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    after = [12 + (page + 1) * size for page in range(pages - 1)] + [12 if loop else 0]
    return b"II*\0" + struct.pack("<II", 12, 0) + b"".join(entries + struct.pack("<I", place) for place in after)
