"""Training images are recognised by content and by group, and no other images are."""

from pathlib import Path

import pytest

from dinomed.adapters.training_images import hash_training_images, training_hashes_from_tensors
from dinomed.datasets.manifest import Manifest, build_manifest


def manifest(*rows: tuple[str, int, str | None]) -> Manifest:
    """Rows of (image, content, group)."""
    return build_manifest(
        {
            "image": [image for image, _, _ in rows],
            "sha256": [f"{content:064x}"[::-1] for _, content, _ in rows],
            "group": [group for _, _, group in rows],
        },
        Path(),
    )


TRAIN = manifest(("a.jpg", 1, "HAM_1"), ("b.jpg", 2, None), ("c.jpg", 3, "007"), ("d.jpg", 4, None))


def test_images_are_recognised_by_content_under_any_name() -> None:
    evaluated = manifest(("x.jpg", 2, None), ("b.jpg", 20, None), ("y.jpg", 30, None))
    overlap = hash_training_images([TRAIN]).find(evaluated, evaluated)
    assert (overlap.images, overlap.groups) == (("x.jpg",), ())  # b.jpg of another collection is another image
    assert overlap


def test_groups_are_recognised_by_name_unless_it_is_a_number() -> None:
    evaluated = manifest(("x.jpg", 10, "HAM_1"), ("y.jpg", 11, "007"), ("z.jpg", 12, "HAM_2"))
    overlap = hash_training_images([TRAIN]).find(evaluated, evaluated)
    assert (overlap.images, overlap.groups) == ((), ("x.jpg",))


def test_groups_are_recognised_by_a_training_image_in_the_same_manifest() -> None:
    whole = manifest(("c.jpg", 3, "007"), ("new.jpg", 50, "007"), ("other.jpg", 51, "008"))
    overlap = hash_training_images([TRAIN]).find(whole.take([1, 2]), whole)
    assert (overlap.images, overlap.groups) == ((), ("new.jpg",))


def test_a_manifest_without_training_images_has_no_overlap() -> None:
    evaluated = manifest(("a.jpg", 100, None), ("b.jpg", 101, None))
    assert not hash_training_images([TRAIN]).find(evaluated, evaluated)


@pytest.mark.parametrize("manifests", [[TRAIN], []])
def test_hashes_are_equal_after_a_round_trip_through_tensors(manifests: list[Manifest]) -> None:
    seen = hash_training_images(manifests)
    tensors = seen.to_tensors()
    assert training_hashes_from_tensors(tensors) == seen
    assert tensors["images"].shape == ((4, 16) if manifests else (0, 16))
    assert b"HAM" not in b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
