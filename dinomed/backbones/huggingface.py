"""Backbones of the Hugging Face hub: `hf-hub:ORG/NAME` and `timm/NAME`, kept in the cache of `huggingface_hub`.

Only `config.json`, `preprocessor_config.json` and the weights are downloaded, and no code is. Nothing is sent but the
name of the repository, and the token of the user where there is one. With ``HF_HUB_OFFLINE=1`` only the cache is used.
"""

from pathlib import Path

from dinomed.backbones.weights import FOLDER_FILES, INDEX_FILE, shard_names
from dinomed.errors import DinomedError, UsageError, first_line
from dinomed.log import logger

PREFIX, TIMM = "hf-hub:", "timm/"
CONFIG_FILES = ("config.json", "preprocessor_config.json")
_BY_PATH = "if it has a file of weights alone, download that with `hf download`, and give its path"


def is_hub_name(name: str | Path) -> bool:
    """Return whether `name` is a name on the hub: ``hf-hub:ORG/NAME``, or ``timm/NAME`` where no such path exists."""
    text = str(name)
    return text.startswith(PREFIX) or (text.startswith(TIMM) and not Path(text).exists())


def fetch_folder(name: str) -> Path:
    """Return the folder in the cache with the files of a backbone; download those that are missing.

    Args:
        name: ``hf-hub:ORG/NAME``, ``hf-hub:ORG/NAME@REVISION`` or ``timm/NAME``.

    Raises:
        UsageError: there is no such repository, or it needs a licence that the user has not accepted.
        DinomedError: there is no network, or the repository has no weights that dinomed reads.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    fetch = _Fetch(name, repository, revision or None)
    config = fetch.file(CONFIG_FILES[0], required=True)
    assert config is not None
    fetch.file(CONFIG_FILES[1])
    if fetch.file(FOLDER_FILES[0]) is None:
        index = fetch.file(INDEX_FILE)
        if index is not None:
            for shard in shard_names(index):
                fetch.file(shard, required=True)
        elif not any(fetch.file(other) for other in FOLDER_FILES[1:]):
            if fetch.unreachable:
                raise DinomedError(fetch.offline_message(FOLDER_FILES[0]))
            raise DinomedError(
                f"{name}: the repository has none of {', '.join((*FOLDER_FILES, INDEX_FILE))}; {_BY_PATH}"
            )
    return config.parent


class _Fetch:
    """Download of single files of a repository; errors become one line."""

    def __init__(self, name: str, repository: str, revision: str | None) -> None:
        self.name, self.repository, self.revision = name, repository, revision
        self.unreachable = False  # whether a file was not in the cache while the hub could not be asked for it

    def file(self, file: str, *, required: bool = False) -> Path | None:
        """Return the path of a file in the cache; None if the repository does not have it."""
        from huggingface_hub import constants, errors, hf_hub_download

        try:
            path = hf_hub_download(self.repository, file, revision=self.revision, library_name="dinomed")
        except errors.GatedRepoError:
            raise UsageError(
                f"{self.name}: a gated repository; accept its licence on its page at {constants.ENDPOINT}/"
                f"{self.repository}, then log in by `hf auth login`, or set HF_TOKEN"
            ) from None
        except errors.RepositoryNotFoundError:
            raise UsageError(
                f"{self.name}: the hub has no such repository, or it is private; check the name, or log in by "
                "`hf auth login`"
            ) from None
        except errors.RevisionNotFoundError:
            raise UsageError(f"{self.name}: the repository has no revision {self.revision!r}") from None
        except (errors.HFValidationError, getattr(errors, "HfUriError", errors.HFValidationError)) as error:
            raise UsageError(f"{self.name}: not the name of a repository: {first_line(error, 200)}") from None
        except errors.LocalEntryNotFoundError:
            self.unreachable = True
            if not required:
                return None
            raise DinomedError(self.offline_message(file)) from None
        except errors.EntryNotFoundError:
            if required:
                remedy = _BY_PATH if file == CONFIG_FILES[0] else "its index names it, so give another revision"
                raise DinomedError(f"{self.name}: the repository has no {file}; {remedy}") from None
            return None
        except errors.HfHubHTTPError as error:
            raise DinomedError(f"{self.name}: the hub answers: {first_line(error, 200)}") from None
        except Exception as error:  # httpx and requests have errors of their own for a broken connection
            if isinstance(error, OSError) and error.errno is not None:
                raise DinomedError(f"{self.name}: cannot write the cache: {error.strerror or error}") from None
            raise DinomedError(f"{self.offline_message(file)} ({first_line(error)})") from None
        logger.debug(f"{self.name}: {path}")
        return Path(path)

    def offline_message(self, file: str) -> str:
        """Return the message for a file that is not in the cache, and that cannot be downloaded."""
        from huggingface_hub import constants

        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "there is no network"
        return (
            f"{self.name}: {file} is not in the cache {constants.HF_HUB_CACHE}, and {reason}; download it on another "
            "machine with `hf download`, copy the folder and give its path"
        )
