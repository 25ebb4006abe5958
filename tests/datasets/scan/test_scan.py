"""Scanning folders: labels, masks, splits, duplicates and what is refused (reliability rows 9, 10, 18-21, 24)."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.manifest import KNOWN, read_manifest, write_manifest
from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.scan import ScanResult, scan
from dinomed.datasets.splits import check_splits
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.errors import DinomedError, UsageError
from dinomed.images.read import read_image, write_mask


def paint(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of five lesions with masks, and a CSV."""
    root = tmp_path / "data"
    rows = ["image,mask,label,lesion_id,age"]
    for i in range(10):
        paint(root / f"images/{i}.png", i)
        mask = np.zeros((12, 16), np.uint8)
        mask[:i] = 1
        write_mask(root / f"masks/{i}.png", mask)
        rows.append(f"images/{i}.png,masks/{i}.png,{'nv' if i % 4 < 2 else 'mel'},L{i // 2},0{i}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def cells(result: ScanResult, column: str) -> dict[str, object]:
    return dict(zip(result.manifest.column("image"), result.manifest.column(column), strict=True))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "labels.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_everything_of_the_csv_arrives(folder: Path) -> None:
    result = scan(folder, "labels.csv", group="lesion_id")
    manifest = result.manifest
    assert manifest.columns == [
        "image", "sha256", "width", "height", "mode", "format", "bytes", "channels", "bits", "group", "split", "label",
        "mask", "age",
    ]  # fmt: skip
    assert len(manifest) == 10
    assert manifest.column("group") == [f"L{i // 2}" for i in range(10)]
    assert manifest.column("age")[3] == "03"
    assert manifest.column("bytes")[0] == (folder / "images/0.png").stat().st_size
    assert (manifest.column("width")[0], manifest.column("height")[0]) == (16, 12)
    assert result.masks == {"masks": 10, "empty": 1, "full": 0}
    check_splits(manifest.column("group"), manifest.column("split"))
    assert set(manifest.column("split")) == {"train", "val", "test"}
    assert result.unreadable == []
    again = scan(folder, folder / "labels.csv", group="lesion_id", workers=3)
    assert again.manifest.table.equals(manifest.table)
    assert scan(folder, "labels.csv", group="lesion_id", seed=5).manifest.fingerprint == manifest.fingerprint


def test_bad_files_are_listed_and_the_scan_goes_on(folder: Path) -> None:
    whole = (folder / "images/0.png").read_bytes()
    (folder / "images/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/empty.jpg").write_bytes(b"")
    (folder / "images/page.jpg").write_text("<html></html>")
    result = scan(folder, "labels.csv")
    assert len(result.manifest) == 10
    assert dict(result.unreadable) == {
        "images/cut.png": "truncated",
        "images/empty.jpg": "empty file",
        "images/page.jpg": "an HTML page, not an image",
    }
    assert not any("HALF" in line for line in result.warnings)


def test_more_than_half_unreadable_ends_the_scan_unless_allowed(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "0.jpg").write_bytes(b"")
    assert len(scan(tmp_path).unreadable) == 1  # just half
    (tmp_path / "1.jpg").symlink_to("gone")
    with pytest.raises(DinomedError, match=r"2 of 3 files of .* cannot be read, the first is 1.jpg: broken link;"):
        scan(tmp_path)
    allowed = scan(tmp_path, allow_unreadable=True)
    assert "MORE THAN HALF of the files cannot be read (2 of 3)" in allowed.warnings[0]
    assert len(allowed.manifest) == 1
    assert len(open_dataset(tmp_path, allow_unreadable=True).unreadable) == 2


def test_nothing_to_read_names_the_folder(tmp_path: Path) -> None:
    for folder, expected in [(tmp_path / "none", "does not exist"), (tmp_path, "holds no image")]:
        with pytest.raises(UsageError, match=expected) as caught:
            scan(folder)
        assert str(folder) in str(caught.value)
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(UsageError, match=r"no image that can be read \(1 file refused, the first a.jpg: text"):
        scan(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        scan(tmp_path / "a.jpg")


def test_rows_without_image_and_images_without_row(folder: Path) -> None:
    edit(folder, "images/3.png,", "images/gone.png,")
    edit(folder, "images/4.png,", "../data2/4.png,")
    result = scan(folder, "labels.csv", group="lesion_id")
    assert len(result.manifest) == 10
    assert cells(result, "label")["images/3.png"] is None
    assert dict(result.unreadable) == {
        "images/gone.png": "in labels.csv, but there is no such image file",
        "../data2/4.png": "in labels.csv, but outside the folder",
    }
    assert "2 images not in labels.csv; kept without a label" in result.notes


def test_images_may_be_named_by_file_name_or_stem(folder: Path) -> None:
    (folder / "by_stem.csv").write_text("image_id,label\n" + "".join(f"{i},nv\n" for i in range(10)))
    result = scan(folder, "by_stem.csv", image_column="image_id")
    assert result.manifest.column("label") == ["nv"] * 10
    paint(folder / "more" / "3.png", 99)
    assert "2 files are named so" in dict(scan(folder, "by_stem.csv", image_column="image_id").unreadable)["3"]


def test_a_csv_elsewhere_names_images_by_its_own_place(folder: Path) -> None:
    (folder.parent / "table.csv").write_text("image,label\ndata/images/3.png,mel\n")
    result = scan(folder, folder.parent / "table.csv")
    assert cells(result, "label")["images/3.png"] == "mel"


def test_wrong_columns_are_named_with_the_nearest(folder: Path) -> None:
    for option, value, nearest in [
        ("group", "lesion", "lesion_id"),
        ("label", "lable", "label"),
        ("mask", "maks", "mask"),
    ]:
        with pytest.raises(UsageError, match=rf"no column '{value}' \(--{option}\); did you mean '{nearest}'"):
            scan(folder, "labels.csv", **{option: value})
    with pytest.raises(UsageError, match=r"no column 'picture' \(--image-column\)"):
        scan(folder, "labels.csv", image_column="picture")
    with pytest.raises(UsageError, match=r"labels other\.csv does not exist"):
        scan(folder, "other.csv")
    with pytest.raises(UsageError, match="name the CSV with --labels"):
        scan(folder, group="lesion_id")


def test_columns_that_the_scan_fills_itself_are_left_out(folder: Path) -> None:
    edit(folder, "lesion_id,age", "width,root")
    result = scan(folder, "labels.csv")
    assert result.manifest.column("width") == [16] * 10
    assert "columns of labels.csv that are not used: width, root" in result.notes


def test_an_image_in_two_rows_is_refused(folder: Path) -> None:
    edit(folder, "images/3.png,", "images/4.png,")
    with pytest.raises(UsageError, match=r"image 'images/4.png' in rows 5 and 6"):
        scan(folder, "labels.csv")


def test_a_column_that_looks_like_a_group_is_pointed_at(folder: Path) -> None:
    assert any("--group lesion_id" in note for note in scan(folder, "labels.csv").notes)
    assert not any("--group" in note for note in scan(folder, "labels.csv", group="none").notes)


def test_blanks_around_cells_make_no_other_class_or_group(folder: Path) -> None:
    edit(folder, "images/1.png,masks/1.png,nv,L0,01", "images/1.png,masks/1.png, nv , L0,01 ")
    edit(folder, "images/2.png,masks/2.png,mel,", "images/2.png,masks/2.png, \t,")
    result = scan(folder, "labels.csv", group="lesion_id")
    assert result.manifest.classes() == ["mel", "nv"]
    assert result.manifest.column("group")[1] == "L0"
    assert result.manifest.column("label")[2] is None
    assert result.manifest.column("age")[1] == "01"


def test_a_file_whose_name_ends_in_a_blank_is_found(tmp_path: Path) -> None:
    paint(tmp_path / "a ")
    paint(tmp_path / "b.png", 1)
    (tmp_path / "labels.csv").write_text("image,depth,label\nb.png,a ,x\n")
    assert scan(tmp_path, "labels.csv").manifest.column("depth") == ["a "]


def test_classes_and_groups_that_differ_in_case_are_told(folder: Path) -> None:
    edit(folder, "nv,L0,01", "NV,l0,01")
    edit(folder, "mel,L1,03", "Mel,L1,03")
    warnings = scan(folder, "labels.csv", group="lesion_id").warnings
    assert [line for line in warnings if "upper and lower" in line] == [
        "2 labels are written in upper and lower case, and taken for different ones: "
        "'nv' (row 2) and 'NV' (row 3), ...; write them alike if they are the same",
        "1 group is written in upper and lower case, and taken for different ones: "
        "'L0' (row 2) and 'l0' (row 3); write them alike if they are the same",
    ]


def test_columns_that_tell_who_a_patient_is_are_left_out(folder: Path) -> None:
    lines = (folder / "labels.csv").read_text().splitlines()
    more = ["Patient Name,MRN,BirthDate,e-mail,sex"] + [f"Planted-{i},M{i},1970-01-0{i},p@x,f" for i in range(10)]
    (folder / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, more, strict=True)))
    result = scan(folder, "labels.csv")
    assert [name for name in result.manifest.columns if name not in KNOWN] == ["lesion_id", "age", "sex"]
    told = "columns of labels.csv that may tell who a patient is are left out: Patient Name, MRN, BirthDate, e-mail"
    assert f"{told}; --keep-ids keeps them" in result.notes
    kept = scan(folder, "labels.csv", keep_ids=True)
    assert kept.manifest.column("Patient Name")[3] == "Planted-3"
    assert not any("keep-ids" in note for note in kept.notes)


def test_groups_that_tell_who_a_patient_is_become_numbers(folder: Path) -> None:
    edit(folder, "lesion_id", "MRN")
    edit(folder, "nv,L0,01", "nv,l0,01")
    result = scan(folder, "labels.csv", group="MRN")
    groups = result.manifest.column("group")
    assert sorted(set(groups)) == ["1", "2", "3", "4", "5", "6"]
    assert [groups[i] == groups[i + 1] for i in range(2, 10, 2)] == [True] * 4
    assert "groups are numbered, since 'MRN' may tell who a patient is; --keep-ids stores them as they are written" in (
        result.notes
    )
    assert any("different ones: row 2 and row 3;" in line for line in result.warnings)
    assert "L0" not in str([*result.warnings, *result.notes, result.manifest.table.to_pydict()])
    assert scan(folder, "labels.csv", group="MRN", keep_ids=True).manifest.column("group")[:2] == ["L0", "l0"]


def test_masks_of_another_size_are_refused_in_pairs(folder: Path) -> None:
    for i in (2, 7):
        write_mask(folder / f"masks/{i}.png", np.ones((16, 12), np.uint8))
    with pytest.raises(UsageError, match="2 of 10 images have a mask of another size; nothing was written") as caught:
        scan(folder, "labels.csv")
    assert "masks/2.png: the mask is 12x16, its image 16x12" in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_mask_that_exif_does_not_turn_with_its_image_is_told(folder: Path, format: str) -> None:
    def turn(name: str, orientation: int, size: tuple[int, int] = (16, 12)) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(folder / name, format, exif=exif)

    turn("images/1.png", 3)
    turn("images/2.png", 3)
    turn("masks/2.png", 3)  # turned alike
    turn("images/4.png", 6, (12, 16))  # its mask fits the upright shape alone
    turn("images/5.png", 1)
    assert [line for line in scan(folder, "labels.csv").warnings if "EXIF" in line] == [
        "1 image is turned by its EXIF orientation, the mask is not, and its shape fits both ways; make sure that it "
        "is drawn on the upright image. The first is images/1.png with masks/1.png"
    ]
    turn("images/7.png", 6, (10, 10))
    write_mask(folder / "masks/7.png", np.ones((10, 10), np.uint8))
    assert any("2 images are turned" in line for line in scan(folder, "labels.csv").warnings)
    turn("images/8.png", 6)
    with pytest.raises(UsageError, match=r"masks/8.png: the mask is 16x12, its image 12x16 .*turn the mask upright"):
        scan(folder, "labels.csv")


def test_one_bad_mask_is_listed_all_bad_masks_are_refused(folder: Path) -> None:
    def spoil(i: int) -> None:
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16)).save(folder / f"masks/{i}.png")

    spoil(3)
    result = scan(folder, "labels.csv")
    assert cells(result, "mask")["images/3.png"] is None
    assert cells(result, "label")["images/3.png"] == "mel"
    assert [path for path, _ in result.unreadable] == ["masks/3.png"]
    assert result.masks["masks"] == 9
    assert "1 mask of 10 cannot be used" in result.warnings[0]
    for i in range(10):
        spoil(i)
    with pytest.raises(UsageError, match=r"none of the 10 masks can be used.*--mask none"):
        scan(folder, "labels.csv")
    assert not scan(folder, "labels.csv", mask="none").manifest.has("mask")


def test_without_a_csv_masks_are_found_by_name(folder: Path) -> None:
    result = scan(folder)
    assert len(result.manifest) == 10
    assert cells(result, "mask")["images/3.png"] == "masks/3.png"
    assert not result.manifest.has("label")
    assert "labels.csv lies in the folder and is not used; use it with --labels labels.csv" in result.notes


def test_masks_in_doubt_are_told_and_not_used(folder: Path) -> None:
    paint(folder / "images/3.jpg", 33)
    result = scan(folder)
    assert cells(result, "mask")["images/3.png"] is None
    assert cells(result, "mask")["images/4.png"] == "masks/4.png"
    assert [line for line in result.warnings if "doubt" in line or "not used" in line] == [
        "1 mask may belong to another image than the one of that name, and is not used; the first is masks/3.png: "
        "2 images have its name: images/3.jpg, images/3.png. "
        "Name the mask of each image in a CSV (--labels, column mask)"
    ]
    assert "masks/3.png" not in result.manifest.column("image")
    assert not any("not used" in line for line in scan(folder, "labels.csv").warnings)  # the CSV says whose it is
    assert not any("not used" in line for line in scan(folder, mask="none").warnings)


def test_files_in_other_columns_are_no_images(tmp_path: Path) -> None:
    paint(tmp_path / "images/a.png", 0)
    paint(tmp_path / "depth/a_depth.png", 1)
    (tmp_path / "labels.csv").write_text("image,depth\nimages/a.png,depth/a_depth.png\n")
    result = scan(tmp_path, "labels.csv")
    assert result.manifest.column("image") == ["images/a.png"]
    assert result.manifest.column("depth") == ["depth/a_depth.png"]


def test_folder_names_give_classes_and_splits(tmp_path: Path) -> None:
    for i, place in enumerate(["train/nv", "train/mel", "valid/nv", "test/mel", "extra"]):
        paint(tmp_path / place / "a.png", i)
    result = scan(tmp_path, "folders")
    assert cells(result, "label") == {
        "extra/a.png": "extra", "test/mel/a.png": "mel", "train/mel/a.png": "mel", "train/nv/a.png": "nv",
        "valid/nv/a.png": "nv",
    }  # fmt: skip
    assert cells(result, "split")["valid/nv/a.png"] == "val"
    assert cells(result, "split")["extra/a.png"] is None
    assert "1 image without a split; training and evaluation pass them over" in result.notes
    paint(tmp_path / "flat" / "a.png")
    with pytest.raises(UsageError, match="has no class folders"):
        scan(tmp_path / "flat", "folders")


def with_splits(folder: Path, splits: list[str]) -> None:
    lines = (folder / "labels.csv").read_text().splitlines()
    new = [f"{line},{split}" for line, split in zip(lines, ["split", *splits], strict=True)]
    (folder / "labels.csv").write_text("\n".join(new))


def test_given_splits_are_normalised_and_held_to_the_groups(folder: Path) -> None:
    with_splits(folder, ["Training"] * 6 + ["validation"] * 2 + ["TEST", ""])
    result = scan(folder, "labels.csv", group="lesion_id")
    assert result.manifest.column("split") == ["train"] * 6 + ["val"] * 2 + ["test", None]
    edit(folder, "L4,08,TEST", "L0,08,TEST")
    with pytest.raises(UsageError, match=r"group 'L0' is in train and test: .*--split none"):
        scan(folder, "labels.csv", group="lesion_id")
    made = scan(folder, "labels.csv", group="lesion_id", split="none").manifest
    check_splits(made.column("group"), made.column("split"))
    assert None not in made.column("split")
    edit(folder, "TEST", "fold3")
    with pytest.raises(UsageError, match="row 10: split 'fold3' is not train, val or test"):
        scan(folder, "labels.csv")


def test_identical_images_share_a_made_split_and_are_one_unit(folder: Path) -> None:
    for copy in ("11", "12", "2"):  # 2.png is of another lesion, 11.png and 12.png of none
        (folder / f"images/{copy}.png").write_bytes((folder / "images/0.png").read_bytes())
    for seed in range(8):
        result = scan(folder, "labels.csv", group="lesion_id", label="none", seed=seed)
        split = cells(result, "split")
        assert len({split[f"images/{name}.png"] for name in (0, 1, 2, 3, 11, 12)}) == 1
    assert result.duplicates == [["images/0.png", "images/11.png", "images/12.png", "images/2.png"]]
    assert any("1 set of identical images in different groups" in line for line in result.warnings)
    ungrouped = scan(folder)
    assert set(ungrouped.manifest.groups()) == {None}
    units = dict(zip(ungrouped.manifest.column("image"), ungrouped.manifest.units(), strict=True))
    assert units["images/12.png"] == "images/0.png"
    assert units["images/5.png"] == "images/5.png"
    assert ungrouped.warnings == []


def test_identical_images_in_different_given_splits_or_classes_are_named(folder: Path) -> None:
    (folder / "images/8.png").write_bytes((folder / "images/2.png").read_bytes())
    with_splits(folder, ["train"] * 8 + ["test"] * 2)
    result = scan(folder, "labels.csv")
    assert result.warnings[0] == (
        "1 set of identical images in different splits (the test sees training images): images/2.png = images/8.png"
    )
    assert any("different classes (one of the labels is wrong)" in line for line in result.warnings)
    check_splits(result.manifest.column("group"), result.manifest.column("split"))  # what later steps ask of it


def test_a_class_with_one_sample_is_told(folder: Path) -> None:
    edit(folder, "masks/9.png,nv", "masks/9.png,df")
    assert any(line.startswith("class 'df' (1 group) is not in") for line in scan(folder, "labels.csv").warnings)


def test_several_frames_are_told(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 200)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert "1 file with several frames or pages; the first is used" in scan(tmp_path).notes


def test_odd_names_through_scan_and_manifest(tmp_path: Path) -> None:
    names = ["with space.png", "ünï/猫.png", "new\nline.png", "x" * 246 + ".png"]
    for i, name in enumerate(names):
        paint(tmp_path / "data" / name, i)
    write_manifest(scan(tmp_path / "data").manifest, tmp_path / "m.csv")
    manifest = read_manifest(tmp_path / "m.csv")
    assert sorted(manifest.column("image")) == sorted(names)
    assert all(read_image(manifest.path(i)).shape == (12, 16, 3) for i in range(4))


def test_links_out_are_listed(folder: Path) -> None:
    outside = paint(folder.parent / "outside.png", 50)
    (folder / "images/link.png").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    assert [path for path, _ in scan(folder).unreadable] == ["images/link.png"]
    assert "images/link.png" in scan(folder, follow_links=True).manifest.column("image")


def test_exif_of_the_camera_stays_in_the_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = "Jane Planted-Marker", "Doctor Planted-Marker"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    write_manifest(scan(tmp_path).manifest, tmp_path / "m.csv")
    assert "Planted" not in (tmp_path / "m.csv").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_without_permission_are_listed(folder: Path) -> None:
    (folder / "images/0.png").chmod(0)
    assert dict(scan(folder).unreadable) == {"images/0.png": "permission denied"}


@pytest.mark.data
def test_dermoscopy(real_data: Path) -> None:
    result = scan(real_data / "dermoscopy", "labels.csv", group="lesion_id")
    manifest = result.manifest
    assert len(manifest) == len((real_data / "dermoscopy/labels.csv").read_text().splitlines()) - 1
    assert result.unreadable == []
    images = set(manifest.column("image"))
    known = [
        [f"images/ISIC_{a}.jpg", f"images/ISIC_{b}.jpg"] for a, b in [("0024366", "0029861"), ("0024777", "0029938")]
    ]  # as the data's README says; of the first pair one image may have been kept back
    assert result.duplicates == [pair for pair in known if images >= set(pair)]
    full = {f"images/ISIC_{name}.jpg" for name in ("0026042", "0029819")} & images
    assert result.masks == {"masks": len(manifest), "empty": 0, "full": len(full)}
    check_splits(manifest.column("group"), manifest.column("split"))
    assert len(manifest.classes()) == 7
    assert manifest.column("age").count(None) <= 57


@pytest.mark.data
def test_polyps_depth_and_dicom(real_data: Path) -> None:
    polyps = scan(real_data / "polyps", "labels.csv")
    assert polyps.masks["masks"] == 160  # JPEG masks
    assert polyps.masks["empty"] > 5  # frames without a polyp
    depth = scan(real_data / "depth", "labels.csv")
    assert len(depth.manifest) == 10
    assert depth.manifest.has("depth")
    pictures = scan(real_data / "dicom")
    assert len(pictures.manifest) >= 39  # of 67: others are segmentations, or need a codec
    assert set(pictures.manifest.column("format")) == {"DICOM"}
    assert {1, 3} == set(pictures.manifest.column("channels"))


def test_masks_of_an_earlier_prediction_are_no_images(tmp_path: Path) -> None:
    from dinomed.adapters.inference.plan import PLAN_FILE, PredictionPlan

    write_lesions(tmp_path / "data", count=6, size=(36, 48), broken=0)
    before = scan(tmp_path / "data", labels="labels.csv").manifest
    out = tmp_path / "data" / "out"
    shutil.copytree(tmp_path / "data" / "masks", out / "images")  # under the images' names, as predict writes them
    (out / "empty.png").touch()
    PredictionPlan({}, ("images/a.png",), complete=True).write(out)
    result = scan(tmp_path / "data", labels="labels.csv")
    assert result.manifest.table.equals(before.table)
    assert result.unreadable == []
    assert any(note.startswith("out holds what `dinomed predict` wrote (7 pictures)") for note in result.notes)
    assert len(scan(out, allow_unreadable=True).manifest) > 0  # named itself, it is what is wanted
    (out / PLAN_FILE).write_text("{}")  # another tool's: nothing is known of it
    assert len(scan(tmp_path / "data", labels="labels.csv").manifest) > len(before)
