"""`dinomed show`: pictures in three formats, values of the report, and requests that are refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.images.read import read_image


@pytest.fixture(scope="module")
def images(lesion_manifest: Path) -> list[Path]:
    manifest = read_manifest(lesion_manifest)
    return [manifest.path(row) for row in range(8)]


COMMANDS = {"pca": 3, "attention": 1, "match": 2, "similarity": 2}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
@pytest.mark.parametrize("kind", COMMANDS)
def test_each_picture_is_written_in_each_format(
    kind: str, suffix: str, run, images: list[Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"picture{suffix}"
    code, text, err = run("show", kind, *images[: COMMANDS[kind]], "-b", tiny_backbone, "-o", out, "--json")
    assert code == 0, err
    report = json.loads(text)
    assert report["picture"] == str(out)
    assert report["images"] == [str(path) for path in images[: COMMANDS[kind]]]
    content = out.read_bytes()
    if suffix == ".png":
        assert Image.open(out).size[0] > 300
    else:
        names = [path.stem for path in images]
        assert not any(name.encode() in content for name in names)  # file names may identify a patient
        assert b"research use" in content or suffix == ".svg"
        assert not re.findall(rb'(?:src|href)="(?!data:)', content)


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_picture_is_replaced_with_overwrite_only(
    kind: str, run, images: list[Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    command = ("show", kind, *images[: COMMANDS[kind]], "-b", tiny_backbone, "-o", tmp_path / "picture.svg")
    assert run(*command)[0] == 0
    code, _, err = run(*command)
    assert code == 2
    assert "add --overwrite" in err
    assert run(*command, "--overwrite")[0] == 0


def test_images_in_memory_and_from_files_give_the_same(images: list[Path], tiny_backbone: Path) -> None:
    from_files = dinomed.show_pca(tiny_backbone, images[:2], device="cpu")
    arrays = [read_image(images[0]), Image.fromarray(read_image(images[1]))]
    in_memory = dinomed.show_pca(tiny_backbone, arrays, device="cpu")
    assert np.array_equal(from_files.colours, in_memory.colours)
    assert in_memory.images == ["image in memory"] * 2
    assert in_memory._repr_html_().startswith("<svg")


def test_the_image_size_gives_more_patches(images: list[Path], tiny_backbone: Path) -> None:
    shown = dinomed.show_attention(tiny_backbone, images[0], image_size=64, device="cpu")
    assert shown.attention.maps().shape == (1, 2, 8, 8)


def test_an_image_without_a_counterpart_has_no_match(images: list[Path], tiny_backbone: Path, run, tmp_path) -> None:
    out = tmp_path / "match.svg"
    code, text, _ = run(
        "show", "match", *images[:2], "-b", tiny_backbone, "-o", out, "--min-similarity", "0.9999", "--json"
    )
    assert code == 0
    assert json.loads(text)["matches"] == []
    assert json.loads(text)["result"] == "no match above 0.9999"
    assert "No match above 0.9999" in out.read_text()


def test_the_points_of_matches_are_in_px_of_the_images(images: list[Path], tiny_backbone: Path) -> None:
    image = read_image(images[0])  # 36 x 48 px, 4 x 4 patches
    shown = dinomed.show_match(tiny_backbone, image, np.ascontiguousarray(image[:, ::-1]), device="cpu")
    for match, (first, second) in zip(shown.matches, shown.points, strict=True):
        assert first == ((match.first[1] + 0.5) * 12, (match.first[0] + 0.5) * 9)
        assert second == ((match.second[1] + 0.5) * 12, (match.second[0] + 0.5) * 9)


def test_the_live_page_runs_only_its_own_script(images: list[Path], tiny_backbone: Path, tmp_path: Path) -> None:
    dinomed.show_similarity(tiny_backbone, images[:2], out=tmp_path / "a.html", device="cpu")
    page = (tmp_path / "a.html").read_text()
    assert re.search(r"script-src 'sha256-[\w+/]{43}='; ", page)
    data = json.loads(page.partition('id="features">')[2].partition("</script>")[0])
    assert data["components"] == 32
    assert [(each["rows"], each["columns"]) for each in data["images"]] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pca", *["IMAGE"] * 9], "show pca: 9 images; give 1 to 8"),
        (["pca", "IMAGE", "--threshold", "90"], "--threshold 90 leaves 0 patches of foreground"),
        (["pca", "missing.png"], "does not exist"),
        (["attention", "IMAGE", "--mass", "1.5"], "--mass 1.5 is out of range"),
        (["match", "IMAGE", "IMAGE", "--min-similarity", "2"], "--min-similarity 2 is out of range"),
        (["similarity", "IMAGE", "--at", "500,2"], "--at 500,2 lies outside of the first image of 48 x 36 px"),
        (["similarity", "IMAGE", "--at", "middle"], "--at middle: expected two numbers"),
        (["similarity", *["IMAGE"] * 7], "show similarity: 7 images; give 1 to 6"),
    ],
)
def test_a_wrong_request_is_one_line(
    words: list[str], message: str, run, images: list[Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    words = [str(images[0]) if word == "IMAGE" else word for word in words]
    code, _, err = run("show", *words, "-b", tiny_backbone, "-o", tmp_path / "a.png")
    assert code in (1, 2)
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "a.png").exists()


def test_a_wrong_mass_is_refused_before_the_backbone_is_loaded(images: list[Path]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        dinomed.show_attention("no/such/backbone", images[0], mass=0)
