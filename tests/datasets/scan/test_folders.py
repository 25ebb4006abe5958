"""What folder and file names say."""

from dinomed.datasets.scan.folders import classes_of, pair_masks, splits_of


def test_masks_are_paired_by_folder_or_by_suffix() -> None:
    for image, mask in [
        ("images/a.jpg", "masks/a.png"),
        ("images/a.jpg", "masks/a_mask.jpg"),
        ("a.jpg", "mask/a.png"),
        ("a.jpg", "a_segmentation.png"),
        ("benign (1).png", "benign (1)_mask.png"),
        ("train/images/a.jpg", "train/annotations/a.png"),
        ("images/train/a.jpg", "masks/train/a.png"),
        ("Training_Input/a.jpg", "Training_Part1_GroundTruth/a_segmentation.png"),
        ("x/a.jpg", "x/labels/a.png"),
        ("ISIC2018_Task1-2_Training_Input/a.jpg", "ISIC2018_Task1_Training_GroundTruth/a_segmentation.png"),
        ("ISIC-2017_Training_Data/a.jpg", "ISIC-2017_Training_Part1_GroundTruth/a_segmentation.png"),
        ("PNG/Original/a.png", "PNG/Ground Truth/a.png"),
    ]:
        pairs = pair_masks([image, mask])
        assert (pairs.images, pairs.masks) == ([image], {image: mask}), image


def test_same_names_in_two_splits_are_kept_apart() -> None:
    paths = [f"{split}/{kind}/1.png" for split in ("train", "test") for kind in ("images", "masks")]
    assert pair_masks(paths).masks == {
        "train/images/1.png": "train/masks/1.png",
        "test/images/1.png": "test/masks/1.png",
    }


def test_a_mask_is_not_given_to_another_patient_or_split() -> None:
    for image, mask in [
        ("b/images/1.png", "a/masks/1.png"),
        ("b/1.png", "a/1_mask.png"),
        ("test/images/1.png", "train/masks/1.png"),
        ("patient_1_2/images/1.png", "patient_1/masks/1.png"),
        ("part2/images/1.png", "part1/masks/1.png"),
        ("ISIC_Test_Input/1.png", "ISIC_Training_GroundTruth/1_segmentation.png"),
    ]:
        pairs = pair_masks([image, mask])
        assert (pairs.images, pairs.masks) == ([image], {}), image
        assert pairs.doubtful == {mask: f"the only image of its name is in another folder: {image}"}
    several = pair_masks(["b/1.png", "c/1.png", "d/1.png", "a/masks/1.png"])
    assert several.masks == {}
    assert several.doubtful["a/masks/1.png"].endswith("in other folders: b/1.png, c/1.png, ...")


def test_each_patient_has_the_mask_of_its_own() -> None:
    for name in ("a", "part"):
        paths = [f"{name}{i}/{kind}/1.png" for i in (1, 2) for kind in ("images", "masks")]
        assert pair_masks(paths).masks == {f"{name}{i}/images/1.png": f"{name}{i}/masks/1.png" for i in (1, 2)}
    without = pair_masks(["a1/images/1.png", "a2/images/1.png", "a2/masks/1.png"])
    assert without.masks == {"a2/images/1.png": "a2/masks/1.png"}


def test_two_images_of_one_name_leave_their_mask_in_doubt() -> None:
    pairs = pair_masks(["images/a.jpg", "images/a.png", "masks/a.png", "images/b.png", "masks/b.png"])
    assert pairs.images == ["images/a.jpg", "images/a.png", "images/b.png"]
    assert pairs.masks == {"images/b.png": "masks/b.png"}
    assert pairs.doubtful == {"masks/a.png": "2 images have its name: images/a.jpg, images/a.png"}


def test_names_like_masks_that_nothing_bears_out_are_images() -> None:
    assert pair_masks(["mask/a.png", "mask/b.png", "face/c.png"]).images == ["face/c.png", "mask/a.png", "mask/b.png"]
    assert pair_masks(["gas_mask.png", "other.png"]).images == ["gas_mask.png", "other.png"]


def test_additional_masks_and_masks_without_image_are_reported() -> None:
    pairs = pair_masks(["images/a.png", "masks/a.png", "masks/b.png"])
    assert (pairs.images, pairs.orphans) == (["images/a.png"], ["masks/b.png"])
    several = pair_masks(["a.png", "a_mask.png", "a_mask_1.png"])
    assert (several.images, several.several) == (["a.png"], ["a.png"])
    assert several.masks == {"a.png": "a_mask.png"}


def test_split_folders_count_if_there_are_two() -> None:
    assert splits_of(["train/a.png", "images/Valid/b.png", "c.png"]) == {
        "train/a.png": "train",
        "images/Valid/b.png": "val",
    }
    assert splits_of(["train/a.png", "other/b.png"]) == {}


def test_class_folders() -> None:
    paths = ["train/nv/a.png", "test/mel/deep/b.png", "images/c.png", "d.png"]
    assert classes_of(paths) == {"train/nv/a.png": "nv", "test/mel/deep/b.png": "mel"}
    assert classes_of(["test/a.png", "other/b.png"]) == {"test/a.png": "test", "other/b.png": "other"}
