"""`dinomed train`: light heads on the features of a backbone, frozen or tuned with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from dinomed.apps.options import Backbone, Cache, Data, Device, Json, Output, Overwrite, Quiet, Weights

if TYPE_CHECKING:
    from dinomed.adapters.fitting.outcome import FitResult

Config = Annotated[Path | None, Option("--config", "-c", help="YAML file, such as configs/adapters/segment.yaml.")]
Set = Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")]
Head = Annotated[
    str | None, Option("--head", help="Which head, as `dinomed models` lists them (short for --set head.name=NAME).")
]
Tune = Annotated[
    str | None,
    Option("--tune", help="What of the backbone learns too: none, last:N (blocks), lora or lora:RANK [none]."),
]
SeedOrConfig = Annotated[int | None, Option("--seed", help="Instead of the seed of the config.", min=0)]


def classify(
    backbone: Backbone,
    data: Data,
    output: Output,
    head: Head = None,
    tune: Tune = None,
    label: Annotated[
        str | None, Option("--label", help="Column of classes [label]; several columns of 0 and 1: oedema,effusion.")
    ] = None,
    separator: Annotated[
        str | None, Option("--separator", help="Between several labels in one cell of the column, such as '|'.")
    ] = None,
    unit: Annotated[
        str | None, Option("--unit", help="image, or group for one answer for all images of a group (8 at most).")
    ] = None,
    config: Config = None,
    overrides: Set = None,
    weights: Weights = None,
    cache: Cache = None,
    seed: SeedOrConfig = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on the labels of a manifest.

    Learns from the split train, and chooses on val: the epoch, or what the head has to choose (k, C, a learning rate),
    the temperature of its probabilities, and thresholds. For research use only.
    """
    from dinomed.adapters.classify.config import ClassifyConfig
    from dinomed.adapters.classify.fit import fit_classifier

    settings = _settings(
        ClassifyConfig, config, [*_targets(label, separator, unit), *(overrides or ())], seed, head, tune
    )
    result = fit_classifier(
        **_inputs(backbone, weights, device, data, cache), out=output, config=settings, overwrite=overwrite
    )
    _report(result, as_json)


def segment(
    backbone: Backbone,
    data: Data,
    output: Output,
    head: Head = None,
    tune: Tune = None,
    config: Config = None,
    overrides: Set = None,
    weights: Weights = None,
    cache: Cache = None,
    seed: SeedOrConfig = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a lesion segmenter on the masks of a manifest.

    Learns from the split train, keeps the epoch that is best on val, and chooses the threshold there. For research
    use only.
    """
    from dinomed.adapters.segment.config import SegmentConfig
    from dinomed.adapters.segment.fit import fit_segmenter

    settings = _settings(SegmentConfig, config, overrides, seed, head, tune)
    result = fit_segmenter(
        **_inputs(backbone, weights, device, data, cache), out=output, config=settings, overwrite=overwrite
    )
    _report(result, as_json)


def depth(
    backbone: Backbone,
    data: Data,
    output: Output,
    head: Head = None,
    tune: Tune = None,
    config: Config = None,
    overrides: Set = None,
    weights: Weights = None,
    cache: Cache = None,
    seed: SeedOrConfig = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a depth estimator on the depth maps of a manifest (a column `depth`).

    Learns from the split train and keeps the epoch that is best on val. Depths stay between the least and the greatest
    of train, or what --set head.low and head.high say. For research use only.
    """
    from dinomed.adapters.depth.config import DepthConfig
    from dinomed.adapters.depth.fit import fit_depth

    settings = _settings(DepthConfig, config, overrides, seed, head, tune)
    result = fit_depth(
        **_inputs(backbone, weights, device, data, cache), out=output, config=settings, overwrite=overwrite
    )
    _report(result, as_json)


def _settings(
    kind: Any,
    config: Path | None,
    overrides: list[str] | None,
    seed: int | None,
    head: str | None = None,
    tune: str | None = None,
) -> Any:
    from dinomed.config import load_config
    from dinomed.configs import find_config

    path = None if config is None else find_config(config)
    options = {"head.name": head, "seed": seed, "tune": tune}
    short = [f"{name}={value}" for name, value in options.items() if value is not None]
    return load_config(kind, path, [*(overrides or ()), *short])


def _inputs(backbone: str, weights: Path | None, device: str, data: Path, cache: Path | None) -> dict[str, Any]:
    from dinomed.backbones.load import load_backbone
    from dinomed.datasets.manifest import open_collection
    from dinomed.features.extract import default_store

    manifest = open_collection(data)
    found = load_backbone(backbone, weights=weights, device=device)
    return {"backbone": found, "manifest": manifest, "store": cache or default_store(data)}


def _targets(label: str | None, separator: str | None, unit: str | None) -> list[str]:
    """The options as settings; names are quoted, since they may look like anything."""
    import json

    columns = [name.strip() for name in (label or "").split(",") if name.strip()]
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
