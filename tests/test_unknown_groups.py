"""An unknown group is null, and no reader of groups joins two images by it.

The images are called alike in both collections, and one group is called like an image.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.fitting.data import fit_splits
from dinomed.adapters.retrieval.filters import GroupLookup
from dinomed.adapters.tasks.classify.groups import group_images, label_groups
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.adapters.training_images import hash_training_images
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.splits import SPLITS, make_splits
from dinomed.errors import UsageError
from dinomed.pretrain.curation.audit.audit import AuditConfig, audit, audit_training_index
from dinomed.pretrain.curation.audit.training_index import read_training_index, write_training_index
from dinomed.pretrain.curation.pool import NamedManifest, build_pool
from dinomed.pretrain.data.select_images import select_images

COUNT = 6


def draw(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Manifest]:
    """Two collections of other images under the same names; the last image of each is of the group "0.png"."""
    root = tmp_path_factory.mktemp("sides")
    first, second = (scan(draw(root / name, seed), make_split=False).manifest for seed, name in enumerate("ab"))
    return with_columns(first, group=GROUPS), with_columns(second, group=[None] * COUNT)


GROUPS: list[str | None] = [*[None] * (COUNT - 1), "0.png"]


def with_columns(manifest: Manifest, **columns: list[str | None]) -> Manifest:
    return build_manifest({name: manifest.column(name) for name in manifest.columns} | columns, manifest.root)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_scan_and_the_manifest_file_keep_it_null(tmp_path: Path, suffix: str) -> None:
    result = scan(draw(tmp_path / "images", 0))
    assert result.manifest.column("group") == [None] * COUNT
    assert not result.manifest.has("group")
    write_manifest(result.manifest, tmp_path / f"m{suffix}")
    assert read_manifest(tmp_path / f"m{suffix}").groups() == [None] * COUNT


def test_each_image_is_its_own_unit_of_splits_and_statistics(sides: tuple[Manifest, Manifest]) -> None:
    first, second = sides
    assert first.groups() == GROUPS
    assert len(set(first.units())) == len(set(second.units())) == COUNT
    assert second.units() == second.column("image")
    assert set(make_splits(second.units(), [None] * COUNT)) == set(SPLITS)
    splits = fit_splits(with_columns(second, split=["train"] * COUNT), None, 0)
    assert (len(splits.train), len(splits.val)) == (COUNT - 1, 1)
    judged = EvaluatedValues(first, first.units(), {"dice": np.zeros(COUNT)}, lambda rows: {})
    assert judged.count_groups(range(COUNT)) == COUNT


def test_splits_may_part_images_of_unknown_groups(sides: tuple[Manifest, Manifest]) -> None:
    manifest = with_columns(sides[0], split=["train", "train", "val", "val", "test", "train"])
    assert len(fit_splits(manifest, None, 0).train) == 3
    assert len(select_images(manifest, 1, 8)[0]) == 3


def test_the_classifier_of_groups_takes_each_as_one(sides: tuple[Manifest, Manifest]) -> None:
    labelled = with_columns(sides[0], label=list("ababab"))
    groups = group_images(labelled)
    assert len(groups) == COUNT
    assert label_groups(groups, labelled, LabelColumns(("label",))).column("label") == list("ababab")
    with pytest.raises(UsageError, match="column 'group'"):
        group_images(sides[1])


def test_search_audit_and_overlap_join_nothing(sides: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    first, second = sides
    lookup = GroupLookup(first)
    for content, group in zip(second.column("sha256"), second.groups(), strict=True):
        assert not len(lookup.rows(content, group))
        assert not lookup.is_known(content, group)
    assert not hash_training_images([first]).find(second, second)
    config = AuditConfig(near=False)
    assert audit(first, second, config).pairs == []
    write_training_index(tmp_path, first)
    assert audit_training_index(read_training_index(tmp_path), second, config).pairs == []


def test_a_curation_keeps_them_apart(sides: tuple[Manifest, Manifest]) -> None:
    pool, query_set = (NamedManifest(name, manifest) for name, manifest in zip(("pool", "trusted"), sides, strict=True))
    joined = build_pool(pool, [query_set], [query_set])
    assert joined.manifest.groups() == [*GROUPS, *[None] * COUNT]
    assert joined.groups == [() if group is None else (group,) for group in joined.manifest.groups()]
    assert joined.reference_groups == [None] * COUNT
