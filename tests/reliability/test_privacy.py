"""Identifiers that are planted in tables of labels, file metadata, DICOM elements and file names are in no output."""

import base64
import csv
import io
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin
from pydicom import Dataset
from pydicom.datadict import DicomDictionary
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dinomed.adapters.retrieval.index import read_index

Run = Callable[..., tuple[int, str, str]]

IDENTIFYING = (
    "pid", "subject_id", "case_id", "participant_id", "record_id", "pat_nr", "study_uid", "Nachname", "Geburtsdatum",
    "PatientName", "remark",
)  # fmt: skip
GROUPS = ("patient", "pid2", "Fallnummer")


def plant(folder: Path) -> Path:
    """Add identifying columns to labels.csv: each cell holds PLANTED, the name of its column and its row."""
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row |= {name: f"PLANTED-{name}-{number}" for name in IDENTIFYING}
        row |= {name: f"PLANTED-{name}-{row['lesion_id']}" for name in GROUPS}
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def places_with_plants(root: Path) -> list[str]:
    """Return the files below `root` that hold a planted value, also inside compressed tables and indexes."""
    paths = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += str(pq.ParquetFile(path).read().to_pydict()).encode()
        if path.name == "index.safetensors":
            content += str(read_index(path.parent).manifest.table.to_pydict()).encode()
        if b"PLANTED" in content or "PLANTED" in path.name:
            paths.append(str(path.relative_to(root)))
    return paths


def test_no_planted_identifier_is_in_any_output(user_folder: Path, tmp_path: Path, run: Run) -> None:
    lesions, out = tmp_path / "lesions", tmp_path / "out"
    shutil.copytree(user_folder / "lesions", lesions)
    labels = plant(lesions)
    text = ""
    for group in GROUPS:
        for name in (f"{group}.parquet", f"{group}.csv"):
            arguments = ("--labels", labels, "--group", group, "--keep", "sex", "-o", out / name)
            code, stdout, stderr = run("scan", lesions, *arguments)
            assert code == 0, stderr
            text += stdout + stderr
    data = out / "patient.parquet"
    for arguments in (
        ("index", data, "-b", user_folder / "ssl", "-o", out / "idx"),
        ("search", data, "--index", out / "idx", "--json", "-o", out / "hits"),
        ("predict", user_folder / "cls", data, "-o", out / "images"),
        ("predict", user_folder / "cls", data, "--unit", "group", "-o", out / "groups"),
        ("evaluate", user_folder / "cls", "--data", data, "--by", "sex", "--names", "--json", "-o", out / "report"),
        ("features", data, "-b", user_folder / "ssl", "-o", out / "features.parquet"),
    ):
        code, stdout, stderr = run(*arguments)
        assert code == 0, stderr
        text += stdout + stderr
    assert "PLANTED" not in text
    assert places_with_plants(out) == []
    assert len(list(out.rglob("*"))) > 15  # the commands have written something
    for name in (*IDENTIFYING, "lesion_id"):
        assert name in text  # scan says which columns it leaves out
    assert places_with_plants(lesions) == ["labels.csv"]  # the search finds what is there


MARK, NAME_MARK, UID_ROOT, DATE = "PLANTED", "CARRIED", "1.2.999.31337", "18540617"
"""Marks of metadata and cells, of file names, of DICOM UIDs and of DICOM dates."""
OTHER = {"DT": f"{DATE}031733.1854", "TM": "031733.1854", "AS": "137Y", "DS": f"{DATE}.5", "IS": f"{DATE}17"}
"""Marks of DICOM date-times, times, ages, decimal and integer numbers."""
MEASURES = {0x00180050, 0x00180088, 0x00200032, 0x00200037}
"""Thickness, spacing, position and orientation: a segmentation has those of its image."""
TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UN", "UR", "UT", "OB"}
"""DICOM types of values that hold 15 characters of any text."""
READ_BY = {0x0000, 0x0002, 0x0004, 0x0028, 0x5200, 0x7FE0}
"""Groups of DICOM elements that say how the file or its pixels are read; 0x5200 would make an enhanced image."""


def plant_dicom(path: Path, pixels: np.ndarray) -> int:
    """Write a DICOM with a mark in each element of the dictionary that holds text, a UID, a date, a time, an age or a
    number as text, also in sequences, private elements and the preamble; return the number of marks."""
    file = Dataset()
    for tag, (kinds, *_, retired, _keyword) in DicomDictionary.items():
        kind, group = kinds.split(" or ")[0], tag >> 16
        if group in READ_BY or tag & 0xFFFF == 0 or tag in (0x00080001, 0x00080005):
            continue
        if kind in TEXT:
            value: Any = f"{MARK}{tag:08X}"
            file.add_new(tag, kind, value.encode() if kind in ("OB", "UN") else value)
        elif kind in OTHER and tag not in MEASURES:
            file.add_new(tag, kind, OTHER[kind])
        elif kind in ("UI", "DA"):
            file.add_new(tag, kind, f"{UID_ROOT}.{tag}" if kind == "UI" else DATE)
        elif kind == "SQ" and not retired:
            item = Dataset()
            item.PatientName, item.TextValue = f"{MARK}^nested", f"{MARK} nested"
            file.add_new(tag, kind, [item])
    block = file.private_block(0x0099, f"{MARK} creator", create=True)
    block.add_new(1, "LO", f"{MARK} private")
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.file_meta.SourceApplicationEntityTitle = MARK
    file.preamble = MARK.encode() * 18 + b"\0\0"
    file.Modality, file.SpecificCharacterSet = "OT", "ISO_IR 192"
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel, file.PlanarConfiguration, file.PhotometricInterpretation = 3, 0, "RGB"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.PixelData = pixels.tobytes()
    file.save_as(path, enforce_file_format=True)
    return path.read_bytes().count(MARK.encode())


def planted_exif() -> Image.Exif:
    """Return EXIF data with a mark in each field that can hold text, also in the blocks Exif and GPS."""
    exif = Image.Exif()
    places = {0x8769, 0x8825, 0xA005, 0x014A}  # of other blocks
    blocks = ((None, ExifTags.Base), (ExifTags.IFD.Exif, ExifTags.Base), (ExifTags.IFD.GPSInfo, ExifTags.GPS))
    for block, tags in blocks:
        for tag in {int(tag) for tag in tags} - places:
            for value in (f"{MARK} {tag:04X}", MARK.encode()):
                trial = Image.Exif()
                (trial if block is None else trial.get_ifd(block))[tag] = value
                try:
                    trial.tobytes()
                except (TypeError, ValueError, AttributeError, struct.error):
                    continue  # a number
                (exif if block is None else exif.get_ifd(block))[tag] = value
                break
    exif[ExifTags.Base.XPAuthor] = MARK.encode("utf-16-le")
    return exif


def plant_images(folder: Path) -> int:
    """Give each image of a folder of lesions a marked name and marked metadata; return the number of marks."""
    exif, packet = planted_exif(), f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{MARK} xmp</x:xmpmeta>".encode()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", MARK)
    text.add_text("Comment", f"{MARK} compressed " * 9, zip=True)
    text.add_itxt("XML:com.adobe.xmp", packet.decode(), zip=True)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in (269, 270, 271, 272, 305, 306, 315, 316, 33432, 65000):
        tags[tag] = f"{MARK} {tag}"
    tags[700] = packet
    marks = 0
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        path = folder / row["image"]
        pixels = Image.open(path).convert("RGB")
        suffix = (".dcm", ".tif", ".png", ".jpg")[min(number, 3)]
        new = path.with_name(f"{NAME_MARK}-{path.stem}{suffix}")
        path.unlink()
        if suffix == ".dcm":
            marks += plant_dicom(new, np.asarray(pixels))
        elif suffix == ".tif":
            pixels.save(new, tiffinfo=tags)
        elif suffix == ".png":
            pixels.save(new, pnginfo=text, exif=exif)
        else:
            pixels.save(new, quality=95, exif=exif, xmp=packet, comment=MARK.encode())
        marks += new.read_bytes().count(MARK.encode())
        mask = folder / row["mask"]
        marked = mask.with_name(f"{NAME_MARK}-{mask.name}")
        Image.open(mask).save(marked, pnginfo=text)
        mask.unlink()
        row["image"], row["mask"] = str(new.relative_to(folder)), str(marked.relative_to(folder))
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return marks


def contents(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """Yield the bytes of a file and those of all that is packed in it: tables, archives, deflated parts, base64."""
    yield data
    if depth > 4:
        return
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from contents(archive.read(name), depth + 1)
    for place in [match.start() for match in re.finditer(rb"PAR1", data)][::2]:
        for end in [match.end() for match in re.finditer(rb"PAR1", data[place + 4 :])][::-1][:4]:
            try:
                yield str(pq.read_table(io.BytesIO(data[place : place + 4 + end])).to_pydict()).encode()
                break
            except Exception:  # not a table
                continue
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", data):
        try:
            unpacked = zlib.decompressobj(47).decompress(data[match.start() :], 1 << 20)
        except zlib.error:
            continue
        if len(unpacked) > 8:
            yield from contents(unpacked, depth + 1)
    for match in re.finditer(rb"base64,([A-Za-z0-9+/=]{40,})", data):
        yield from contents(base64.b64decode(match.group(1)), depth + 1)


def holds(data: bytes, mark: str) -> bool:
    """Return whether a file holds a mark, as text of one or two bytes a character, in it or packed in it."""
    words = (mark.encode(), mark.encode("utf-16-le"), mark.encode("utf-16-be"))
    return any(word in part for part in contents(data) for word in words)


def files_with(root: Path, mark: str) -> list[str]:
    """Return the files below a folder that hold a mark, or have it in their name."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [name for path in paths if mark in (name := str(path.relative_to(root))) or holds(path.read_bytes(), mark)]


def files_with_age(root: Path) -> list[str]:
    """Return the files below a folder that hold the mark of ages, which is no part of a longer word or of base64."""
    age = re.compile(rb"(?<![0-9A-Za-z+/=])" + OTHER["AS"].encode() + rb"(?![0-9A-Za-z+/=])")
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [str(path) for path in paths if any(age.search(part) for part in contents(path.read_bytes()))]


def test_the_search_finds_marks_that_are_packed(tmp_path: Path) -> None:
    import pyarrow as pa

    secret = f"{MARK} {'x' * 40}".encode()
    pq.write_table(pa.table({"a": [f"{MARK} of a table"] * 99}), tmp_path / "table", compression="zstd")
    table = (tmp_path / "table").read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", table)
    packed = [
        zlib.compress(secret),
        table,
        b"before" + table + b"after",
        buffer.getvalue(),
        secret.decode().encode("utf-16-le"),
    ]
    packed += [b"src='data:image/png;base64," + base64.b64encode(zlib.compress(secret) * 2) + b"'"]
    for data in packed:
        assert holds(data, MARK)
    for data in packed[:-2]:
        assert not holds(data, NAME_MARK)


NAMED = ("m.parquet", "m.csv", "curated.parquet", "errors.csv", "errors.html", "features.parquet", "hits/results.json",
         "idx/index.safetensors", "predicted_cls/predictions.csv", "predicted_dicom/", "predicted_seg/")  # fmt: skip
"""Outputs that name files by design: tables of images, the list of doubtful labels, masks called like their images."""
RUN = ("--set", "run.batch_size=8", "--set", "run.workers=0", "--set", "run.steps=2", "--set", "crops.num_local=0",
       "--set", "backbone.depth=1", "--device", "cpu")  # fmt: skip
QUICK = ("--set", "fit.epochs=1", "--set", "fit.min_steps=0")


def plant_video(path: Path) -> None:
    """Write a video whose pictures differ, with a mark in a block of user data."""
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 5, (128, 96))
    for number in range(12):
        picture = np.random.default_rng(number).integers(20, 236, (12, 16, 3)).astype(np.uint8)
        video.write(cv2.resize(picture, (128, 96), interpolation=cv2.INTER_NEAREST))
    video.release()
    note = MARK.encode() * 9
    path.write_bytes(path.read_bytes() + struct.pack(">I4s", 8 + len(note), b"udta") + note)


def commands(lesions: Path, dicom: Path, clip: Path, ssl: Path, out: Path) -> list[tuple[object, ...]]:
    """Return a call of each command that writes files from images."""
    d, first, labels = out / "m.parquet", sorted(lesions.rglob("*.jpg"))[0], lesions / "labels.csv"
    return [
        ("scan", lesions, "--labels", labels, "--group", "patient", "--keep", "sex", "-o", d),
        ("scan", lesions, "--labels", labels, "--group", "patient", "-o", out / "m.csv"),
        ("audit", d, "-o", out / "audit.html"),
        ("audit", d, "-b", ssl, "--labels", "label", "-o", out / "errors.html", "--table", out / "errors.csv"),
        ("curate", "--pool", d, "-o", out / "curated.parquet", "--set", "quality.min_short_side_px=32"),
        ("pretrain", "vit_tiny_cpu", "--data", d, "-o", out / "run", *RUN),
        ("features", d, "-b", ssl, "-o", out / "features.parquet"),
        ("probe", ssl, "--data", d, "--few-shot", "1", "--seeds", "1", "-o", out / "probe"),
        ("train", "classify", "-b", ssl, "--data", d, "-o", out / "cls", "--head", "knn"),
        ("train", "segment", "-b", ssl, "--data", d, "-o", out / "seg", *QUICK),
        ("evaluate", out / "cls", "--data", d, "--by", "sex", "-o", out / "report_cls", "--resamples", "10"),
        ("evaluate", out / "seg", "--data", d, "-o", out / "report_seg", "--resamples", "10"),
        ("predict", out / "cls", d, "-o", out / "predicted_cls"),
        ("predict", out / "seg", d, "-o", out / "predicted_seg"),
        ("predict", out / "seg", dicom, "--dicom-seg", "-o", out / "predicted_dicom"),
        ("predict", out / "seg", clip, "-o", out / "predicted_video"),
        ("index", d, "-b", ssl, "-o", out / "idx"),
        ("search", d, "--index", out / "idx", "-o", out / "hits"),
        ("export", out / "cls", "--format", "safetensors", "-o", out / "export_cls"),
        ("export", out / "seg", "--format", "monai", "-o", out / "export_seg"),
        ("show", "pca", first, "-b", ssl, "-o", out / "pca.png"),
        ("show", "map", d, "-b", ssl, "-o", out / "map.html", "--method", "pca"),
        ("frames", clip, "-o", out / "frames", "--min-tissue", "0"),
        ("distill", "vit_tiny_cpu", "--teacher", out / "run", "--data", d, "-o", out / "small", *RUN),
        *(("doctor", out / name) for name in ("m.parquet", "run", "cls", "seg", "idx", "export_cls", "predicted_seg")),
    ]


@pytest.mark.long
def test_no_mark_of_files_elements_or_names_is_in_any_output_of_any_command(
    user_folder: Path, tmp_path: Path, run: Run
) -> None:
    pytest.importorskip("highdicom")
    lesions, dicom, clip, out = (tmp_path / name for name in ("lesions", "dicom", f"{NAME_MARK}.mp4", "out"))
    shutil.copytree(user_folder / "lesions", lesions)
    assert plant_images(lesions) > 2000
    plant(lesions)
    dicom.mkdir()
    shutil.copy(next(lesions.rglob("*.dcm")), dicom / f"{NAME_MARK}.dcm")
    plant_video(clip)
    text = ""
    for arguments in commands(lesions, dicom, clip, user_folder / "ssl", out):
        code, stdout, stderr = run(*arguments)
        assert code == 0, f"{arguments[:2]}: {stderr}"
        text += stdout + stderr
    assert not holds(text.encode(), MARK)
    assert files_with(out, MARK) == []
    assert [name for name in files_with(out, UID_ROOT) if not name.endswith(".seg.dcm")] == []  # it references UIDs
    assert files_with(out, DATE) == files_with(out, OTHER["TM"]) == files_with_age(out) == []
    with_names = [name for name in files_with(out, NAME_MARK) if not name.startswith(NAMED)]
    assert with_names == []
    assert places_with_plants(lesions)  # the search finds what is there
    assert len([path for path in out.rglob("*") if path.is_file()]) > 150
