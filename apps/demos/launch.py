"""From an adapter folder to its served demo: which adapter, which examples."""

from pathlib import Path

from dinomed.apps.demos.serve import private_environment, serve
from dinomed.errors import UsageError
from dinomed.progress import say

NUM_EXAMPLES = 6
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def serve_segment(
    adapter: Path,
    *,
    backbone: str | None = None,
    examples: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Load a segmentation adapter and serve its demo until a signal comes.

    Examples are the pictures of the folder given, else of the adapter's own ``examples/``, else synthetic ones.

    Raises:
        UsageError: the adapter is no segmenter, or the folder of examples holds no picture.
    """
    from dinomed.adapters.predict import SegmentPredictor, load_adapter

    with private_environment() as folder:
        say("loading the adapter and its backbone")
        predictor = load_adapter(adapter, device=device, backbone=backbone)
        if not isinstance(predictor, SegmentPredictor):
            raise UsageError(
                f"{adapter} is a {predictor.task} adapter; this demo needs one made by `dinomed train segment`"
            )
        chosen = choose_examples(adapter, examples, folder / "synthetic")

        from dinomed.apps.demos.segment import build_segment_demo  # imports Gradio, so only here

        frozen = predictor.backbone
        subtitle = f"Adapter {adapter} on backbone {frozen.name}"
        channels = frozen.preprocessing.channels
        serve(lambda: build_segment_demo(predictor, chosen, subtitle, channels), host=host, port=port, browser=browser)


def choose_examples(adapter: Path, given: Path | None, scratch: Path) -> list[Path]:
    """At most `NUM_EXAMPLES` pictures; synthetic ones are drawn into `scratch`."""
    if given is not None:
        found = _pictures(given)
        if not found:
            raise UsageError(f"--examples {given}: no pictures in this folder")
        return found
    return _pictures(adapter / "examples") or _synthetic(scratch)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    step = max(1, len(found) // NUM_EXAMPLES)
    return found[::step][:NUM_EXAMPLES]


def _synthetic(scratch: Path) -> list[Path]:
    from dinomed.datasets.synthetic import write_lesions

    return _pictures(write_lesions(scratch, count=NUM_EXAMPLES, seed=7, size=(360, 480), broken=0) / "images")
