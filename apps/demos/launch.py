"""Start of a demo: loading of adapters and an index, choice of example pictures, and the page."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.apps.demos.serve import Address, choose_address, private_environment, serve
from dinomed.apps.pages.examples import write_examples
from dinomed.errors import UsageError
from dinomed.html.album import spaced_indices
from dinomed.log import logger

if TYPE_CHECKING:
    from dinomed.adapters.predictor import Predictor
    from dinomed.adapters.retrieval.search import ImageIndex
    from dinomed.apps.demos.page import Panel

NUM_EXAMPLES = 6


def serve_demo(
    *,
    segment: Path | None = None,
    classify: Path | None = None,
    index: Path | None = None,
    retrieve: bool = True,
    backbone: str | None = None,
    examples: Path | None = None,
    address: Address | None = None,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Load adapters and an index and serve their page until a signal arrives; each of several has a tab.

    A shared backbone is loaded once. Example pictures come from the folder `examples`, else from ``examples/`` in the
    folder of an adapter or of the index, else they are synthetic.

    Args:
        segment: a segmentation adapter.
        classify: a classification adapter.
        index: an index, whose similar cases are shown beside the classes.
        retrieve: show the index in a tab too.
        backbone: path of the backbone, if it was moved.
        examples: folder of example pictures.
        address: None for a free port, for this machine only.
        browser: open the page in the browser of the user.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UsageError: nothing is given, an adapter is of another task, the folder of examples holds no picture, or the
            classifier and the index read pictures differently.
    """
    options = {"segment": segment, "classify": classify}
    adapters = {task: folder for task, folder in options.items() if folder is not None}
    folders = [*adapters.values(), *([] if index is None else [index])]
    if not folders:
        raise UsageError("nothing to show: give one or more of --segment ADAPTER, --classify ADAPTER and --index INDEX")
    _check_tasks(adapters)
    address = address or choose_address()
    with private_environment() as scratch:
        chosen = choose_examples(folders, examples, scratch)
        predictors, image_index = _load(adapters, index, backbone, device)
        _check_reading(predictors, image_index)
        consumers: list[Predictor | ImageIndex] = [
            *predictors.values(),
            *([] if image_index is None else [image_index]),
        ]
        bands = next(
            (n for consumer in consumers if (n := consumer.backbone.preprocessing.channels) not in (1, 3)), None
        )
        if bands is not None:  # examples are written as colour pictures, which such a backbone cannot take
            if examples is not None:
                raise UsageError(
                    f"--examples: these are shown in colour, and a backbone takes {bands} channels; leave it out"
                )
            chosen = []

        from dinomed.apps.demos.page import build_page  # imports Gradio, so only here

        serve(
            lambda: build_page(
                list(_panels(predictors, image_index, retrieve)),
                chosen,
                _subtitle(adapters, index, predictors, image_index),
            ),
            address,
            browser=browser,
        )


def _check_tasks(adapters: dict[str, Path]) -> None:
    from dinomed.adapters.bundle import read_record

    for task, folder in adapters.items():  # before examples are made and Gradio is imported
        adapter_task = read_record(folder).task
        if adapter_task != task:
            raise UsageError(f"{folder} is a {adapter_task} adapter; this needs one made by `dinomed train {task}`")


def _load(
    adapters: dict[str, Path], index: Path | None, backbone: str | None, device: str
) -> tuple[dict[str, "Predictor"], "ImageIndex | None"]:
    from dinomed.adapters.inference.loader import load_adapter
    from dinomed.adapters.inference.shared import Backbones
    from dinomed.adapters.retrieval.search import load_index

    logger.info("loading what is shown, and its backbone")
    load = Backbones()
    predictors = {task: load_adapter(folder, device, backbone, load=load) for task, folder in adapters.items()}
    return predictors, None if index is None else load_index(index, device, backbone, load=load)


def _check_reading(predictors: dict[str, "Predictor"], image_index: "ImageIndex | None") -> None:
    """Raise a `UsageError` if the classifier and the index read pictures differently and are to be shown together."""
    if image_index is None or "classify" not in predictors:
        return
    of_classifier, of_index = predictors["classify"].backbone.preprocessing, image_index.backbone.preprocessing
    if (of_classifier.channels, of_classifier.intensity) != (of_index.channels, of_index.intensity):
        raise UsageError(
            "the backbones of the classifier and of the index read pictures differently (channels, bits or window); "
            "show them apart: demo classify, demo retrieve"
        )


def _panels(predictors: dict[str, "Predictor"], image_index: "ImageIndex | None", retrieve: bool) -> Iterator["Panel"]:
    from dinomed.apps.demos.classify import ClassifyPanel
    from dinomed.apps.demos.retrieve import RetrievePanel
    from dinomed.apps.demos.segment import SegmentPanel

    panels: dict[str, Callable[[Any], Panel]] = {
        "segment": SegmentPanel,
        "classify": partial(ClassifyPanel, image_index=image_index),
    }
    for task, predictor in predictors.items():
        yield panels[task](predictor)
    if image_index is not None and retrieve:
        yield RetrievePanel(image_index)


def _subtitle(
    adapters: dict[str, Path],
    index: Path | None,
    predictors: dict[str, "Predictor"],
    image_index: "ImageIndex | None",
) -> str:
    """Return a line with the names of folders, without their paths on this machine."""
    parts = [
        f"adapter {folder.resolve().name} on backbone {predictors[task].backbone.name}"
        for task, folder in adapters.items()
    ]
    if index is not None and image_index is not None:
        parts.append(
            f"index {index.resolve().name} of {len(image_index):,} cases on backbone {image_index.backbone.name}"
        )
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def choose_examples(folders: list[Path], examples: Path | None, scratch: Path) -> list[Path]:
    """Return at most `NUM_EXAMPLES` numbered copies of pictures in ``scratch/examples``.

    Raises:
        UsageError: there is no picture in the folder `examples`.
    """
    if examples is not None:
        if not examples.is_dir():
            raise UsageError(f"--examples {examples} is not a folder")
        copies = _copy(examples, scratch / "examples")
        if not copies:
            raise UsageError(f"--examples {examples}: no pictures in this folder")
        return copies
    for folder in folders:
        if copies := _copy(folder / "examples", scratch / "examples"):
            return copies
    return _copy(_synthetic(scratch), scratch / "examples")


def _copy(folder: Path, out: Path) -> list[Path]:
    """Return numbered copies of pictures, spread over the folder; unreadable ones are replaced by others."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    first = [files[i] for i in spaced_indices(len(files), NUM_EXAMPLES)]
    return write_examples([*first, *(path for path in files if path not in set(first))], out, NUM_EXAMPLES)


def _synthetic(scratch: Path) -> Path:
    from dinomed.datasets.synthetic.lesions import write_lesions

    return write_lesions(scratch / "synthetic", count=NUM_EXAMPLES, seed=7, size=(360, 480), broken=0) / "images"
