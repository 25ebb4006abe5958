"""The page of a curation: what it says, that it hides names, that it stays small, and what it does with bad files."""

import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dinomed.pretrain.curation.output.read import CurationResult
from dinomed.pretrain.curation.output.report import build_report, effective, write_report

MakeResult = Callable[..., CurationResult]


@pytest.fixture(scope="module")
def outcome(make_result: MakeResult, tmp_path_factory: pytest.TempPathFactory) -> CurationResult:
    return make_result(tmp_path_factory.mktemp("curated"))


@pytest.fixture(scope="module")
def page(outcome: CurationResult) -> str:
    return build_report(outcome)


class Tags(HTMLParser):
    """What a browser would see as tags and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_page_contains_the_table_of_the_paper_and_every_reason(page: str, outcome: CurationResult) -> None:
    said = text_of(page)
    kept = int(outcome.keep.sum())
    assert f"Of {len(outcome.keep)} images {kept} are kept" in said
    for source in outcome.sources:
        assert f"{source.name} {source.mode} {source.images} {source.retrieved} {source.kept}" in said
    for reason, count in outcome.counts.items():
        assert f"{reason} {count} {count / len(outcome.keep):.1%}" in said
    assert "For research use only, not for diagnosis." in said
    assert "fit_images: 600" in page  # of the settings
    assert "0123456789abcdef" in page  # a fingerprint


def test_pairs_show_similarity_and_what_found_them(page: str, outcome: CurationResult) -> None:
    said = text_of(page)
    for similarity, how in zip(outcome.removed.similarity, outcome.removed.how, strict=True):
        assert f"similarity {similarity:.2f}, {how}" in said
    assert said.count("removed: row") == len(outcome.removed)
    assert said.count("excluded: row") == (outcome.removed.reference >= 0).sum()


def test_balance_counts_each_class_before_and_after(page: str, outcome: CurationResult) -> None:
    said = text_of(page)
    for name, (before, after) in outcome.balance("label").items():
        assert re.search(rf"{name} {before} [\d.]+% {after} [\d.]+%", said), name


def test_names_are_shown_on_request_only_and_escaped(page: str, outcome: CurationResult) -> None:
    named = build_report(outcome, names=True)
    assert "&lt;script&gt;alert(1)&lt;" in named
    for built in (page, named):
        parser = Tags()
        parser.feed(built)
        assert "script" not in parser.tags
        assert not [name for name in parser.attributes if name.startswith("on")]
    for name in outcome.manifest.column("image"):
        assert Path(name).stem not in unescape(page)
    assert "Mrs_Example" not in page
    assert "Mrs_Example" in named


def test_a_column_that_would_name_each_image_has_no_balance(page: str) -> None:
    assert "operator 3" in text_of(page)  # few values
    assert "case 7" not in page  # as many values as images


def test_nothing_is_fetched_and_no_script_runs(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,20})", page)
    assert sources
    assert all(source.startswith(("data:image/jpeg", "#part-")) for source in sources)  # the contents lead to parts
    assert "default-src 'none'" in page


def test_maps_hold_every_image_that_has_a_place(page: str, outcome: CurationResult) -> None:
    placed = np.isfinite(outcome.points).all(axis=1)
    svgs = re.findall(r"<svg.*?</svg>", page)
    assert len(svgs) == 4  # by fate, by source, by label before and after
    counts = [svg.count("h0") for svg in svgs]
    assert counts == [placed.sum(), (placed & outcome.keep).sum()] * 2


def test_the_page_stops_taking_pictures_at_its_limit(outcome: CurationResult) -> None:
    whole, small = build_report(outcome), build_report(outcome, limit_mib=0.02)
    without = len(re.sub(r"data:image/jpeg;base64,[^\"]*", "", small))
    assert len(small) - without < 0.02 * 2**20 + 60_000  # one figure may go over
    assert len(small) < len(whole)
    assert re.search(r"\d+ images were left out: the page has reached its limit of 0.02 MiB", small)
    assert "were left out" not in whole


def test_a_missing_image_is_replaced_by_its_row_number(make_result: MakeResult, tmp_path: Path) -> None:
    lost = make_result(tmp_path)
    for row in lost.removed.row:
        lost.manifest.path(int(row)).unlink()
    assert text_of(build_report(lost)).count("row") >= len(lost.removed)
    for name in lost.manifest.column("image"):
        assert Path(name).stem not in build_report(lost)


def test_nothing_removed_and_no_map_still_makes_a_page(make_result: MakeResult, tmp_path: Path) -> None:
    bare = make_result(tmp_path, removed=False)
    page = text_of(build_report(bare))
    assert "All searches were exact" in page
    assert "as a map" not in page
    assert "Clusters" not in page


def test_the_page_is_the_same_twice_and_written_whole(tmp_path: Path, outcome: CurationResult, page: str) -> None:
    write_report(outcome, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_effective_number_is_the_number_of_equal_classes() -> None:
    assert effective(np.full(7, 3.0)) == pytest.approx(7)
    assert effective(np.array([1e9, 1.0])) == pytest.approx(1, abs=1e-6)
    assert effective(np.array([])) == 0


def test_the_nasty_name_is_really_there(outcome: CurationResult) -> None:
    assert "<script>alert(1)<_script>.png" in outcome.manifest.column("image")
