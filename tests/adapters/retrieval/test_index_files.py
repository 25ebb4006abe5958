"""Files of an index: writing, resuming, damage and forgery."""

import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.adapters.retrieval.build import build_index
from dinomed.adapters.retrieval.index import INDEX_FILE, read_index
from dinomed.adapters.retrieval.pool import Pooling
from dinomed.adapters.retrieval.search import load_index
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.cache import FeatureCache
from dinomed.images.read import read_image
from dinomed.io.output_folder import STAGE
from dinomed.io.tensor_file import read_tensors, write_tensors


def test_a_read_index_equals_the_built_one(made: Path, lesions: Manifest) -> None:
    index = read_index(made / "flat")
    assert index.manifest.table.equals(lesions.table.replace_schema_metadata(None))
    assert index.manifest.path(3).resolve() == lesions.path(3).resolve()
    assert json.loads((made / "flat" / "index.json").read_text()) == index.record.model_dump(mode="json")
    assert not list((made / "flat").glob(".unf*"))


def test_a_refused_index_leaves_no_folder(lesions: Manifest, tiny_backbone: Path, tmp_path: Path) -> None:
    backbone, cache = load_backbone(tiny_backbone), tmp_path / "cache"
    with pytest.raises(UsageError, match="allow 1 to 32 dimensions"):
        build_index(backbone, lesions, tmp_path / "new", cache=cache, whiten=99)
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="allow 1 to 32 dimensions"):
        build_index(backbone, lesions, tmp_path / "there", cache=cache, whiten=99)
    assert not (tmp_path / "there" / STAGE).exists()


def test_another_backbone_is_refused_by_its_fingerprint(made: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    changed, changed_folder = load_backbone(tiny_backbone, device="cpu"), tmp_path / "other"
    with torch.no_grad():
        changed.vit.norm.bias += 0.1
    save_backbone(changed_folder, changed.vit, changed.preprocessing)
    with pytest.raises(UsageError, match=r"index .* was made on backbone tiny") as refused:
        load_index(made / "flat", backbone=changed_folder)
    fingerprints = set(re.findall(r"\b[0-9a-f]{16}\b", str(refused.value)))
    assert fingerprints == {load_backbone(weights).fingerprint[:16] for weights in (tiny_backbone, changed_folder)}
    moved = shutil.copytree(made / "flat", tmp_path / "deep" / "down" / "moved")
    with pytest.raises(DinomedError, match="say where: `backbone=PATH`"):
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


def test_another_picture_is_never_shown_for_a_vector(lesions: Manifest, tiny_backbone: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in lesions.column("image")[:3]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lesions.root / name, root / name)
    manifest = Manifest(lesions.take(range(3)).table, root)
    build_index(load_backbone(tiny_backbone), manifest, tmp_path / "idx", cache=tmp_path / "cache")
    shutil.copy(manifest.path(1), manifest.path(0))
    image_index = load_index(tmp_path / "idx")
    with pytest.raises(DinomedError, match="changed since the scan"):
        image_index.read_image(0)
    neighbors = image_index.vector_index.nearest(image_index.vector_index.vectors[:1], 3)[0]
    evidence = image_index.evidence(read_image(manifest.path(1)), neighbors)
    assert [patches is None for patches in evidence] == [True, False, False]


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
    neighbors = image_index.vector_index.nearest(image_index.vector_index.vectors[:1], 3)[0]
    evidence = image_index.evidence(read_image(manifest.path(1)), neighbors)
    assert [patches is None for patches in evidence] == [True, False, False]


def test_an_interrupted_build_is_resumed_and_the_older_index_stays_until_then(
    made: Path, lesions: Manifest, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.adapters.retrieval import build

    backbone, out = load_backbone(tiny_backbone), tmp_path / "index"
    monkeypatch.setattr(build, "_CHUNK", 16)
    gem = {"cache": tmp_path / "cache", "pooling": Pooling(tokens="gem")}
    real, calls = build.extract, []

    def dying(*arguments: object, **options: object) -> FeatureCache:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(build, "extract", dying)
    with pytest.raises(KeyboardInterrupt):
        build_index(backbone, lesions, out, **gem)
    with pytest.raises(UsageError, match="is no index"):
        read_index(out)
    index = build_index(backbone, lesions, out, **gem)
    assert len(calls) == 3 + 2  # of 4 chunks, 2 were done
    assert np.abs(index.vectors - read_index(made / "gem").vectors).max() < 1e-6
    with pytest.raises(UsageError, match="add `overwrite=True`"):
        build_index(backbone, lesions, out, **gem)
    monkeypatch.setattr(build, "write_index", dying)
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        build_index(backbone, lesions.take(range(30)), out, overwrite=True, cache=tmp_path / "cache")
    assert len(read_index(out)) == 60
