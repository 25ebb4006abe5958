"""Pages of the site that are made when it is built, and links to files outside of docs/.

The index is the README. The references of commands, settings and Python functions come from the code; tutorials come
from notebooks. A link to any other file of the repository leads to a page that shows the file.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from commands import commands_page
from mkdocs.structure.files import File, Files, InclusionLevel
from settings import settings_page

from dinomed.apps.api.configs import config_jobs

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File of the repository -> page of the site."""
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash"}


def on_config(config: Any) -> Any:
    """Add the pages of docs/ that the navigation does not list to Guides."""
    listed = json.dumps(config.nav)
    unlisted = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f'"{path.name}"' not in listed]
    next(entry["Guides"] for entry in config.nav if "Guides" in entry).extend(unlisted)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""

    def add(name: str, content: str, **options: Any) -> None:
        files.append(File.generated(config, name, content=content, **options))

    for source, page in PAGES.items():
        add(page, (ROOT / source).read_text(encoding="utf-8"))
    add("reference/commands.md", commands_page())
    add("reference/python.md", python_page())
    for job in config_jobs():
        add(f"reference/settings/{job}.md", settings_page(job))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            add(file.src_uri.removesuffix(".ipynb") + ".md", notebook_page(ROOT / "docs" / file.src_uri))
    for path in sorted(linked_files(files)):
        add(_source_page(path), _source_text(path), inclusion=InclusionLevel.NOT_IN_NAV)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links between files of the repository links between pages of the site."""
    start = _repository_path(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        path = _target(start, match[2])
        if path is None:
            return match[0]
        goal = _page_of(path)
        if goal == os.path.splitext(page.file.src_uri)[0] + ".ipynb":  # the download of this notebook
            return match[0]
        goal = goal.replace(".ipynb", ".md")
        return match[1] + os.path.relpath(goal, os.path.dirname(page.file.src_uri) or ".") + match[3]

    return _LINK.sub(replaced, markdown)


def linked_files(files: Files) -> set[str]:
    """Return the files outside of docs/ to which pages link, without those of `PAGES`."""
    paths = set()
    for file in files.documentation_pages():
        start = _repository_path(file.src_uri)
        targets = (_target(start, match[2]) for match in _LINK.finditer(file.content_string))
        paths |= {path for path in targets if path and not path.startswith("docs/") and path not in PAGES}
    return paths


def python_page() -> str:
    """Return the page of the public functions, each described by its docstring."""
    import dinomed

    lines = [
        "# Python functions",
        "",
        "`import dinomed`, then `dinomed.NAME(...)`; see also [Python](../python.md).",
        "",
    ]
    for name, module in dinomed._MODULES.items():
        lines += [f"::: dinomed.apps.{module}.{name}", "    options:", f"      heading: dinomed.{name}", ""]
    return "\n".join(lines)


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: its text, and its code in blocks."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"[Download this notebook]({path.name})")
    return "\n\n".join(parts) + "\n"


def _repository_path(uri: str) -> str:
    """Return the path in the repository of the source of a page."""
    sources = {page: source for source, page in PAGES.items()}
    if uri.startswith("source/"):
        return uri.removeprefix("source/").removesuffix(".md")
    return sources.get(uri, f"docs/{uri}")


def _target(start: str, link: str) -> str | None:
    """Return the path in the repository of a relative link from the file `start`, None if there is no such file."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return None
    path = os.path.normpath(os.path.join(os.path.dirname(start), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _page_of(path: str) -> str:
    """Return the page of a file of the repository; of a file in docs/ the file itself, such as a picture."""
    return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path) or _source_page(path)


def _source_page(path: str) -> str:
    return f"source/{path}.md"


def _source_text(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n~~~~~~{_LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n~~~~~~\n"
