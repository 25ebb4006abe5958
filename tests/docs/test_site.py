"""The built site: complete, and its pages load nothing from other addresses."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dinomed
from dinomed.apps.api.configs import config_jobs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.long
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""Element -> its attribute with an address that a browser loads by itself."""


class LoadedAddresses(HTMLParser):
    """The addresses that a page loads without a click, and its styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADING and values.get("rel") not in ("canonical", "next", "prev"):
            self.addresses += [values.get(LOADING[tag]) or ""]
            self.addresses += (values.get("srcset") or "").split()
        self.addresses += re.findall(r"url\(([^)]*)\)", values.get("style") or "")


def is_outside(address: str) -> bool:
    return bool(re.match(r"\s*['\"]?(?:https?:)?//", address))


def test_no_page_and_no_style_loads_anything_from_another_address(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        addresses = LoadedAddresses(text).addresses
        assert len(addresses) > 3, page  # the styles and scripts of the theme
        styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.S)
        addresses += [address for style in styles for address in re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", style)]
        assert [address for address in addresses if is_outside("".join(address))] == [], page
        assert 'class="mermaid"' not in text, page  # the theme would load a library for it
    for style in site.rglob("*.css"):
        loaded = re.findall(r"url\(([^)]*)\)|@import\s+([^;]+)", style.read_text(encoding="utf-8"))
        assert [address for address in loaded if is_outside("".join(address))] == [], style


def test_every_guide_and_every_reference_is_a_page(site: Path) -> None:
    guides = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert guides | {"index", "contributing", "changelog"} <= {path.stem for path in site.glob("*.html")}
    assert {f"{job}.html" for job in config_jobs()} <= {path.name for path in site.glob("reference/settings/*.html")}
    functions = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert [name for name in dinomed._MODULES if f"dinomed.{name}\n" not in functions] == []
    assert "dinomed train segment" in (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert not (site / "hooks").exists()


def test_a_tutorial_is_a_page_with_its_notebook_to_download(site: Path) -> None:
    notebooks = [path.name for path in (ROOT / "docs" / "tutorials").glob("*.ipynb")]
    assert len(notebooks) >= 3
    for name in notebooks:
        page = (site / "tutorials" / name).with_suffix(".html").read_text(encoding="utf-8")
        assert f'href="{name}"' in page
        assert (site / "tutorials" / name).read_bytes() == (ROOT / "docs" / "tutorials" / name).read_bytes()
    assert 'href="lesions.html"' in (site / "tutorials" / "own_pool.html").read_text(
        encoding="utf-8"
    )  # not the notebook


def test_a_file_that_a_guide_links_to_is_shown(site: Path) -> None:
    page = (site / "curation.html").read_text(encoding="utf-8")
    assert "../benchmarks/" not in page
    assert 'href="source/benchmarks/curation/curation.py.html"' in page
    assert "argparse" in (site / "source" / "benchmarks" / "curation" / "curation.py.html").read_text(encoding="utf-8")
