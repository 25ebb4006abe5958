"""Exclusion of pool images near evaluation images, on vectors with known angles and on real images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.errors import UsageError
from dinomed.pretrain.curation.deduplication.components import components, representatives
from dinomed.pretrain.curation.deduplication.exclusion import exclude
from dinomed.pretrain.curation.search.exact import near_pairs
from dinomed.pretrain.curation.search.pairs import no_pairs


def at(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles in a plane."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def test_a_chain_of_near_pairs_is_one_component_with_one_representative() -> None:
    x = at(0, 90, 40, 200, 80, 205)  # 0 - 40 - 80 - 90 is a chain at a cosine of 0.6 (53 degrees)
    pairs = near_pairs(x, threshold=0.6)
    component = components(len(x), pairs.i, pairs.j)
    assert component.tolist() == [0, 0, 0, 3, 0, 3]
    assert representatives(component, np.array([5, 4, 0, 1, 3, 2])).tolist() == [2, 2, 2, 3, 2, 3]


def test_the_whole_component_of_a_reference_is_excluded() -> None:
    pool, test = at(0, 50, 100, 200, 300, 310), at(-20, 305, 302)
    exclusion = exclude(6, near_pairs(pool, threshold=0.6), near_pairs(pool, test, threshold=0.6, k=1))
    assert exclusion.reason.tolist() == ["near", "linked", "linked", "", "near", "near"]
    assert exclusion.reference.tolist() == [0, -1, -1, -1, 2, 1]
    assert exclusion.similarity[4] == pytest.approx(np.cos(np.radians(2)), abs=1e-6)
    assert np.isnan(exclusion.similarity[[1, 2, 3]]).all()


def test_the_most_similar_of_several_references_is_reported() -> None:
    pool, test = at(0), at(10, 5, 5, 20)
    exclusion = exclude(1, no_pairs(), near_pairs(pool, test, threshold=0.6))
    assert exclusion.reference.tolist() == [1]


def test_an_image_in_the_group_of_an_excluded_image_is_excluded() -> None:
    pool, test = at(0, 90, 180, 270, 271, 225), at(5)
    groups = [("p1",), ("p1",), ("p2",), ("p3",), ("p3",), ()]
    near = near_pairs(pool, threshold=0.99)
    hits = near_pairs(pool, test, threshold=0.99, k=1)
    exclusion = exclude(6, near, hits, groups=groups, reference_groups=["p2"])
    # 0 is near the test image, 1 of the patient of 0, 2 of a test patient
    assert exclusion.reason.tolist() == ["near", "linked", "group", "", "", ""]
    exclusion = exclude(6, near, hits, groups=groups, reference_groups=[None])
    assert exclusion.reason.tolist() == ["near", "linked", "", "", "", ""]


def test_groups_and_near_pairs_connect_images_over_any_number_of_steps() -> None:
    pool = at(0, 90, 91, 180)
    exclusion = exclude(
        4,
        near_pairs(pool, threshold=0.99),
        near_pairs(pool, at(1), threshold=0.99, k=1),
        groups=[("a",), ("a",), ("b",), ("b",)],
    )
    assert exclusion.reason.tolist() == ["near", "linked", "linked", "linked"]


def test_an_image_of_two_groups_connects_both() -> None:
    groups = [("a",), ("a", "b"), ("c",)]
    exclusion = exclude(3, no_pairs(), no_pairs(), groups=groups, reference_groups=["b"])
    assert exclusion.reason.tolist() == ["linked", "group", ""]


def test_a_wrong_number_of_groups_is_an_error() -> None:
    with pytest.raises(UsageError, match="there are 2 groups for 3 images"):
        exclude(3, no_pairs(), no_pairs(), groups=[("a",), ("b",)])


@pytest.mark.data
def test_the_known_duplicates_of_real_images_are_found(real_data: Path) -> None:
    """ISIC 2017 holds two pairs of files with the same image; thumbnails are sufficient descriptors for them."""
    paths = sorted((real_data / "dermoscopy_unlabelled").rglob("*.jpg"))
    assert len(paths) > 1000
    thumbs = []
    for path in paths:
        with Image.open(path) as image:
            image.draft("L", (64, 64))
            thumbs.append(np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), np.float32).ravel())
    x = np.stack(thumbs)
    x -= x.mean(axis=1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    names = np.array([path.stem for path in paths])
    pairs = near_pairs(x, threshold=0.9999)
    found_names = {tuple(sorted(pair)) for pair in zip(names[pairs.i], names[pairs.j], strict=True)}
    present = set(names)
    known = [("ISIC_0012152", "ISIC_0015979"), ("ISIC_0012216", "ISIC_0016001")]
    known = [pair for pair in known if set(pair) <= present]
    assert known
    assert set(known) <= found_names
    assert len(found_names) < 30  # the description of the data lists 11 near copies and 2 exact ones
