"""Messages for users: the logger ``dinomed``, on stderr.

``logger.info`` is a note, ``logger.warning`` a warning. Stdout belongs to data (``--json``). In a run of several
processes only rank 0 writes; ``extra=ALL_RANKS`` marks a message that every rank writes.

The level is ``INFO``. ``--quiet`` raises it to ``WARNING``, ``--verbose`` lowers it to ``DEBUG``, and the environment
variable ``DINOMED_LOG`` sets it (``debug``, ``info``, ``warning`` or ``error``) for programs without a command line.
"""

import logging
import os

from rich.console import Console

from dinomed.errors import printable
from dinomed.launched import launched_rank

console = Console(stderr=True, highlight=False, soft_wrap=True)
logger = logging.getLogger("dinomed")
ALL_RANKS = {"all_ranks": True}


class _ConsoleHandler(logging.Handler):
    """Write each record as one line on the console that the progress bars use, so that neither breaks the other."""

    def emit(self, record: logging.LogRecord) -> None:
        message = "\n".join(map(printable, record.getMessage().split("\n")))
        if record.levelno >= logging.WARNING:
            console.print(f"{record.levelname.lower()}: {message}", style="yellow", markup=False)
        else:
            console.print(message, markup=False)


def _is_for_this_rank(record: logging.LogRecord) -> bool:
    """Return whether this process may write the record."""
    return launched_rank() == 0 or getattr(record, "all_ranks", False)


def set_level(level: int | str) -> None:
    """Set which messages are shown: a level of `logging`, or its name in any case.

    Raises:
        ValueError: the name is not the name of a level.
    """
    logger.setLevel(level.upper() if isinstance(level, str) else level)


def default_level() -> str:
    """Return the level that ``DINOMED_LOG`` names, ``info`` where it names none."""
    return os.environ.get("DINOMED_LOG") or "info"


def translate_options(text: str) -> str:
    """Return a text for a file as a message shows it: in a command, arguments in backticks are its options."""
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, "%s", (text,), None)
    logger.filter(record)  # a command adds a filter that names its options
    return record.getMessage()


def is_quiet() -> bool:
    """Return whether notes and progress are hidden."""
    return not logger.isEnabledFor(logging.INFO)


def _configure() -> None:
    handler = _ConsoleHandler()
    handler.addFilter(_is_for_this_rank)
    logger.addHandler(handler)
    logger.propagate = False  # an application with handlers of its own would show every message twice
    try:
        set_level(default_level())
    except ValueError:
        logger.warning(
            f"DINOMED_LOG={os.environ.pop('DINOMED_LOG')} is not a log level; use debug, info, warning or error"
        )
        set_level(default_level())


_configure()
