"""Every kind of HTML page on a phone: nothing runs off the side, the result comes first, the contents lead on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest
from dinomed.pretrain.curation.output.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.long]
KINDS = ("curation", "leaks", "labels", "few labels", "few masks", "seg", "cls", "comparison", "sheet", "map")
NO_VERDICT = ("sheet", "map")  # tools, not results


@pytest.fixture(scope="module")
def pages(
    user_folder: Path, make_result: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The page of each kind, made by its command; names of files and groups are long."""
    out = tmp_path_factory.mktemp("pages")
    data = read_manifest(user_folder / "derm.parquet")
    columns = {name: data.column(name) for name in data.columns}
    long = build_manifest(
        columns | {"label": [f"a_class_with_a_long_name_{label}" for label in columns["label"]]}, data.root
    )
    write_manifest(long, out / "long.parquet")
    for name in ("train", "test"):
        write_manifest(data.select(split=name), out / f"{name}.parquet")
    manifest, backbone = str(user_folder / "derm.parquet"), ["--backbone", str(user_folder / "ssl")]
    audited = str(out / "labels.html")
    few = ["--set", "fit.epochs=2", "--set", "fit.min_steps=0", "--seeds", "2"]
    write_report(make_result(out / "made"), out / "curation.html", names=True)
    for command in (
        ["audit", str(out / "train.parquet"), str(out / "test.parquet"), "-o", str(out / "leaks.html")],
        ["audit", str(out / "long.parquet"), "--labels", "label", *backbone, "-o", audited],
        ["probe", str(user_folder / "ssl"), "--data", manifest, "--few-shot", "1,2,all", "-o", str(out / "few")],
        ["probe", str(user_folder / "ssl"), "--data", manifest, "--task", "segment", "--few-shot", "10,all", *few, "-o",
         str(out / "few_masks")],
        ["evaluate", str(user_folder / "seg"), "--data", manifest, "-o", str(out / "seg")],
        ["evaluate", str(user_folder / "cls"), "--data", manifest, "--by", "sex", "-o", str(out / "cls")],
        ["evaluate", str(user_folder / "seg"), str(user_folder / "seg"), "--data", manifest, "-o", str(out / "both")],
        ["predict", str(user_folder / "seg"), manifest, "-o", str(out / "sheet")],
        ["show", "map", manifest, *backbone, "--method", "pca", "-o", str(out / "map.html")],
    ):  # fmt: skip
        cli.invoke([*command, "--quiet"])
    paths = (
        "curation.html", "leaks.html", "labels.html", "few/report.html", "few_masks/report.html", "seg/report.html",
        "cls/report.html", "both/report.html", "sheet/index.html", "map.html",
    )  # fmt: skip
    return dict(zip(KINDS, (out / path for path in paths), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_a_phone_and_begins_with_its_result(
    browser: Any, pages: dict[str, Path], kind: str, find_violations: Any
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(pages[kind].as_uri(), wait_until="load")
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) => !node.closest(".scroll, pre, svg")
          && node.getBoundingClientRect().right > 391).map((node) => node.outerHTML.slice(0, 120))"""
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "research use only" in page.inner_text(".research").lower()
    if kind not in NO_VERDICT:
        assert page.evaluate("document.querySelector('main > *').className") == "verdict"
        links = page.evaluate("[...document.querySelectorAll('.contents a')].map(a => a.getAttribute('href').slice(1))")
        assert len(links) == len(set(links)) > 1
        assert page.evaluate("names => names.every(name => document.getElementById(name))", links)
        assert "Next" in page.locator("h2").all_inner_texts()
    assert find_violations(page) == []
    context.close()
