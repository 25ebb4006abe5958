"""The tests that docs/reliability.md names exist, and each of the 42 promises has one."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
PROMISES = 42


def test_each_promise_names_a_test_or_says_that_there_is_none() -> None:
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, PROMISES + 1))
    for number, what, tests, rest in rows:
        assert what.strip(), number
        assert "::" in tests or "not tested" in rest, number


def test_every_named_test_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > PROMISES
    for file, name in named:
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{name}"


def test_every_named_file_exists() -> None:
    files = re.findall(r"`(tests/[\w/.]+|dinomed/[\w/.]+)`", PAGE)
    assert len(files) > 5
    assert [name for name in files if not (ROOT / name).exists()] == []
