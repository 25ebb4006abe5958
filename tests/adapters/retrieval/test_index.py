"""Building and searching an index."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinomed.adapters.retrieval.engine import build_graph, restore
from dinomed.adapters.retrieval.index import VectorIndex, read_index
from dinomed.adapters.retrieval.search import load_index
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import compute_features
from dinomed.images.decode import UnreadableImage
from dinomed.images.read import read_image


@pytest.mark.parametrize("name", ["flat", "hnsw", "ivf", "gem"])
def test_an_image_finds_itself_first_and_the_vectors_are_those_of_the_backbone(
    made: Path, lesions: Manifest, name: str
) -> None:
    image_index = load_index(made / name)
    answers = list(image_index.search_manifest(lesions.take(range(8)), 3))
    assert [answer.neighbors[0].row for answer in answers] == list(range(8))
    assert all(answer.neighbors[0].similarity == pytest.approx(1, abs=1e-4) for answer in answers)
    pixels = image_index.backbone.preprocessing(read_image(lesions.path(5)))[None]
    features = compute_features(image_index.backbone, pixels, (-1,), True)
    if name == "flat":
        expected = features.cls[0].double() / features.cls[0].double().norm()
    elif name == "gem":
        expected = features.patches[0].double().clamp_min(1e-6).pow(3).mean(dim=(1, 2)).pow(1 / 3)
        expected = expected / expected.norm()
    else:
        return
    # gem goes through float16 patch tokens, by which a token is off by at most 1 part in 2,000
    tolerance = 1e-5 if name == "flat" else 1e-3
    assert np.abs(image_index.vector_index.vectors[5] - expected.numpy()).max() < tolerance


def index_of(vectors: np.ndarray, kind: str, template: VectorIndex) -> VectorIndex:
    record = template.record.model_copy(update={"kind": kind, "dimension": vectors.shape[1], "count": len(vectors)})
    return VectorIndex(record, template.manifest, vectors, None, restore(kind, vectors, build_graph(kind, vectors)))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["flat", "hnsw", "ivf"]), k=st.integers(1, 130), seed=st.integers(0, 99),
    keep=st.floats(0, 1), gone=st.integers(0, 120),
)  # fmt: skip
def test_k_results_are_returned_wherever_they_exist(
    made: Path, kind: str, k: int, seed: int, keep: float, gone: int
) -> None:
    """Whatever is filtered and left out: min(k, what is left), all allowed, none twice, best first."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((120, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = index_of(vectors, kind, read_index(made / "flat"))
    allowed = None if keep > 0.8 else rng.random(120) < keep
    excluded = [rng.choice(120, size, replace=False) for size in (gone, 0, gone // 2)]
    queries = rng.standard_normal((3, 6)).astype(np.float32)
    for query, gone_here, neighbors in zip(
        queries, excluded, index.nearest(queries, k, allowed=allowed, excluded=excluded), strict=True
    ):
        mask = np.ones(120, bool) if allowed is None else allowed.copy()
        mask[gone_here] = False
        assert len(neighbors) == min(k, mask.sum())
        rows = [neighbor.row for neighbor in neighbors]
        assert len(set(rows)) == len(rows)
        assert mask[rows].all()
        assert [neighbor.similarity for neighbor in neighbors] == sorted(
            (neighbor.similarity for neighbor in neighbors), reverse=True
        )
        if neighbors and (kind == "flat" or allowed is not None):
            exact = np.where(mask, vectors.astype(np.float64) @ query / np.linalg.norm(query), -2)
            assert neighbors[0].similarity == pytest.approx(exact.max(), abs=1e-5)


def test_an_image_in_memory_finds_what_its_file_finds(made: Path, lesions: Manifest) -> None:
    index = load_index(made / "flat")
    path = lesions.path(5)
    array = read_image(path)
    (expected,) = index.search_manifest(lesions.take([5]), 3)
    with Image.open(path) as picture:
        forms = [path, str(path), picture, array, torch.tensor(array).permute(2, 0, 1)]
        single = [index.search(form, k=3) for form in forms]
        assert index.search(forms, k=3) == single
    for hits in single:
        assert [hit.row for hit in hits] == [neighbor.row for neighbor in expected.neighbors]
        assert [hit.similarity for hit in hits] == pytest.approx([n.similarity for n in expected.neighbors], abs=1e-5)
    best = single[0][0]
    assert (best.rank, best.row, best.image, best.path) == (1, 5, lesions.column("image")[5], index.hit(
        expected.neighbors[0], 1).path)  # fmt: skip
    assert best.path.samefile(path)
    assert best.label == lesions.column("label")[5]
    assert {hit.columns["sex"] for hit in index.search(path, where=["sex=female"])} == {"female"}
    assert index.search([], k=3) == []
    with pytest.raises(UsageError, match="image in memory: shape"):
        index.search(np.zeros(7, np.uint8))
    with pytest.raises(UsageError, match="a int is no image"):
        index.search([3])


def test_queries_that_cannot_be_compared_are_refused(made: Path) -> None:
    index = read_index(made / "flat")
    with pytest.raises(UsageError, match="queries of 5 values against an index of 32"):
        index.nearest(np.ones((1, 5), np.float32), 3)
    with pytest.raises(DinomedError, match="query 1 holds values that are not finite"):
        index.nearest(np.array([[1.0] * 32, [np.nan] * 32], np.float32), 3)
    with pytest.raises(UsageError, match="at least 1"):
        index.nearest(np.ones((1, 32), np.float32), 0)


def test_a_search_in_python_leaves_out_the_group_of_a_file(
    made: Path, lesions: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = load_index(made / "flat")
    rows = [3, 8, 40]
    expected = index.search_manifest(lesions.take(rows), 60, exclude_same_group=True)
    found = index.search([lesions.path(row) for row in rows], k=60, exclude_same_group=True)
    assert [[hit.row for hit in hits] for hits in found] == [[n.row for n in each.neighbors] for each in expected]
    assert index.search(str(lesions.path(3)), k=60, exclude_same_group=True) == found[0]
    assert all(hit.group != lesions.column("group")[3] for hit in found[0])
    capsys.readouterr()
    Image.new("RGB", (32, 32)).save(tmp_path / "new.png")
    assert len(index.search(tmp_path / "new.png", k=120, exclude_same_group=True)) == len(index)
    assert "the group of 1 of 1 images is not known" in capsys.readouterr().err
    with pytest.raises(UsageError, match="a ndarray has none; give the path of the image"):
        index.search(read_image(lesions.path(3)), exclude_same_group=True)


@pytest.mark.parametrize(("name", "reason"), [("missing.jpg", "does not exist"), (".", "is a folder")])
def test_a_file_that_cannot_be_read_is_named_when_its_group_is_left_out(
    name: str, reason: str, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableImage, match=reason) as error:
        load_index(made / "flat").search(tmp_path / name, exclude_same_group=True)
    assert str(tmp_path / name) in str(error.value)


def test_images_of_the_group_of_a_query_are_left_out(made: Path, lesions: Manifest) -> None:
    image_index = load_index(made / "hnsw")
    groups = lesions.column("group")
    for row, answer in enumerate(image_index.search_manifest(lesions.take(range(20)), 60, exclude_same_group=True)):
        neighbor_groups = [groups[neighbor.row] for neighbor in answer.neighbors]
        assert groups[row] not in neighbor_groups
        assert len(neighbor_groups) == sum(group != groups[row] for group in groups)
        assert answer.group_known
