"""Errors for users: one line that names the problem and the remedy.

The command line prints only the message and exits with ``exit_code``. Any other exception is a bug in dinomed.

A message writes an argument as Python does, between backticks: "add `overwrite=True` to replace it". The command line
shows the option of its command in that place: "add --overwrite to replace it".
"""

import errno
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches

MAX_MESSAGE = 2000
"""Characters of a message; a value from a file that it repeats may be much longer."""


class DinomedError(Exception):
    """The work could not be done (exit code 1).

    A message is one line: line ends and control characters, which come from names in a file, are escaped. A message of
    more than `MAX_MESSAGE` characters is shortened in the middle: the problem and the remedy stay.
    """

    exit_code = 1

    def __init__(self, *parts: object) -> None:
        if len(parts) == 1 and isinstance(parts[0], str):  # several parts are values, such as a path
            parts = (printable(parts[0]),)
        super().__init__(*(_shorten(part) if isinstance(part, str) else part for part in parts))


class UsageError(DinomedError):
    """The request is wrong: an option, a config, or the input data (exit code 2)."""

    exit_code = 2


class MissingFileError(DinomedError):
    """A file or a folder that is needed is not there."""


class MissingInputError(MissingFileError, UsageError):
    """A file or a folder that the request names is not there (exit code 2)."""


def _shorten(text: str) -> str:
    if len(text) <= MAX_MESSAGE:
        return text
    return f"{text[: MAX_MESSAGE * 2 // 3]} ... {text[-(MAX_MESSAGE // 4) :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or up to 20 known words, or an empty text."""
    known = sorted(map(str, known))
    nearest = get_close_matches(str(word), known, n=1, cutoff=0.6)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def first_line(error: BaseException | str, limit: int = 100) -> str:
    """Return the first line of an error's text, at most `limit` characters; the name of its class if it has no text.

    >>> first_line(ValueError("bad value\\nand a page of details")), first_line(KeyError())
    ('bad value', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def system_reason(error: BaseException) -> str:
    """Return why a file cannot be read or written, in the words of the system.

    NumPy, safetensors and Arrow have their own words for a full disk.

    >>> system_reason(OSError("8832 requested and 992 written")) == os.strerror(28)
    True
    >>> system_reason(OSError(28, "[Errno 28] Error writing bytes to file")) == os.strerror(28)
    True
    >>> system_reason(ValueError("Error while serializing: I/O error: Read-only file system (os error 30)"))
    'Read-only file system'
    """
    number = getattr(error, "errno", None)
    text = str(error)
    if match := re.search(r"\(os error (\d+)\)", text):
        number = int(match[1])
    elif re.search(r"\d+ requested and \d+ written", text):
        number = errno.ENOSPC
    return os.strerror(number) if number else getattr(error, "strerror", None) or " ".join(text.split())[:200]


def printable(text: str) -> str:
    """Return `text` with control characters and line ends escaped, as they occur in file names.

    >>> printable("a\\0b\\n")
    'a\\\\x00b\\\\n'
    """
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)
