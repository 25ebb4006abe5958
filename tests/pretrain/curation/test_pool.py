"""Joining of the pool, the query sets and the excluded sets into one table."""

from pathlib import Path
from typing import Any

from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.pretrain.curation.deduplication.exclusion import exclude
from dinomed.pretrain.curation.pool import NamedManifest, Pool, build_pool
from dinomed.pretrain.curation.search.pairs import no_pairs


def images(root: Path, names: str, **columns: list[Any]) -> Manifest:
    """Return a manifest of images below `root`, one for each letter; equal letters have equal contents."""
    count = len(names)
    values = {
        "image": [f"{name}.png" for name in names], "sha256": [name.lower() * 64 for name in names],
        "width": [9] * count, "height": [9] * count, "mode": ["RGB"] * count, "format": ["PNG"] * count,
        "bytes": [1] * count,
    }  # fmt: skip
    return build_manifest(values | columns, root)


def joined(pool: Manifest, trusted: list[Manifest], exclude: list[Manifest]) -> Pool:
    return build_pool(
        NamedManifest("pool", pool),
        [NamedManifest(f"set {number}", manifest) for number, manifest in enumerate(trusted)],
        [NamedManifest("test", manifest) for manifest in exclude],
    )


def exclusions(pool: Pool) -> list[str]:
    exclusion = exclude(len(pool), no_pairs(), no_pairs(), groups=pool.groups, reference_groups=pool.reference_groups)
    return exclusion.reason.tolist()


def test_a_pool_image_is_in_the_group_that_a_query_set_knows(tmp_path: Path) -> None:
    """The pool was scanned without a table: only the query set says that a and b show the test patient."""
    pool = images(tmp_path, "abcd")
    trusted = images(tmp_path, "abc", group=["p1", "p1", "p2"])
    made = joined(pool, [trusted], [images(tmp_path / "test", "x", group=["p1"])])
    assert exclusions(made) == ["group", "group", "", ""]
    assert made.manifest.groups() == ["p1", "p1", "p2", None]


def test_both_groups_of_an_image_count_for_the_exclusion(tmp_path: Path) -> None:
    pool = images(tmp_path, "abc", group=["old 1", "old 1", "old 2"])
    trusted = images(tmp_path / "elsewhere", "BD", group=["p1", "p1"])  # B has the content of b
    made = joined(pool, [trusted], [images(tmp_path / "test", "x", group=["p1"])])
    assert made.groups == [("old 1",), ("old 1", "p1"), ("old 2",), ("p1",)]
    assert exclusions(made) == ["linked", "group", "", "group"]
    assert made.manifest.groups() == ["old 1", "old 1", "old 2", "p1"]


def test_empty_cells_are_filled_from_the_query_sets(tmp_path: Path) -> None:
    pool = images(tmp_path, "abcd", label=["nevus", None, None, None])
    first = images(tmp_path, "ab", label=["melanoma", "melanoma"], site=["arm", None], keep=[True, True])
    second = images(tmp_path, "bc", label=["naevus", None], site=["leg", "hand"])
    made = joined(pool, [first, second], []).manifest
    assert made.column("label") == ["nevus", "melanoma", None, None]
    assert made.column("site") == ["arm", "leg", "hand", None]
    assert "keep" not in made.columns
    assert made.column("sha256") == pool.column("sha256")


def test_an_image_of_two_query_sets_has_the_values_of_both(tmp_path: Path) -> None:
    first = images(tmp_path, "b", group=["p1"])
    second = images(tmp_path, "b", group=["p2"], label=["nevus"])
    made = joined(images(tmp_path, "a"), [first, second], [])
    assert made.groups == [(), ("p1", "p2")]
    assert made.manifest.column("label") == [None, "nevus"]


def test_paths_of_all_columns_follow_the_common_root(tmp_path: Path) -> None:
    """The pool and the query set have depth maps, and lie in different folders."""
    sides = []
    for name, letters in (("pool", "ab"), ("trusted", "c")):
        (tmp_path / name).mkdir()
        depth = [f"{letter}.depth.png" for letter in letters]
        for file in (*depth, "left"):
            (tmp_path / name / file).touch()
        label = {"label": ["left"] * len(letters)}  # a label may be called like a file
        sides.append(images(tmp_path / name, letters, depth=depth, site=["arm"] * len(letters), **label))
    made = joined(sides[0], [sides[1]], []).manifest
    assert made.column("image") == ["pool/a.png", "pool/b.png", "trusted/c.png"]
    assert made.column("depth") == ["pool/a.depth.png", "pool/b.depth.png", "trusted/c.depth.png"]
    assert made.column("site") == ["arm"] * 3
    assert made.column("label") == ["left"] * 3
