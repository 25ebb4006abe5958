"""Search for the files that the cells of a table of labels name."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dinomed.datasets.tables import compose_letters
from dinomed.images.frames import frame_path, parse_frame


class FileSearch:
    """Search for the file whose path, file name or stem is in a cell, or for the frame whose path is in it."""

    def __init__(
        self, folder: Path, beside: Path, files: Iterable[str], images: Iterable[str], videos: Iterable[str] = ()
    ) -> None:
        self.folder, self.beside = os.path.abspath(folder), os.path.abspath(beside)
        self.files, self.videos = {*files, *videos}, set(videos)
        self.by_form: dict[str, list[str]] = defaultdict(list)
        for path in self.files:
            self.by_form[compose_letters(path)].append(path)
        images = [*images, *videos]
        self.by_name: dict[bool, dict[str, list[str]]] = {}
        for masks, paths in ((False, list(images)), (True, sorted(self.files.difference(images)))):
            names = self.by_name[masks] = defaultdict(list)
            for path in paths:
                name, stem = compose_letters(PurePosixPath(path).name), compose_letters(PurePosixPath(path).stem)
                for form in {name, stem}:
                    names[form].append(path)

    def path(self, cell: str, *, beside: bool = True, frames: bool = False) -> str | None:
        """Return the file that a cell names by a path, relative to the folder; None if there is none.

        Args:
            cell: a path relative to the folder. Blanks around it, its Unicode form and backslashes make no difference,
                unless a file is named exactly like the cell.
            beside: the path may be relative to the folder of the CSV too.
            frames: the path may be that of a frame of a video.
        """
        if cell in self.files:  # what the loop finds too, in a hundredth of the time
            return cell
        stripped = cell.strip()
        for text in dict.fromkeys((cell, stripped, stripped.replace("\\", "/"))):
            if not frames and not self._may_be_file(text):
                continue
            for base in (self.folder, self.beside) if beside else (self.folder,):
                path = os.path.relpath(os.path.join(base, text), self.folder).replace(os.sep, "/")
                frame = self._frame(path) if frames else None
                if path in self.files or frame is not None:
                    return frame or path
                if len(same := self.by_form.get(compose_letters(path), [])) == 1:
                    return same[0]
        return None

    def _may_be_file(self, path: str) -> bool:
        """Return False within a microsecond for most paths that name no file: no file has the same name."""
        name = os.path.basename(path)
        if name in ("", ".", ".."):
            return True
        name = compose_letters(name)
        return any(name in names for names in self.by_name.values())

    def find(self, cell: str, mask_of: str | None = None) -> tuple[str | None, str]:
        """Return the path relative to the folder, or None and the reason.

        A mask of the image `mask_of` is searched among masks, then among the other images, since its folder may have
        any name.
        """
        path = self.path(cell, frames=mask_of is None)
        if path is not None:
            return path, ""
        matches = self._named(cell, mask_of is not None)
        if mask_of is not None and not matches:
            matches = [name for name in self._named(cell, False) if name != mask_of]
        if len(matches) == 1:
            return matches[0], ""
        if matches:
            return None, f"{len(matches)} files have this name ({matches[0]}, {matches[1]}, ...)"
        outside = os.path.relpath(os.path.join(self.folder, cell), self.folder).startswith("..")
        return None, "it is outside the folder" if outside else "no such image file exists"

    def _named(self, cell: str, masks: bool) -> list[str]:
        """Return the images or the masks with this file name or stem."""
        names = self.by_name[masks]
        return names.get(compose_letters(cell)) or names.get(compose_letters(cell.strip()), [])

    def _frame(self, path: str) -> str | None:
        """Return the path of the frame that a path names, which may have more zeros; None for another path."""
        video = path.rpartition("/")[0]
        frame = parse_frame(os.path.join(self.folder, path)) if video in self.videos else None
        return None if frame is None else frame_path(video, frame.number)
