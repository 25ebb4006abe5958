"""The rank that a launcher set, for messages, progress bars and failures."""

import pytest

from dinomed.apps.messages import explain
from dinomed.errors import UsageError
from dinomed.log import console, logger
from dinomed.progress import Bar


@pytest.mark.parametrize(
    ("number", "rank", "shown"), [(None, "1", True), ("", "1", True), ("2", "0", True), ("2", "1", False)]
)
def test_only_a_process_of_several_is_silent(
    number: str | None, rank: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell may export `RANK` for another program."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if number is not None:
        monkeypatch.setenv("WORLD_SIZE", number)
    logger.warning("a message")
    assert ("a message" in capsys.readouterr().err) is shown
    assert bool(explain(UsageError("a failure"), {})[0]) is shown
    monkeypatch.setattr(type(console), "is_terminal", True)
    bar = Bar("counting", 2)
    bar.close()
    assert ("counting" in capsys.readouterr().err) is shown
