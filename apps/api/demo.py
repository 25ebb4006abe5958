"""Demo: adapters and an index in the browser."""

from collections.abc import Sequence
from pathlib import Path

from dinomed.apps.api.inputs import FolderLike, PathLike, folder_path
from dinomed.apps.demos.launch import check_task, serve_demo
from dinomed.apps.demos.serve import choose_address


def demo(
    *,
    segment: FolderLike | None = None,
    classify: FolderLike | None = None,
    adapters: Sequence[FolderLike] = (),
    index: FolderLike | None = None,
    retrieve: bool = True,
    backbone: PathLike | None = None,
    examples: PathLike | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    login: PathLike | None = None,
    anyone: bool = False,
    names: Sequence[str] = (),
    browser: bool = True,
    device: str = "auto",
    save: PathLike | None = None,
    abstain: float | None = None,
    max_risk: float | None = None,
    mask_text: bool = False,
) -> None:
    """Serve adapters and an index in the browser until a signal arrives (Ctrl-C).

    Each is a tab. The address is printed on stdout. Nothing leaves this machine; uploads and results are removed after
    half an hour and at the end. The command is ``dinomed demo``.

    Args:
        segment: adapter folder of a segmenter, or the result of `dinomed.train`.
        classify: adapter folder of a classifier.
        adapters: adapter folders of any tasks; a page shows one adapter of each task.
        index: folder of an index; visitors see its pictures, its labels, and values by which cases are filtered.
        retrieve: with a classifier, show the index in a tab of its own too.
        backbone: path of the backbone, if that was moved.
        examples: folder of example pictures; None for those beside an adapter, or synthetic ones.
        host: address to serve at; by default this machine only.
        port: port to serve at, 0 for any; None for the first free port from 7860.
        login: file with one line ``USER:PASSWORD``, which visitors must enter.
        anyone: let anyone on the network in at `host`, without a login.
        names: host names that visitors use, such as that of a proxy.
        browser: open a browser window.
        device: auto, cpu, cuda, cuda:N or mps.
        save: folder for the decisions of a reviewer about the masks of a segmenter of one class: images, corrected
            masks and ``corrections.parquet``, which `dinomed.train` takes as data.
        abstain: of a classifier and a segmenter, give no answer for pictures whose confidence is below the threshold
            that abstained this share of the validation images, as in `predict`.
        max_risk: the same by the threshold at which the kept validation images had at most this mean loss.
        mask_text: mask burned-in text that the detector finds in pictures that are shown, saved or downloaded; it
            misses text. Results are those of the pictures as they are.

    Returns:
        None, after Ctrl-C or SIGTERM has raised KeyboardInterrupt or SystemExit.

    Raises:
        UsageError: nothing to show, an adapter of another task, or a host, port or login that is not possible.
        DinomedError: the port is in use.

    Example:
        >>> dinomed.demo(segment="runs/seg", index="runs/index")        # doctest: +SKIP
        >>> dinomed.demo(segment="runs/cls")
        Traceback (most recent call last):
        ...
        dinomed.errors.UsageError: runs/cls is a classify adapter; this needs one made by `dinomed train segment`
    """
    file = None if login is None else Path(login)
    address = choose_address(host, port, login_file=file, anyone=anyone, names=names)
    folders = {task: folder_path(folder) for task, folder in (("segment", segment), ("classify", classify)) if folder}
    for task, folder in folders.items():
        check_task(folder, task)
    serve_demo(
        [*folders.values(), *map(folder_path, adapters)],
        index=None if index is None else folder_path(index),
        retrieve=retrieve, backbone=None if backbone is None else str(backbone),
        examples=None if examples is None else Path(examples), address=address, browser=browser, device=device,
        save=None if save is None else Path(save), abstain=abstain, max_risk=max_risk,
        mask_text=mask_text,
    )  # fmt: skip
