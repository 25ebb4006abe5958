"""Resolution of a pretraining config: the settings that a run uses, after the weights, the teacher and the data.

`dinomed pretrain` and `--dry-run` both call `resolve_config`, so a dry run shows the settings that the run would use.
The order is: initial weights, teacher, number of bits and channels of the images, scaling rules.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.huggingface import is_hub_name
from dinomed.backbones.variants import VARIANTS
from dinomed.backbones.vit import VisionTransformer
from dinomed.backbones.weights import FOLDER_FILES, INDEX_FILE
from dinomed.config import build_config, flatten_settings, merge, read_saved_config
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.open import open_dataset
from dinomed.errors import DinomedError, UsageError
from dinomed.images.intensity import IntensityConfig
from dinomed.io.checkpoint import DamagedCheckpoints, newest_checkpoint
from dinomed.log import logger
from dinomed.loggers.names import check_loggers
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.select_images import check_channels, select_images, warn_small_images
from dinomed.pretrain.model.distillation import Teacher
from dinomed.pretrain.model.feature_distillation import NO_LOSSES
from dinomed.pretrain.model.initialisation import (
    Initialisation,
    has_new_heads,
    read_initialisation,
    read_model,
    read_run_model,
)
from dinomed.pretrain.model.lora import check_student_tuning
from dinomed.pretrain.optim.scaling_rules import scale_momentum, scale_prototypes
from dinomed.pretrain.run_folder import BACKBONE, CHECKPOINTS, CONFIG_FILE

NEW_HEADS_WARMUP = 0.1


@dataclass(frozen=True)
class ResolvedRun:
    """The resolved config of a run, with the weights and images that it was resolved from.

    `manifest` holds all images of the data, `train` those to train on, `held_aside` those of the PCA pictures.
    """

    config: PretrainConfig
    initialisation: Initialisation | None
    teacher: Teacher | None
    manifest: Manifest
    train: Manifest
    held_aside: Manifest
    teacher_folder: Path | None = None

    @property
    def data_record(self) -> dict[str, Any]:
        """The entry ``data`` of ``run.json``: it identifies the training images."""
        record = {
            "fingerprint": self.train.fingerprint,
            "images": len(self.train),
            "held_aside": len(self.held_aside),
        }
        return record if self.teacher_folder is None else record | {"teacher": str(self.teacher_folder)}


def resolve_config(
    config: PretrainConfig,
    data: Manifest | Path,
    *,
    teacher: Path | None = None,
    fixed: Collection[str] = (),
    fetch: bool = True,
) -> ResolvedRun:
    """Return the settings that a run on `data` uses, and what the run needs besides.

    Args:
        config: the settings that the user wrote.
        data: a manifest, a folder of images, or an image.
        teacher: teacher of a distillation: a run folder; for ``distill.method=features`` also another backbone.
        fixed: names of settings that the user set on the command line (``backbone.embed_dim``, or a whole section).
            Weights that need another value are refused; any other setting follows the weights.
        fetch: whether released weights may be downloaded. If not, only their architecture is used.

    Raises:
        UsageError: settings, weights, teacher and data do not fit together, or the package of a logger is missing.
        DinomedError: a file is damaged.
    """
    check_loggers(config.run.loggers, "run.loggers")
    initialisation = read_initialisation(config.start, fetch=fetch)
    resolved = fit_to_initialisation(config, initialisation)
    by_features, teacher_of_run = config.distill.method == "features", None
    if teacher is None and by_features:
        raise UsageError("distill.method=features needs a `teacher`; use `dinomed distill`, or method: heads")
    if not by_features and (config.distill.mean is not None or config.distill.std is not None):
        raise UsageError(
            "`mean` and `std` are for a teacher whose files name none, with distill.method=features; a run records its "
            "own, so leave them out"
        )
    if teacher is not None:
        teacher_of_run = read_feature_teacher(teacher, config, fetch=fetch) if by_features else read_teacher(teacher)
        resolved = fit_to_teacher(resolved, teacher_of_run)
        if initialisation is not None and config.start.warmup is None:
            resolved = _wait_for_new_heads(resolved, initialisation, teacher_of_run)
    _check_fixed_settings(config, resolved, fixed, f"the weights of {teacher or config.start.weights}")
    manifest = open_dataset(data)
    train, held_aside = select_images(manifest, config.run.batch_size, config.run.pca_images)
    if len(train) < len(manifest):
        logger.info(f"{len(train):,} of {len(manifest):,} images are used for training; the others are held out")
    warn_small_images(train, resolved.crops.global_size, resolved.backbone.patch_size)
    resolved = fit_to_images(resolved, train)
    has_heads = teacher_of_run is not None or (initialisation is not None and bool(initialisation.head_configs))
    resolved = scale_to_data(resolved, len(train), keep_heads=has_heads)
    before, after = flatten_settings(config), flatten_settings(resolved)
    for key in sorted(key for key in after if before.get(key) != after[key]):
        logger.debug(f"{key}: {before.get(key)} -> {after[key]}, to fit the weights, the teacher or the images")
    return ResolvedRun(resolved, initialisation, teacher_of_run, manifest, train, held_aside, teacher)


def fit_to_initialisation(config: PretrainConfig, initialisation: Initialisation | None) -> PretrainConfig:
    """Return `config` with the architecture and the normalisation of the initial weights, and the shapes of its heads.

    While a part beside the backbone that a loss needs is not among the weights (a head, the predictor of masked
    patches), the backbone waits: `start.warmup` becomes 0.1.

    The config decides stochastic depth and the number of input channels; the first layer is inflated if they differ.
    """
    feed_forward = config.backbone.feed_forward if initialisation is None else initialisation.vit.config.feed_forward
    has_weights = initialisation is not None
    check_student_tuning(config.tune, feed_forward, has_weights=has_weights, parallel=config.run.parallel)
    if initialisation is None:
        return config
    architecture = initialisation.vit.config.model_dump(exclude={"drop_path", "in_channels"})
    backbone = config.backbone.model_dump() | architecture
    if config.start.resize_positions:
        size, patch = config.crops.global_size, initialisation.vit.config.patch_size
        if size % patch:
            raise UsageError(
                f"crops.global_size {size} is not divisible by the patch size {patch} of {config.start.weights}; set "
                f"it to {size // patch * patch}, or use the recipe of the first run and `phase=highres`: its sizes fit"
            )
        backbone["image_size"] = size
    data = config.model_dump() | {"backbone": backbone}
    preprocessing = initialisation.preprocessing
    if preprocessing.channels == config.backbone.in_channels:
        data |= {"mean": preprocessing.mean, "std": preprocessing.std}
        if config.images == IntensityConfig():
            data["images"] = preprocessing.intensity
    heads = {n: head.model_dump(exclude={"prototype_init"}) for n, head in initialisation.head_configs.items()}
    data["objective"] = merge(data["objective"], heads)
    resolved = build_config(PretrainConfig, data, f"weights of {config.start.weights}")
    return resolved if config.start.warmup is not None else _wait_for_new_heads(resolved, initialisation, None)


def check_batch_size(config: PretrainConfig, num_processes: int) -> None:
    """Raise a `UsageError` if the images of a batch cannot be divided among the processes."""
    if config.run.batch_size % num_processes:
        raise UsageError(
            f"run.batch_size={config.run.batch_size} is not divisible by the number of processes ({num_processes}); "
            "change one of them"
        )


def _wait_for_new_heads(
    config: PretrainConfig, initialisation: Initialisation, teacher: Teacher | None
) -> PretrainConfig:
    """Return `config` with `start.warmup` 0.1 if a part beside the backbone is new, else 0."""
    by_features = teacher is not None and config.distill.method == "features"
    width = teacher.backbone.embed_dim if teacher is not None and by_features else None
    is_new = has_new_heads(config.backbone, config.objective, initialisation, width)
    start = config.start.model_copy(update={"warmup": NEW_HEADS_WARMUP if is_new else 0.0})
    return config.model_copy(update={"start": start})


def read_teacher(folder: Path) -> Teacher:
    """Read the teacher of a finished run.

    Raises:
        UsageError: `folder` is not a run folder with a checkpoint. A backbone alone has no heads.
        DinomedError: the checkpoints are damaged.
    """
    path = folder / CONFIG_FILE
    try:
        checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    except DamagedCheckpoints as error:
        raise DinomedError(f"teacher {folder} is damaged: {error}; use an intact copy or another teacher") from None
    if not path.is_file() or checkpoint is None:
        raise _no_heads(folder)
    config = read_saved_config(PretrainConfig, path)
    if not config.objective.head_names:
        raise UsageError(f"teacher {folder} was trained without heads; set distill.method=features")
    prefix = "teacher."
    weights = {n.removeprefix(prefix): t for n, t in read_run_model(checkpoint[0]).items() if n.startswith(prefix)}
    return Teacher(config.backbone, config.objective, config.preprocessing, weights)


def _no_heads(teacher: Path) -> UsageError:
    """Return the error for a teacher without heads: it is a backbone, or something else."""
    is_name = str(teacher) in VARIANTS or is_hub_name(teacher)
    if not is_name and not teacher.exists():
        return UsageError(f"teacher {teacher} does not exist; give the run folder of the larger model")
    files = [teacher / place / file for place in (".", BACKBONE) for file in (*FOLDER_FILES, INDEX_FILE)]
    is_file = teacher.is_file() and teacher.suffix in (".safetensors", ".pth")
    if not (is_name or is_file or any(file.is_file() for file in files)):
        return UsageError(
            f"teacher {teacher} is neither a run folder with a checkpoint nor a backbone; give the run folder of the "
            "larger model"
        )
    return UsageError(
        f"teacher {teacher} is not a run folder with a checkpoint. A backbone has no heads; set "
        "distill.method=features, or fit them first with the backbone frozen: "
        f"dinomed pretrain CONFIG --from {teacher} --set start.warmup=1 -o RUN"
    )


def read_feature_teacher(name: Path, config: PretrainConfig, *, fetch: bool = True) -> Teacher:
    """Read a teacher whose features are to be matched; it may be of any family of backbones.

    Args:
        name: a run folder, or the folder, file or name of a backbone.
        fetch: whether released weights may be downloaded. If not, they are on the meta device.
    """
    distill = config.distill
    model, preprocessing = read_model(str(name), distill.file, distill.mean, distill.std, fetch=fetch)
    weights = {f"backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    if isinstance(model, VisionTransformer):
        return Teacher(model.config, NO_LOSSES, preprocessing, weights)
    outline = ViTConfig(
        embed_dim=model.embed_dim, depth=model.depth, num_heads=1, patch_size=model.patch_size,
        image_size=preprocessing.image_size, in_channels=model.in_channels,
    )  # fmt: skip
    return Teacher(outline, NO_LOSSES, preprocessing, weights, model)


def fit_to_teacher(config: PretrainConfig, teacher: Teacher) -> PretrainConfig:
    """Return the student's config with the settings that it must share with its teacher.

    These are the number of prototypes, the weights of the losses, tied or untied heads, normalisation and channels.
    Stochastic depth is off. If features are matched, there are no heads and no local views.

    Raises:
        UsageError: the patch sizes differ, so that the iBOT loss cannot compare patch tokens; or the channels differ.
    """
    patch, channels = config.backbone.patch_size, config.backbone.in_channels
    if channels not in (teacher.backbone.in_channels, ViTConfig.model_fields["in_channels"].default):
        raise UsageError(
            f"the teacher takes {teacher.backbone.in_channels} channels, the student {channels} "
            "(backbone.in_channels); both get the same images, so leave this setting out"
        )
    by_features = config.distill.method == "features"
    if teacher.backbone.patch_size != patch and not by_features:
        raise UsageError(
            f"the patch size of the teacher is {teacher.backbone.patch_size} px, that of the student {patch} px; "
            f"set backbone.patch_size={teacher.backbone.patch_size} so that patch tokens can be compared, "
            "or distill.method=features"
        )
    objective = teacher.objective.model_dump(include={"untied_heads", "dino_weight", "ibot_weight", "targets"})
    objective |= {"pixel_weight": 0.0, "predictor_depth": 0, "gram_weight": 0.0}  # no patch is masked, no old teacher
    if by_features:
        objective |= {"koleo_weight": 0.0, "queue": 0}
    for head in ("dino_head", "ibot_head"):
        objective[head] = {"prototypes": getattr(teacher.objective, head).prototypes}
    changes: dict[str, Any] = {
        "backbone": {"drop_path": 0.0, "in_channels": teacher.backbone.in_channels},
        "objective": objective,
        "mean": teacher.preprocessing.mean,
        "std": teacher.preprocessing.std,
        "images": teacher.preprocessing.intensity.model_dump(),
    }
    if by_features:
        changes["crops"] = {"num_local": 0}
    return build_config(PretrainConfig, merge(config.model_dump(), changes), "distillation")


def fit_to_images(config: PretrainConfig, images: Manifest) -> PretrainConfig:
    """Return `config` with the bit depth of the images, and without RGB augmentations for other channels.

    `images.bits` becomes 16 if it is not set and an image has more than 8 bits. Saturation, hue and gray are switched
    off if the backbone takes a number of channels other than 3.

    Raises:
        UsageError: an image has channels that the backbone cannot take.
    """
    channels, changes = config.backbone.in_channels, dict[str, object]()
    if images.has("channels") and images.has("bits"):
        check_channels(images, channels)
        if config.images.bits is None and max(images.column("bits")) > 8:
            changes["images"] = config.images.model_copy(update={"bits": 16})
            logger.info("all images are read with 16 bits, because some have more than 8; set images.bits to change it")
    rgb_only = config.crops.needs_rgb()
    if channels != 3 and rgb_only:
        changes["crops"] = config.crops.without_rgb()
        logger.info(f"{', '.join(rgb_only)}: off, because they need RGB and the backbone takes {channels} channels")
    return config.model_copy(update=changes)


def scale_to_data(config: PretrainConfig, num_images: int, *, keep_heads: bool = False) -> PretrainConfig:
    """Return `config` with the scaling rules applied, if `run.scale_to_data` is set.

    Args:
        num_images: number of training images.
        keep_heads: keep the number of prototypes, because the heads come from a checkpoint or follow a teacher.
    """
    if not config.run.scale_to_data:
        return config
    momentum = scale_momentum(config.teacher.momentum, config.run.batch_size, config.optimizer.reference_batch)
    changes: dict[str, object] = {"teacher": {"momentum": momentum}}
    if not keep_heads:
        head = {"prototypes": scale_prototypes(num_images)}
        changes["objective"] = {"dino_head": head, "ibot_head": head}
    return build_config(PretrainConfig, merge(config.model_dump(), changes), "run.scale_to_data")


def _check_fixed_settings(
    requested: PretrainConfig, resolved: PretrainConfig, fixed: Collection[str], source: str
) -> None:
    """Raise if the loaded weights override a setting that the user fixed."""
    before, after = flatten_settings(requested), flatten_settings(resolved)
    for key, value in before.items():
        if after[key] != value and any(key == name or key.startswith(f"{name}.") for name in fixed):
            raise UsageError(
                f"`settings=['{key}={value}']` contradicts {source}, which need {key}={after[key]}; "
                "leave the setting out"
            )
