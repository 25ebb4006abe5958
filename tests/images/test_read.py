"""Reading: by content, upright, scaled, and everything bad refused with a reason (reliability rows 9-16)."""

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import (
    MaskSizeError,
    UnreadableImage,
    read_header,
    read_image,
    read_image_and_header,
    read_mask,
    write_mask,
)

FORMATS = ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"]


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth picture without symmetry: each corner has its own colour."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / (width - 1), 255 * y / (height - 1), 128 + 0 * x], axis=-1).astype(np.uint8)


def encode(pixels: np.ndarray, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    if format in ("JPEG", "WEBP"):
        options = {"quality": 95} | options
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def reason(path: Path) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.parametrize("format", FORMATS)
def test_content_decides_and_not_the_name(tmp_path: Path, format: str) -> None:
    path = tmp_path / "lesion.dat"
    path.write_bytes(encode(picture(), format))
    image = read_image(path)
    assert image.shape == (24, 40, 3)
    assert image.dtype == np.uint8
    # JPEG and WebP at quality 95 lose little, mostly chroma; GIF has 256 colours
    assert np.abs(image.astype(int) - picture()).mean() < 8
    assert read_header(path).format == format


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_to_image_mask_and_header(tmp_path: Path, format: str, orientation: int) -> None:
    upright = picture()
    turned = {  # how a camera stores what `orientation` says has to be undone
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright),
        7: np.rot90(upright.swapaxes(0, 1), 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    path, mask_path = tmp_path / "image", tmp_path / "mask"
    path.write_bytes(encode(np.ascontiguousarray(turned), format, exif=exif))
    mask = np.where(turned[..., 0] > 100, 255, 0).astype(np.uint8)
    mask_path.write_bytes(encode(np.ascontiguousarray(mask), format, exif=exif))
    header = read_header(path)
    assert (header.height, header.width, header.orientation) == (24, 40, orientation)
    image = read_image(path)
    assert np.abs(image.astype(int) - upright).mean() < 8
    agreement = (read_mask(mask_path, size=(24, 40)) == (upright[..., 0] > 100)).mean()
    assert agreement > 0.95  # WebP and JPEG blur the edge by a pixel


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    path = tmp_path / "image"
    image.save(path, "TIFF")
    read = read_image(path)
    assert read.shape == (24, 40, 3)
    assert np.abs(read.astype(int) - np.asarray(image.convert("RGB"))).max() <= 1
    assert read_image(path, channels=1).shape == (24, 40, 1)


def test_damaged_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    for i, junk in enumerate([b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]):
        (tmp_path / str(i)).write_bytes(encode(picture(), "JPEG", exif=junk))
        assert read_image(tmp_path / str(i)).shape == (24, 40, 3)


def test_a_picture_that_is_transparent_everywhere_is_not_read_as_black(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for channels in (1, 3):
        with pytest.raises(UnreadableImage, match="transparent everywhere"):
            read_image(tmp_path / "a.png", channels=channels)
    pixels[..., :3] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()


def test_transparency_is_laid_over_black(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:4, :, 3], pixels[4:, :, 3] = 0, 255
    for mode in ("RGBA", "LA", "PA"):
        if mode == "PA":
            Image.fromarray(pixels).quantize(4).save(tmp_path / mode, "PNG")  # a palette with transparency
        else:
            Image.fromarray(pixels).convert(mode).save(tmp_path / mode, "PNG")
        image = read_image(tmp_path / mode)
        assert (image[:4] == 0).all(), mode
        assert (np.abs(image[4:].astype(int) - 200) <= 1).all(), mode


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, format: str, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 256).astype(np.uint16)[None].repeat(4, axis=0)
    path = tmp_path / "ramp"
    Image.fromarray(ramp).save(path, format)
    image = read_image(path)
    assert np.abs(image[0, :, 0].astype(int) - np.arange(256)).max() <= 1  # rounding
    assert read_image(path, channels=1).shape == (4, 256, 1)


def test_sixteen_bit_tiff_where_white_is_zero(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(ramp).save(tmp_path / "ramp", "TIFF", tiffinfo={262: 0})
    data = bytearray((tmp_path / "ramp").read_bytes())
    entry = data.find(struct.pack("<HHI", 262, 3, 1))  # the tag in little-endian: make sure it says 0
    data[entry + 8 : entry + 10] = b"\0\0"
    (tmp_path / "ramp").write_bytes(data)
    image = read_image(tmp_path / "ramp", channels=1)
    assert image[0, 0, 0] == 255
    assert image[0, -1, 0] == 0


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_colour_of_fewer_bits_in_a_file_of_sixteen_is_not_dark(tmp_path: Path, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 256).astype(np.uint16)[None].repeat(4, axis=0)
    stored = np.dstack([ramp, ramp[:, ::-1], ramp // 2])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in stored)
    (tmp_path / "a.png").write_bytes(png(256, 4, rows, depth=16, kind=2))
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=[(274, "H", 1, 3, True)])
    expected = stored / (2**bits - 1) * 255
    for name, image in (("a.png", expected), ("a.tif", expected[::-1, ::-1])):
        assert np.abs(read_image(tmp_path / name) - image).max() <= 1, name
        luma = image @ [0.299, 0.587, 0.114]
        assert np.abs(read_image(tmp_path / name, channels=1)[..., 0] - luma).max() <= 1.5, name


def test_sixteen_bit_colour_keeps_its_upper_bits(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 257) * 4 for _ in range(4))
    (tmp_path / "rgb16").write_bytes(png(4, 4, rows, depth=16, kind=2))
    assert read_image(tmp_path / "rgb16")[0, 0].tolist() == [255, 128, 1]


def test_deep_colour_over_transparency_is_as_dark_as_it_is_shown(tmp_path: Path) -> None:
    for name, samples in (("pale", [65535, 65535, 65535, 13107] * 4), ("hidden", [65535, 0, 0, 0, 0, 65535, 0, 0] * 2)):
        rows = b"\0" + struct.pack(">16H", *samples)
        (tmp_path / name).write_bytes(png(4, 4, rows * 4, depth=16, kind=6))
    assert read_image(tmp_path / "pale")[0, 0].tolist() == [51, 51, 51]
    with pytest.raises(UnreadableImage, match="transparent everywhere"):
        read_image(tmp_path / "hidden", intensity=IntensityConfig(bits=16))


def png(width: int, height: int, rows: bytes, depth: int = 8, kind: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_floating_point_is_refused_with_the_remedy(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "f", "TIFF")
    assert reason(tmp_path / "f") == "floating-point pixels have no fixed range; convert to 8 or 16 bit first"
    Image.fromarray(np.arange(-32, 32, dtype=np.int32).reshape(8, 8)).save(tmp_path / "i", "TIFF")
    assert "-32 to 31" in reason(tmp_path / "i")


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_frame_of_several(tmp_path: Path, format: str) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (250, 10, 120)]
    frames[0].save(tmp_path / "film", format, save_all=True, append_images=frames[1:])
    header, image = read_image_and_header(tmp_path / "film")
    assert header.frames == 3
    assert np.abs(image.astype(int) - 250).max() <= 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_a_file_cut_off_anywhere_is_refused_or_whole(tmp_path: Path, format: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    whole = encode(pixels, format)
    (tmp_path / "whole").write_bytes(whole)
    expected = read_image(tmp_path / "whole")
    path = tmp_path / "cut"
    reasons = []
    for length in [*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 8, len(whole))]:
        path.write_bytes(whole[:length])
        try:
            image = read_image(path)
        except UnreadableImage as error:
            reasons.append(error.reason)
        else:  # only what follows the pixels is missing
            assert np.array_equal(image, expected), length
    assert len(reasons) > 55
    assert max(map(len, reasons)) < 140


def test_a_progressive_jpeg_cut_in_half_is_refused(tmp_path: Path) -> None:
    whole = encode(picture(200, 200), "JPEG", progressive=True)
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    assert reason(tmp_path / "half.jpg") == "truncated"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty file"),
        (b"just a note\n", "text, not an image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page, not an image"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG, a vector drawing; export it as PNG"),
        (b"\0" * 128 + b"DICM" + b"\0" * 64, "DICOM without pixels"),
        (b"%PDF-1.4\n\x00\x01\x02\xff", "not a JPEG, PNG, TIFF, BMP, WEBP or GIF image"),
        (b"\xff\xd8\xff\xe0", "damaged or truncated in its header"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    assert reason(path) == expected


def test_an_undamaged_tiff_that_is_not_read_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "lab.tif"
    tifffile.imwrite(path, np.zeros((6, 5), np.uint8), byteorder="<", metadata=None)
    # The tag of the form of colour: of gray, of CIELAB, and a damaged one of 40 values, which a message would all list.
    gray, lab, many = (struct.pack("<HHIH", 262, 3, *values) for values in ((1, 1), (1, 8), (40, 8)))
    path.write_bytes((whole := path.read_bytes()).replace(gray, lab))
    assert reason(path).startswith("a TIFF of CIELAB with 1 channel of 8 bits, which is not supported; convert")
    for damaged in (whole.replace(gray, lab)[:-10], whole.replace(gray, many)):
        path.write_bytes(damaged)
        assert reason(path) == "damaged or truncated in its header"


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent.png") == "does not exist"
    assert reason(tmp_path) == "is a folder"
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png") == "not a regular file"  # and does not wait for a writer


def test_formats_outside_the_list_are_refused(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "image.png", "PPM")
    assert "not a JPEG" in reason(tmp_path / "image.png")
    Image.fromarray(picture()).save(tmp_path / "image.eps", "EPS")  # Pillow would call Ghostscript
    assert reason(tmp_path / "image.eps")


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "image"
    for format in FORMATS:
        whole = np.frombuffer(encode(picture(), format), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 200), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                read_image(path, max_pixels=10**6)
            except UnreadableImage:
                continue


def test_a_bomb_is_refused_from_its_header_in_little_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    side = 20_000  # 400 megapixels of 1 bit in about 50 kB
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (side // 8 + 1)) for _ in range(side)) + packer.flush()
    bomb.write_bytes(png(side, side, b"", depth=1).replace(zlib.compress(b""), rows))
    code = (
        "import sys, resource; from dinomed.images.read import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(sys.argv[1])\n"
        "except UnreadableImage as error: print(error.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run([sys.executable, "-c", code, bomb], capture_output=True, text=True, check=True)
    assert out.stderr == ""
    said, grown = out.stdout.splitlines()
    assert said == "400 megapixels, over the limit of 100; cut it into tiles, or shrink it"
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 100e6


def test_the_pixel_limit_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(encode(picture(), "PNG"))
    with pytest.raises(UnreadableImage, match="over the limit of"):
        read_image(tmp_path / "image", max_pixels=24 * 40 - 1)
    assert read_image(tmp_path / "image", max_pixels=24 * 40).shape == (24, 40, 3)
    with pytest.raises(UnreadableImage, match="over the limit of"):
        read_header(tmp_path / "image", max_pixels=100)


def test_pillows_warnings_do_not_leak_and_filters_survive_threads(tmp_path: Path) -> None:
    path = tmp_path / "large.png"  # over Pillow's own limit (89 megapixels), below ours
    path.write_bytes(png(9600, 9600, b"\0", depth=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "megapixels" not in reason(path)
        before = list(warnings.filters)
        threads = [threading.Thread(target=reason, args=[path]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before


def test_the_error_survives_pickling_and_is_one_line() -> None:
    error = UnreadableImage("a\nb.png", "truncated")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason) == ("a\nb.png", "truncated")
    assert str(again) == "a\\nb.png: truncated"


def test_masks_round_trip_and_name_both_sizes(tmp_path: Path) -> None:
    mask = (picture()[..., 0] > 90).astype(np.uint8)
    write_mask(tmp_path / "mask.png", mask)
    assert np.array_equal(read_mask(tmp_path / "mask.png", size=(24, 40)), mask)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "mask.png")))) == {0, 255}
    with pytest.raises(MaskSizeError, match=r"the mask is 40x24, its image 24x40 \(width x height\)"):
        read_mask(tmp_path / "mask.png", size=(40, 24))
