"""Batches of the demo without a browser: results, ZIP bombs, damaged ZIP files, and what stays on the disk."""

import base64
import io
import struct
import uuid
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.apps.demos.batch import archive
from dinomed.apps.demos.batch.archive import MAX_DIRECTORY_BYTES, MAX_FILES, UnreadableArchive, list_files, read_file
from dinomed.apps.demos.batch.panel import BatchPanel
from dinomed.apps.demos.batch.work import PREFIX, BatchWork
from dinomed.apps.demos.page import NO_RESULT
from dinomed.apps.demos.segment import SegmentPanel
from dinomed.apps.demos.values import ValuesPanel

SETTINGS = {"segment": {"which": "lesion", "threshold": 0.5, "min_share": 0, "largest_only": False}}


class Dark:
    """A model for which dark is lesion."""

    threshold = 0.5

    def probability(self, image: np.ndarray) -> np.ndarray:
        return (1 - image.mean(axis=-1) / 255).astype(np.float32)


def picture(side: int) -> bytes:
    """A PNG of a dark square of `side` px on pale skin, 60 x 80 px."""
    pixels = np.full((60, 80, 3), 204, np.uint8)
    pixels[5 : 5 + side, 9 : 9 + side] = 51
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BatchWork:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return BatchWork([SegmentPanel(Dark())])


@pytest.fixture
def upload(tmp_path: Path) -> Callable[[bytes], str]:
    """Put a file where an upload of a visitor is."""

    def put(data: bytes) -> str:
        path = tmp_path / uuid.uuid4().hex / f"{PREFIX}{uuid.uuid4().hex}"
        path.parent.mkdir()
        path.write_bytes(data)
        return str(path)

    return put


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as written:
        for name, content in files.items():
            written.writestr(name, content)
    return data.getvalue()


def files_on(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_picture_gets_its_mask_and_values_and_is_removed(work: BatchWork, upload, tmp_path: Path) -> None:
    answer = work.predict({"path": upload(picture(20)), "position": None, "settings": SETTINGS})
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    assert mask.sum() == 255 * 400
    assert mask.shape == (60, 80)
    assert answer["values"] | {"class": "lesion", "regions": 1, "area_px": 400} == answer["values"]
    assert answer["orders"]["area"] == 400 / 4800
    # 0.2 wrong of 1.8 in each pixel of the mask, 0.2 of 0.2 in each other one, and the smallest area of a lesion
    expected = 0.2 * 4800 / (1.8 * 400 + 0.2 * 4400 + 0.0005 * 4800)
    assert answer["orders"]["uncertaintysegment"] == pytest.approx(expected, rel=1e-4)
    assert files_on(tmp_path) == []
    answer = work.predict({"path": upload(b"no picture"), "position": None, "settings": SETTINGS})
    assert "cannot be read as a picture" in answer["error"]
    assert files_on(tmp_path) == []


def test_a_file_of_another_visitor_in_the_same_folder_stays(
    work: BatchWork, upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(upload(picture(5)))
    arriving = path.with_name(f"{PREFIX}of_another_visitor")
    arriving.write_bytes(path.read_bytes())
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(()))  # it arrives after a look into the folder
    work.predict({"path": str(path), "position": None, "settings": SETTINGS})
    assert not path.exists()
    assert arriving.exists()


class NotFinite(Dark):
    """A model without a finite value."""

    def probability(self, image: np.ndarray) -> np.ndarray:
        return np.full(image.shape[:2], np.nan, np.float32)


def test_a_panel_without_a_finite_value_is_named(work: BatchWork, upload) -> None:
    broken = SegmentPanel(NotFinite())
    broken.name, broken.title = "second", "Second"  # type: ignore[misc]
    settings = SETTINGS | {"second": SETTINGS["segment"]}
    for panels in ([broken], [broken, broken]):
        answer = BatchWork(panels).predict({"path": upload(picture(5)), "position": None, "settings": settings})
        assert answer == {"error": NO_RESULT}
    two = BatchWork([broken, *work.panels])
    answer = two.predict({"path": upload(picture(5)), "position": None, "settings": settings})
    assert answer["values"]["area_px"] == 25
    assert answer["problems"] == {"Second": NO_RESULT}


def test_the_pictures_of_a_zip_are_read_by_position_and_never_written_under_their_names(
    work: BatchWork, upload, tmp_path: Path
) -> None:
    names = ("../../escaped.png", "/absolute.png", "a/b.png", "a/b.png", "ü.png")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as written, warnings.catch_warnings(action="ignore"):
        for side, name in enumerate(names, 10):
            written.writestr(name, picture(side))  # warns of the second a/b.png
        for name in ("__MACOSX/._a.png", ".DS_Store", "folder/"):
            written.writestr(name, b"")
    path = upload(data.getvalue())
    listed = work.list_archive({"path": path})["files"]
    assert [file["name"] for file in listed] == list(names)
    for side, file in enumerate(listed, 10):
        answer = work.predict({"path": path, "position": file["position"], "settings": SETTINGS})
        assert answer["values"]["area_px"] == side * side
    assert files_on(tmp_path) == [Path(path)]
    name = work.keep({"path": path, "position": 1})["path"]
    kept = tmp_path / name
    assert str(tmp_path) not in name  # visitors do not see the folders of the server
    roundabout = str(Path(path).parent / ".." / Path(path).parent.name / Path(path).name)
    assert [work.keep({"path": each, "position": 1}) for each in (path, roundabout)] == [{"path": name}] * 2
    assert kept.read_bytes() == picture(11)
    assert kept.name == "image"  # a name of our own, in a folder that cannot be guessed
    work.close({"path": path})
    assert files_on(tmp_path) == [kept]
    assert not list(tmp_path.parent.glob("escaped.png"))


def test_bombs_are_refused_before_they_are_unpacked(upload, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = upload(zip_of({"zeros.png": bytes(20 * 2**20), "good.png": picture(5)}, zipfile.ZIP_DEFLATED))
    problems = {file.name: file.problem for file in list_files(Path(bomb))}
    assert problems == {"zeros.png": "compressed more than 100 times, as no image is", "good.png": ""}
    with pytest.raises(UnreadableArchive, match="compressed more than 100 times"):
        read_file(Path(bomb), 0)
    with pytest.raises(UnreadableArchive, match=f"over the limit of {MAX_FILES}"):
        list_files(Path(upload(zip_of({f"{i}.png": b"" for i in range(MAX_FILES + 1)}))))
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(UnreadableArchive, match="in total"):
        list_files(Path(upload(zip_of({"a": bytes(600), "b": bytes(600)}))))
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 500)
    assert "over the limit" in list_files(Path(upload(zip_of({"a": bytes(600)}))))[0].problem


def test_a_list_of_files_that_fills_the_memory_is_not_read(upload, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the list was read")

    good = zip_of({"a.png": picture(5)})
    end = bytearray(good[-22:])
    struct.pack_into("<L", end, 12, MAX_DIRECTORY_BYTES + 1)
    wide = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)  # locator of a 64-bit list
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    for data, reason in (
        (good[:-22] + bytes(end), "too long"),
        (good[:-22] + wide + good[-22:], "64-bit"),
        (good[:-30], "cut off"),
        (good + b"comment", "comment"),
        (b"PK\x03\x04", "damaged"),
    ):
        with pytest.raises(UnreadableArchive, match=reason):
            list_files(Path(upload(data)))


def test_damaged_and_encrypted_files_of_a_zip_leave_the_others(work: BatchWork, upload) -> None:
    data = bytearray(zip_of({"bad.png": picture(5), "locked.png": picture(6), "good.png": picture(7)}))
    start = data.index(picture(5))
    data[start + 40 : start + 60] = bytes(20)  # the checksum does not match
    place = data.index(b"locked.png", data.index(b"PK\x01\x02"))
    data[place - 46 + 8] |= 1  # encrypted, in the list
    path = upload(bytes(data))
    listed = work.list_archive({"path": path})["files"]
    assert [file["problem"] for file in listed] == ["", "encrypted", ""]
    answers = [work.predict({"path": path, "position": place, "settings": SETTINGS}) for place in range(3)]
    assert "damaged in the ZIP" in answers[0]["error"]
    assert "encrypted" in answers[1]["error"]
    assert answers[2]["values"]["area_px"] == 49
    assert "no such file" in work.predict({"path": path, "position": 9, "settings": SETTINGS})["error"]
    assert "cannot be read" in work.list_archive({"path": upload(b"no zip")})["error"]


def test_a_full_disk_of_uploads_refuses_more(work: BatchWork, upload, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload(zip_of({"a.png": picture(5)}))
    monkeypatch.setattr("dinomed.apps.demos.batch.work.MAX_UPLOADS_BYTES", Path(path).stat().st_size + 10)
    assert "too many uploads" in work.predict({"path": path, "position": 0, "settings": SETTINGS})["error"]


def test_files_outside_the_uploads_are_refused(work: BatchWork, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{PREFIX}outside.png"
    outside.write_bytes(picture(5))
    for call in (work.predict, work.list_archive, work.keep, work.close):
        with pytest.raises(ValueError, match="not an upload"):
            call({"path": str(outside), "position": 0, "settings": SETTINGS})
    assert outside.exists()


def test_the_panel_offers_the_orders_that_its_results_have() -> None:
    controls = BatchPanel([SegmentPanel(Dark())]).controls()
    for key in ("number", "area", "-area", "uncertaintysegment"):
        assert f'data-sort="{key}"' in controls
    assert "unlikeness" not in controls  # this model has no check
    predictor: Any = SimpleNamespace(task="depth", backbone=SimpleNamespace(preprocessing=None), check=None)
    controls = BatchPanel([SegmentPanel(Dark()), ValuesPanel(predictor)]).controls()
    assert "uncertaintysegment" in controls
    assert "uncertaintydepth" not in controls
