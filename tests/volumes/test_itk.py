"""MetaImage and NRRD volumes: values and geometry of the same NIfTI, written back, and one line for bad files."""

import gzip
import itertools
import runpy
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dinomed
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.volumes.find import find_volumes
from dinomed.volumes.geometry import lps_to_ras
from dinomed.volumes.itk import read_itk, volume_identifier, write_volume, written_suffix
from dinomed.volumes.masks import read_mask_volume
from dinomed.volumes.read import Volume, read_volume

made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_nifti = made["numbers"], made["write_nifti"]
SHAPE = (6, 5, 4)
LPS = np.eye(4)  # oblique: the third direction is the cross product of the others
LPS[:3, 0], LPS[:3, 1] = np.array([0.8, 0.6, 0]) * 0.7, np.array([-0.36, 0.48, 0.8]) * 0.9
LPS[:3, 2], LPS[:3, 3] = np.cross([0.8, 0.6, 0], [-0.36, 0.48, 0.8]) * 2.5, (-81.3, 42.7, -310.9)


def text(values: Any) -> str:
    return " ".join(repr(float(value)) for value in np.ravel(values))


def meta_image(values: np.ndarray, packed: bool = False, data: str = "LOCAL", **changes: str | None) -> bytes:
    """A header of MetaImage, and the voxels if they follow it; fields are changed, or left out by None."""
    spacing, voxels = np.linalg.norm(LPS[:3, :3], axis=0), values.T.tobytes()
    stored = zlib.compress(voxels) if packed else voxels
    fields = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(packed), "CompressedDataSize": str(len(stored)) if packed else None,
        "TransformMatrix": text((LPS[:3, :3] / spacing).T), "Offset": text(LPS[:3, 3]),
        "ElementSpacing": text(spacing), "DimSize": "6 5 4", "ElementType": "MET_SHORT", "ElementDataFile": data,
    } | changes  # fmt: skip
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # it is the last one
    head = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None).encode()
    return head + (stored if data == "LOCAL" else b"")


def nrrd(values: np.ndarray, packed: bool = False, data: str | None = None, **changes: str | None) -> bytes:
    """A header of NRRD, and the voxels if they follow it."""
    vectors = [f"({','.join(repr(float(x)) for x in LPS[:3, axis])})" for axis in range(4)]
    fields = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "6 5 4",
        "space directions": " ".join(vectors[:3]), "kinds": "domain domain domain", "endian": "little",
        "encoding": "gzip" if packed else "raw", "space origin": vectors[3], "data file": data,
    } | {name.replace("_", " "): value for name, value in changes.items()}  # fmt: skip
    lines = [f"{name}: {value}\n" for name, value in fields.items() if value is not None]
    head = "".join(["NRRD0005\n# a comment\n", *lines, "key:=value\n", "\n"]).encode()
    voxels = values.T.tobytes()
    return head + (b"" if data else gzip.compress(voxels) if packed else voxels)


def read(path: Path) -> Volume:
    (source,) = find_volumes([path]).sources
    return read_volume(source)


def write_all(folder: Path, values: np.ndarray) -> list[Path]:
    """Write the values in each form of both formats."""
    voxels = values.T.tobytes()
    files = {
        "a.mha": meta_image(values), "b.mha": meta_image(values, packed=True),
        "c.mhd": meta_image(values, data="c.raw"), "c.raw": voxels,
        "d.mhd": meta_image(values, packed=True, data="d.zraw"), "d.zraw": zlib.compress(voxels),
        "e.mha": meta_image(values.astype(">i2"), BinaryDataByteOrderMSB="True"),
        "f.nrrd": nrrd(values), "g.nrrd": nrrd(values, packed=True), "h.nhdr": nrrd(values, data="h.raw"),
        "h.raw": voxels, "i.nhdr": nrrd(values, packed=True, data="i.raw.gz"), "i.raw.gz": gzip.compress(voxels),
        "j.nrrd": nrrd(values.astype(">i2"), endian="big"),
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files if Path(name).suffix in (".mha", ".mhd", ".nrrd", ".nhdr")]


def test_values_and_geometry_are_those_of_nifti(tmp_path: Path) -> None:
    values = numbers(SHAPE)
    expected = read(write_nifti(tmp_path / "nifti" / "a.nii.gz", values, lps_to_ras(LPS)))
    for path in write_all(tmp_path, values):
        volume = read(path)
        assert np.array_equal(volume.values, expected.values), path.name
        assert np.allclose(volume.grid.affine, lps_to_ras(LPS), atol=1e-12), path.name
        assert np.allclose(volume.grid.affine, expected.grid.affine, atol=1e-4), path.name  # NIfTI has 32 bits
    (tmp_path / "k.nrrd").write_bytes(nrrd(values, space="RAS"))
    assert np.allclose(read(tmp_path / "k.nrrd").grid.affine, LPS, atol=1e-12)


@pytest.mark.parametrize(("suffix", "build"), [(".mha", meta_image), (".nrrd", nrrd)])
def test_a_mask_is_written_in_the_format_and_geometry_of_its_volume(
    tmp_path: Path, suffix: str, build: Callable[..., bytes]
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(build(numbers(SHAPE)))
    volume = read(tmp_path / f"a{suffix}")
    assert written_suffix(volume.header) == suffix
    for count, kind in ((3, np.uint8), (400, np.uint16)):
        labels = np.random.default_rng(0).integers(0, count, SHAPE).astype(kind)
        paths = [tmp_path / f"{name}{suffix}" for name in "bc"]
        for path in paths:
            write_volume(path, labels, volume.grid, volume.header)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert np.array_equal(read_mask_volume(paths[0], volume.grid), labels)
        assert np.allclose(read(paths[0]).grid.affine, volume.grid.affine, rtol=0, atol=1e-12)


READ_BY_SIMPLEITK = """
import sys
from itertools import product
import numpy as np
import SimpleITK as itk
*paths, out = sys.argv[1:]
found = {}
for path in paths:
    image = itk.ReadImage(path)
    corners = product(*([0, size - 1] for size in image.GetSize()))
    found[path + "|values"] = itk.GetArrayFromImage(image).T
    found[path + "|places"] = np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners])
np.savez(out, **found)
"""


def test_itk_reads_the_same_and_what_is_written(tmp_path: Path) -> None:
    """In a process of its own: where SimpleITK is imported after faiss, the vectors of faiss are no longer read."""
    values, volumes, written = numbers(SHAPE), dict[Path, Volume](), dict[Path, Path]()
    for path in write_all(tmp_path, values):
        volumes[path] = volume = read(path)
        written[path] = tmp_path / f"out_{path.name}{written_suffix(volume.header)}"
        write_volume(written[path], np.ones(SHAPE, np.uint8), volume.grid, volume.header)
    paths = [*map(str, volumes), *map(str, written.values())]
    subprocess.run([sys.executable, "-c", READ_BY_SIMPLEITK, *paths, str(tmp_path / "found.npz")], check=True)
    found = np.load(tmp_path / "found.npz")
    corners = list(itertools.product(*([0, size - 1] for size in SHAPE)))
    for path, volume in volumes.items():
        for read_file, expected in ((path, values), (written[path], np.ones(SHAPE))):
            assert np.array_equal(found[f"{read_file}|values"], expected), path.name
            for corner, place in zip(corners, found[f"{read_file}|places"], strict=True):
                ras = np.diag([-1, -1, 1]) @ place
                assert np.allclose((volume.grid.affine @ [*corner, 1])[:3], ras, atol=1e-9), path.name


@pytest.mark.parametrize(
    ("suffix", "build", "change", "reason"),
    [
        (".mha", meta_image, {"TransformMatrix": None}, "without a TransformMatrix, so that its orientation"),
        (".mha", meta_image, {"Offset": None}, "without an Offset"),
        (".mha", meta_image, {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "its affine is singular"),
        (".mha", meta_image, {"TransformMatrix": "1 0 0 0 x 0 0 0 1"}, "a damaged header: TransformMatrix"),
        (".mha", meta_image, {"NDims": "4"}, "4 dimensions"),
        (".mha", meta_image, {"NDims": 5000 * "9"}, "a damaged header: the number of its dimensions"),
        (".mhd", meta_image, {"data": "a\0.raw"}, "a damaged header: the name of its data file"),
        (".nhdr", nrrd, {"data": "a\0.raw"}, "a damaged header: the name of its data file"),
        (".mha", meta_image, {"DimSize": "6 5 -4"}, "a damaged header: the numbers of its voxels"),
        (".mha", meta_image, {"DimSize": "6 5 40"}, "truncated"),
        (".mha", meta_image, {"DimSize": "32000 32000 32000"}, "voxels, over the limit"),
        (".mha", meta_image, {"ElementNumberOfChannels": "3"}, "colours or vectors"),
        (".mha", meta_image, {"ElementType": "MET_STRING"}, "of a type that is no number"),
        (".mha", meta_image, {"packed": True, "DimSize": "6 5 3"}, "hold more than the header declares"),
        (".mha", meta_image, {"packed": True, "DimSize": "6 5 5"}, "truncated"),
        (".mha", meta_image, {"CompressedData": "True"}, "truncated or damaged compressed data"),
        (".mhd", meta_image, {"data": "none.raw"}, "its data file is missing"),
        (".mhd", meta_image, {"data": "../outside.raw"}, "its data file is outside of its folder"),
        (".mhd", meta_image, {"data": "/etc/hostname"}, "its data file is outside of its folder"),
        (".mhd", meta_image, {"data": "link.raw"}, "its data file is outside of its folder"),
        (".mhd", meta_image, {"data": "LIST"}, "its voxels are in several files"),
        (".mhd", meta_image, {"data": "a%03d.raw 1 4 1"}, "its voxels are in several files"),
        (".nrrd", nrrd, {"space directions": None}, "so that its orientation is unknown"),
        (".nrrd", nrrd, {"space": "scanner-xyz"}, "so that its orientation is unknown"),
        (".nrrd", nrrd, {"space units": '"mm" "mm" "um"'}, "its spacing is not in mm"),
        (".nrrd", nrrd, {"dimension": "4"}, "4 dimensions"),
        (".nrrd", nrrd, {"encoding": "bzip2"}, "encoding is not raw or gzip"),
        (".nrrd", nrrd, {"endian": None}, "without its byte order"),
        (".nrrd", nrrd, {"sizes": "6 5 40"}, "truncated"),
        (".nhdr", nrrd, {"data": "../outside.raw"}, "its data file is outside of its folder"),
        (".nhdr", nrrd, {"data": "LIST"}, "its voxels are in several files"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path, suffix: str, build: Callable[..., bytes], change: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.raw").write_bytes(bytes(240))
    (folder / "link.raw").symlink_to(tmp_path / "outside.raw")
    path = folder / f"a{suffix}"
    path.write_bytes(build(numbers(SHAPE), **change))
    with pytest.raises(UnreadableImage, match=reason) as refused:
        read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"NDims = 3\n", b"NRRD0004\ntype: short\n", b"text", b"\0" * 400])
def test_what_has_no_header_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("a.mha", "a.nrrd"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match="header"):
            read(tmp_path / name)


def test_slices_with_masks_of_another_format_and_a_misaligned_one(tmp_path: Path) -> None:
    values = numbers(SHAPE)
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.nrrd").write_bytes(nrrd(values, packed=True))
    labels = (values > 700).astype(np.int16)
    (tmp_path / "masks" / "a.mha").write_bytes(meta_image(labels, packed=True))
    (tmp_path / "masks" / "b.mha").write_bytes(meta_image(labels, Offset="0 0 0"))
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", masks=tmp_path / "masks")
    assert len(written.manifest) == 10
    assert [mask is not None for mask in written.manifest.column("mask")] == [True] * 5 + [False] * 5
    assert any("does not align with its volume" in reason for _, reason in written.problems)


def test_detached_volumes_of_one_header_are_told_apart(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mhd").write_bytes(meta_image(numbers(SHAPE), data="x.raw"))
        (tmp_path / name / "x.raw").write_bytes(numbers(SHAPE, seed).T.tobytes())
    assert volume_identifier(tmp_path / "a" / "x.mhd") != volume_identifier(tmp_path / "b" / "x.mhd")
    (tmp_path / "a" / "notes.raw").write_bytes(b"notes")
    assert find_volumes([tmp_path]).left_out["other files"] == 1
    with pytest.raises(UsageError, match="is neither a volume"):
        find_volumes([tmp_path / "a" / "x.raw"])


@pytest.mark.parametrize(
    "content", [meta_image(numbers(SHAPE), data="a\0.raw"), meta_image(numbers(SHAPE), NDims=5000 * "9")]
)
def test_a_hostile_header_does_not_stop_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "id.key").write_bytes(bytes(range(32)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mhd").write_bytes(content)
    (tmp_path / "in" / "b.mha").write_bytes(meta_image(numbers(SHAPE)))
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", id_key=tmp_path / "id.key")
    assert len(written.manifest) == 5
    ((_, reason),) = written.problems
    assert "a damaged header" in reason


def test_gzip_of_several_members_is_one_stream(tmp_path: Path) -> None:
    values = numbers(SHAPE)
    content = nrrd(values, encoding="gzip")
    head, voxels = content[: content.index(b"\n\n") + 2], values.T.tobytes()
    (tmp_path / "a.nrrd").write_bytes(head + b"".join(gzip.compress(part) for part in (voxels[:99], b"", voxels[99:])))
    assert np.array_equal(read(tmp_path / "a.nrrd").values, values)


@pytest.mark.parametrize(("suffix", "build"), [(".mha", meta_image), (".nrrd", nrrd)])
def test_a_mutated_header_is_read_or_refused(tmp_path: Path, suffix: str, build: Callable[..., bytes]) -> None:
    content, reasons = build(numbers(SHAPE), packed=True), list[str]()
    path = tmp_path / f"a{suffix}"
    for seed in range(400):
        rng = np.random.default_rng(seed)
        mutated = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            mutated[place] = rng.integers(0, 256) if seed % 2 else rng.choice(list(b"0123456789-. \n:=(,)"))
        path.write_bytes(mutated[: rng.integers(1, len(content))] if seed % 10 == 0 else mutated)
        try:
            facts, values = read_itk(str(path))
        except UnreadableImage as error:
            reasons.append(error.reason)
        else:
            assert values.size > 0
            assert np.isfinite(facts["affine"]).all()
    assert 0 < len(reasons) < 400
    assert all(reason.isprintable() for reason in reasons)


def test_predicted_volumes_have_the_format_and_geometry_of_their_input(user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mha").write_bytes(meta_image(numbers(SHAPE), packed=True))
    (tmp_path / "in" / "b.nrrd").write_bytes(nrrd(numbers(SHAPE, 1)))
    written = dinomed.slices(tmp_path / "in", tmp_path / "slices", keep_ids=True)
    manifest = written.folder / "manifest.csv"
    dinomed.predict(user_folder / "seg", manifest, tmp_path / "out", backbone=user_folder / "ssl", volumes=True)
    for name in ("a.mha", "b.nrrd"):
        mask, volume = read(tmp_path / "out" / "volumes" / name), read(tmp_path / "in" / name)
        assert mask.grid.shape == volume.grid.shape
        assert np.allclose(mask.grid.affine, volume.grid.affine, rtol=0, atol=1e-12)
        assert set(np.unique(mask.values)) <= {0, 1}
