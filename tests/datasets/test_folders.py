"""What folder and file names say."""

from dinomed.datasets.folders import classes_of, pair_masks, splits_of


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
    ]:
        pairs = pair_masks([image, mask])
        assert (pairs.images, pairs.masks) == ([image], {image: mask}), image


def test_same_names_in_two_splits_are_kept_apart() -> None:
    paths = [f"{split}/{kind}/1.png" for split in ("train", "test") for kind in ("images", "masks")]
    assert pair_masks(paths).masks == {
        "train/images/1.png": "train/masks/1.png",
        "test/images/1.png": "test/masks/1.png",
    }


def test_names_like_masks_that_nothing_bears_out_are_images() -> None:
    assert pair_masks(["mask/a.png", "mask/b.png", "face/c.png"]).images == ["face/c.png", "mask/a.png", "mask/b.png"]
    assert pair_masks(["gas_mask.png", "other.png"]).images == ["gas_mask.png", "other.png"]


def test_masks_too_many_or_alone_are_told() -> None:
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
