"""Start of a demo: loading of adapters and an index, choice of example pictures, and the page."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

from dinomed.adapters.task import find_task
from dinomed.apps.demos.serve import LOOPBACK, Address, choose_address, private_environment, serve
from dinomed.apps.pages.examples import write_examples
from dinomed.errors import UsageError
from dinomed.html.album import spaced_indices
from dinomed.io.output_folder import locked
from dinomed.log import logger

if TYPE_CHECKING:
    from dinomed.adapters.predictor import Predictor
    from dinomed.adapters.retrieval.search import ImageIndex
    from dinomed.apps.demos.page import Panel

NUM_EXAMPLES = 6


def serve_demo(
    adapters: Sequence[Path] = (),
    *,
    index: Path | None = None,
    retrieve: bool = True,
    backbone: str | None = None,
    examples: Path | None = None,
    address: Address | None = None,
    browser: bool = True,
    device: str = "auto",
    save: Path | None = None,
    abstain: float | None = None,
    max_risk: float | None = None,
    mask_text: bool = False,
) -> None:
    """Load adapters and an index and serve their page until a signal arrives; each of several has a tab.

    A shared backbone is loaded once. Example pictures come from the folder `examples`, else from ``examples/`` in the
    folder of an adapter or of the index, else they are synthetic.

    Args:
        adapters: adapters of any tasks, at most one of each task.
        index: an index, whose similar cases are shown beside the classes.
        retrieve: show the index in a tab too.
        backbone: path of the backbone, if it was moved.
        examples: folder of example pictures.
        address: None for a free port, for this machine only.
        browser: open the page in the browser of the user.
        device: auto, cpu, cuda, cuda:N or mps.
        save: folder for the decisions and corrected masks of a reviewer.
        abstain: classifier and segmenter give no answer below the threshold that abstained this share of val.
        max_risk: the same by the threshold that keeps this mean loss on val.
        mask_text: mask burned-in text in pictures that are shown or saved.

    Raises:
        UsageError: nothing is given, two adapters have the same task, the folder of examples holds no picture, or the
            classifier and the index read pictures differently.
    """
    folders = [*adapters, *([] if index is None else [index])]
    if not folders:
        raise UsageError("nothing to show: give one or more of --segment, --classify, --adapter and --index")
    _check_tasks(adapters)
    address = address or choose_address()
    if save is not None and address.host not in LOOPBACK and address.login is None:
        raise UsageError("--save: anyone on the network could write to the folder; add --login FILE")
    with private_environment() as scratch, nullcontext() if save is None else locked(save):
        chosen = choose_examples(folders, examples, scratch)
        predictors, image_index = _load(adapters, index, backbone, device)
        _check_reading(predictors, image_index)
        consumers: list[Predictor | ImageIndex] = [*predictors, *([] if image_index is None else [image_index])]
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

        panels = _with_batch(list(_panels(predictors, image_index, retrieve, names=_is_local(address))))
        if mask_text:
            _mask_text(panels, image_index)
        if abstain is not None or max_risk is not None:
            _abstain(panels, abstain, max_risk)
        if save is not None:
            _save_decisions(panels, predictors, save)
        serve(
            lambda: build_page(
                panels,
                chosen,
                _subtitle(adapters, index, predictors, image_index),
            ),
            address,
            browser=browser,
        )


def _mask_text(panels: Sequence["Panel"], image_index: "ImageIndex | None") -> None:
    """Mask burned-in text in all pictures that the panels show and save, and in those of the index."""
    from dinomed.burned_in_text.mask import TextMask

    mask = TextMask()
    for panel in panels:
        panel.text_mask = mask
    if image_index is not None:
        image_index.text_mask = mask


def _abstain(panels: Sequence["Panel"], abstain: float | None, max_risk: float | None) -> None:
    """Let the panels of the classifier and of the segmenter abstain, each by its own threshold.

    If one of the two has no thresholds, a warning names it.

    Raises:
        UsageError: there is neither, none has thresholds, or those of the classifier are not for single images.
    """
    from dinomed.adapters.predictor import Predictor, prediction_rule
    from dinomed.apps.demos.classify import ClassifyPanel
    from dinomed.apps.demos.segment import SegmentPanel

    abstaining = [panel for panel in panels if isinstance(panel, ClassifyPanel | SegmentPanel)]
    if not abstaining:
        raise UsageError(
            "--abstain and --max-risk are for a classifier and a segmenter; add --classify FOLDER or --segment FOLDER, "
            "or leave them out"
        )
    some = any(getattr(panel.predictor, "abstention", None) is not None for panel in abstaining)
    for panel in abstaining:
        predictor = cast(Predictor, panel.predictor)  # launch loads adapters
        if predictor.abstention is None and some:
            title = find_task(predictor.task).title
            logger.warning(f"the {title} has no thresholds of confidence: tab {panel.title} never abstains")
            continue
        rule = prediction_rule(predictor, abstain, max_risk, predictor.unit)
        assert rule is not None
        if predictor.unit != "image":
            raise UsageError(
                "the thresholds of this classifier were chosen for groups, and the demo predicts single images; "
                "leave --abstain and --max-risk out, or use `dinomed predict --unit group`"
            )
        panel.abstain_by(rule)


def _save_decisions(panels: Sequence["Panel"], predictors: Sequence["Predictor"], folder: Path) -> None:
    """Let the panel of the segmenter save decisions; raise a `UsageError` if there is none, or if it cannot."""
    from dinomed.apps.demos.corrections import Corrections, check_savable
    from dinomed.apps.demos.segment import SegmentPanel

    for panel, predictor in zip(panels, predictors, strict=False):
        if isinstance(panel, SegmentPanel):
            check_savable(panel.preprocessing, predictor.classes)
            panel.save_decisions(Corrections(folder, predictor.metadata["weights_sha256"]))
            return
    raise UsageError("--save is for the masks of a segmenter; add --segment FOLDER, or leave it out")


def check_task(folder: Path, task: str) -> None:
    """Raise a `UsageError` if the adapter in `folder` is of another task."""
    from dinomed.adapters.inference.loader import read_adapter_record

    adapter_task = read_adapter_record(folder).task
    if adapter_task != task:
        raise UsageError(f"{folder} is a {adapter_task} adapter; this needs one made by `dinomed train {task}`")


def _check_tasks(adapters: Sequence[Path]) -> None:
    from dinomed.adapters.inference.loader import read_adapter_record

    folders: dict[str, Path] = {}
    for folder in adapters:  # before examples are made and Gradio is imported
        task = read_adapter_record(folder).task
        if task in folders:
            raise UsageError(f"{folders[task]} and {folder} are both {task} adapters; give one of each task")
        folders[task] = folder


def _load(
    adapters: Sequence[Path], index: Path | None, backbone: str | None, device: str
) -> tuple[list["Predictor"], "ImageIndex | None"]:
    from dinomed.adapters.inference.loader import load_adapter
    from dinomed.adapters.inference.shared import Backbones
    from dinomed.adapters.retrieval.search import load_index

    logger.info("loading what is shown, and its backbone")
    load = Backbones()
    predictors = [load_adapter(folder, device, backbone, load=load) for folder in adapters]
    return predictors, None if index is None else load_index(index, device, backbone, load=load)


def _check_reading(predictors: Sequence["Predictor"], image_index: "ImageIndex | None") -> None:
    """Raise a `UsageError` if an adapter and the index read pictures differently and are to be shown in one panel."""
    from dinomed.adapters.task import find_task

    if image_index is None:
        return
    of_index = image_index.backbone.preprocessing
    for predictor in predictors:
        task, reading = find_task(predictor.task), predictor.backbone.preprocessing
        if task.panel_takes_index and (reading.channels, reading.intensity) != (of_index.channels, of_index.intensity):
            raise UsageError(
                f"the backbones of the {task.title} and of the index read pictures differently (channels, bits or "
                f"window); show them apart: demo {task.name}, demo retrieve"
            )


def _is_local(address: Address) -> bool:
    """Return whether only this machine reaches the demo, so that its visitors may see names of files anyway."""
    return address.host in LOOPBACK and not address.names and address.login is None


def _panels(
    predictors: Sequence["Predictor"], image_index: "ImageIndex | None", retrieve: bool, names: bool
) -> Iterator["Panel"]:
    from dinomed.adapters.task import find_task
    from dinomed.apps.demos.explore.panel import ExplorePanel
    from dinomed.apps.demos.retrieve import RetrievePanel
    from dinomed.apps.demos.values import ValuesPanel

    for predictor in predictors:
        task = find_task(predictor.task)
        panel: Callable[..., Panel] = resolve_name(task.panel) if task.panel else ValuesPanel
        yield panel(predictor, image_index) if task.panel_takes_index else panel(predictor)
    if image_index is not None and retrieve:
        yield RetrievePanel(image_index)
    backbones = [loaded.backbone for loaded in (*predictors, image_index) if loaded is not None]
    yield ExplorePanel(backbones[0], image_index, names=names)


def _with_batch(panels: list["Panel"]) -> list["Panel"]:
    """Return the panels with that of a batch before the last one, Explore, if one of them can summarise a picture."""
    from dinomed.apps.demos.batch.panel import BatchPanel

    return [*panels[:-1], BatchPanel(panels), panels[-1]] if any(panel.summarizes for panel in panels) else panels


def _subtitle(
    adapters: Sequence[Path],
    index: Path | None,
    predictors: Sequence["Predictor"],
    image_index: "ImageIndex | None",
) -> str:
    """Return a line with the names of folders, without their paths on this machine."""
    from dinomed.apps.demos.look import text

    parts = [
        text("subtitle_adapter").format(name=folder.resolve().name, backbone=predictor.backbone.name)
        for folder, predictor in zip(adapters, predictors, strict=True)
    ]
    if index is not None and image_index is not None:
        parts.append(
            text("subtitle_index").format(
                name=index.resolve().name, count=f"{len(image_index):,}", backbone=image_index.backbone.name
            )
        )
    return " · ".join(parts)


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
