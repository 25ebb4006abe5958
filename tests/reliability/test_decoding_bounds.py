"""Bounds on decoding: a small file takes little memory and time, also when only its header is read."""

import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinomed.images.bounds.containers import MAX_JPEG_SCANS, count_gif_frames
from dinomed.images.bounds.tiff_directories import MAX_TIFF_PAGES, count_tiff_pages
from dinomed.images.bounds.tiff_samples import open_tiff_page, read_tiff_samples
from dinomed.images.read import UnreadableImage, read_header, read_image, read_whole

BOMB = 64_000_000
LITTLE = 24_000_000
"""Bytes: a third of what a bomb decodes to, many times what its pixels take."""


def refused(path: Path, read: Callable[[Path], object], limit: int = LITTLE) -> str:
    """The reason for refusing a file, which takes less memory than `limit` bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImage) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    return caught.value.reason


@pytest.mark.parametrize("method", ["zlib", "lzma"])
@pytest.mark.parametrize("planes", [False, True])
def test_a_strip_that_holds_more_than_it_declares_is_refused(
    tmp_path: Path, corpus: SimpleNamespace, method: str, planes: bool
) -> None:
    path = tmp_path / "bomb.tif"
    path.write_bytes(corpus.bands_bomb(method, 2_000_000 if planes else BOMB // 2, planes))
    assert "declares" in refused(path, read_whole, LITTLE)


def test_a_deflated_dicom_that_holds_more_than_it_declares_is_refused(tmp_path: Path, corpus: SimpleNamespace) -> None:
    path = tmp_path / "bomb.dcm"
    path.write_bytes(corpus.deflated_dicom_bomb(300_000_000))
    for read in (read_header, read_image):
        # 64 MiB of elements are allowed, and copied once
        assert refused(path, read, 220_000_000) == "a deflated DICOM that holds more than its header declares"
    path.write_bytes(corpus.SEEDS["dicom-deflated"]())
    (tmp_path / "plain.dcm").write_bytes(corpus.SEEDS["dicom"]())
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "plain.dcm"))
    assert read_header(path) == read_header(tmp_path / "plain.dcm")


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path, corpus: SimpleNamespace) -> None:
    path = tmp_path / "scans.jpg"
    path.write_bytes(corpus.jpeg_of_scans(MAX_JPEG_SCANS))
    assert read_image(path).shape == (64, 64, 3)
    path.write_bytes(corpus.jpeg_of_scans(2_000))
    for read in (read_header, read_image):
        assert refused(path, read) == "a JPEG of 2,000 scans, over the limit of 100; save it again"
    frame = tmp_path / "scans.dcm"
    frame.write_bytes(corpus.dicom(np.zeros((64, 64), np.uint8), corpus.JPEGBaseline8Bit, path.read_bytes()))
    assert refused(frame, read_header) == "a JPEG of 2,000 scans, over the limit of 100; save it again"


def test_pages_are_counted_and_bounded(tmp_path: Path, corpus: SimpleNamespace) -> None:
    path = tmp_path / "pages.tif"
    for pages, loop in ((1, False), (3, False), (5, True)):
        path.write_bytes(corpus.tiff_of_pages(pages, loop))
        with path.open("rb") as file:
            assert count_tiff_pages(file) == pages
    path.write_bytes(corpus.tiff_of_pages(2_000))
    assert read_header(path).frames == 2_000
    path.write_bytes(corpus.tiff_of_pages(MAX_TIFF_PAGES + 1))
    assert refused(path, read_header) == "more than 65,536 pages; split the file"


def test_tags_that_declare_more_bytes_than_the_file_has_are_refused(tmp_path: Path, corpus: SimpleNamespace) -> None:
    path = tmp_path / "tags.tif"
    whole = bytearray(corpus.tiff_of_pages(1))
    whole[12 + 2 + 4 : 12 + 2 + 8] = (2**30).to_bytes(4, "little")  # the count of the first tag
    path.write_bytes(whole)
    assert "declare 2,147,483,6" in refused(path, read_header)


@pytest.mark.parametrize("name", ["tiff", "tiff-pages", "tiff-big", "tiff-bands-tiles", "gif-frames"])
def test_frames_are_counted_as_pillow_counts_them(corpus: SimpleNamespace, name: str, tmp_path: Path) -> None:
    content = corpus.SEEDS[name]()
    (tmp_path / "image").write_bytes(content)
    with (tmp_path / "image").open("rb") as file:
        counted = count_gif_frames(file) if name.startswith("gif") else count_tiff_pages(file)
    if "bands" not in name:
        with Image.open(BytesIO(content)) as image:
            assert counted == image.n_frames
    else:
        assert counted == 1


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzma"])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize(
    "layout", [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}, {"rowsperstrip": 5, "predictor": True}]
)
def test_samples_are_those_that_tifffile_reads(
    tmp_path: Path, byteorder: str, compression: str | None, planarconfig: str, layout: dict[str, object]
) -> None:
    if compression is None:
        layout = {name: value for name, value in layout.items() if name != "predictor"}  # tifffile writes none
    values = np.random.default_rng(0).integers(0, 4096, (5, 37, 41), np.uint16)
    stored = values if planarconfig == "separate" else np.moveaxis(values, 0, -1)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planarconfig, compression=compression,
        byteorder=byteorder, **layout,
    )  # fmt: skip
    with open_tiff_page(tmp_path / "a.tif") as page:
        np.testing.assert_array_equal(read_tiff_samples(page), np.moveaxis(values, 0, -1))


def test_a_jpeg_2000_frame_of_another_size_is_refused(tmp_path: Path, corpus: SimpleNamespace) -> None:
    path = tmp_path / "frame.dcm"
    for kind, syntax, options in (
        ("JPEG 2000", corpus.JPEG2000Lossless, {"format": "JPEG2000", "no_jp2": True}),
        ("JPEG", corpus.JPEGBaseline8Bit, {"format": "JPEG"}),
    ):
        large = corpus.encode(np.zeros((300, 200), np.uint8), **options)
        path.write_bytes(corpus.dicom(np.zeros((300, 200), np.uint8), syntax, large))
        assert read_image(path).shape == (300, 200, 3)
        path.write_bytes(corpus.dicom(np.zeros((8, 8), np.uint8), syntax, large))
        for read in (read_header, read_image):
            assert refused(path, read) == f"the header declares 8x8 px, its {kind} frame has 200x300"
    tiled = bytearray(corpus.encode(np.zeros((64, 64), np.uint8), "JPEG2000", no_jp2=True, tile_size=(64, 64)))
    tiled[6 + 18 : 6 + 26] = (1).to_bytes(4, "big") * 2  # tiles of one pixel
    path.write_bytes(corpus.dicom(np.zeros((64, 64), np.uint8), corpus.JPEG2000Lossless, bytes(tiled)))
    assert refused(path, read_header) == "its JPEG 2000 frame has 4,096 tiles, too many for its size"


def test_a_webp_canvas_is_refused_before_it_is_allocated(tmp_path: Path, corpus: SimpleNamespace) -> None:
    whole = bytearray(corpus.SEEDS["webp-frames"]())
    assert whole[12:16] == b"VP8X"
    whole[24:30] = (16_000).to_bytes(3, "little") * 2
    (tmp_path / "a.webp").write_bytes(whole)
    assert refused(tmp_path / "a.webp", read_header).startswith("256 megapixels, over the limit")


def test_all_pages_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinomed.images.intensity.MAX_BYTES", 10_000)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((12, 32, 32), np.uint8), photometric="minisblack")
    assert refused(tmp_path / "a.tif", read_whole) == "12 pages of 32x32 px, over the limit of 2.1 GB"


@pytest.mark.parametrize(
    ("seed", "tag", "place", "value"),
    [("tiff-gray-pages", "SamplesPerPixel", 4, 3), ("tiff-bands", "PhotometricInterpretation", 8, 60_000)],
)
def test_libraries_write_no_line_about_a_damaged_file(
    tmp_path: Path, corpus: SimpleNamespace, seed: str, tag: str, place: int, value: int
) -> None:
    """Pillow logs a count of 3 of a tag of one value, tifffile an unknown value."""
    content = bytearray(corpus.SEEDS[seed]())
    with tifffile.TiffFile(BytesIO(content)) as file:
        struct.pack_into("<H", content, file.pages.first.tags[tag].offset + place, value)
    (tmp_path / "a.tif").write_bytes(content)
    code = (
        "import sys; from dinomed.images.read import *\n"
        "for read in (read_header, read_whole):\n"
        "    try: read(sys.argv[1])\n"
        "    except UnreadableImage as error: print(error.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
