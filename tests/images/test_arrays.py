"""Pictures of many channels and of 16 bits: what is stored is what is read, and hostile files end in one line."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from dinomed.errors import DinomedError
from dinomed.images.decode import upright
from dinomed.images.intensity import to_range
from dinomed.images.read import IntensityConfig, UnreadableImage, read_header, read_image, read_whole

DEEP = IntensityConfig(bits=16)


@pytest.fixture
def five() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (20, 30, 5)).astype(np.uint16)


def write(kind: str, path: Path, values: np.ndarray) -> Path:
    if kind == "npy":
        np.save(path.with_suffix(".npy"), values)
        return path.with_suffix(".npy")
    if kind == "big-endian npy":
        np.save(path.with_suffix(".npy"), values.astype(">u2"))
        return path.with_suffix(".npy")
    if kind == "pages":
        tifffile.imwrite(path, np.moveaxis(values, 2, 0), photometric="minisblack")
    elif kind == "separate":
        tifffile.imwrite(path, np.moveaxis(values, 2, 0), photometric="minisblack", planarconfig="separate")
    else:
        compression = "zlib" if kind == "deflate" else None
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", compression=compression)
    return path


@pytest.mark.parametrize("kind", ["npy", "big-endian npy", "bands", "separate", "deflate", "pages"])
def test_five_channels_are_read_as_they_are_stored(kind: str, five: np.ndarray, tmp_path: Path) -> None:
    path = write(kind, tmp_path / "a", five)
    header = read_whole(path)
    assert (header.width, header.height, header.channels, header.bits) == (30, 20, 5, 16)
    assert read_header(path) == header
    deep = read_image(path, channels=5, intensity=DEEP)
    assert deep.dtype == np.float32
    assert np.array_equal((deep.astype(np.float64) * 65535).round(), five)  # nothing of 16 bits is lost
    plain = read_image(path, channels=5)
    assert plain.dtype == np.uint8
    assert np.abs(plain - five / 257).max() <= 0.5
    with pytest.raises(UnreadableImage, match=r"5 channels( \(pages\))? does not fit a backbone that takes 4"):
        read_image(path, channels=4)


def test_16_bit_colour_keeps_its_lower_bits_with_16_bit_settings(tmp_path: Path) -> None:
    import cv2

    values = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(values, 2, 0), photometric="rgb", planarconfig="separate")
    for name in ("a.png", "a.tif", "b.tif"):
        deep = read_image(tmp_path / name, intensity=DEEP)
        assert np.array_equal((deep.astype(np.float64) * 65535).round(), values), name
        assert read_header(tmp_path / name).bits == 16, name
    gray = read_image(tmp_path / "a.png", channels=1, intensity=DEEP)
    np.testing.assert_allclose(gray[..., 0], values / 65535 @ np.array([0.299, 0.587, 0.114]), atol=1e-6)


def test_headers_contain_channels_and_bits(tmp_path: Path) -> None:
    for name, mode, wanted in (("a", "L", (1, 8)), ("b", "RGB", (3, 8)), ("c", "I;16", (1, 16)), ("d", "1", (1, 1))):
        Image.new(mode, (8, 6)).save(tmp_path / name, "PNG")
        header = read_header(tmp_path / name)
        assert (header.channels, header.bits) == wanted
    pages = [Image.new("L", (8, 6)), Image.new("L", (4, 3))]  # a thumbnail is no channel
    pages[0].save(tmp_path / "e", "TIFF", save_all=True, append_images=pages[1:])
    assert read_header(tmp_path / "e").channels == 1


def test_ranges_of_samples() -> None:
    values = np.array([[[-1000], [0], [500], [3000]]], np.int16)

    def read(**config: object) -> list[float]:
        return to_range(values, IntensityConfig.model_validate(config)).ravel().tolist()

    assert read(window=(-1000, 1000)) == [0, 128, 191, 255]
    assert read(window=(-1000, 1000), bits=16) == pytest.approx([0, 0.5, 0.75, 1])
    assert read(percentiles=(0, 100), bits=16) == pytest.approx([0, 0.25, 0.375, 1])
    with pytest.raises(DinomedError, match=r"from -1000 to 3000 fit no 16-bit range; set images\.window"):
        read(bits=16)
    with pytest.raises(DinomedError, match=r"floating-point values from -2 to 2 have no fixed range"):
        to_range(np.array([[[-2.0], [2.0]]]), DEEP)
    with pytest.raises(DinomedError, match="not finite"):
        to_range(np.array([[[0.5], [np.nan]]]), DEEP)
    assert to_range(np.full((2, 2, 1), 7, np.uint16), IntensityConfig(percentiles=(1, 99))).max() == 0  # no contrast
    assert to_range(np.ones((2, 2, 1), bool), DEEP).min() == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 16), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_depths_keep_order_and_ends(bits: int, a: int, b: int) -> None:
    """Black stays black, the largest value of a depth is 1, and of two samples the larger stays the larger."""
    top = 2**bits - 1
    low, high = sorted((a % (top + 1), b % (top + 1)))
    scaled = to_range(np.array([[[0], [low], [high], [top]]], np.uint16), DEEP).ravel()
    assert scaled[0] == 0
    assert (scaled[1] < scaled[2]) == (low < high)
    depth = next(d for d in (8, 10, 12, 14, 16) if top < 2**d)
    assert scaled[3] == pytest.approx(top / (2**depth - 1))


def test_hostile_arrays_are_refused_in_one_line(five: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "table.npy", np.zeros((100, 384)))
    np.save(tmp_path / "text.npy", np.full((4, 4, 1), "x"))
    np.save(tmp_path / "complex.npy", np.zeros((4, 4, 1), complex))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4, 1)))
    np.save(tmp_path / "turned.npy", np.zeros((3, 4, 600), np.uint8))
    np.save(tmp_path / "whole.npy", five)
    data = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-10])
    (tmp_path / "garbage.npy").write_bytes(data[:8] + b"\xff" * 60)
    header = str({"descr": "<u2", "fortran_order": False, "shape": (100_000, 100_000, 5)}).encode()
    (tmp_path / "bomb.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    for name, reason in {
        "object": "values have type object", "table": r"shape \(100, 384\)", "text": "values have type str",
        "complex": "values have type complex128", "empty": r"shape \(0, 4, 1\)", "turned": "600 channels, over",
        "cut": "truncated", "garbage": "damaged", "bomb": "10000 megapixels, over the limit",
    }.items():  # fmt: skip
        with pytest.raises(UnreadableImage, match=reason) as caught:
            read_whole(tmp_path / f"{name}.npy")
        assert "\n" not in str(caught.value)
    tifffile.imwrite(tmp_path / "bands", five, photometric="minisblack", planarconfig="contig")
    whole = (tmp_path / "bands").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage):
        read_whole(tmp_path / "half")


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 12}, {"window": (5, 5)}, {"percentiles": (50, 20)}, {"window": (0, 1), "percentiles": (0, 100)}],
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        IntensityConfig(**wrong)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_files_that_pillow_does_not_read_are_turned_too(tmp_path: Path, orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 65535, (5, 7, 5)).astype(np.uint16)
    path, tags = tmp_path / "a.tif", [(274, "H", 1, orientation, True)]
    for channels, kind in ((3, "rgb"), (5, "minisblack")):
        samples = stored[..., :channels]
        tifffile.imwrite(path, samples, photometric=kind, planarconfig="contig", extratags=tags)
        image = read_image(path, channels=channels, intensity=IntensityConfig(bits=16, window=(0, 65535)))
        assert image == pytest.approx(upright(samples, orientation) / 65535, abs=1e-6), kind
        header = read_header(path)
        assert (header.height, header.width, header.orientation) == (*image.shape[:2], orientation)
