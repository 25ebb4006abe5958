"""End of a command's output for people: the paths that it wrote, and the command that is likely to follow."""

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.apps.cli import command_words
from dinomed.errors import DinomedError, printable
from dinomed.log import is_quiet

if TYPE_CHECKING:
    from dinomed.datasets.manifest import Manifest

BACKBONE = "dinov2_vits14"
"""Published backbone that is named beside a proposed pretraining."""
CONFIG = "vit_tiny_cpu"
"""Config of a proposed pretraining."""
FEW_MASKS = 200
"""Training images with a mask up to which the head `hybrid_unet` is proposed (docs/results.md, label efficiency)."""
MASK_SIZE = 128
"""Image size, px, of a proposed `hybrid_unet`; a multiple of the patch size of `CONFIG`, which is 8."""
BACKBONE_MASK_SIZE = 126
"""The same for `BACKBONE`, whose patch size is 14."""
MAP_OPTIONS = ("weights", "image_size", "mean", "std")
"""Options of a backbone that `show map` has."""
DEMOS = ("segment", "classify")
"""Tasks whose demo has a command of its own."""

Step = tuple[list[str], dict[str, Any]]
"""Words of a command, and its arguments by the names of its function."""


@dataclass(frozen=True)
class Proposal:
    """The command that is likely to follow, and lines that say what follows it."""

    step: Step
    lines: tuple[str, ...] = ()


def print_end(
    written: Iterable[str | Path | None] = (),
    step: Step | Proposal | Callable[[], Step | Proposal | None] | None = None,
    *,
    as_json: bool = False,
    mark: str = "",
) -> None:
    """Print the written paths and the next command as the last lines on stdout; nothing with --json or --quiet.

    Args:
        written: files and folders; None for one that was not written.
        step: the command that is likely to follow; a function if it reads files to find it.
        as_json: stdout holds a JSON object.
        mark: text before each line, such as the ``# `` of a comment in YAML.
    """
    if as_json or is_quiet():
        return
    for path in written:
        if path is not None:
            print(f"{mark}Wrote: {printable(str(path))}")
    if callable(step):
        step = step()
    proposal = step if isinstance(step, Proposal) or step is None else Proposal(step)
    line = None if proposal is None else command_line(*proposal.step)
    if proposal is not None and line is not None:
        print(f"{mark}Next: {line}")
        for further in proposal.lines:
            print(f"{mark}{further}")


def command_line(command: list[str], arguments: Mapping[str, Any]) -> str | None:
    """Return a command for a POSIX shell; None if it has characters that a terminal cannot show.

    >>> command_line(["train", "classify"], {"backbone": "runs/ssl", "data": "my data.csv", "out": "runs/cls"})
    "dinomed train classify --backbone runs/ssl --data 'my data.csv' --output runs/cls"
    >>> command_line(["demo", "retrieve"], {"index": Path("-x")})
    'dinomed demo retrieve --index ./-x'
    """
    values = {name: _value(value) for name, value in arguments.items()}
    line = shlex.join(["dinomed", *command_words(command, values)])
    return line if printable(line) == line else None


def _value(value: Any) -> Any:
    """Return a value as the command line takes it: no path looks like an option."""
    if isinstance(value, list):
        return [_value(item) for item in value]
    return f"./{value}" if isinstance(value, Path) and str(value).startswith("-") else value


def free_path(path: str | Path) -> Path:
    """Return a path that does not exist: with a number at the end of its name, where it does.

    >>> str(free_path("no folder/of this name.html")).replace("\\\\", "/")
    'no folder/of this name.html'
    """
    path = Path(path)
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def after_dry_run(command: list[str], options: Mapping[str, Any]) -> Step:
    """Return the same command without --dry-run; `options` have the names of its parameters."""
    return command, {name: value for name, value in options.items() if name != "dry_run"}


def after_manifest(path: str | Path, manifest: "Manifest", *, masks: bool, label_maps: bool = False) -> Proposal:
    """Return a pretraining on the images, which needs no network; its lines name the heads that the targets allow.

    A manifest with masks or classes and without splits is scanned first, as that of `slices`; `label_maps`: a mask has
    several classes.
    """
    tasks = {"segment": "masks"} if masks else {}
    tasks |= {"classify": "labels"} if has_classes(manifest) else {}
    if tasks and not manifest.has("split"):
        folder = Path(path).parent
        out = free_path(f"{folder.name or 'scanned'}.parquet")
        return Proposal((["scan"], {"folder": folder, "labels": Path(path), "out": out}))
    pretraining = after_images(path)
    if not tasks:
        return Proposal(pretraining)
    first = next(iter(tasks))
    options = _segmenter_options(manifest, label_maps) if first == "segment" else {}
    training = command_line(*train_step(first, pretraining[1]["out"], path, **options))
    choice = ", ".join(f"train {task} for the {targets}" for task, targets in tasks.items())
    size = f" --set image_size={BACKBONE_MASK_SIZE}" if f"image_size={MASK_SIZE}" in options.get("settings", ()) else ""
    published = (
        f"Or, instead of pretraining, a published backbone: --backbone {BACKBONE} --weights FILE{size}; without "
        "--weights its weights are downloaded"
    )
    return Proposal(pretraining, (f"Then ({choice}): {training}", published))


def _segmenter_options(manifest: "Manifest", label_maps: bool) -> dict[str, Any]:
    """Return the head and the settings of a proposed segmenter."""
    kind = ["kind=multiclass"] if label_maps else []
    masks = manifest.select(split="train").column("mask") if manifest.has("mask") else []
    if not masks or sum(mask is not None for mask in masks) > FEW_MASKS:
        return {"settings": kind}
    return {"head": "hybrid_unet", "settings": [f"image_size={MASK_SIZE}", *kind]}


def after_images(path: str | Path) -> Step:
    """Return the pretraining on images without labels."""
    return ["pretrain"], {"config": CONFIG, "data": path, "out": free_path("runs/ssl")}


def train_step(task: str, backbone: Any, data: str | Path, **options: Any) -> Step:
    """Return the training of a head on a backbone."""
    arguments = {"backbone": backbone, "data": data, "out": free_path(f"runs/{task}"), **options}
    return ["train", task], arguments


def after_backbone(backbone: str | Path, data: str | Path, **options: Any) -> Step:
    """Return the evaluation of features by a probe if the data has classes and a test split, else a map of them."""
    manifest = read_file(data)
    if manifest is not None and has_classes(manifest) and has_test(manifest):
        return ["probe"], {"backbone": backbone, "data": data, **options}
    allowed: dict[str, Any] = {name: options[name] for name in MAP_OPTIONS if name in options}
    return ["show", "map"], {"data": data, "backbone": backbone, "out": free_path("map.html"), **allowed}


def after_training(task: str, adapter: str | Path, data: str | Path) -> Step:
    """Return the evaluation of an adapter if the data has a test split, else its demo."""
    manifest = read_file(data)
    if manifest is None or not has_test(manifest):
        return demo_step(task, adapter)
    place = Path(adapter)
    return ["evaluate"], {"adapter": adapter, "data": data, "out": free_path(place.with_name(f"{place.name}_test"))}


def after_index(index: str | Path, data: str | Path) -> Step:
    """Return the evaluation of an index if the data has classes and a test split, else its demo. It names no image."""
    manifest = read_file(data)
    if manifest is not None and has_classes(manifest) and has_test(manifest):
        return ["search"], {"images": data, "index": index, "evaluate": True}
    return ["demo", "retrieve"], {"index": index}


def demo_step(task: str, adapter: str | Path, backbone: str | None = None, **options: Any) -> Step:
    """Return the demo of an adapter."""
    if task in DEMOS:
        return ["demo", task], {"adapter": adapter, "backbone": backbone, **options}
    return ["demo", "all"], {"adapters": [adapter], "backbone": backbone, **options}


def demo_of(adapter: str | Path, backbone: str | None = None) -> Step:
    """Return the demo of an adapter, whose task is read from its record."""
    from dinomed.adapters.inference.loader import read_adapter_record

    return demo_step(read_adapter_record(Path(adapter)).task, adapter, backbone)


def after_corrections(manifest: str | Path, adapter: str | Path, backbone: str | None = None) -> Step:
    """Return the training of a segmenter on corrected masks, on the backbone of an adapter."""
    from dinomed.adapters.inference.loader import read_adapter_record

    if backbone is not None:
        return train_step("segment", backbone, manifest)
    reference = read_adapter_record(adapter).backbone
    relative = reference.path or reference.weights
    place = None if relative is None else os.path.normpath(Path(adapter) / relative)
    name, weights = (reference.name, place) if reference.weights else (place or reference.name, None)
    return train_step("segment", name, manifest, weights=weights, mean=reference.mean, std=reference.std)


def read_file(data: str | Path) -> "Manifest | None":
    """Return the manifest in a file; None for a folder, which takes long to read, and for another file, such as an
    image: a finished command never fails by its end."""
    from dinomed.datasets.manifest import read_manifest

    if not Path(data).is_file():
        return None
    with suppress(DinomedError):
        return read_manifest(data)
    return None


def has_classes(manifest: "Manifest") -> bool:
    """Return whether the column `label` has two classes or more."""
    return manifest.has("label") and len({label for label in manifest.column("label") if label is not None}) > 1


def has_test(manifest: "Manifest") -> bool:
    """Return whether there are images of the split test."""
    return manifest.has("split") and "test" in manifest.column("split")
