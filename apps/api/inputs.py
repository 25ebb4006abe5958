"""Types and conversions of the arguments that all API functions take alike."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from dinomed.configs import config_names, find_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError, did_you_mean
from dinomed.io.pseudonyms import chosen_key

if TYPE_CHECKING:
    from dinomed.burned_in_text.mask import TextMask

Settings: TypeAlias = Mapping[str, Any] | Sequence[str]
"""Settings that override a config: ``{"run.steps": 1200}``, or ``["run.steps=1200"]`` as ``--set`` takes them."""


@runtime_checkable
class HasFolder(Protocol):
    """The result of a run or a fit, which names the folder that it wrote."""

    @property
    def folder(self) -> Path: ...


PathLike: TypeAlias = str | Path
FolderLike: TypeAlias = str | Path | HasFolder
"""A folder: its path, or the result of the function that wrote it."""
DatasetLike: TypeAlias = Manifest | str | Path
"""Images: a manifest object, or the path of a manifest, a folder or an image."""


def folder_path(folder: FolderLike) -> Path:
    """Return the path of a folder that is given as a path or as the result that names it."""
    return folder.folder if isinstance(folder, HasFolder) else Path(folder)


def override_list(settings: Settings | None, **options: Any) -> list[str]:
    """Return settings as the list of ``a.b=value`` that configs take; `options` that are None are left out.

    Args:
        settings: as the caller gave them.
        options: further settings, in which ``__`` in a name means a dot; they follow the others and win.

    Examples:
        >>> override_list({"run.steps": 20}, run__seed=3, head__name=None)
        ['run.steps=20', 'run.seed=3']
    """
    if isinstance(settings, str):
        raise UsageError(f"settings {settings!r} is one text; give a mapping or a list of a.b=value")
    pairs = settings.items() if isinstance(settings, Mapping) else ()
    overrides = [] if isinstance(settings, Mapping) else list(settings or ())
    overrides += [f"{name}={json.dumps(value, default=str)}" for name, value in pairs]
    named = {name.replace("__", "."): value for name, value in options.items() if value is not None}
    return overrides + [f"{name}={json.dumps(value, default=str)}" for name, value in named.items()]


def config_path(config: PathLike | None, job: str) -> Path | None:
    """Return the file of a config.

    Args:
        config: a path, or the name of a config that comes with dinomed, such as ``"vit_tiny_cpu"``.
        job: folder of `configs/` in which a name is looked up: pretrain, adapters or curation.

    Raises:
        UsageError: there is neither; the message has the nearest name, or all names of the job.
    """
    if config is None:
        return None
    path = find_config(config)
    named = find_config(Path(job) / f"{config}.yaml")
    if path.exists() or path.is_symlink():
        return path
    if not named.exists():
        known = did_you_mean(Path(config).stem, config_names(job))
        raise UsageError(f"config {config} does not exist; give the path of a YAML file, or a name{known}")
    return named


def cache_folder(manifest: Manifest, cache: PathLike | None) -> Path:
    """Return the folder of cached features: `cache`, or by default NAME.features beside the manifest or folder."""
    from dinomed.features.extract import default_cache  # imports torch

    return Path(cache) if cache is not None else default_cache(manifest.source or manifest.root)


def check_image_options(unit: str | None, dicom_seg: bool, keep_ids: bool, volumes: bool, series: Any) -> None:
    """Raise a `UsageError` if options of a prediction of images exclude each other or lack another one."""
    if unit == "group" and (dicom_seg or volumes):
        option = "dicom_seg" if dicom_seg else "volumes"
        raise UsageError(f"`{option}=True` is for single images; leave `unit=group` out")
    if keep_ids and not dicom_seg:
        raise UsageError("`keep_ids=True` is for DICOM segmentations; add `dicom_seg=True`")
    if series is None and dicom_seg and volumes:
        raise UsageError(
            "`dicom_seg=True` with `volumes=True` needs the DICOM series of the slices, whose UIDs the segmentations "
            "reference; add `series=FOLDER`"
        )
    if series is not None and not (dicom_seg and volumes):
        raise UsageError("`series` is for DICOM segmentations of volumes; add `dicom_seg=True` and `volumes=True`")


def prediction_key(
    id_key: PathLike | None, *, videos: bool, names: bool, dicom_seg: bool, keep_ids: bool
) -> bytes | None:
    """Return the key of a prediction of videos or images; None without one.

    Raises:
        UsageError: the key cannot be read, or the other options leave nothing that it names.
    """
    if id_key is not None and videos and names:
        raise UsageError("`id_key` and `names=True` both name the folders of videos; leave one of the two out")
    if id_key is not None and not videos and not dicom_seg:
        raise UsageError("`id_key` is for videos and DICOM segmentations; add `dicom_seg=True`, or leave it out")
    return chosen_key(id_key, keep_ids)


def check_backbone_options(backbone: Any, **options: Any) -> None:
    """Raise a `UsageError` if an option of a backbone, such as its weights, is given without a backbone."""
    name = next((name for name, value in options.items() if value is not None), None)
    if name is not None and backbone is None:
        raise UsageError(f"`{name}` is for a backbone; name it with `backbone`")


def dataset_name(data: DatasetLike, splits: str | None) -> str:
    """Return the path of images, with the names of splits behind it."""
    name = str(data.source or data.root) if isinstance(data, Manifest) else str(data)
    return name if splits is None else f"{name} ({splits})"


def select_splits(manifest: Manifest, data: DatasetLike, names: str | None) -> Manifest:
    """Return the images of these splits, whose names stand with commas between them; all for None.

    Raises:
        UsageError: there are no splits, or no image is in one of them.
    """
    if names is None:
        return manifest
    if not manifest.has("split"):
        again = manifest.scan_again("--ratios 0.7,0.1,0.2")
        raise UsageError(f"{manifest.called} has no splits; scan makes them, by group: {again}")
    wanted = {name.strip() for name in names.split(",")}
    column = manifest.column("split")
    unknown = sorted(wanted - set(column))
    if unknown:
        known = sorted({split for split in column if split is not None})
        raise UsageError(
            f"{dataset_name(data, None)} has no image in split {unknown[0]!r}; there are: {', '.join(known)}"
        )
    return manifest.take([row for row, split in enumerate(column) if split in wanted])


def text_mask(mask_text: bool, pictures: bool, remedy: str) -> "TextMask | None":
    """Return what masks burned-in text in the pictures of a result; None if this was not asked for.

    Raises:
        UsageError: text is to be masked, and no picture of the input is written.
    """
    if not mask_text:
        return None
    if not pictures:
        raise UsageError(f"`mask_text=True` masks text in written pictures, and none are written; {remedy}")
    from dinomed.burned_in_text.mask import TextMask

    return TextMask()


def check_unit(unit: str | None) -> None:
    """Raise a `UsageError` if a unit of prediction is neither an image nor a group."""
    if unit not in (None, "image", "group"):
        raise UsageError(f"`unit={unit}`: give image or group")


def evaluated_adapters(adapter: Any, unit: str | None, resamples: int) -> list[Any]:
    """Return the adapters of an evaluation as a list.

    Raises:
        UsageError: there is none, the unit is unknown, or there is no resample.
    """
    check_unit(unit)
    if resamples < 1:
        raise UsageError(f"`resamples={resamples}`: give 1 or more")
    adapters = list(adapter) if isinstance(adapter, list | tuple) else [adapter]
    if not adapters:
        raise UsageError("`adapter` is empty; give one adapter or more")
    return adapters
