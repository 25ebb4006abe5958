"""Reading of a ZIP from a visitor, under limits that are checked before its parts are held in memory.

Nothing is written under a name of the archive: a file is read by its position, into a place that the caller chooses.
"""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
MAX_FILES = 500  # of one batch
MAX_FILE_BYTES, MAX_TOTAL_BYTES = 64 * MIB, 512 * MIB  # after decompression
MAX_RATIO, SMALL_BYTES = 100, MIB  # largest compression of a file of more than SMALL_BYTES
MAX_DIRECTORY_BYTES = MIB  # of the list of files, which is read into memory
_END = struct.Struct("<4s4H2LH")  # end of central directory, APPNOTE.TXT 4.3.16
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the buffers of the other methods can take gigabytes
_ENCRYPTED = 1  # bit of the flags
_CHUNK = MIB


class UnreadableArchive(Exception):
    """The archive is damaged, or exceeds a limit; the text says how."""


@dataclass(frozen=True)
class ArchiveFile:
    """A file of an archive.

    Attributes:
        position: in the list of the archive.
        name: as the archive states it; for the visitor alone.
        size: bytes after decompression.
        problem: why it cannot be read, or an empty text.
    """

    position: int
    name: str
    size: int
    problem: str = ""


def is_archive(path: Path) -> bool:
    """Return whether a file begins as a ZIP does."""
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def list_files(path: Path) -> list[ArchiveFile]:
    """Return the files of an archive, without folders and the hidden files of a system.

    Raises:
        UnreadableArchive: the archive is damaged, or exceeds a limit.
    """
    with _opened(path) as archive:
        files = [
            ArchiveFile(position, info.filename, info.file_size, _problem(info))
            for position, info in enumerate(archive.infolist())
            if not (info.is_dir() or _is_hidden(info.filename))
        ]
    if len(files) > MAX_FILES:
        raise UnreadableArchive(f"the ZIP holds {len(files):,} files, over the limit of {MAX_FILES}")
    total = sum(file.size for file in files if not file.problem)
    if total > MAX_TOTAL_BYTES:
        raise UnreadableArchive(
            f"the files of the ZIP have {total / MIB:,.0f} MB in total, over the limit of {MAX_TOTAL_BYTES // MIB}"
        )
    return files


def read_file(path: Path, position: int) -> bytes:
    """Return the content of a file of an archive.

    Args:
        path: the archive.
        position: from `ArchiveFile`.

    Raises:
        UnreadableArchive: the archive or the file is damaged, the file exceeds a limit, or there is none.
    """
    with _opened(path) as archive:
        infos = archive.infolist()
        if not 0 <= position < len(infos):
            raise UnreadableArchive("no such file in the ZIP")
        if problem := _problem(infos[position]):
            raise UnreadableArchive(problem)
        content = bytearray()
        try:
            with archive.open(infos[position]) as file:
                while chunk := file.read(_CHUNK):
                    content += chunk
                    if len(content) > MAX_FILE_BYTES:
                        raise UnreadableArchive("the file is larger than the ZIP states")
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError):
            raise UnreadableArchive("damaged in the ZIP") from None
    return bytes(content)


def _opened(path: Path) -> zipfile.ZipFile:
    """Open an archive whose list of files is short; `zipfile` reads this list as a whole."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - _END.size - 20))
            end = file.read()
        mark, _, _, _, files, directory, _, comment = _END.unpack(end[-_END.size :])
        if mark != b"PK\x05\x06" or comment:
            raise UnreadableArchive("no ZIP file, or cut off, or with a comment at its end")
        if end[:4] == b"PK\x06\x07" or files == 0xFFFF:
            raise UnreadableArchive("ZIP files of the 64-bit format are not read; use smaller ones")
        if directory > MAX_DIRECTORY_BYTES:
            raise UnreadableArchive(f"the list of its files is too long; at most {MAX_FILES} files are read")
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        raise UnreadableArchive(f"the ZIP is damaged ({type(error).__name__})") from None


def _problem(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if info.compress_type not in _PLAIN:
        return "compressed by a method that is not read; use the usual one (deflate)"
    if info.file_size > MAX_FILE_BYTES:
        return f"{info.file_size / MIB:,.0f} MB, over the limit of {MAX_FILE_BYTES // MIB}"
    if info.file_size > max(SMALL_BYTES, MAX_RATIO * info.compress_size):
        return f"compressed more than {MAX_RATIO} times, as no image is"
    return ""


def _is_hidden(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1].lower() in ("thumbs.db", "desktop.ini")
