"""Steps: printed, run once, recalled while their inputs stay the same, and continued after an interruption."""

import sys
from pathlib import Path
from typing import Annotated

import pytest
from typer import Option

from dinomed.apps import cli
from dinomed.apps.quickstart.steps import STEPS_FILE, Steps
from dinomed.errors import DinomedError
from dinomed.io.files import read_json

Out = Annotated[Path, Option("--output", "-o")]


class Work:
    """The function of `dinomed work`: it writes its output, or a part of it; `calls` holds the flags of every call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fails = False

    def run(self, out: Path, overwrite: bool = False) -> dict[str, int]:
        return self._write(out, ["overwrite"] if overwrite else [])

    def resumable(self, out: Path, resume: bool = False, overwrite: bool = False) -> dict[str, int]:
        return self._write(out, [name for name, on in (("resume", resume), ("overwrite", overwrite)) if on])

    def _write(self, out: Path, flags: list[str]) -> dict[str, int]:
        self.calls.append(flags)
        out.mkdir(exist_ok=True)
        (out / "part").write_text("x")
        if self.fails:
            raise DinomedError("cut short")
        return {"calls": len(self.calls)}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    def command(out: Out, seed: int = 0) -> None: ...

    module = type(sys)("dinomed.apps.commands.work")
    module.work = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "work", "work:work")
    return Work()


def test_a_finished_step_is_recalled_and_printed_again(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert Steps(tmp_path).run("work", work.run, out=tmp_path / "out") == {"calls": 1}
    assert work.calls == [[]]
    line = f"$ dinomed work --output {tmp_path / 'out'}"
    assert capsys.readouterr().err == f"\n{line}\n\n{line}\ndone already\n"


@pytest.mark.parametrize("change", ["input", "earlier step", "output removed", "file of the steps is damaged"])
def test_a_step_with_other_inputs_is_run_again(work: Work, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    steps = Steps(tmp_path)
    steps.depends_on("data v1")
    steps.run("work", work.run, out=out)
    if change == "output removed":
        (out / "part").unlink()
        out.rmdir()
    elif change.startswith("file"):
        steps.path.write_text(steps.path.read_text()[:20])
    steps = Steps(tmp_path)
    steps.depends_on("data v2" if change == "input" else "data v1")
    if change == "earlier step":
        steps.run("work", work.run, out=tmp_path / "earlier")
    steps.run("work", work.run, out=out)
    assert work.calls[-1] == ([] if change == "output removed" else ["overwrite"])
    assert len(work.calls) == (3 if change == "earlier step" else 2)


def test_an_interrupted_step_is_resumed_if_its_function_can_resume(work: Work, tmp_path: Path) -> None:
    work.fails = True
    with pytest.raises(DinomedError):
        Steps(tmp_path).run("work", work.resumable, out=tmp_path / "out")
    (entry,) = read_json(tmp_path / STEPS_FILE).values()
    assert "report" not in entry
    work.fails = False
    Steps(tmp_path).run("work", work.resumable, out=tmp_path / "out")
    assert work.calls == [[], ["resume"]]


def test_a_part_of_a_result_is_removed_if_the_function_cannot_resume(work: Work, tmp_path: Path) -> None:
    work.fails = True
    for _ in range(2):
        with pytest.raises(DinomedError):
            Steps(tmp_path).run("work", work.run, out=tmp_path / "out")
    assert work.calls == [[], []]  # not `overwrite`, which refuses a folder without the mark of a result


def test_a_step_that_checks_its_inputs_itself_runs_always(work: Work, tmp_path: Path) -> None:
    for _ in range(2):
        steps = Steps(tmp_path)
        steps.run("work", work.run, out=tmp_path / "scan", always=True)
        steps.run("work", work.run, out=tmp_path / "out")
    assert work.calls == [[], [], ["overwrite"]]  # the second step is recalled
