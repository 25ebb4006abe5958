"""Leak audit: planted copies are found and nothing else, real duplicates too; what a run keeps tells no names."""

import shutil
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError, UsageError
from dinomed.io.output_folder import locked
from dinomed.pretrain.curation.audit.audit import Audit, AuditConfig, audit, audit_training_index
from dinomed.pretrain.curation.audit.hashed_images import hash_images
from dinomed.pretrain.curation.audit.training_index import (
    hash_group,
    read_training_index,
    write_training_index,
)
from dinomed.pretrain.curation.descriptors.config import DescriptorConfig
from dinomed.pretrain.run_folder import SEEN_FILE

CONFIG = AuditConfig(descriptor=DescriptorConfig(fit_images=16), candidates=3)
QUICK = AuditConfig(descriptor=DescriptorConfig(fit_images=8), candidates=1)


def pairs_of(leak_audit: Audit, train: Manifest | None, test: Manifest, kind: str) -> dict[str, Any]:
    """Test image -> training image of the pairs of a kind."""
    names = None if train is None else train.column("image")
    tests = test.column("image")
    pairs = [pair for pair in leak_audit.pairs if pair.kind == kind]
    return {tests[pair.test]: names[pair.train] if names and pair.train is not None else None for pair in pairs}


def rows_named(manifest: Manifest, *names: str) -> Manifest:
    """Return the images whose names begin with one of `names`."""
    return manifest.take([row for row, image in enumerate(manifest.column("image")) if image.startswith(names)])


@pytest.fixture(scope="module")
def leak_audit(planted) -> Audit:
    return audit(planted.train, planted.test, CONFIG)


def test_every_planted_leak_is_found_and_nothing_else(planted, leak_audit: Audit) -> None:
    sides = planted.train, planted.test
    assert pairs_of(leak_audit, *sides, "exact") == {"exact.png": "20.png"}
    assert pairs_of(leak_audit, *sides, "near") == planted.near
    assert pairs_of(leak_audit, *sides, "group") == {"group.png": "21.png"}
    assert leak_audit.counts == {"exact": 1, "near": len(planted.near), "group": 1}
    assert (leak_audit.leaked, leak_audit.test_images, leak_audit.train_images) == (len(planted.near) + 2, 21, 24)
    for pair in leak_audit.pairs:
        if pair.kind == "near":
            assert pair.similarity is not None
            assert pair.distance is not None or (pair.matches or 0) >= CONFIG.min_matches
    assert [pair.kind for pair in leak_audit.pairs] == sorted(
        (pair.kind for pair in leak_audit.pairs), key=["exact", "near", "group"].index
    )


def test_sets_without_leaks_are_clean(planted) -> None:
    assert audit(planted.train, rows_named(planted.test, "other"), QUICK).pairs == []


def test_parts_can_be_switched_off(planted) -> None:
    quick = audit(planted.train, planted.test, AuditConfig(near=False))
    assert quick.counts == {"exact": 1, "near": 0, "group": 1}
    alone = audit(planted.train, planted.test, AuditConfig(near=False, groups=False))
    assert alone.counts == {"exact": 1, "near": 0, "group": 0}


def test_a_scan_without_groups_gives_none_to_share(tmp_path: Path) -> None:
    """Images of the same path in two folders have the same group by default: their own path."""
    sides = []
    for side in range(2):
        folder = tmp_path / str(side)
        folder.mkdir()
        for n in range(3):
            Image.fromarray(np.full((9, 9, 3), 50 * side + n, np.uint8)).save(folder / f"{n}.png")
        sides.append(scan(folder).manifest)
    assert sides[0].column("group") == sides[1].column("group")
    assert audit(*sides, AuditConfig(near=False)).pairs == []


def test_few_images_are_compared_by_hash_alone(planted) -> None:
    train, few = planted.train.take([3, 4]), rows_named(planted.test, "flip.png", "crop.png")
    few_audit = audit(train, few, CONFIG)
    assert pairs_of(few_audit, train, few, "near") == {"flip.png": "03.png"}
    assert "by hash alone" in few_audit.notes[0]


def test_an_image_that_went_away_is_still_looked_for_by_content(
    planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(planted.test.root, tmp_path / "test")
    test = Manifest(rows_named(planted.test, "exact", "flip", "jpeg", "other").table, tmp_path / "test")
    (tmp_path / "test" / "exact.png").write_bytes(b"")
    (tmp_path / "test" / "flip.png").unlink()
    test_audit = audit(planted.train, test, QUICK)
    assert test_audit.unreadable == 2
    assert "exact.png" in pairs_of(test_audit, planted.train, test, "exact")
    assert "flip.png" not in pairs_of(test_audit, planted.train, test, "near")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: 2 of 11 images cannot be read and are compared by their content hash alone")
    assert line.endswith("exact.png: empty file")


def test_what_was_computed_is_used_again_and_damage_is_noticed(
    planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(planted.test.root, tmp_path / "images")
    test = Manifest(planted.test.table, tmp_path / "images")
    first = hash_images(test, cache=tmp_path / "cache")
    (shard,) = (tmp_path / "cache").rglob("*.arrow")
    (tmp_path / "images").rename(tmp_path / "moved")
    again = hash_images(test, cache=tmp_path / "cache")
    assert (first.hashes == again.hashes).all()
    assert again.readable.all()
    shard.write_bytes(shard.read_bytes()[:50])
    (tmp_path / "moved").rename(tmp_path / "images")
    capsys.readouterr()
    assert (hash_images(test, cache=tmp_path / "cache").hashes == first.hashes).all()
    assert "is damaged" in capsys.readouterr().err
    hash_images(test.take(range(3)), cache=tmp_path / "cache")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2  # other images, another key


def test_a_second_audit_waits_for_the_cache(planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would remove the file that the first one is writing."""
    hash_images(planted.test, cache=tmp_path)
    (shard,) = tmp_path.rglob("*.arrow")
    written = shard.with_name(".tmp-first")
    second = Thread(target=hash_images, args=(planted.test,), kwargs={"cache": tmp_path})
    with locked(tmp_path):
        written.touch()
        second.start()
        while second.is_alive() and "waiting for another process" not in capsys.readouterr().err:
            sleep(0.01)
        assert written.exists()
    second.join()
    assert not written.exists()


def test_an_empty_side_is_refused(planted) -> None:
    empty = planted.test.take([])
    for sides in ((planted.train, empty), (empty, planted.test)):
        with pytest.raises(UsageError, match="has no images"):
            audit(*sides, CONFIG)


# What a run keeps.


@pytest.fixture(scope="module")
def run_folder(planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    write_training_index(folder, planted.train)
    return folder


def test_a_run_knows_what_it_has_seen(planted, run_folder: Path) -> None:
    index_audit = audit_training_index(read_training_index(run_folder), planted.test, CONFIG)
    assert pairs_of(index_audit, None, planted.test, "exact") == {"exact.png": None}
    near = set(pairs_of(index_audit, None, planted.test, "near"))
    assert {"turn.png", "flip.png", "jpeg.png", "colour.png", "brightness.png", "rescale.png"} <= near
    assert near <= set(planted.near)
    assert pairs_of(index_audit, None, planted.test, "group") == {"group.png": None}
    clean = rows_named(planted.test, "other")
    assert audit_training_index(read_training_index(run_folder), clean, CONFIG).pairs == []


def test_the_index_contains_no_names_and_has_the_same_bytes(planted, run_folder: Path, tmp_path: Path) -> None:
    data = (run_folder / SEEN_FILE).read_bytes()
    for word in (b"patient 7", b"21.png", str(planted.train.root).encode()):
        assert word not in data
    again = write_training_index(tmp_path, planted.train, workers=3)
    assert again.read_bytes() == data
    assert len(data) < 200 * len(planted.train) + 3000
    seen = read_training_index(run_folder)
    assert sorted(seen.sha256) == sorted(planted.train.column("sha256"))
    assert seen.groups.count(hash_group("patient 7", seen.salt)) == 2
    second_run = write_training_index(tmp_path, planted.test).parent
    assert hash_group("patient 7", read_training_index(second_run).salt) not in seen.groups


def test_damaged_and_missing_indexes_are_errors(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no seen\.parquet; give the training manifest"):
        read_training_index(tmp_path)
    data = (run_folder / SEEN_FILE).read_bytes()
    (tmp_path / SEEN_FILE).write_bytes(data[:-30])
    with pytest.raises(DinomedError, match="damaged or cut off"):
        read_training_index(tmp_path)
    write_manifest(_manifest(tmp_path, []), tmp_path / SEEN_FILE)
    with pytest.raises(DinomedError, match="does not have the format"):
        read_training_index(tmp_path)


def _manifest(root: Path, images: list[str]) -> Manifest:
    columns: dict[str, list[Any]] = dict.fromkeys(("image", "sha256", "mode", "format"), images)
    return build_manifest(columns | {name: [0] * len(images) for name in ("width", "height", "bytes")}, root)


# Real images.


@pytest.mark.long
@pytest.mark.data
def test_the_known_duplicates_of_real_sets_are_found(real_data: Path, tmp_path: Path) -> None:
    """Those of the data's README, of which some may be held back; and near ones that an audit brought to light."""
    exact = [
        ("dermoscopy", "ISIC_0024366", "ISIC_0029861"), ("dermoscopy", "ISIC_0024777", "ISIC_0029938"),
        ("dermoscopy_unlabelled", "ISIC_0012152", "ISIC_0015979"),
        ("dermoscopy_unlabelled", "ISIC_0012216", "ISIC_0016001"),
    ]  # fmt: skip
    near = [
        ("dermoscopy", "ISIC_0033173", "ISIC_0029152"), ("dermoscopy", "ISIC_0027636", "ISIC_0027994"),
        ("dermoscopy", "ISIC_0029036", "ISIC_0027027"), ("dermoscopy_unlabelled", "ISIC_0012290", "ISIC_0013594"),
        ("dermoscopy_unlabelled", "ISIC_0000184", "ISIC_0015310"),
    ]  # fmt: skip
    checked = 0
    for source in ("dermoscopy", "dermoscopy_unlabelled"):
        folder = real_data / source / "images"
        known = {kind: [(a, b) for where, a, b in pairs if where == source] for kind, pairs in zip(
            ("exact", "near"), (exact, near), strict=True
        )}  # fmt: skip
        there = {kind: [(a, b) for a, b in pairs if _exists(folder, a, b)] for kind, pairs in known.items()}
        wanted = [pair for pairs in there.values() for pair in pairs]
        filler = [path.stem for path in sorted(folder.glob("*.jpg"))[::40]][:12]
        filler = [name for name in filler if all(name not in pair for pair in wanted)]
        sides = []
        for side, names in ((0, filler[::2]), (1, filler[1::2])):
            target = tmp_path / source / str(side)
            target.mkdir(parents=True)
            for name in [pair[side] for pair in wanted] + names:
                shutil.copy(folder / f"{name}.jpg", target)
            sides.append(scan(target, make_split=False).manifest)
        sides_audit = audit(*sides, AuditConfig(groups=False))
        for kind, pairs in there.items():
            expected = {f"{b}.jpg": f"{a}.jpg" for a, b in pairs}
            assert pairs_of(sides_audit, *sides, kind) == expected, (source, kind)
            checked += len(expected)
    assert checked >= 4


def _exists(folder: Path, *names: str) -> bool:
    return all((folder / f"{name}.jpg").is_file() for name in names)


@pytest.mark.data
def test_a_run_on_real_lesions_knows_them_recompressed(real_data: Path, tmp_path: Path) -> None:
    images = sorted((real_data / "dermoscopy" / "images").glob("*.jpg"))
    for folder, chosen in (("train", images[:60:2]), ("test", images[1:21:2])):
        (tmp_path / folder).mkdir()
        for path in chosen:
            shutil.copy(path, tmp_path / folder)
    for path in images[:20:2]:
        with Image.open(path) as image:
            image.rotate(90, expand=True).save(tmp_path / "test" / f"copy_{path.stem}.jpg", quality=60)
    write_training_index(tmp_path, scan(tmp_path / "train", make_split=False).manifest)
    test = scan(tmp_path / "test", make_split=False).manifest
    index_audit = audit_training_index(read_training_index(tmp_path), test)
    assert set(pairs_of(index_audit, None, test, "near")) == {f"copy_{path.name}" for path in images[:20:2]}
    assert index_audit.counts["exact"] == 0


def test_a_manifest_read_back_audits_the_same(planted, tmp_path: Path) -> None:
    write_manifest(planted.train, tmp_path / "train.parquet")
    write_manifest(planted.test, tmp_path / "test.csv")
    config = AuditConfig(near=False)
    again = audit(read_manifest(tmp_path / "train.parquet"), read_manifest(tmp_path / "test.csv"), config)
    assert again.pairs == audit(planted.train, planted.test, config).pairs
