"""Copies within a pile and copies of evaluation images, on vectors whose angles are set by hand and on real images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.errors import UsageError
from dinomed.pretrain.curation.deduplication.exclusion import deduplicate, exclude, neighbors_of
from dinomed.pretrain.curation.search.exact import near_pairs
from dinomed.pretrain.curation.search.pairs import no_pairs


def at(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles in a plane."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def test_one_of_each_chain_of_copies_stays() -> None:
    x = at(0, 90, 40, 200, 80, 205)  # 0 - 40 - 80 - 90 is a chain at a cosine of 0.6 (53 degrees)
    found = deduplicate(x, near_pairs(x, threshold=0.6), np.array([5, 4, 0, 1, 3, 2]))
    assert found.component.tolist() == [0, 0, 0, 3, 0, 3]
    assert found.keep.tolist() == [False, False, True, True, False, False]
    assert found.duplicate_of.tolist() == [2, 2, -1, -1, 2, 3]
    assert found.similarity == pytest.approx(np.cos(np.radians([40, 50, 0, 0, 40, 5])), abs=1e-6)


def test_no_pairs_no_copies() -> None:
    found = deduplicate(at(0, 90, 180), no_pairs(), np.arange(3))
    assert found.keep.all()
    assert (found.duplicate_of == -1).all()


def test_the_whole_component_of_a_reference_is_out() -> None:
    pile, test = at(0, 50, 100, 200, 300, 310), at(-20, 305, 302)
    found = exclude(6, near_pairs(pile, threshold=0.6), near_pairs(pile, test, threshold=0.6, k=1))
    assert found.reason.tolist() == ["near", "linked", "linked", "", "near", "near"]
    assert found.keep.tolist() == [False, False, False, True, False, False]
    assert found.reference.tolist() == [0, -1, -1, -1, 2, 1]
    assert found.similarity[4] == pytest.approx(np.cos(np.radians(2)), abs=1e-6)
    assert np.isnan(found.similarity[[1, 2, 3]]).all()


def test_pairs_of_several_references_give_the_most_similar() -> None:
    pile, test = at(0), at(10, 5, 5, 20)
    found = exclude(1, no_pairs(), near_pairs(pile, test, threshold=0.6))
    assert found.reference.tolist() == [1]


def test_an_image_that_shares_a_group_with_one_that_is_out_is_out() -> None:
    pile, test = at(0, 90, 180, 270, 271, 225), at(5)
    groups = ["p1", "p1", "p2", "p3", "p3", None]
    near = near_pairs(pile, threshold=0.99)
    hits = near_pairs(pile, test, threshold=0.99, k=1)
    found = exclude(6, near, hits, groups=groups, reference_groups=["p2"])
    # 0 is near the test image, 1 of the patient of 0, 2 of a test patient
    assert found.reason.tolist() == ["near", "linked", "group", "", "", ""]
    found = exclude(6, near, hits, groups=groups, reference_groups=[None])
    assert found.reason.tolist() == ["near", "linked", "", "", "", ""]


def test_groups_and_copies_are_followed_over_any_number_of_steps() -> None:
    pile = at(0, 90, 91, 180)
    found = exclude(
        4,
        near_pairs(pile, threshold=0.99),
        near_pairs(pile, at(1), threshold=0.99, k=1),
        groups=["a", "a", "b", "b"],
    )
    assert found.reason.tolist() == ["near", "linked", "linked", "linked"]


def test_groups_of_another_number_are_refused() -> None:
    with pytest.raises(UsageError, match="2 groups for 3 images"):
        exclude(3, no_pairs(), no_pairs(), groups=["a", "b"])


def test_small_piles_have_fewer_neighbours() -> None:
    assert [neighbors_of(count) for count in (1, 2, 65, 66)] == [None, 1, 64, 64]


@pytest.mark.data
def test_the_known_duplicates_of_real_images_are_found(real_data: Path) -> None:
    """ISIC 2017 holds two pairs of files with the same picture; thumbnails are descriptor enough for those."""
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
    found = {tuple(sorted(pair)) for pair in zip(names[pairs.i], names[pairs.j], strict=True)}
    present = set(names)
    known = [("ISIC_0012152", "ISIC_0015979"), ("ISIC_0012216", "ISIC_0016001")]
    known = [pair for pair in known if set(pair) <= present]
    assert known
    assert set(known) <= found
    assert len(found) < 30  # the data's description knows of 11 near copies and 2 exact ones
