import io
import json

import pytest
from rich.console import Console

from dinomed.apps.output import build_table, emit, print_table


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


def words_of(text: str) -> set[str]:
    return {word for word in text.split() if word.strip("│┃━─┏┓┡┩└┘┳╇┴┼├┤╋ ")}


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_table_on_a_narrow_terminal_breaks_no_word(width: int) -> None:
    columns = ("backbone", "channels", "patch", "weights", "licence")
    rows = [("dinov2_vitg14_reg", 1536, 14, "Meta AI, DINOv2", "Apache-2.0"), ("vit_tiny_patch8", 192, 8, "-", "-")]
    wide, narrow = Console(file=io.StringIO(), width=200), Console(file=io.StringIO(), width=width)
    table = build_table(columns, rows)
    table.caption = "for research use only"
    for console in (wide, narrow):
        print_table(table, console)
    text, narrow_text = wide.file.getvalue(), narrow.file.getvalue()  # type: ignore[attr-defined]
    assert words_of(narrow_text) == words_of(text)
    assert max(map(len, narrow_text.splitlines())) <= width
    assert narrow_text.count("dinov2_vitg14_reg") == (1 if width > 75 else 2)  # the first column is repeated
    assert "for research use only" in narrow_text.splitlines()[-1]  # a caption, not a row of the table


def test_lines_of_a_caption_stay_lines_and_other_control_characters_are_shown() -> None:
    table = build_table(("", ""), [("images that were compared with their masks", 26)])
    table.caption = "3 of 26 images\nruns/\x1b[31mreport"
    stream = io.StringIO()
    print_table(table, Console(file=stream, width=80))
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert lines[-2:] == ["3 of 26 images", "runs/\\x1b[31mreport"]


def test_intervals_in_a_table_have_plain_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    from dinomed.html.words import format_interval

    emit({}, False, build_table(("metric", "95% interval"), [("Dice", format_interval(0.15, 0.576))]))
    assert "0.150 to 0.576" in capsys.readouterr().out
