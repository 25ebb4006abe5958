"""`dinomed train`: light heads on the features of a backbone, frozen or tuned with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from dinomed.apps.expand import expand
from dinomed.apps.options import Backbone, Cache, Data, Device, Json, Output, Overwrite, Quiet, Weights
from dinomed.errors import UsageError

if TYPE_CHECKING:
    from dinomed.adapters.fitting.fit_record import FitResult


@dataclass(frozen=True)
class Training:
    """What all tasks can be told."""

    backbone: Backbone
    data: Data
    output: Output
    head: Annotated[
        str | None,
        Option("--head", help="Which head, as `dinomed models` lists them (short for --set head.name=NAME)."),
    ] = None
    tune: Annotated[
        str | None,
        Option("--tune", help="What of the backbone learns too: none, last:N (blocks), lora or lora:RANK [none]."),
    ] = None
    config: Annotated[
        Path | None, Option("--config", "-c", help="YAML file, such as configs/adapters/segment.yaml.")
    ] = None
    overrides: Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")] = None
    weights: Weights = None
    cache: Cache = None
    seed: Annotated[int | None, Option("--seed", help="Instead of the seed of the config.", min=0)] = None
    overwrite: Overwrite = False
    device: Device = "auto"
    as_json: Json = False
    quiet: Quiet = False

    def settings(self, kind: Any, more: Sequence[str] = ()) -> Any:
        """The config of a task, of all that was given; `more` are settings that have options of their own."""
        from dinomed.config import load_config
        from dinomed.configs import find_config

        path = None if self.config is None else find_config(self.config)
        options = {"head.name": self.head, "seed": self.seed, "tune": self.tune}
        short = [f"{name}={value}" for name, value in options.items() if value is not None]
        return load_config(kind, path, [*more, *(self.overrides or ()), *short])

    def fit(self, fit: Callable[..., "FitResult"], settings: Any) -> None:
        """Fit, and say what came out."""
        from dinomed.backbones.load import load_backbone
        from dinomed.datasets.open import open_dataset
        from dinomed.features.extract import default_cache

        manifest = open_dataset(self.data)
        backbone = load_backbone(self.backbone, weights=self.weights, device=self.device)
        cache = self.cache or default_cache(self.data)
        _report(fit(backbone, manifest, self.output, settings, cache=cache, overwrite=self.overwrite), self.as_json)


@expand
def classify(
    training: Training,
    label: Annotated[
        str | None, Option("--label", help="Column of classes [label]; several columns of 0 and 1: oedema,effusion.")
    ] = None,
    separator: Annotated[
        str | None, Option("--separator", help="Between several labels in one cell of the column, such as '|'.")
    ] = None,
    unit: Annotated[
        str | None, Option("--unit", help="image, or group for one answer for all images of a group (8 at most).")
    ] = None,
) -> None:
    """Train a classifier on the labels of a manifest.

    Learns from the split train, and chooses on val: the epoch, or what the head has to choose (k, C, a learning rate),
    the temperature of its probabilities, and thresholds. For research use only.
    """
    from dinomed.adapters.tasks.classify.config import ClassifyConfig
    from dinomed.adapters.tasks.classify.fit import fit_classifier

    training.fit(fit_classifier, training.settings(ClassifyConfig, _targets(label, separator, unit)))


@expand
def segment(training: Training) -> None:
    """Train a lesion segmenter on the masks of a manifest.

    Learns from the split train, keeps the epoch that is best on val, and chooses the threshold there. For research
    use only.
    """
    from dinomed.adapters.tasks.segment.config import SegmentConfig
    from dinomed.adapters.tasks.segment.fit import fit_segmenter

    training.fit(fit_segmenter, training.settings(SegmentConfig))


@expand
def depth(training: Training) -> None:
    """Train a depth estimator on the depth maps of a manifest (a column `depth`).

    Learns from the split train and keeps the epoch that is best on val. Depths stay between the least and the greatest
    of train, or what --set head.low and head.high say. For research use only.
    """
    from dinomed.adapters.tasks.depth.config import DepthConfig
    from dinomed.adapters.tasks.depth.fit import fit_depth

    training.fit(fit_depth, training.settings(DepthConfig))


def _targets(label: str | None, separator: str | None, unit: str | None) -> list[str]:
    """The options as settings; names are quoted, since they may look like anything."""
    import json

    columns = [name.strip() for name in (label or "").split(",") if name.strip()]
    if label is not None and not columns:
        raise UsageError(f"--label {label!r} names no column; give one, or several with commas between them")
    found = {} if not columns else {"label": columns[0] if len(columns) == 1 else columns}
    given: dict[str, object] = {**found, "separator": separator, "unit": unit}
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def _report(result: "FitResult", as_json: bool) -> None:
    from dinomed.apps.output import build_table, emit
    from dinomed.notice import RESEARCH_USE

    found = {name: value for name, value in result.validation.items() if isinstance(value, int | float)}
    threshold = {} if result.threshold is None else {"threshold": result.threshold}
    report = {"adapter": str(result.folder), "epoch": result.epoch, **threshold, "validation": result.validation}
    chosen = {name: value for name, value in result.chosen.items() if not isinstance(value, dict | list)}
    report |= {"chosen": result.chosen} if chosen else {}
    epoch = [] if chosen else [("epoch kept", result.epoch)]
    rows: list[tuple[str, object]] = [("adapter", str(result.folder)), *epoch, *chosen.items(), *threshold.items()]
    rows += [(f"{name} (val)", value) for name, value in found.items()]
    note = {"note": RESEARCH_USE}
    emit(report | note, as_json, build_table(("", ""), [*rows, *note.items()]))
