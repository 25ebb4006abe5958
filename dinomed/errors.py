"""What a user can get wrong, said in one line that names the thing and the remedy.

The command line prints the message alone and exits with ``exit_code``; any other exception is a bug of ours.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DinomedError(Exception):
    """The work could not be done (exit code 1)."""

    exit_code = 1


class UsageError(DinomedError):
    """The request itself is wrong: an option, a config, a folder without images (exit code 2)."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, else the known words if they are few, else nothing."""
    known = sorted(map(str, known))
    near = get_close_matches(str(word), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def first_line(error: BaseException | str, limit: int = 100) -> str:
    """Return the first line of an error's text, at most `limit` characters; the name of its class if it has no text.

    >>> first_line(ValueError("bad value\\nand a page of details")), first_line(KeyError())
    ('bad value', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def printable(text: str) -> str:
    """`text` with characters that would move the cursor or end a line (of file names, mostly) written as escapes.

    >>> printable("a\\0b\\n")
    'a\\\\x00b\\\\n'
    """
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)
