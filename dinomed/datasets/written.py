"""The pictures of an earlier result that is replaced, by its manifest."""

from pathlib import Path

from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError, UsageError


def earlier_pictures(
    out: Path, tables: tuple[str, str], folder: str, number: str, digits: int, mark: str, command: str
) -> list[str]:
    """Return the pictures FOLDER/NUMBER.png of an earlier result in an output folder, by its manifest.

    Args:
        out: output folder.
        tables: names of the files that show an earlier result, the manifest first.
        folder: column with the folder of a picture.
        number: column with the number of a picture.
        digits: of the number in the name of the file.
        mark: a further column that the command writes.
        command: the command, for the message.

    Raises:
        UsageError: the tables in the folder are not those of an earlier result of the command.
    """
    present = [name for name in tables if (out / name).exists()]
    if not present:
        return []
    try:
        manifest = read_manifest(out / tables[0], root=out)
        is_ours = len(present) == 2 and {folder, number, mark} <= set(manifest.columns)
    except DinomedError:
        is_ours = False
    if not is_ours:
        raise UsageError(
            f"output folder {out} holds a {present[0]} that `dinomed {command}` did not write; choose another folder"
        )
    rows = zip(*(manifest.column(name) for name in ("image", folder, number)), strict=True)
    written = [(name, f"{place}/{str(count).zfill(digits)}.png") for name, place, count in rows]
    return [name for name, ours in written if name == ours and name.count("/") == 1]
