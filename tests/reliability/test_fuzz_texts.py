"""Structure-aware fuzzing of YAML settings and COCO annotations: read, or refused in one line."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dinomed.apps.api.data.datasets import scan_with_report
from dinomed.config import load_config, parse_yaml
from dinomed.datasets.coco.annotations import read_annotations
from dinomed.datasets.coco.rle import encode_runs
from dinomed.errors import DinomedError
from dinomed.pretrain.config import PretrainConfig

FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TAGS = ("", "!!int ", "!!float ", "!!bool ", "!!null ", "!!str ", "!!seq ", "!!map ", "!!binary ", "!!set ",
        "!!timestamp ", "!!python/object/apply:os.system ", "!x ", "&a ", "<<: ", "? ", "--- ", "- ")  # fmt: skip
SCALARS = ("", '""', "1", "-", "0x", "0o9", "1e999", ".nan", "1_0", "1:2", "a", "*a", "[1]", "{a: 1}", "{[1]: 2}",
           "|\n x", "'\\x1b[31m'", '"\\x1b[31m\\u2028"', "9" * 200, "[" * 9, "é", "\0", "\ud800",
           "{a: 1, a: 2}", "~")  # fmt: skip


def check_message(error: DinomedError) -> None:
    """A message is one line of at most 2,000 characters that a terminal shows as it is."""
    message = str(error)
    assert message.isprintable(), message
    assert 0 < len(message) <= 2000


def yaml_texts() -> st.SearchStrategy[str]:
    values = st.tuples(st.sampled_from(TAGS), st.sampled_from(SCALARS)).map("".join)
    lines = st.tuples(st.sampled_from(("a", "run", "steps", "base", "", " ", "  x")), values).map(": ".join)
    return st.lists(lines | values | st.text(max_size=20), max_size=6).map("\n".join)


@FAST
@given(yaml_texts())
@example('a: !!float ""')
@example("a: !!map [1]")
@example("a: !!map [[1, 2]]")
@example("- " * 2000)
@example("a: " + "9" * 5000)
def test_any_yaml_is_read_or_refused_in_one_line(tmp_path: Path, text: str) -> None:
    try:
        parse_yaml(text, "x.yaml")
    except DinomedError as error:
        check_message(error)
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_config(PretrainConfig, path)
    except DinomedError as error:
        check_message(error)


HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 2**40, 10**400, -0.5, 1e308, float("nan"), float("inf"), "", "\x1b[31m", "../x", "a\0b",
    "\ud800", "5" * 3000, [], {}, [None], [[0]], [[1e300] * 6], [-1, 1], [10**4298] * 20, {"size": [30, 40]},
    {"size": [30, 40], "counts": "o" * 90}, {"size": [30, 40], "counts": [1200]}, {"size": [30, 40], "counts": "\x7f"},
)  # fmt: skip


def coco() -> dict[str, Any]:
    """Annotations of two images, 40 x 30 px, with polygons and both forms of run lengths."""
    runs = [0, 2, 1195, 3]
    outlines = ([[2.5, 2, 12, 3, 9, 14.2]], {"size": [30, 40], "counts": runs}, encode_runs(runs, 30, 40))
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(2)],
        "categories": [{"id": 1, "name": "polyp"}, {"id": 2, "name": "tool"}],
        "annotations": [
            {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "segmentation": outline, "iscrowd": 0}
            for i, outline in enumerate(outlines)
        ],
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values, also those of lists and mappings."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def forge(place: tuple[Any, ...], new: Any, kind: str) -> dict[str, Any]:
    """Annotations with another value at a place, without it, or with it twice."""
    data = json.loads(json.dumps(coco()))
    target = data
    for key in place[:-1]:
        target = target[key]
    if kind == "replace":
        target[place[-1]] = new
    elif kind == "remove":
        del target[place[-1]]
    elif isinstance(target, list):
        target.insert(0, target[place[-1]])
    return data


@pytest.fixture
def images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """Return a folder of two images. The log is not captured: workers of pytest cannot send a lone surrogate."""
    caplog.set_level("CRITICAL", "dinomed")
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def all_changes() -> list[tuple[tuple[Any, ...], Any, str]]:
    changes: list[tuple[tuple[Any, ...], Any, str]] = [
        (place, new, "replace") for place in places(coco()) for new in HOSTILE
    ]
    return changes + [(place, None, kind) for place in places(coco()) for kind in ("remove", "twice")]


def fuzz(images: Path, changes: list[tuple[tuple[Any, ...], Any, str]]) -> None:
    """Read annotations with each of the changes, and draw those that are read."""
    path, refused = images.parent / "coco.json", 0
    path.write_text(json.dumps(coco()))
    assert scan_with_report(images, coco=path, out=images.parent / "whole" / "m.csv").masks["masks"] == 2
    for number, (place, new, kind) in enumerate(changes):
        path.write_text(json.dumps(forge(place, new, kind)))
        out = images.parent / str(number)
        try:
            read_annotations(path)
            scan_with_report(images, coco=path, out=out / "m.csv")
        except DinomedError as error:
            check_message(error)
            assert not list(out.rglob("*.png"))
            refused += 1
        except Exception as error:
            raise AssertionError(f"{place} = {str(new)[:60]}: {error!r}") from error
    assert len(changes) / 2 < refused < len(changes)


def test_forged_annotations_are_drawn_or_refused_in_one_line(images: Path) -> None:
    pytest.importorskip("pycocotools")
    fuzz(images, random.Random(0).sample(all_changes(), 120))


@pytest.mark.long
def test_all_forged_annotations_are_drawn_or_refused_in_one_line(images: Path) -> None:
    pytest.importorskip("pycocotools")
    fuzz(images, all_changes())
