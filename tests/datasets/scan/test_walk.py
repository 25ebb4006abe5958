"""Walking: every file once, links with care, hidden files not (reliability row 18)."""

import os
from pathlib import Path

import pytest
from PIL import Image

from dinomed.datasets.scan.walk import walk
from dinomed.features.extract import default_cache


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2)).save(path, "PNG")
    return path


def test_images_are_found_by_content_and_others_counted(tmp_path: Path) -> None:
    image(tmp_path / "b" / "no suffix")
    image(tmp_path / "a.dat")
    (tmp_path / "note.txt").write_text("note")
    (tmp_path / "text.jpg").write_text("a file so named should be an image: reading it tells why not")
    image(tmp_path / ".hidden" / "a.png")
    image(tmp_path / "__MACOSX" / "a.png")
    image(tmp_path / "._a.png")
    os.mkfifo(tmp_path / "pipe.png")
    walked = walk(tmp_path)
    assert walked.images == ["a.dat", "b/no suffix", "text.jpg"]
    assert walked.num_others == 1
    assert walked.refused == []


def test_a_feature_cache_beside_images_is_left_out_and_a_folder_of_such_a_name_is_not(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png")
    image(tmp_path / "skin.features" / "b.png")
    cache = default_cache(tmp_path / "images") / "0123456789abcdef"
    cache.mkdir(parents=True)
    (cache / "00000.cls.npy").write_bytes(b"")
    assert walk(tmp_path).images == ["images/a.png", "skin.features/b.png"]
    image(cache.parent / "c.png")
    assert "images.features/c.png" in walk(tmp_path).images


def test_loops_end_and_links_inside_add_nothing(tmp_path: Path) -> None:
    image(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "x")
    (tmp_path / "also.png").symlink_to(tmp_path / "x" / "a.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    walked = walk(tmp_path)
    assert walked.images == ["x/a.png"]
    assert dict(walked.refused) == {"self": "broken link", "gone.png": "broken link"}


def test_links_to_hidden_stores_are_the_only_way_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(image(tmp_path / ".annex" / "objects" / "1"))
    (tmp_path / "b.png").symlink_to(tmp_path / ".annex" / "objects" / "1")
    assert walk(tmp_path).images == ["a.png"]


def test_links_out_of_the_folder_are_refused_by_default(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    image(outside / "b.png")
    (outside / "back").symlink_to(root)
    image(root / "a.png")
    (root / "out").symlink_to(outside)
    (root / "out2.png").symlink_to(outside / "b.png")
    walked = walk(root)
    assert walked.images == ["a.png"]
    assert [path for path, reason in walked.refused if "`follow_links=True`" in reason] == ["out", "out2.png"]
    followed = walk(root, follow_links=True)
    assert followed.images == ["a.png", "out2.png"] or followed.images == ["a.png", "out/b.png"]  # once
    assert followed.refused == []


def test_a_root_that_is_a_link(tmp_path: Path) -> None:
    image(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert walk(tmp_path / "link").images == ["a.png"]


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert walk(tmp_path).refused == [("caf\\udce9.png", "its name is not valid UTF-8")]
