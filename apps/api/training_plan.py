"""Settings of a training of a head, and its plan: what it would do, without doing it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomed.adapters.task import Unit, find_task
from dinomed.apps.api.backbones import BackboneLike, load_backbone
from dinomed.apps.api.inputs import DatasetLike, PathLike, Settings, cache_folder, config_path, override_list
from dinomed.config import load_config
from dinomed.datasets.open import open_dataset
from dinomed.notice import RESEARCH_USE

if TYPE_CHECKING:
    from dinomed.adapters.fitting.config import TrainConfig
    from dinomed.datasets.manifest import Manifest


@dataclass(frozen=True)
class PlannedRows:
    """Images of a split or a fold that have targets, their groups, and the images of each class if there are any."""

    images: int
    groups: int
    classes: dict[str, int]


@dataclass(frozen=True)
class PlannedHead:
    """A head, its trained parameters before the fit (0: it is solved), and the image size, px."""

    name: str
    parameters: int
    image_size: int


@dataclass(frozen=True)
class PlannedFeatures:
    """Passes of images through the backbone.

    Attributes:
        tune: part of the backbone that is trained, such as ``last:2``; ``none`` if it is frozen.
        images: that pass through the backbone once, before the training of the head; an image counts once for each size
            and each augmented copy. With folds those of all folds together.
        copies: largest number of augmented copies of each training image; 0 without them.
        bytes: size of their features in the cache, if none of them is there yet.
        images_per_epoch: images that pass through the backbone in every epoch; with folds the sum over the folds. None
            if the time decides their number (``fit.seconds``).
        cache: folder of the cache.
        second: passes of the second training beside those of the first; None if there is no second training.
    """

    tune: str
    images: int
    copies: int
    bytes: int
    images_per_epoch: int | None
    cache: str
    second: "SecondPasses | None" = None


@dataclass(frozen=True)
class SecondPasses:
    """Passes of images through the backbone for the second training.

    With the head auto they are those of its candidate with the most images in every epoch, then with the most bytes.

    Attributes:
        images: that pass through the backbone once before it, in addition to those of the first training.
        bytes: size of their features in the cache, in addition to those of the first training.
        images_per_epoch: images that pass through the backbone in every epoch; None if the time decides their number.
    """

    images: int
    bytes: int
    images_per_epoch: int | None


@dataclass(frozen=True)
class TrainingPlan:
    """What a training would use.

    Attributes:
        config: all settings.
        backbone: name of the backbone.
        heads: the head; the candidates of the head auto.
        splits: rows of train, val and test that have targets; with folds those of all folds together, and test.
        val_made: whether val is taken from train, because the images have none.
        folds: rows that each fold has as its val.
        features: passes through the backbone.
        refitted_on: images of the second training, on train and val together; 0 if there is none.
        note: notice of research use.
    """

    config: dict[str, Any]
    backbone: str
    heads: list[PlannedHead]
    splits: dict[str, PlannedRows]
    val_made: bool
    folds: list[PlannedRows]
    features: PlannedFeatures
    refitted_on: int = 0
    note: str = field(default=RESEARCH_USE)


def plan_training(
    task: str,
    backbone: BackboneLike,
    data: DatasetLike,
    *,
    head: str | None = None,
    tune: str | None = None,
    config: PathLike | None = None,
    settings: Settings | None = None,
    label: str | Sequence[str] | None = None,
    separator: str | None = None,
    unit: Unit | None = None,
    folds: int | None = None,
    weights: PathLike | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: PathLike | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    device: str = "auto",
) -> TrainingPlan:
    """Return the settings, the rows and the costs of the training of a head, without running it.

    The settings and the rows are checked as by `dinomed.train`. Nothing is written, except that the weights of a
    backbone that is given by name are downloaded if they are not there. No image is read, and no mask except label
    maps whose classes no setting names. The command is ``dinomed train TASK --dry-run``.

    Args:
        task: as in `dinomed.train`, like all arguments.
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes.
        data: a manifest with the targets of the task.
        head: name of the head.
        tune: part of the backbone that is trained too.
        config: YAML file, or a name in configs/adapters.
        settings: settings that override the config.
        label: for classify, the column of the classes, or several columns.
        separator: for classify, the text between several labels in one cell.
        unit: for classify, ``"group"`` for one prediction for all images of a group.
        folds: number of folds of a cross-validation.
        weights: file with the weights of a backbone that is given by name.
        mean: mean of each channel in 0 to 1, for weights that name none.
        std: standard deviation of each channel, likewise.
        cache: folder of cached features.
        out: folder that the training would write; it is checked, and nothing is written.
        overwrite: replace an earlier result in `out`.
        seed: seed of the config.
        device: device of a backbone that is given by name or path.

    Returns:
        The plan.

    Raises:
        UsageError: as `dinomed.train`.
        DinomedError: the data or the weights cannot be read.

    Example:
        >>> plan = dinomed.plan_training("classify", "runs/ssl", "lesions.parquet", head="linear")
        >>> plan.heads[0].parameters > 0, list(plan.splits), plan.features.images_per_epoch
        (True, ['train', 'val', 'test'], 0)
    """
    from dinomed.adapters.fit import candidate_fits, join_splits, prepare_fit
    from dinomed.adapters.fitting.build import at_image_size
    from dinomed.adapters.fitting.passes import copies_of_fit, images_per_epoch, list_passes
    from dinomed.adapters.folds.train import prepare_folds

    resolved = resolve_training(task, config, settings, head, seed, tune, label, separator, unit)
    if out is not None:
        _check_output(Path(out), folds is not None, overwrite)
    manifest = open_dataset(data)
    prepared = None if folds is None else prepare_folds(resolved, manifest, folds)
    frozen = load_backbone(backbone, weights=weights, device=device, mean=mean, std=std)
    first, candidates = prepare_fit(resolved, frozen)
    passes: dict[Any, tuple[int, int]] = {}
    heads: dict[str, PlannedHead] = {}
    live: dict[str, int] = Counter()
    second: list[tuple[dict[Any, tuple[int, int]], int]] = []
    copies = refitted_on = 0
    parts = [manifest] if prepared is None else [prepared.images.of_fold(fold) for fold in range(folds or 0)]
    for part in parts:
        first.splits = first.select_rows(part)
        first.backbone = at_image_size(frozen, first.image_size(frozen), resolved.aspect)
        for title, fit in (candidate_fits(first, candidates, frozen) or {resolved.head.name: first}).items():
            adapter = fit.build_untrained()
            trained = sum(weight.numel() for weight in adapter.parameters() if weight.requires_grad)
            heads[title] = PlannedHead(title, trained, fit.backbone.preprocessing.image_size)
            live[title] += images_per_epoch(fit)
            copies = max(copies, copies_of_fit(fit))
            pool = None if prepared is None else prepared.images.images
            passes |= dict(list_passes(fit, adapter.feature_spec, pool))
            if pool is None and fit.refits():
                again = copy(fit)
                again.splits, again.shared_blocks = replace(fit.splits, train=join_splits(fit.splits)), ()
                refitted_on = len(again.splits.train)
                of_again = dict(list_passes(again, adapter.feature_spec, None))
                second.append((of_again, images_per_epoch(again, measured=False)))
    timed = resolved.fit.seconds is not None  # each step has its images, so none are counted for an epoch
    largest = max((_second_passes(*each, passes) for each in second), default=None, key=_cost)
    if largest is not None and largest.images_per_epoch and timed:
        largest = replace(largest, images_per_epoch=None)
    splits = {"train": first.splits.train, "val": first.splits.val}
    if prepared is not None:
        splits = {"train and val": prepared.images.images}
    usable, labels = first.fold_rows(manifest)
    labels_of = dict(zip(usable.column("image"), labels, strict=True))
    if usable.has("split") and len(test := usable.select(split="test")):
        splits["test"] = test
    return TrainingPlan(
        config=resolved.model_dump(mode="json"),
        backbone=frozen.name,
        heads=list(heads.values()),
        splits={name: _count_rows(rows, labels_of) for name, rows in splits.items()},
        val_made=prepared is None and first.splits.made,
        folds=[
            _count_rows(prepared.images.part(fold, inside=True), labels_of)
            for fold in range(folds or 0) if prepared is not None
        ],
        features=PlannedFeatures(
            resolved.tune.word, sum(images for images, _ in passes.values()), copies,
            sum(size for _, size in passes.values()), None if timed and max(live.values()) else max(live.values()),
            str(cache_folder(manifest, cache)), largest,
        ),
        refitted_on=refitted_on,
    )  # fmt: skip


def _check_output(out: Path, has_folds: bool, overwrite: bool) -> None:
    """Raise as a training would if it cannot write the folder."""
    from dinomed.adapters.bundle import WEIGHTS_FILE, check_no_folds
    from dinomed.adapters.folds.plan import check_no_adapter
    from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE
    from dinomed.io.output_folder import check_output

    check = check_no_adapter if has_folds else check_no_folds
    check(out)
    check_output(out, marker=ENSEMBLE_FILE if has_folds else WEIGHTS_FILE, overwrite=overwrite)


def resolve_training(
    task: str,
    config: PathLike | None,
    settings: Settings | None,
    head: str | None,
    seed: int | None,
    tune: str | None,
    label: str | Sequence[str] | None,
    separator: str | None,
    unit: Unit | None,
) -> "TrainConfig":
    """Return the config of a training from a file or a name, with the settings that the arguments override."""
    targets = override_list(None, label=label, separator=separator, unit=unit)
    overrides = [*targets, *override_list(settings, head__name=head, seed=seed, tune=tune)]
    return load_config(find_task(task).config, config_path(config, "adapters"), overrides)


def _count_rows(rows: "Manifest", labels_of: Mapping[str, tuple[str, ...]]) -> PlannedRows:
    counts = Counter(name for image in rows.column("image") for name in labels_of[image])
    return PlannedRows(len(rows), len(set(rows.units())), dict(sorted(counts.items())))


def _second_passes(
    again: Mapping[Any, tuple[int, int]], images_per_epoch: int, first: Mapping[Any, tuple[int, int]]
) -> SecondPasses:
    """Return the passes of a second training without those that the `first` one has left in the cache."""
    added = [counts for key, counts in again.items() if key not in first]
    return SecondPasses(sum(images for images, _ in added), sum(size for _, size in added), images_per_epoch)


def _cost(passes: SecondPasses) -> tuple[int, int, int]:
    return passes.images_per_epoch or 0, passes.bytes, passes.images
