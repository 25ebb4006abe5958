"""The contact sheet of a prediction: outlines, numbers instead of names, order, limit, and other pages left alone."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from dinomed.adapters.bundle import read_record
from dinomed.adapters.inference.folder import SheetRow
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.adapters.tasks.segment.predict import mask_uncertainty
from dinomed.adapters.tasks.segment.writer import _read_outlined
from dinomed.adapters.writer import SheetEntry
from dinomed.apps.pages import sheet
from dinomed.apps.pages.overlay import LINE
from dinomed.apps.pages.sheet import choose_rows, draw_thumbnail
from dinomed.datasets.tables import read_csv
from dinomed.images.labelmap import write_label_map


def items_of(page: str) -> list[dict[str, str]]:
    """Return the data of each item of a sheet."""
    return [dict(re.findall(r'data-(\w+)="([^"]*)"', item)) for item in re.findall(r"<li ([^>]*)>", page)]


def test_the_sheet_has_the_values_of_the_table_and_no_name(user_folder: Path, run, tmp_path: Path) -> None:
    pictures = tmp_path / "DOE_JANE"
    pictures.mkdir()
    for path in sorted((user_folder / "lesions" / "images").iterdir())[:4]:
        (pictures / f"DOE_{path.name}").write_bytes(path.read_bytes())
    (pictures / "DOE_broken.jpg").write_bytes(b"no picture")
    code, out, _ = run("predict", user_folder / "seg", pictures, "-o", tmp_path / "out")
    assert code == 1
    assert "index.html" in out
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "DOE" not in page
    assert "For research use only" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    columns, rows = read_csv(tmp_path / "out" / "predictions.csv")
    items = items_of(page)
    shares = [float(row[columns.index("area_fraction")]) for row in rows]
    assert [float(item["area"]) for item in items] == pytest.approx(shares, abs=1e-6)
    assert [float(item["uncertainty"]) for item in items] == [float(row[columns.index("uncertainty")]) for row in rows]
    assert page.count("data:image/jpeg") == len(items) == 4
    assert "Files without a prediction" in page
    assert 'data-sort="-area"' in page

    code, _, _ = run("predict", user_folder / "seg", pictures, "-o", tmp_path / "out", "--overwrite", "--names")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("DOE_") >= 5
    code, _, _ = run("predict", user_folder / "seg", pictures, "-o", tmp_path / "out", "--overwrite", "--no-sheet")
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_classifier_has_a_sheet_without_areas_and_groups_have_none(user_folder: Path, run, tmp_path: Path) -> None:
    manifest = user_folder / "derm.parquet"
    code, _, err = run("predict", user_folder / "cls", manifest, "-o", tmp_path / "out")
    assert code == 0, err
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert 'data-sort="area"' not in page
    columns, rows = read_csv(tmp_path / "out" / "predictions.csv")
    classes = read_record(user_folder / "cls").classes
    for item, row in zip(items_of(page), rows, strict=True):
        probabilities = [float(row[columns.index(name)]) for name in classes]
        assert float(item["uncertainty"]) == pytest.approx(1 - max(probabilities), abs=1e-5)
    code, _, err = run("predict", user_folder / "cls", manifest, "-o", tmp_path / "groups", "--unit", "group")
    assert code == 0, err
    assert not (tmp_path / "groups" / "index.html").exists()


def test_files_that_cannot_be_read_are_listed_by_a_prediction_of_groups_too(
    user_folder: Path, run, tmp_path: Path
) -> None:
    write_series = runpy.run_path(str(Path(__file__).parents[2] / "volumes" / "made.py"))["write_series"]
    write_series(tmp_path / "in", np.arange(480).reshape(5, 8, 12).astype(np.int16), uid="1.2", patient="P")
    whole = sorted((tmp_path / "in").iterdir())[2]
    cut = whole.rename(whole.with_name("cut.dcm"))
    cut.write_bytes(cut.read_bytes()[:200])
    words = ("predict", user_folder / "cls", tmp_path / "in", "-o", tmp_path / "out", "--unit", "group")
    code, _, err = run(*words)
    assert (code, "cut.dcm" in err, "their groups are without them" in err) == (1, True, True)
    assert [row[0] for row in read_csv(tmp_path / "out" / "unreadable.csv")[1]] == ["cut.dcm"]
    cut.unlink()
    assert run(*words, "--overwrite")[0] == 0
    assert not (tmp_path / "out" / "unreadable.csv").exists()


def test_a_page_of_another_program_is_never_replaced(user_folder: Path, run, tmp_path: Path) -> None:
    picture = next((user_folder / "lesions" / "images").iterdir())
    code, _, err = run("predict", user_folder / "seg", picture, "-o", tmp_path / "out", "--no-sheet")
    assert code == 0, err
    (tmp_path / "out" / "index.html").write_text("my page")
    code, _, err = run("predict", user_folder / "seg", picture, "-o", tmp_path / "out", "--overwrite")
    assert code == 2
    assert "index.html is in the way" in err
    code, _, err = run("predict", user_folder / "seg", picture, "-o", tmp_path / "out", "--overwrite", "--no-sheet")
    assert code == 0, err
    assert (tmp_path / "out" / "index.html").read_text() == "my page"


def test_of_too_many_images_the_ends_of_each_order_are_shown() -> None:
    entries = [SheetEntry("", uncertainty=(i == 7) * 0.9, area=i / 100) for i in range(100)]
    rows = [SheetRow(i, i + 1, entry, unlike=False, percentile=float(i == 3)) for i, entry in enumerate(entries)]
    numbers = [row.number for row in choose_rows(rows, 10)]
    assert len(numbers) == 10
    assert numbers == sorted(numbers)
    assert {1, 100, 8, 4} <= set(numbers)  # smallest and largest area, most uncertain, most unlike
    assert choose_rows(rows, 100) == rows


def test_an_item_has_its_exact_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "_thumbnail", lambda *_: "")
    row = SheetRow(0, 1_234_567, SheetEntry("", 0.12345678, 0.5), unlike=False, percentile=None)
    item = sheet._item(None, None, row, names=False, mask=None)  # type: ignore[arg-type]
    assert items_of(item) == [{"number": "1234567", "area": "0.5", "uncertainty": "0.12345678"}]


def test_the_outline_is_drawn_around_the_mask() -> None:
    picture, mask = np.full((400, 800, 3), 200, np.uint8), np.zeros((400, 800), bool)
    mask[100:300, 200:600] = True
    drawn = draw_thumbnail(picture, mask, 200)
    assert drawn.shape == (100, 200, 3)
    rows, columns = np.nonzero((drawn == LINE).all(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (25, 74, 50, 149)


def test_only_the_background_of_a_label_map_is_not_outlined(tmp_path: Path) -> None:
    labels = np.array([[0, 3, 7], [0, 0, 7]])
    write_label_map(tmp_path / "map.png", labels)
    schema = MaskSchema("multiclass", ("background", "lesion", "ruler"), (0, 3, 7))
    assert (_read_outlined(schema, tmp_path / "map.png") == (labels > 0)).all()


def test_a_mask_is_uncertain_where_its_probabilities_are_near_a_half() -> None:
    inside = np.zeros((100, 100), bool)
    inside[:50] = True
    certain, doubtful = np.where(inside, 0.99, 0.01), np.where(inside, 0.55, 0.45)
    # the tolerance is for the smallest area in the denominator
    assert mask_uncertainty(certain.astype(np.float32), inside) == pytest.approx(0.01 / 1.99, abs=0.001)
    # each pixel of the mask: 0.45 wrong of 1.55; each other one: 0.45 of 0.45
    assert mask_uncertainty(doubtful.astype(np.float32), inside) == pytest.approx(0.9 / 2.0, abs=0.001)
    nothing = np.full((100, 100), 0.01, np.float32)
    assert mask_uncertainty(nothing, nothing > 0.5) == 0
