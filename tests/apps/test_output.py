import json

import pytest

from dinomed.apps.output import build_table, emit


def test_json_is_one_object_with_null_for_not_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"dice": float("nan"), "n": 3, "name": "Größe"}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"dice": None, "n": 3, "name": "Größe"}


def test_a_table_off_a_terminal_keeps_long_words_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a-name-of-a-hundred-characters-" + "x" * 69
    emit({}, as_json=False, table=build_table(("backbone", "Dice"), [(long, 0.8123), ("[b]", float("nan"))]))
    out = capsys.readouterr().out
    assert long in out
    assert "0.812" in out
    assert "[b]" in out
