"""Upload of an export to a repository of the Hugging Face hub; the only place where dinomed sends files."""

import re
import socket
from pathlib import Path
from typing import Any

from dinomed.adapters.export.run import REPORT_FILE
from dinomed.errors import DinomedError, UsageError, first_line, system_reason
from dinomed.io.files import sha256_file
from dinomed.io.output_folder import LOCK_FILE
from dinomed.log import logger

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_CREATED_BY_HUB = {".gitattributes"}
_OF_CONNECTIONS = (ConnectionError, TimeoutError, socket.gaierror)
"""Errors of the system that concern the network, not a file."""


def check_push(repository: str | None, public: bool) -> None:
    """Check, without the network, that an upload is possible.

    Args:
        repository: ORG/NAME; None for no upload.
        public: whether everybody may see the repository.

    Raises:
        UsageError: `public` without an upload, a name of another form, no token, or HF_HUB_OFFLINE is set.
    """
    if repository is None:
        if public:
            raise UsageError("`public` is for an upload; give `push` too")
        return
    from huggingface_hub import constants, get_token

    if not _NAME.fullmatch(repository):
        raise UsageError(f"`push={repository!r}` is not the name of a repository; write it as ORG/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UsageError("`push` needs the network, but HF_HUB_OFFLINE is set; unset it, or export without `push`")
    if get_token() is None:
        raise UsageError("`push` needs a token of the hub; log in by `hf auth login`, or set HF_TOKEN")


def push_export(folder: Path, report: dict[str, Any], repository: str, *, public: bool) -> dict[str, Any]:
    """Upload the files of an export to a new repository, in one commit.

    The token is that of the environment (HF_TOKEN) or of `hf auth login`. An empty repository of the same visibility,
    which an earlier call has left, is used.

    Args:
        folder: folder of the export.
        report: content of its `export.json`; only the files that it lists are sent, and `export.json`.
        repository: ORG/NAME.
        public: whether everybody may see the repository.

    Returns:
        ``repository``, ``url``, ``private``, ``commit`` and ``files``.

    Raises:
        UsageError: the folder holds other files, the repository exists, or the token does not permit the upload.
        DinomedError: a file was changed, or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    names = _check_files(folder, report["files"])
    sizes = ", ".join(f"{name} ({(folder / name).stat().st_size:,} bytes)" for name in names)
    logger.info(f"uploading to {repository} ({'public' if public else 'private'}): {sizes}")
    head = report["source"].get("head", {})
    if "knn" in (head.get("name"), *head.get("members", ())):
        logger.warning("a k-NN head contains the features of its training images; the upload shares them")
    hub = HfApi(library_name="dinomed")
    try:
        _create(hub, repository, public, folder)
        commit = hub.create_commit(
            repository,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names],
            commit_message=f"dinomed export, {report['format']}",
        )
    except (UsageError, DinomedError):
        raise
    except Exception as error:  # httpx and requests have errors of their own for a broken connection
        raise _refusal(error, repository, folder) from None
    url = f"{hub.endpoint}/{repository}"
    return {"repository": repository, "url": url, "private": not public, "commit": commit.oid, "files": names}


def _check_files(folder: Path, hashes: dict[str, str]) -> list[str]:
    """Return the files to upload; raise if the folder holds anything else, or a file was changed."""
    names = sorted([*hashes, REPORT_FILE])
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    unknown = sorted(present - {*names, LOCK_FILE})
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise UsageError(
            f"nothing was uploaded: {folder} holds files that are no part of the export ({shown}); remove them, or "
            "export to an empty folder"
        )
    for name, checksum in hashes.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or sha256_file(path) != checksum:
            raise DinomedError(f"nothing was uploaded: {path} was changed after the export; export again")
    return names


def _create(hub: Any, repository: str, public: bool, folder: Path) -> None:
    """Create the repository, or use an empty one of the same visibility."""
    from huggingface_hub import errors

    try:
        hub.create_repo(repository, private=not public, repo_type="model")
    except errors.HfHubHTTPError as error:
        if _status(error) == 404:
            organisation = repository.partition("/")[0]
            raise UsageError(
                f"the hub knows no {organisation} to which the token may write (404); check the name of `push`; the "
                f"export is complete in {folder}"
            ) from None
        if _status(error) != 409:
            raise
        existing = hub.model_info(repository)
        files = {sibling.rfilename for sibling in existing.siblings or ()} - _CREATED_BY_HUB
        if files or bool(existing.private) == public:
            state = "is not empty" if files else f"is {'private' if existing.private else 'public'}"
            raise UsageError(
                f"the repository {repository} exists already and {state} (409); use another name, or remove it there"
            ) from None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _refusal(error: Exception, repository: str, folder: Path) -> DinomedError:
    """Return the error of one line for a refused upload; it never holds the token."""
    from huggingface_hub import constants

    status, organisation = _status(error), repository.partition("/")[0]
    kept = f"the export is complete in {folder}"
    if status == 401:
        return UsageError(
            f"the hub does not accept the token (401); log in by `hf auth login`, or set HF_TOKEN; {kept}"
        )
    if status == 403:
        return UsageError(
            f"the token may not write to {organisation} (403); use a token with write permission, or another "
            f"organisation; {kept}"
        )
    if status is not None:
        return DinomedError(f"the hub refuses the upload to {repository} ({status}); try again later; {kept}")
    if isinstance(error, OSError) and error.errno and not isinstance(error, _OF_CONNECTIONS):
        return DinomedError(f"the upload to {repository} stopped: {system_reason(error)}; {kept}")
    return DinomedError(f"{constants.ENDPOINT} cannot be reached ({first_line(error, 100)}); {kept}")
