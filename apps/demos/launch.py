"""From an adapter or an index to its served demo: what is loaded, which examples."""

from pathlib import Path

from dinomed.album import spread
from dinomed.apps.demos.serve import Address, choose_address, private_environment, serve
from dinomed.apps.examples import write_examples
from dinomed.errors import UsageError
from dinomed.progress import say

NUM_EXAMPLES = 6


def serve_segment(
    adapter: Path,
    *,
    backbone: str | None = None,
    examples: Path | None = None,
    address: Address | None = None,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Load a segmentation adapter and serve its demo until a signal comes.

    Examples are the pictures of the folder given, else of the adapter's own ``examples/``, else synthetic ones.

    Args:
        address: where to serve; None for a free port of this machine alone.

    Raises:
        UsageError: the adapter is no segmenter, or the folder of examples holds no picture.
    """
    from dinomed.adapters.bundle import read_record
    from dinomed.adapters.predict import SegmentPredictor, load_adapter

    read_record(adapter)  # before examples are made and Gradio is imported
    address = address or choose_address()
    with private_environment() as folder:
        chosen = choose_examples(adapter, examples, folder)
        say("loading the adapter and its backbone")
        predictor = load_adapter(adapter, device=device, backbone=backbone)
        if not isinstance(predictor, SegmentPredictor):
            raise UsageError(
                f"{adapter} is a {predictor.task} adapter; this demo needs one made by `dinomed train segment`"
            )

        from dinomed.apps.demos.segment import build_segment_demo  # imports Gradio, so only here

        frozen = predictor.backbone
        # The folder's name alone: visitors need not know where things lie on this machine.
        subtitle = f"Adapter {adapter.resolve().name} on backbone {frozen.name}"
        serve(
            lambda: build_segment_demo(predictor, chosen, subtitle, frozen.preprocessing.read), address, browser=browser
        )


def serve_classify(
    adapter: Path,
    *,
    index: Path | None = None,
    backbone: str | None = None,
    examples: Path | None = None,
    address: Address | None = None,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Load a classification adapter, and an index if one is given, and serve their demo until a signal comes.

    Raises:
        UsageError: the adapter is no classifier, or the folder of examples holds no picture.
    """
    from dinomed.adapters.predict import ClassifyPredictor, load_adapter
    from dinomed.adapters.retrieval.search import load_retriever

    address = address or choose_address()
    with private_environment() as folder:
        chosen = choose_examples(adapter, examples, folder)
        say("loading the adapter and its backbone")
        predictor = load_adapter(adapter, device=device, backbone=backbone)
        if not isinstance(predictor, ClassifyPredictor):
            raise UsageError(
                f"{adapter} is a {predictor.task} adapter; this demo needs one made by `dinomed train classify`"
            )
        retriever = None if index is None else load_retriever(index, device)

        from dinomed.apps.demos.classify import build_classify_demo  # imports Gradio, so only here

        subtitle = f"Adapter {adapter.resolve().name} on backbone {predictor.backbone.name}"
        if retriever is not None:
            subtitle += f"; {len(retriever.index):,} cases to compare with"
        serve(lambda: build_classify_demo(predictor, retriever, chosen, subtitle), address, browser=browser)


def serve_retrieve(
    index: Path,
    *,
    backbone: str | None = None,
    examples: Path | None = None,
    address: Address | None = None,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Load an index and serve its demo until a signal comes. Raises as `load_retriever`, and as `choose_examples`."""
    from dinomed.adapters.retrieval.search import load_retriever

    address = address or choose_address()
    with private_environment() as folder:
        chosen = choose_examples(index, examples, folder)
        say("loading the index and its backbone")
        retriever = load_retriever(index, device, backbone)

        from dinomed.apps.demos.retrieve import build_retrieve_demo  # imports Gradio, so only here

        subtitle = (
            f"Index {index.resolve().name} of {len(retriever.index):,} cases, on backbone {retriever.backbone.name}"
        )
        serve(lambda: build_retrieve_demo(retriever, chosen, subtitle), address, browser=browser)


def choose_examples(adapter: Path, given: Path | None, scratch: Path) -> list[Path]:
    """At most `NUM_EXAMPLES` pictures, as numbered copies in ``scratch/examples``; see `dinomed.apps.examples`.

    Raises:
        UsageError: there is no picture in the folder `given`.
    """
    if given is not None:
        if not given.is_dir():
            raise UsageError(f"--examples {given} is not a folder")
        found = _copy(given, scratch / "examples")
        if not found:
            raise UsageError(f"--examples {given}: no pictures in this folder")
        return found
    return _copy(adapter / "examples", scratch / "examples") or _copy(_synthetic(scratch), scratch / "examples")


def _copy(folder: Path, out: Path) -> list[Path]:
    """Numbered copies of pictures from all over the folder; another takes the place of one that cannot be read."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    first = [files[i] for i in spread(len(files), NUM_EXAMPLES)]
    return write_examples([*first, *(path for path in files if path not in set(first))], out, NUM_EXAMPLES)


def _synthetic(scratch: Path) -> Path:
    from dinomed.datasets.synthetic import write_lesions

    return write_lesions(scratch / "synthetic", count=NUM_EXAMPLES, seed=7, size=(360, 480), broken=0) / "images"
