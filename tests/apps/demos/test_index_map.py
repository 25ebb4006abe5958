"""The map of the tab Explore: points, columns, thumbnails, the selection as CSV, and the place of a picture."""

import base64
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.retrieval.search import ImageIndex, load_index
from dinomed.apps.demos.explore import index_map
from dinomed.apps.demos.explore.index_map import IndexMap
from dinomed.apps.demos.explore.panel import ExplorePanel
from dinomed.apps.demos.launch import _is_local
from dinomed.apps.demos.parts import Picture
from dinomed.apps.demos.retrieve import filter_values
from dinomed.apps.demos.serve import Address
from dinomed.datasets.manifest import build_manifest
from dinomed.explore.map_page import to_unit
from dinomed.explore.projection import fit_map
from dinomed.images.read import read_image


@pytest.fixture
def image_index(user_folder: Path) -> ImageIndex:
    return load_index(user_folder / "idx")


def decode(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def points(shown: IndexMap, method: str = "pca") -> Mapping[str, Any]:
    """The answer, as the page asks for it: again until it is computed."""
    for _ in range(600):
        answer = shown.points({"method": method})
        if "computing" not in answer:
            return answer
        time.sleep(0.1)
    raise AssertionError("the map was not computed")


def test_the_map_shows_the_projected_vectors_of_the_index_coloured_by_its_columns(image_index: ImageIndex) -> None:
    answer = points(IndexMap(image_index))
    expected = to_unit(fit_map(image_index.vector_index.vectors, "pca").points)
    assert np.abs(decode(answer["points"], "<u2").reshape(-1, 2) / 65535 - expected).max() <= 0.5 / 65535 + 1e-6
    manifest = image_index.vector_index.manifest
    assert (answer["total"], answer["chosen"]) == (60, "label")
    assert {"label", "split", "group", "sex"} <= set(answer["columns"])
    label = answer["columns"]["label"]
    assert [label["names"][number] for number in decode(label["groups"], "u1")] == manifest.column("label")
    group = answer["columns"]["group"]["names"]
    assert not set(group) & set(manifest.groups())  # numbered, because names may identify patients


def test_values_that_may_be_names_do_not_colour_the_map(image_index: ImageIndex) -> None:
    manifest = image_index.vector_index.manifest
    columns = {name: manifest.column(name) for name in manifest.columns}
    columns |= {"patient_name": [f"DOE^{row}" for row in range(len(manifest))], "hospital": ["a", "b"] * 30}
    columns |= {name: ["DOE^JANE", "ROE^RICHARD"] * 30 for name in ("video", "volume", "study")}
    columns["depth"] = columns["image"][:2] * 30
    columns["group"] = [f"group {row // 3}" for row in range(60)]
    columns["surname"] = [f"DOE {row // 3}" for row in range(60)]
    image_index.vector_index.manifest = build_manifest(columns, manifest.root)
    names = set(points(IndexMap(image_index))["columns"])
    assert "hospital" in names
    assert not names & {"patient_name", "video", "volume", "study", "depth", "surname"}
    assert not {"surname", "video", "volume", "study", "depth"} & set(filter_values(image_index.vector_index.manifest))


def test_a_large_index_is_sampled_and_its_memory_is_bounded(image_index: ImageIndex) -> None:
    shown = IndexMap(image_index, limit=20, max_bytes=25_000)
    answer = points(shown)
    rows = decode(answer["rows"], "<u4")
    assert len(set(rows.tolist())) == 20
    assert len(decode(answer["points"], "<u2")) == 40
    answer = shown.thumbnails({"places": [0, 5]})["thumbnails"]
    picture = Image.open(io.BytesIO(base64.b64decode(answer[1].partition("base64,")[2])))
    assert picture.size == (index_map.SIDE_PX, index_map.SIDE_PX)
    original = Image.fromarray(image_index.read_image(int(rows[5])))
    assert np.abs(np.asarray(picture).mean((0, 1)) - np.asarray(original).mean((0, 1))).max() < 25  # its centre
    for place in range(20):
        shown.thumbnails({"places": [place]})
        assert sum(map(len, shown._thumbnails.values())) <= 25_000
    for places in ([20], [-1], [1.0], ["1"], list(range(20)) * 2):
        with pytest.raises(ValueError, match="places that the map does not have"):
            shown.thumbnails({"places": places})
    with pytest.raises(ValueError, match="an unknown method"):
        shown.points({"method": "mds"})


def test_the_selection_is_a_manifest_where_only_this_machine_sees_it(image_index: ImageIndex, tmp_path: Path) -> None:
    manifest = image_index.vector_index.manifest
    saved = IndexMap(image_index, names=True).save({"places": [3, 7, 41]})
    (tmp_path / saved["name"]).write_text(saved["csv"])
    selection = dinomed.open_dataset(tmp_path / "selection.csv")
    assert selection.columns == manifest.columns
    for name in manifest.columns:
        assert selection.column(name) == [manifest.column(name)[row] for row in (3, 7, 41)]
    assert IndexMap(image_index).save({"places": [3, 7]}) == {"csv": "row\n3\n7\n", "name": "selection_rows.csv"}
    assert _is_local(Address("127.0.0.1", 7860))
    for address in (
        Address("0.0.0.0", 7860),
        Address("127.0.0.1", 7860, names=("demo.example",)),
        Address("127.0.0.1", 7860, login=("a", "b")),
    ):
        assert not _is_local(address)


def test_a_failed_computation_is_raised_and_tried_again(
    image_index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("no memory")

    shown = IndexMap(image_index)
    with monkeypatch.context() as patch:
        patch.setattr(index_map, "fit_map", fail)
        with pytest.raises(MemoryError):
            points(shown)
    assert points(shown)["total"] == 60


def test_the_picture_has_the_place_of_the_same_image_on_a_pca(image_index: ImageIndex) -> None:
    panel = ExplorePanel(image_index.backbone, image_index)
    assert panel.map is not None
    pixels = read_image(image_index.vector_index.manifest.path(4))
    answers = [each for (each,) in predict_many(panel.consumers, [pixels])]
    place = decode(points(panel.map)["points"], "<u2").reshape(-1, 2)[4] / 65535

    def star(method: str) -> list[float]:
        answer = panel.answer(Picture(pixels, pixels, "hash"), answers, {"mode": "map", "method": method})["explore"]
        assert (answer["mode"], answer["method"]) == ("map", method)
        return answer["star"]

    assert star("pca") == pytest.approx(place, abs=1e-3)  # the index was computed in another batch
    points(panel.map, "tsne")
    nearest = image_index.vector_index.nearest(answers[1][None], 5)[0]
    of_tsne = to_unit(panel.map._fits["tsne"].result.points)
    assert star("tsne") == pytest.approx(of_tsne[[neighbor.row for neighbor in nearest]].mean(axis=0), abs=1e-5)


def test_a_demo_without_an_index_has_no_map(image_index: ImageIndex) -> None:
    panel = ExplorePanel(image_index.backbone)
    assert (panel.functions, 'value="map"' in panel.controls()) == ({}, False)
    assert 'value="map"' in ExplorePanel(image_index.backbone, image_index).controls()
