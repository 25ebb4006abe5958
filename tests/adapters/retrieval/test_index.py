"""Building, writing, reading and searching an index, and damaged indexes."""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinomed.adapters.retrieval.build import build_index
from dinomed.adapters.retrieval.engine import build_graph, restore
from dinomed.adapters.retrieval.evaluate import evaluate_index
from dinomed.adapters.retrieval.filters import parse_conditions
from dinomed.adapters.retrieval.index import INDEX_FILE, VectorIndex, read_index
from dinomed.adapters.retrieval.pool import Pooling
from dinomed.adapters.retrieval.search import load_index
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image
from dinomed.io.output_folder import STAGE
from dinomed.io.tensor_file import read_tensors, write_tensors


@pytest.fixture(scope="module")
def lesions(lesion_manifest: Path) -> Manifest:
    return read_manifest(lesion_manifest)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lesions: Manifest, tiny_backbone: Path) -> Path:
    """Indexes called flat, hnsw, ivf (whitened) and gem."""
    folder = tmp_path_factory.mktemp("indexes")
    backbone = load_backbone(tiny_backbone)
    for name, options in {
        "flat": {},
        "hnsw": {"kind": "hnsw"},
        "ivf": {"kind": "ivf", "whiten": 8},
        "gem": {"pooling": Pooling(tokens="gem")},
    }.items():
        build_index(backbone, lesions, folder / name, cache=folder / "cache", **options)
    return folder


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


def test_a_read_index_equals_the_built_one(made: Path, lesions: Manifest) -> None:
    index = read_index(made / "flat")
    assert index.manifest.table.equals(lesions.table.replace_schema_metadata(None))
    assert index.manifest.path(3).resolve() == lesions.path(3).resolve()
    assert json.loads((made / "flat" / "index.json").read_text()) == index.record.model_dump(mode="json")
    assert not list((made / "flat").glob(".unf*"))


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
    for query, gone_here, found in zip(
        queries, excluded, index.nearest(queries, k, allowed=allowed, excluded=excluded), strict=True
    ):
        mask = np.ones(120, bool) if allowed is None else allowed.copy()
        mask[gone_here] = False
        assert len(found) == min(k, mask.sum())
        rows = [one.row for one in found]
        assert len(set(rows)) == len(rows)
        assert mask[rows].all()
        assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)
        if found and (kind == "flat" or allowed is not None):
            exact = np.where(mask, vectors.astype(np.float64) @ query / np.linalg.norm(query), -2)
            assert found[0].similarity == pytest.approx(exact.max(), abs=1e-5)


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


def test_a_refused_index_leaves_no_folder(lesions: Manifest, tiny_backbone: Path, tmp_path: Path) -> None:
    backbone, cache = load_backbone(tiny_backbone), tmp_path / "cache"
    with pytest.raises(UsageError, match="allow 1 to 32 dimensions"):
        build_index(backbone, lesions, tmp_path / "new", cache=cache, whiten=99)
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="allow 1 to 32 dimensions"):
        build_index(backbone, lesions, tmp_path / "there", cache=cache, whiten=99)
    assert not (tmp_path / "there" / STAGE).exists()


def test_queries_that_cannot_be_compared_are_refused(made: Path) -> None:
    index = read_index(made / "flat")
    with pytest.raises(UsageError, match="queries of 5 values against an index of 32"):
        index.nearest(np.ones((1, 5), np.float32), 3)
    with pytest.raises(DinomedError, match="query 1 holds values that are not finite"):
        index.nearest(np.array([[1.0] * 32, [np.nan] * 32], np.float32), 3)
    with pytest.raises(UsageError, match="at least 1"):
        index.nearest(np.ones((1, 32), np.float32), 0)


def test_images_of_the_group_of_a_query_are_left_out(made: Path, lesions: Manifest) -> None:
    image_index = load_index(made / "hnsw")
    groups = lesions.column("group")
    for row, answer in enumerate(image_index.search_manifest(lesions.take(range(20)), 60, exclude_same_group=True)):
        found = [groups[one.row] for one in answer.neighbors]
        assert groups[row] not in found
        assert len(found) == sum(group != groups[row] for group in groups)
        assert answer.group_known


def test_another_backbone_is_refused_by_its_fingerprint(made: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_backbone, other)
    weights = read_tensors(other / "model.safetensors")
    config = (other / "config.json").read_text()
    weights["norm.bias"] += 0.1
    write_tensors(other / "model.safetensors", weights, {"config": config})
    with pytest.raises(UsageError, match=r"index .* was made on backbone tiny") as refused:
        load_index(made / "flat", backbone=other)
    told = set(re.findall(r"\b[0-9a-f]{16}\b", str(refused.value)))
    assert told == {load_backbone(one).fingerprint[:16] for one in (tiny_backbone, other)}
    moved = shutil.copytree(made / "flat", tmp_path / "deep" / "down" / "moved")
    with pytest.raises(DinomedError, match="say where: --backbone"):
        load_index(moved)
    assert len(load_index(moved, backbone=tiny_backbone)) == 60


def test_damage_anywhere_is_found_before_anything_is_searched(made: Path, tmp_path: Path) -> None:
    whole = (made / "hnsw" / INDEX_FILE).read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    folder = tmp_path / "index"
    folder.mkdir()
    rng = np.random.default_rng(0)
    places = [*rng.integers(8 + header, len(whole), 25), len(whole) - 1, 8 + header]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 0x41
        (folder / INDEX_FILE).write_bytes(changed)
        with pytest.raises(DinomedError, match="damaged"):
            read_index(folder)
    for length in (0, 7, 8, 100, 8 + header, len(whole) // 2, len(whole) - 1):
        (folder / INDEX_FILE).write_bytes(whole[:length])
        with pytest.raises(DinomedError, match="truncated"):
            read_index(folder)
    for place in rng.integers(0, 8 + header, 60):  # anywhere in the header: one line, whatever it is
        changed = bytearray(whole)
        changed[place] ^= 0x11
        (folder / INDEX_FILE).write_bytes(changed)
        try:
            assert len(read_index(folder)) == 60  # a letter of the record that nothing depends on
        except DinomedError as error:
            assert "\n" not in str(error)  # noqa: PT017


def forge(source: Path, folder: Path, tensors: dict[str, torch.Tensor], **record: object) -> Path:
    """An index whose checksums are right and whose content is hostile."""
    from dinomed.io.tensor_file import hash_tensors

    data = json.loads((source / "index.json").read_text()) | record | {"content_sha256": hash_tensors(tensors)}
    folder.mkdir(exist_ok=True)
    write_tensors(folder / INDEX_FILE, tensors, {"index": json.dumps(data)})
    return folder


def test_a_forged_index_with_right_checksums_is_refused(made: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = made / "hnsw"
    good = read_tensors(source / INDEX_FILE)
    table = read_index(source).manifest.table

    def rows(changed: pa.Table) -> torch.Tensor:
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink)
        return torch.from_numpy(np.frombuffer(sink.getvalue(), np.uint8).copy())

    climbing = table.set_column(0, "image", pa.array(["../../etc/passwd", *table["image"].to_pylist()[1:]]))
    links = good["graph.neighbors"].clone()
    links[0] = 2**31 - 1
    nan = good["vectors"].clone()
    nan[3, 3] = float("nan")
    for tensors, message in (
        ({**good, "manifest": rows(climbing)}, "outside its folder"),
        ({**good, "manifest": rows(table.slice(1))}, "59 rows"),
        ({**good, "manifest": rows(table.drop_columns(["sha256"]))}, "sha256"),
        ({**good, "manifest": torch.zeros(10, dtype=torch.uint8)}, "damaged"),
        ({**good, "graph.neighbors": links}, "graph is not one of its vectors"),
        ({**good, "vectors": nan}, "not finite"),
        ({**good, "vectors": good["vectors"][:, :-1].contiguous()}, "another shape"),
        ({key: value for key, value in good.items() if key != "vectors"}, "no 'vectors'"),
    ):
        with pytest.raises(DinomedError, match=message) as refused:
            read_index(forge(source, tmp_path / "forged", tensors))
        assert "\n" not in str(refused.value)
    with pytest.raises(DinomedError, match="another shape"):
        read_index(forge(source, tmp_path / "forged", good, count=10**12))
    with pytest.raises(DinomedError, match=r"format 'dinomed.index/9'"):
        read_index(forge(source, tmp_path / "forged", good, format="dinomed.index/9"))
    assert len(read_index(forge(source, tmp_path / "forged", good))) == 60  # the forger can make a good one


def test_a_link_out_of_the_folder_of_the_images_is_not_followed(
    lesions: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    for name in lesions.column("image")[:3]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lesions.root / name, root / name)
    manifest = Manifest(lesions.take(range(3)).table, root)
    build_index(load_backbone(tiny_backbone), manifest, tmp_path / "idx", cache=tmp_path / "cache")
    shutil.copy(manifest.path(0), outside)
    manifest.path(0).unlink()
    manifest.path(0).symlink_to(outside)
    image_index = load_index(tmp_path / "idx")
    with pytest.raises(DinomedError, match="leads out of the folder"):
        image_index.read_image(0)
    found = image_index.vector_index.nearest(image_index.vector_index.vectors[:1], 3)[0]
    evidence = image_index.evidence(read_image(manifest.path(1)), found)
    assert [one is None for one in evidence] == [True, False, False]


def test_an_interrupted_build_is_resumed_and_the_older_index_stays_until_then(
    made: Path, lesions: Manifest, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.adapters.retrieval import build

    backbone, out = load_backbone(tiny_backbone), tmp_path / "index"
    monkeypatch.setattr(build, "_CHUNK", 16)
    gem = {"cache": tmp_path / "cache", "pooling": Pooling(tokens="gem")}
    real, calls = build._pool_chunk, []

    def dying(*arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(build, "_pool_chunk", dying)
    with pytest.raises(KeyboardInterrupt):
        build_index(backbone, lesions, out, **gem)
    with pytest.raises(UsageError, match="is no index"):
        read_index(out)
    index = build_index(backbone, lesions, out, **gem)
    assert len(calls) == 3 + 2  # of 4 chunks, 2 were done
    assert np.abs(index.vectors - read_index(made / "gem").vectors).max() < 1e-6
    with pytest.raises(UsageError, match="add --overwrite"):
        build_index(backbone, lesions, out, **gem)
    monkeypatch.setattr(build, "write_index", dying)
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        build_index(backbone, lesions.take(range(30)), out, overwrite=True, cache=tmp_path / "cache")
    assert len(read_index(out)) == 60


def test_evaluation_follows_the_definition(made: Path, lesions: Manifest) -> None:
    """mAP and recall of every test image by a plain loop in float64: its group and itself are no results."""
    image_index = load_index(made / "flat")
    found = evaluate_index(image_index, lesions, "test", conditions=parse_conditions(["split=train"]))
    groups, labels, splits = (lesions.column(name) for name in ("group", "label", "split"))
    vectors = image_index.vector_index.vectors.astype(np.float64)
    precisions, recalls = [], []
    for row in [i for i, split in enumerate(splits) if split == "test"]:
        others = [j for j in range(60) if splits[j] == "train" and groups[j] != groups[row]]
        others.sort(key=lambda j: -(vectors[j] @ vectors[row]))
        hits = [labels[j] == labels[row] for j in others]
        places = [i for i, hit in enumerate(hits, 1) if hit]
        precisions.append(np.mean([n / place for n, place in enumerate(places, 1)]))
        recalls.append(sum(hits[:5]) / sum(hits))
    assert found["metrics"]["map"] == pytest.approx(np.mean(precisions), abs=1e-9)
    assert found["metrics"]["recall@5"] == pytest.approx(np.mean(recalls), abs=1e-9)
    assert found["metrics"]["n"] == len(precisions) == sum(one["n"] for one in found["per_class"].values())
    low, high = found["metrics"]["intervals"]["map"]
    assert low < found["metrics"]["map"] < high
    assert found["index"]["searched"] == splits.count("train")
    assert found["index"]["graph_recall@10"] is None


def test_an_evaluation_computes_features_of_images_outside_the_index(
    lesions: Manifest, tiny_backbone: Path, tmp_path: Path, made: Path
) -> None:
    train = lesions.select(split="train")
    build_index(load_backbone(tiny_backbone), train, tmp_path / "train", cache=tmp_path / "cache", kind="hnsw")
    found = evaluate_index(load_index(tmp_path / "train"), lesions, "test")
    whole = evaluate_index(load_index(made / "flat"), lesions, "test", conditions=parse_conditions(["split=train"]))
    assert found["metrics"]["map"] == pytest.approx(whole["metrics"]["map"], abs=1e-6)  # batches differ in rounding
    assert found["index"]["graph_recall@10"] == 1.0  # so few are searched exhaustively


def test_an_evaluation_without_labels_or_images_is_refused(made: Path, lesions: Manifest) -> None:
    image_index = load_index(made / "flat")
    with pytest.raises(UsageError, match="no labels in a column 'grade'"):
        evaluate_index(image_index, lesions, "test", label="grade")
    with pytest.raises(UsageError, match="no usable image in split 'holdout'"):
        evaluate_index(image_index, lesions, "holdout")
