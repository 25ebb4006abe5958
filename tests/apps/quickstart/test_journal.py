import json
import sys
from pathlib import Path

import pytest

from dinomed.apps import cli
from dinomed.apps.quickstart.journal import Journal
from dinomed.errors import DinomedError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """`dinomed work` writes its output and reports; the list holds its flags of every call."""
    made: list[list[str]] = []

    def work(output: Path, resume: bool = False, overwrite: bool = False, json: bool = False) -> None:
        made.append([name for name, on in (("resume", resume), ("overwrite", overwrite)) if on])
        assert json
        if output.name == "fails" and not resume:
            output.write_text("half")
            raise DinomedError("cut short")
        output.write_text("whole")
        print(f'{{"calls": {len(made)}}}')

    module = type(sys)("dinomed.apps.commands.work")
    module.work = work
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "work", "work:work")
    return made


def test_a_done_command_is_recalled_not_run(calls: list, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        assert Journal(tmp_path).run("work", output, output=output) == {"calls": 1}
    assert calls == [[]]


@pytest.mark.parametrize("change", ["input", "earlier command", "output gone", "journal cut off"])
def test_a_stale_command_is_run_again(calls: list, tmp_path: Path, change: str) -> None:
    output, earlier = tmp_path / "out", tmp_path / "earlier"
    journal = Journal(tmp_path)
    journal.depends_on("data v1")
    journal.run("work", output, output=output)

    journal = Journal(tmp_path)
    if change == "output gone":
        output.unlink()
    elif change == "journal cut off":
        journal.path.write_text(journal.path.read_text()[:20])
        journal = Journal(tmp_path)
    journal.depends_on("data v2" if change == "input" else "data v1")
    if change == "earlier command":
        journal.run("work", earlier, output=earlier)
    journal.run("work", output, output=output)
    assert calls[-1] == ([] if change == "output gone" else ["overwrite"])
    assert len(calls) == (3 if change == "earlier command" else 2)


def test_a_command_cut_short_goes_on_if_it_can(calls: list, tmp_path: Path) -> None:
    output = tmp_path / "fails"
    with pytest.raises(DinomedError):
        Journal(tmp_path).run("work", output, output=output, resume=True)
    assert json.loads((tmp_path / "journal.json").read_text())[f"dinomed work {output}"]["report"] is None
    Journal(tmp_path).run("work", output, output=output, resume=True)
    assert calls == [[], ["resume"]]


def test_always_runs_again_and_does_not_make_what_follows_stale(calls: list, tmp_path: Path) -> None:
    scan, output = tmp_path / "scan", tmp_path / "out"
    for _ in range(2):
        journal = Journal(tmp_path)
        journal.run("work", scan, output=scan, always=True)
        journal.run("work", output, output=output)
    assert len(calls) == 3


def test_a_part_of_a_result_is_removed_where_the_command_cannot_resume(calls: list, tmp_path: Path) -> None:
    output = tmp_path / "fails"
    for _ in range(2):
        with pytest.raises(DinomedError):
            Journal(tmp_path).run("work", output, output=output)
    assert calls == [[], []]  # not --overwrite, which refuses a folder without the mark of a result
