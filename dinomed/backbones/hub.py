"""Released weights: download with a checksum, kept in a cache folder."""

import os
import urllib.error
import urllib.request
from pathlib import Path

from dinomed.backbones.variants import VARIANTS
from dinomed.errors import DinomedError, UsageError, system_reason
from dinomed.io.files import sha256_file, sync
from dinomed.log import logger
from dinomed.progress import bar

TIMEOUT_S = 30.0
_MIB = 1 << 20


def cache_folder() -> Path:
    """Return the cache folder: environment variable ``DINOMED_CACHE``, or ``~/.cache/dinomed`` without it."""
    folder = os.environ.get("DINOMED_CACHE")
    try:
        return Path(folder) if folder else Path.home() / ".cache" / "dinomed"
    except RuntimeError:
        raise DinomedError(
            "the cache folder for weights is unknown, because there is no home folder; set DINOMED_CACHE to a folder"
        ) from None


def cached_weights(name: str) -> Path:
    """Return the file with the released weights of variant `name`; download it if it is not in the cache, or damaged.

    The next call continues an interrupted download. A file gets its final name after its checksum was verified.

    Raises:
        UsageError: the variant has no released weights.
        DinomedError: there is no network, the cache is not writable, or the checksum of the file does not match.
    """
    release = VARIANTS[name].release
    if release is None:
        raise UsageError(f"{name} has no released weights")
    path = cache_folder() / "weights" / release.file_name
    if path.is_file():
        if sha256_file(path) == release.sha256:
            return path
        logger.warning(f"{path} is damaged: its checksum does not match; it is downloaded again")
        path.unlink()
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        remedy = "set DINOMED_CACHE to another folder"
        raise DinomedError(f"cannot write weights to {path.parent}: {system_reason(error)}; {remedy}") from None
    elsewhere = f"download {release.url} on another machine and use `weights=FILE`"
    logger.info(f"downloading {release.url} ({release.licence})")
    try:
        _fetch(release.url, part)
        checksum = sha256_file(part)
        if checksum != release.sha256:
            part.unlink()
            raise DinomedError(
                f"{release.url}: checksum {checksum[:16]}... instead of {release.sha256[:16]}...; "
                "the file was removed, try again"
            )
        sync(part)
        part.replace(path)
    except urllib.error.HTTPError as error:
        raise DinomedError(f"{release.url}: the server answers {error.code} {error.reason}; {elsewhere}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DinomedError(f"no network for the weights of {name} ({reason}); {elsewhere}") from None
    except OSError as error:
        raise DinomedError(f"cannot write {part}: {system_reason(error)}") from None
    return path


def _fetch(url: str, part: Path) -> None:
    """Download the bytes that `part` lacks, or the whole file if the server cannot send a part of it."""
    received = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={received}-"} if received else {})
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: `part` is complete
            raise
        return
    with reply, open(part, "ab") as file:
        if reply.status != 206:
            received = 0
            file.truncate(0)
        length = reply.headers.get("Content-Length")
        total = received + int(length) if length else None
        with bar(f"{part.stem} (MiB)", total and total // _MIB, start=received // _MIB) as progress:
            while chunk := reply.read(_MIB):
                file.write(chunk)
                progress.advance()
    if total is not None and part.stat().st_size < total:
        raise ConnectionError("the connection closed before the end of the file")
