"""Work on a batch: one picture at a time.

The page sends a request for each picture and keeps the results itself, so visitors share no state. A picture is removed
from the disk as soon as it has its result. A ZIP is removed when the page closes it, or swept as other uploads are; so
is the copy of a file of a ZIP that was opened in the viewer.
"""

import base64
import contextlib
import hashlib
import io
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinomed.apps.demos.batch.archive import UnreadableArchive, is_archive, list_files, read_file
from dinomed.apps.demos.guard import MAX_UPLOADS_BYTES, folder_bytes
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import NO_RESULT, Panel, PanelResult, run_consumers
from dinomed.apps.demos.parts import PUT_AWAY, Summary, find_upload, message, uploads_folder
from dinomed.apps.pages.sheet import draw_thumbnail
from dinomed.html.page import jpeg_url
from dinomed.io.files import replacing

PREFIX = "batch-"
"""Begins the names of uploads of a batch, which are removed after use; pictures of the viewer have other names."""
OVERLAY_PX = 1024  # of the longer side


class BatchWork:
    """Answers the requests of a batch.

    Args:
        panels: those that summarise a picture.
    """

    def __init__(self, panels: Sequence[Panel]) -> None:
        self.panels = panels

    def list_archive(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"files": [{"position", "name", "problem"}]} of a ZIP at "path", or {"error"}."""
        path = find_upload(str(request["path"]))
        if path is None:
            return {"error": PUT_AWAY}
        try:
            if not is_archive(path):
                raise UnreadableArchive("no ZIP file")
            files = list_files(path)
        except UnreadableArchive as error:
            _remove(path)
            return {"error": message("error", text("unreadable_zip").format(reason=error))}
        return {
            "files": [{"position": file.position, "name": file.name, "problem": file.problem} for file in files],
        }

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of one picture.

        Args:
            request: "path" of an upload, "position" of a file in it if it is a ZIP, else null, and "settings" of each
                panel by its name.

        Returns:
            {"sha256", "size", "thumbnail", "text", "values", "orders", "unlike", "mask", "overlay", "problems"}; mask
            and overlay are PNG and JPEG in Base64, or None; problems are the messages of panels without a result, by
            their titles. {"error"} if no panel has a result.
        """
        with used_picture(request) as (path, problem):
            if path is None:
                return {"error": problem}
            results = run_consumers(self.panels, str(path))
        settings = request.get("settings") or {}
        summaries: dict[str, Summary] = {}
        problems: dict[str, str] = {}
        for panel, result in zip(self.panels, results, strict=True):
            if isinstance(result, str):
                problems[panel.title] = result
                continue
            summary = panel.summarize(result.picture, result.answers, settings.get(panel.name) or {})
            if summary is None:
                problems[panel.title] = NO_RESULT
            else:
                summaries[panel.name] = summary
        if not summaries:
            return {"error": next(iter(problems.values()))}
        usable = [result for result in results if not isinstance(result, str)]
        return {**_encode(usable, summaries), "problems": problems}

    def keep(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"path"} of a copy of a file of a ZIP, for the viewer, or {"error"}; it is swept as uploads are.

        There is one copy of a file, however often it is opened. Its folder cannot be guessed, since the name of the ZIP
        cannot.
        """
        path, position = find_upload(str(request["path"])), int(request["position"])
        if path is None:
            return {"error": PUT_AWAY}
        key = hashlib.sha256(f"{path.resolve()}/{position}".encode()).hexdigest()
        copy = uploads_folder() / key / "image"
        try:
            if copy.is_file():
                _touch(copy)
            else:
                _unpack(path, position, copy)
            return {"path": copy.relative_to(uploads_folder()).as_posix()}
        except UnreadableArchive as error:
            return {"error": message("error", text("unreadable_picture").format(reason=error))}

    def close(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Remove a ZIP whose batch has ended."""
        path = find_upload(str(request["path"]))
        if path is not None:
            _remove(path)
        return {}


@contextmanager
def used_picture(request: Mapping[str, Any]) -> Iterator[tuple[Path | None, str]]:
    """Yield the file of a picture, or None and a message; the file is removed at the end."""
    upload, position = find_upload(str(request["path"])), request.get("position")
    if upload is None:
        yield None, PUT_AWAY
        return
    if position is None:
        try:
            yield upload, ""
        finally:
            _remove(upload)
        return
    _touch(upload)
    path = uploads_folder() / uuid.uuid4().hex / f"{PREFIX}file"
    try:
        _unpack(upload, int(position), path)
    except UnreadableArchive as error:
        yield None, message("error", text("unreadable_picture").format(reason=error))
        return
    try:
        yield path, ""
    finally:
        _remove(path)


def _unpack(archive: Path, position: int, path: Path) -> None:
    """Write a file of an archive to `path`, in a folder of its own whose name cannot be guessed."""
    content = read_file(archive, position)
    if folder_bytes(uploads_folder()) + len(content) > MAX_UPLOADS_BYTES:
        raise UnreadableArchive("the server holds too many uploads; try again in a few minutes")
    with replacing(path) as temporary:  # the copy of an earlier click is used again, so it is whole or absent
        temporary.write_bytes(content)


def _touch(path: Path) -> None:
    """Keep a file that is in use from being swept."""
    now = time.time()
    os.utime(path, (now, now))


def _remove(path: Path) -> None:
    """Remove a file of a batch with its folder; a picture that the viewer may show is left alone."""
    if path.name.startswith(PREFIX):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # visitors with the same picture share the folder, which is named by content
            path.parent.rmdir()


def _encode(results: Sequence[PanelResult], summaries: Mapping[str, Summary]) -> dict[str, Any]:
    picture = results[0].picture
    mask = next((summary.mask for summary in summaries.values() if summary.mask is not None), None)
    checked = [result.familiarity for result in results if result.familiarity is not None]
    values: dict[str, Any] = {}
    orders: dict[str, float] = {}
    for name, summary in summaries.items():
        several = sum("abstained" in each.values for each in summaries.values()) > 1
        stated = dict(summary.values)
        if several and "abstained" in stated:
            stated[f"abstained ({name})"] = stated.pop("abstained")
        values |= stated
        if summary.uncertainty is not None:
            orders[f"uncertainty{name}"] = summary.uncertainty
            values[f"uncertainty ({name})"] = round(summary.uncertainty, 4)
        if summary.area is not None:
            orders["area"] = summary.area
    if checked:
        orders["unlikeness"] = max(familiarity.percentile for familiarity in checked)
        values["unlike_training"] = "yes" if any(familiarity.unlike for familiarity in checked) else "no"
        values["distance_percentile"] = round(orders["unlikeness"], 1)
    height, width = picture.shown.shape[:2]
    return {
        "sha256": picture.sha256,
        "size": [width, height],
        "thumbnail": jpeg_url(draw_thumbnail(picture.shown, mask), 80),
        "text": " · ".join(summary.text for summary in summaries.values()),
        "values": values,
        "orders": orders,
        "unlike": any(familiarity.unlike for familiarity in checked),
        "mask": None if mask is None else _base64(Image.fromarray(mask.astype(np.uint8) * 255), "PNG"),
        "overlay": None if mask is None else _overlay(picture.shown, mask),
    }


def _overlay(picture: np.ndarray, mask: np.ndarray) -> str:
    return _base64(Image.fromarray(draw_thumbnail(picture, mask, OVERLAY_PX)), "JPEG", quality=88)


def _base64(image: Image.Image, kind: str, **options: int) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return base64.b64encode(data.getvalue()).decode()
