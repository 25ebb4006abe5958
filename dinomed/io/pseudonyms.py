"""Pseudonyms for identifiers by a secret key, the same in all commands with this key."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

from dinomed.errors import UsageError, system_reason
from dinomed.io.files import sha256_file

MIN_BYTES, MAX_BYTES = 16, 4096
_CONTENT, _GROUP = "content\0", "group\0"  # what is hashed begins with its kind
_DIGITS = 32
"""Hexadecimal digits of a pseudonym: 128 bits, so that two identifiers never share one by chance."""


def read_id_key(path: str | Path) -> bytes:
    """Return the secret key in a file, without the line break at its end.

    Raises:
        UsageError: the file cannot be read, or the key has fewer than 16 or more than 4096 bytes. The message does not
            repeat the key.
    """
    try:
        with open(path, "rb") as file:
            key = file.read(MAX_BYTES + 3).rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {system_reason(error)}") from None
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        size = f"{len(key)} bytes" if len(key) <= MAX_BYTES else f"more than {MAX_BYTES} bytes"
        raise UsageError(
            f"the key {path} has {size}; write a random one of {MIN_BYTES} to {MAX_BYTES} bytes, such as by "
            f"`openssl rand -hex 32 > {path}`"
        )
    return key


def chosen_key(path: str | Path | None, keep_ids: bool) -> bytes | None:
    """Return the key of `read_id_key`, None without a file; raise a `UsageError` with `keep_ids` too."""
    if path is not None and keep_ids:
        raise UsageError("`id_key` replaces groups and `keep_ids=True` keeps them; leave one of the two out")
    return None if path is None else read_id_key(path)


def content_identifier(path: str | Path) -> str:
    """Return the identifier of a video or volume for `pseudonym`: the hash of its file, whatever its name.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return _CONTENT + sha256_file(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {system_reason(error)}") from None


def file_pseudonyms(identifiers: Iterable[str], paths: Sequence[Path], key: bytes, kind: str) -> list[str]:
    """Return the pseudonym of each file.

    Args:
        identifiers: of the files; see `pseudonym`.
        paths: the files.
        key: the secret key.
        kind: name of such a file for the message.

    Raises:
        UsageError: two files have the same identifier.
    """
    first: dict[str, Path] = {}
    for identifier, path in zip(identifiers, paths, strict=True):
        same = first.setdefault(pseudonym(identifier, key), path)
        if same != path:
            raise UsageError(f"{same} and {path} are the same {kind}; give one of them")
    return list(first)


def file_groups(names: Sequence[str], default: str, reserved: Iterable[str] = ()) -> list[str]:
    """Return names for files that differ, also without regard to case, and that are not reserved ones.

    Args:
        names: names of the files, without suffix; dots at the beginning are left out.
        default: the name of a file without another one.

    >>> file_groups(["a", "A", ".", "csv"], "video", reserved=["csv"])
    ['a', 'A_2', 'video', 'csv_2']
    """
    taken = {name.casefold() for name in reserved}
    groups = []
    for each in names:
        stem = each.lstrip(".") or default
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}_{count}"
        groups.append(name)
        taken.add(name.casefold())
    return groups


def key_check(key: bytes | None) -> str | None:
    """Return a pseudonym by which an interrupted result is compared with a key; the key cannot be computed from it."""
    return None if key is None else pseudonym("", key)


def pseudonym(identifier: str, key: bytes) -> str:
    """Return the pseudonym of an identifier: the first half of its HMAC-SHA256, 32 hexadecimal digits.

    Without the key it can be neither computed nor reversed by trying all identifiers.

    Args:
        identifier: a group or an ID as written, or the `content_identifier` of a file; these are never taken for each
            other.
        key: the secret key.

    >>> pseudonym("P0012", b"0123456789abcdef") == pseudonym("P0012", b"0123456789abcdef")
    True
    >>> pseudonym("P0012", b"0123456789abcdef") == pseudonym("P0012", b"another key of 24 bytes.")
    False
    """
    message = identifier if identifier.startswith(_CONTENT) else _GROUP + identifier
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()[:_DIGITS]
