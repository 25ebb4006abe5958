"""Tables of labels: columns, names of images, and columns with personal data (reliability rows 18, 19)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.adapters.evaluation.subgroups import split_subgroups
from dinomed.adapters.retrieval.filters import parse_conditions
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.datasets.manifest import KNOWN, Manifest, read_manifest, write_manifest
from dinomed.datasets.scan.file_search import FileSearch
from dinomed.datasets.scan.groups import number_groups
from dinomed.datasets.scan.scan import scan
from dinomed.errors import UsageError
from dinomed.images.read import write_mask
from dinomed.pretrain.curation.filters.allow_deny import match_column


def test_rows_without_image_and_images_without_row(
    folder: Path, cells: Callable[..., Any], edit: Callable[..., Any]
) -> None:
    edit(folder, "images/3.png,", "images/gone.png,")
    edit(folder, "images/4.png,", "../data2/4.png,")
    result = scan(folder, "labels.csv", group="lesion_id")
    assert len(result.manifest) == 10
    assert cells(result, "label")["images/3.png"] is None
    assert dict(result.unreadable) == {
        "images/gone.png": "in labels.csv, but no such image file exists",
        "../data2/4.png": "in labels.csv, but it is outside the folder",
    }
    assert "2 images not in labels.csv; kept without a label" in result.notes


def test_images_may_be_named_by_file_name_or_stem(folder: Path, paint: Callable[..., Any]) -> None:
    (folder / "by_stem.csv").write_text("image_id,label\n" + "".join(f"{i},nv\n" for i in range(10)))
    result = scan(folder, "by_stem.csv", image_column="image_id")
    assert result.manifest.column("label") == ["nv"] * 10
    paint(folder / "more" / "3.png", 99)
    assert "2 files have this name" in dict(scan(folder, "by_stem.csv", image_column="image_id").unreadable)["3"]


def test_a_csv_elsewhere_names_images_by_its_own_place(folder: Path, cells: Callable[..., Any]) -> None:
    (folder.parent / "table.csv").write_text("image,label\ndata/images/3.png,mel\n")
    result = scan(folder, folder.parent / "table.csv")
    assert cells(result, "label")["images/3.png"] == "mel"


def test_wrong_columns_are_named_with_the_nearest(folder: Path) -> None:
    for option, value, nearest in [
        ("group", "lesion", "lesion_id"),
        ("label", "lable", "label"),
        ("mask", "maks", "mask"),
    ]:
        with pytest.raises(UsageError, match=rf"no column '{value}' \(`{option}`\); did you mean '{nearest}'"):
            scan(folder, "labels.csv", **{option: value})
    with pytest.raises(UsageError, match=r"no column 'picture' \(`image_column`\)"):
        scan(folder, "labels.csv", image_column="picture")
    with pytest.raises(UsageError, match=r"labels other\.csv does not exist"):
        scan(folder, "other.csv")
    with pytest.raises(UsageError, match="name the CSV with `labels`"):
        scan(folder, group="lesion_id")


def test_a_csv_without_names_of_columns_is_refused_and_its_cells_are_not_shown(folder: Path) -> None:
    """Its first row was listed as the known columns, with what identifies a patient."""
    (folder / "bare.csv").write_text("".join(f"images/{i}.png,Jane Doe {i}\n" for i in range(10)))
    with pytest.raises(UsageError, match=r"first row has the name of an image.*image,label; add this row") as refusal:
        scan(folder, "bare.csv")
    assert "Jane" not in str(refusal.value)


def test_columns_that_the_scan_fills_itself_are_left_out(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "lesion_id,age", "width,root")
    result = scan(folder, "labels.csv")
    assert result.manifest.column("width") == [16] * 10
    assert "columns of labels.csv that are not used: width, root" in result.notes


def test_an_image_in_two_rows_is_refused(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "images/3.png,", "images/4.png,")
    with pytest.raises(UsageError, match=r"image 'images/4.png' in rows 5 and 6"):
        scan(folder, "labels.csv")


def test_a_column_that_looks_like_a_group_is_pointed_at(folder: Path) -> None:
    assert any("`group=lesion_id`" in note for note in scan(folder, "labels.csv").notes)
    assert not any("`group" in note for note in scan(folder, "labels.csv", group="none").notes)


def test_blanks_around_cells_make_no_other_class_or_group(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "images/1.png,masks/1.png,nv,L0,01", "images/1.png,masks/1.png, nv , L0,01 ")
    edit(folder, "images/2.png,masks/2.png,mel,", "images/2.png,masks/2.png, \t,")
    result = scan(folder, "labels.csv", group="lesion_id", keep=["age"], keep_ids=True)
    assert result.manifest.classes() == ["mel", "nv"]
    assert result.manifest.column("group")[1] == "L0"
    assert result.manifest.column("label")[2] is None
    assert result.manifest.column("age")[1] == "01"


def test_blanks_around_the_name_of_an_image_do_not_lose_it(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "images/3.png,", " images/3.png ,")
    edit(folder, "images/4.png,", "  4.png,")
    result = scan(folder, "labels.csv")
    assert result.unreadable == []
    assert result.manifest.column("label").count(None) == 0


def test_names_and_labels_in_either_unicode_form_are_the_same(tmp_path: Path, paint: Callable[..., Any]) -> None:
    both = ["a\u0308", "\u00e4"]  # decomposed, as names of files from some systems are, and composed
    for number, (image, mask) in enumerate(zip(both, reversed(both), strict=True)):
        root = tmp_path / str(number)
        paint(root / "images" / f"{image}.png", number)
        write_mask(root / "masks" / f"{mask}.png", np.ones((12, 16), np.uint8))
        (root / "labels.csv").write_text(f"image,label\nimages/{mask}.png,N{mask}vus\n", encoding="utf-8")
        (root / "names.csv").write_text(f"image,mask\n{mask},{image}.png\n", encoding="utf-8")
        for table in ("labels.csv", "names.csv"):
            result = scan(root, table)
            assert result.unreadable == []
            assert result.manifest.column("mask") == [f"masks/{mask}.png"]
        assert scan(root, "labels.csv").manifest.column("label") == ["N\u00e4vus"]
    for number, name in enumerate(both):
        paint(tmp_path / "classes" / ("train", "val")[number] / f"N{name}vus" / f"{number}.png", number)
    assert scan(tmp_path / "classes", "folders").manifest.classes() == ["N\u00e4vus"]


def test_columns_are_named_in_either_unicode_form(folder: Path) -> None:
    both = ["a\u0308", "\u00e4"]
    lines = [f"{line},{row % 2}" for row, line in enumerate((folder / "labels.csv").read_text().splitlines())]
    for of_table, option in zip(both, reversed(both), strict=True):
        names = [f"{name}{of_table}" for name in ("bild", "maske", "kl", "gruppe", "alter", "ja")]
        header, options = ",".join(names), [name.replace(of_table, option) for name in names]
        (folder / "labels.csv").write_text("\n".join([header, *lines[1:]]), encoding="utf-8")
        manifest = scan(
            folder, "labels.csv", image_column=options[0], mask=options[1], label=options[2], group=options[3],
            keep=options[4:], keep_ids=True,
        ).manifest  # fmt: skip
        assert manifest.column("group")[:3] == ["L0", "L0", "L1"]
        assert manifest.classes() == ["mel", "nv"]
        for form in both:
            assert manifest.has(f"alter{form}")
            assert manifest.column(f"alter{form}")[3] == "03"
            assert split_subgroups(manifest, f"alter{form}:5")[0].value == "0 to under 5"
            assert match_column(manifest, [], f"alter{form}", ("03",)).sum() == 1
            assert parse_conditions([f"alter{form}>=8"])[0].met_by(manifest).sum() == 2
            assert len(LabelColumns((f"ja{form}", both[1].join(("ja", "")))).usable(manifest)) == 10


def test_a_parquet_table_has_columns_in_either_unicode_form(folder: Path) -> None:
    table = scan(folder, "labels.csv", keep=["age"]).manifest
    names = ["a\u0308ge" if name == "age" else name for name in table.columns]
    write_manifest(Manifest(table.table.rename_columns(names), folder), folder / "m.parquet")
    manifest = read_manifest(folder / "m.parquet")
    for form in ("a\u0308ge", "\u00e4ge"):
        assert manifest.column(form)[3] == "03"


def test_other_columns_of_files_are_matched_like_masks(
    tmp_path: Path, paint: Callable[..., Any], cells: Callable[..., Any]
) -> None:
    both = ["a\u0308", "\u00e4"]
    for number, (file, cell) in enumerate(zip(both, reversed(both), strict=True)):
        root = tmp_path / str(number)
        for row in range(2):
            paint(root / f"images/{row}.png", row)
            for place in ("vessels", "tables/polyps"):
                write_mask(root / place / f"{file}{row}.png", np.ones((12, 16), np.uint8))
        write_mask(root / f"depth/{file}0.png", np.ones((12, 16), np.uint8))
        lines = [
            "image,vessels,depth,polyps,group",
            f"images/0.png, vessels/{cell}0.png ,depth\\{cell}0.png,polyps/{cell}0.png,depth/{cell}0.png",
            f"images/1.png,./vessels/{file}1.png, ,polyps/{cell}1.png ,depth/{file}0.png ",
        ]
        (root / "tables" / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        result = scan(root, root / "tables" / "labels.csv", keep_ids=True)
        assert result.manifest.column("image") == ["images/0.png", "images/1.png"]  # a mask is no image
        assert result.manifest.column("vessels") == [f"vessels/{file}0.png", f"vessels/{file}1.png"]
        assert result.manifest.column("depth") == [f"depth/{file}0.png", None]
        assert result.manifest.column("polyps") == [f"tables/polyps/{file}{row}.png" for row in range(2)]
        assert result.manifest.column("group") == [f"depth/{file}0.png"] * 2
        (root / "tables" / "labels.csv").write_text(
            "\n".join([*lines[:2], "images/1.png,gone.png,,,"]), encoding="utf-8"
        )
        result = scan(root, root / "tables" / "labels.csv", keep=["vessels"])  # not all are files
        of_images = cells(result, "vessels")
        assert [of_images[f"images/{row}.png"] for row in range(2)] == [f"vessels/{file}0.png", "gone.png"]


def test_texts_of_kept_columns_and_groups_are_not_searched_for_as_paths(
    folder: Path, edit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (folder / "labels.csv").read_text().splitlines()
    more = ["site,camera"] + [f"Site {i} / ward {i}.5,masks/0.png" for i in range(9)] + ["none,Canon"]
    (folder / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, more, strict=True)))
    relpath, calls = os.path.relpath, list[str]()
    monkeypatch.setattr(os.path, "relpath", lambda path, *start: calls.append(str(path)) or relpath(path, *start))
    result = scan(folder, "labels.csv", group="lesion_id", keep=["site", "camera"], keep_ids=True)
    assert result.manifest.column("camera") == ["masks/0.png"] * 9 + ["Canon"]
    assert not [path for path in calls if "Site" in path or "/L" in path]
    assert len([path for path in calls if path.endswith("masks/0.png")]) < 9  # each text once


def test_a_search_without_the_quick_test_finds_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["a.png", "x/b.png", "x/a\u0308.png", "x\\c.png", " d.png ", "e"]
    cells = [
        *files, "./a.png", "x/../a.png", "a.png/", "x/b.png/.", "..", "", ".", " a.png", "x\\b.png", "d.png", "E",
        "c.png", "x/\u00e4.png", "/data/x/b.png", "../data/a.png", "b.png", "x/b", "a.png\\", "y/../x/b.png ",
    ]  # fmt: skip
    search = FileSearch(Path("/data"), Path("/data/x"), files, files[:3])
    found = [search.path(cell, beside=beside) for cell in cells for beside in (True, False)]
    monkeypatch.setattr(FileSearch, "_may_be_file", lambda self, path: True)
    assert found == [search.path(cell, beside=beside) for cell in cells for beside in (True, False)]
    assert sum(path is not None for path in found) > len(cells)


def test_patients_that_are_named_like_files_beside_the_table_are_not_kept(
    tmp_path: Path, paint: Callable[..., Any]
) -> None:
    for name in ("7", "8"):
        paint(tmp_path / "tables" / name, int(name))
    (tmp_path / "tables" / "labels.csv").write_text("image,case,label\n7,7,nv\n8,8,mel\n")
    result = scan(tmp_path, tmp_path / "tables" / "labels.csv")
    assert "case" not in result.manifest.columns
    assert result.manifest.column("image") == ["tables/7", "tables/8"]


def test_words_for_a_missing_value_are_reported(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "nv,L0,", "NA,unknown,")
    edit(folder, "mel,L1,02", "nan,L1,02")
    warnings = scan(folder, "labels.csv", group="lesion_id").warnings
    assert [line for line in warnings if "leave the cell empty" in line] == [
        "label 'NA' of 2 images (first in row 2) is counted as a class; leave the cell empty if it means that the "
        "label is not known",
        "label 'nan' of 1 image (first in row 4) is counted as a class; leave the cell empty if it means that the "
        "label is not known",
        "group 'unknown' of 2 images (first in row 2) is counted as one group; leave the cell empty if it means that "
        "the group is not known",
    ]


def test_a_file_whose_name_ends_in_a_blank_is_found(tmp_path: Path, paint: Callable[..., Any]) -> None:
    paint(tmp_path / "a ")
    paint(tmp_path / "b.png", 1)
    (tmp_path / "labels.csv").write_text("image,depth,label\nb.png,a ,x\n")
    assert scan(tmp_path, "labels.csv").manifest.column("depth") == ["a "]


def test_classes_and_groups_that_differ_in_case_are_reported(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "nv,L0,01", "NV,l0,01")
    edit(folder, "mel,L1,03", "Mel,L1,03")
    warnings = scan(folder, "labels.csv", group="lesion_id", keep_ids=True).warnings
    assert [line for line in warnings if "differ only in" in line] == [
        "2 labels with spellings that differ only in upper and lower case or in blanks, counted as different: "
        "'nv' (row 2) and 'NV' (row 3), ...; use one spelling if they are the same",
        "1 group with spellings that differ only in upper and lower case or in blanks, counted as different: "
        "'L0' (row 2) and 'l0' (row 3); use one spelling if they are the same",
    ]


def test_only_listed_columns_are_kept(folder: Path) -> None:
    lines = (folder / "labels.csv").read_text().splitlines()
    more = ["pid,MRN,Geburtsdatum,sex"] + [f"Planted-{i},M{i},1970-01-0{i},f" for i in range(10)]
    (folder / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, more, strict=True)))
    result = scan(folder, "labels.csv", keep=["sex"])
    assert [name for name in result.manifest.columns if name not in KNOWN] == ["sex"]
    assert (
        "columns of labels.csv that are not kept: lesion_id, age, pid, MRN, Geburtsdatum; keep one with `keep=COLUMN`, "
        "if it identifies nobody"
    ) in result.notes
    with pytest.raises(UsageError, match=r"`keep=MRN`: .*; `keep_ids=True` keeps it"):
        scan(folder, "labels.csv", keep=["MRN"])
    with pytest.raises(UsageError, match=r"no column 'sx' \(`keep`\); did you mean 'sex'"):
        scan(folder, "labels.csv", keep=["sx"])
    with pytest.raises(UsageError, match="`keep=sex` is a column of a CSV"):
        scan(folder, keep=["sex"])
    kept = scan(folder, "labels.csv", keep=["MRN"], keep_ids=True)
    assert kept.manifest.column("MRN")[3] == "M3"
    with pytest.raises(UsageError, match=r"no column 'age'.*; `dinomed scan --keep age` keeps it"):
        result.manifest.column("age")


def test_columns_of_paths_and_of_frame_numbers_are_kept(folder: Path, edit: Callable[..., Any]) -> None:
    lines = (folder / "labels.csv").read_text().splitlines()
    more = ["depth,frame,visit"] + [f"masks/{i}.png,{i},{i}" for i in range(10)]
    (folder / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, more, strict=True)))
    result = scan(folder, "labels.csv", mask="none")
    assert [name for name in result.manifest.columns if name not in KNOWN] == ["depth", "frame"]
    edit(folder, "masks/3.png,3,3", "masks/3.png,visit of 3 May,3")
    assert "frame" not in scan(folder, "labels.csv", mask="none").manifest.columns


def test_groups_become_numbers(folder: Path, edit: Callable[..., Any]) -> None:
    edit(folder, "lesion_id", "patient")
    edit(folder, "nv,L0,01", "nv,l0,01")
    result = scan(folder, "labels.csv", group="patient")
    groups = result.manifest.column("group")
    assert len({group[:5] for group in groups}) == 1
    assert sorted({group[5:] for group in groups}) == ["1", "2", "3", "4", "5", "6"]
    assert [groups[i] == groups[i + 1] for i in range(2, 10, 2)] == [True] * 4
    assert any("`keep_ids=True` keeps them as written" in note for note in result.notes)
    assert any("counted as different: row 2 and row 3;" in line for line in result.warnings)
    assert "L0" not in str([*result.warnings, *result.notes, result.manifest.table.to_pydict()])
    as_written = scan(folder, "labels.csv", group="patient", keep_ids=True).manifest
    assert as_written.column("group")[:2] == ["L0", "l0"]
    assert as_written.column("split") == result.manifest.column("split")  # the numbers decide nothing
    assert scan(folder, "labels.csv", group="patient", seed=3).manifest.column("group") == groups


def test_groups_of_two_tables_are_never_equal(folder: Path, edit: Callable[..., Any]) -> None:
    """Number 1 of one table is another patient than number 1 of the next."""
    first = scan(folder, "labels.csv", group="lesion_id").manifest.column("group")
    edit(folder, "nv,L0,01", "nv,L7,01")
    assert not {*first} & {*scan(folder, "labels.csv", group="lesion_id").manifest.column("group")}


def test_numbers_tell_nothing_about_the_groups_as_written() -> None:
    images, contents = ["b.png", "a.png", "c.png", "d.png"], ["1", "2", "3", "4"]
    numbers = number_groups(images, ["P9", "P7", None, "P9"], contents)
    assert numbers == number_groups(images, ["P1", "P8", None, "P1"], contents)
    assert [number and number[4:] for number in numbers] == ["-2", "-1", None, "-2"]  # in the order of the names
    others = [
        number_groups(images, ["P9", "P7", "P9", "P9"], contents),
        number_groups(["b.png", "a.png", "c.png", "e.png"], ["P9", "P7", None, "P9"], contents),
        number_groups(images, ["P9", "P7", None, "P9"], ["1", "2", "3", "5"]),
    ]
    assert len({str(table[0])[:4] for table in [numbers, *others]}) == 4
    assert number_groups([], []) == []


def test_groups_of_other_images_with_the_same_names_differ(folder: Path, paint: Callable[..., Path]) -> None:
    first = scan(folder, "labels.csv", group="lesion_id").manifest.column("group")
    paint(folder / "images/3.png", 99)
    assert not {*first} & {*scan(folder, "labels.csv", group="lesion_id").manifest.column("group")}


def test_the_numbers_of_rows_are_those_of_a_spreadsheet(folder: Path) -> None:
    (folder / "t.csv").write_text('image,label,split\n\n0.png,"two\nlines",train\n1.png,nv,fold3\n')
    with pytest.raises(UsageError, match="row 4: split 'fold3'"):
        scan(folder, "t.csv")
