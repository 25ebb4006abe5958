"""Heads on frozen features: training, evaluation and prediction."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.head_fit import FitResult
from dinomed.adapters.folds.train import prepare_folds, train_folds
from dinomed.adapters.inference import loader
from dinomed.adapters.inference.folder import PredictionResult, predict_collection
from dinomed.adapters.predictor import Predictor, prediction_rule
from dinomed.adapters.task import Unit, find_task
from dinomed.adapters.video.dicom_seg import choose_seg_options
from dinomed.adapters.video.request import find_input_videos, refuse_image_options, refuse_video_options
from dinomed.adapters.video.run import RESERVED, predict_videos
from dinomed.apps.api.backbones import BackboneLike, load_backbone
from dinomed.apps.api.inputs import (
    DatasetLike,
    FolderLike,
    PathLike,
    Settings,
    cache_folder,
    check_image_options,
    check_unit,
    evaluated_adapters,
    folder_path,
    prediction_key,
    text_mask,
)
from dinomed.apps.api.training_plan import resolve_training
from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.videos import name_groups
from dinomed.errors import UsageError

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"


def train(
    task: str,
    backbone: BackboneLike,
    data: DatasetLike,
    out: PathLike,
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
    seed: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> FitResult:
    """Train a head on the features of a frozen backbone and write it as an adapter folder.

    The head is fitted on train; epoch, thresholds and temperature are chosen on val. A segmenter whose val has few
    groups is trained again on both (`FitConfig`). An interrupted call continues. The command is ``dinomed train TASK``.

    Args:
        task: classify (column ``label``), segment (column ``mask``), depth (column ``depth``), or a task of a plug-in.
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes.
        data: a manifest with the targets of the task.
        out: folder to write.
        head: name of the head, as `dinomed.list_models` lists them, or auto for the best of several on val (classify,
            segment); None for that of the config.
        tune: train the backbone too: none, last:N (blocks), lora or lora:RANK.
        config: YAML file, or a name in configs/adapters such as ``"segment_unet"``.
        settings: settings that override the config, such as ``{"fit.epochs": 5}``.
        label: for classify, the column of the classes, or several columns of 0 and 1.
        separator: for classify, the text between several labels in one cell.
        unit: for classify, ``"group"`` for one prediction for all images of a group.
        folds: cross-validation: train and val together are divided into this number of folds, by group; `out` holds an
            adapter for each fold, and is itself an adapter that averages their predictions.
        weights: file with the weights of a backbone that is given by name.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel, likewise.
        cache: folder of cached features; None for NAME.features beside the manifest.
        seed: seed of the config.
        overwrite: replace an earlier result in `out`.
        device: device of a backbone that is given by name or path.

    Returns:
        The folder, the epoch that was kept (0 for a closed-form head), the metrics on val, the threshold of a
        segmenter, what was chosen on val, and the heads that auto tried. With `folds` a `FoldsResult`: the metrics are
        out of fold, and `table` has their intervals and the values of each fold.

    Raises:
        UsageError: the task, head or a setting is unknown, `data` has no targets, `out` is in use, there are fewer
            groups than `folds`, or a class is in one fold only.
        DinomedError: an image cannot be read, or nothing can be written.

    Example:
        >>> adapter = dinomed.train("classify", "runs/ssl", "lesions.parquet", out="runs/new_cls", head="logistic")
        >>> adapter.folder.name, 0 <= adapter.validation["auroc"] <= 1
        ('new_cls', True)
    """
    resolved = resolve_training(task, config, settings, head, seed, tune, label, separator, unit)
    manifest = open_dataset(data)
    prepared = None if folds is None else prepare_folds(resolved, manifest, folds)
    frozen = load_backbone(backbone, weights=weights, device=device, mean=mean, std=std)
    features = cache_folder(manifest, cache)
    if folds is not None:
        return train_folds(
            frozen, manifest, out, resolved, folds, cache=features, overwrite=overwrite, prepared=prepared
        )
    return fit_head(frozen, manifest, out, resolved, cache=features, overwrite=overwrite)


def load_adapter(folder: FolderLike, *, backbone: PathLike | None = None, device: str = "auto") -> Predictor:
    """Load an adapter with its backbone, to predict images in memory.

    Args:
        folder: adapter folder, or the result of `dinomed.train`.
        backbone: path of its backbone, if that was moved.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        A predictor. Its `predict` takes a list of paths, PIL images, arrays (H, W, 3) uint8 and tensors (3, H, W), and
        returns one object for each: a `ClassPrediction` (``label``, ``probabilities``), a `MaskPrediction` (``mask``
        (H, W), ``masks``, ``probabilities``) or a `DepthPrediction` (``depth`` (H, W), ``unit``).

    Raises:
        UsageError: no adapter is there, or the backbone is not the one on which it was trained.
        DinomedError: the adapter is damaged, or its backbone is missing.

    Example:
        >>> adapter = dinomed.load_adapter("runs/cls")
        >>> adapter.task, list(adapter.classes)
        ('classify', ['irregular', 'regular', 'vascular'])
        >>> (prediction,) = dinomed.load_adapter("runs/seg").predict([np.zeros((64, 48, 3), np.uint8)])
        >>> prediction.mask.shape
        (64, 48)
    """
    return loader.load_adapter(folder_path(folder), device, backbone)


def evaluate(
    adapter: FolderLike | Sequence[FolderLike],
    data: DatasetLike,
    *,
    split: str = "test",
    out: PathLike | None = None,
    backbone: PathLike | None = None,
    allow_seen: bool = False,
    unit: Unit | None = None,
    by: Sequence[str] = (),
    resamples: int = 1000,
    names: bool = False,
    mask_text: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure an adapter on one split of a manifest with known targets.

    Images that the adapter saw in training or validation, and images of their groups, are left out of a test split.
    Several adapters are measured on the images that none of them leaves out, with paired differences from the first
    one. The command is ``dinomed evaluate``.

    Args:
        adapter: adapter folder, or the result of `dinomed.train`; or several, to compare them.
        data: a manifest with the targets of the task.
        split: train, val or test.
        out: folder for report.html and metrics.json; None writes nothing.
        backbone: path of its backbone, if that was moved.
        allow_seen: keep images that the adapter saw; the report says so.
        unit: for a classifier, image or group; None for the unit of its training.
        by: subgroups: columns (``"sex"``), bands of a numeric column (``"age:10"``), or pairs (``"sex*age:20"``).
        resamples: bootstrap resamples of the groups, for the 95% intervals.
        names: show the paths of images in the page.
        mask_text: mask burned-in text that the detector finds in the images of the page; it misses text.
        overwrite: replace an earlier result in `out`.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The report that ``dinomed evaluate --json`` prints: ``metrics``, ``intervals``, ``subgroups``, ``gaps``
        (worst and best subgroup of each measure) and ``seen_in_training``. Of several adapters ``runs``, each with
        ``metrics`` and ``difference``.

    Raises:
        UsageError: no targets, an empty split, most of which the adapter saw, `out` is in use, or adapters differ in
            task or classes.
        DinomedError: an image or a mask cannot be read.

    Example:
        >>> report = dinomed.evaluate("runs/cls", "lesions.parquet", split="test")
        >>> report["task"], 0 <= report["metrics"]["auroc"] <= 1
        ('classify', True)
    """
    from dinomed.adapters.evaluation.evaluate import evaluate_in_full
    from dinomed.adapters.evaluation.runs import evaluate_runs
    from dinomed.io.files import write_json, write_text
    from dinomed.io.output_folder import claimed_folder

    adapters = evaluated_adapters(adapter, unit, resamples)
    mask = text_mask(mask_text, out is not None and len(adapters) == 1, "give one adapter and `out`, or leave it out")
    if len(adapters) > 1 and by:
        raise UsageError("`by` is for one adapter; leave it out, or evaluate each adapter by itself")
    with nullcontext() if out is None else claimed_folder(out, marker=METRICS_FILE, overwrite=overwrite) as folder:
        manifest = open_dataset(data)
        options: dict[str, Any] = {"device": device, "backbone": backbone, "allow_seen": allow_seen, "unit": unit}
        folders = [str(folder_path(each)) for each in adapters]
        alone = len(folders) == 1
        if alone:
            evaluation = evaluate_in_full(folders[0], manifest, split, by=by, resamples=resamples, **options)
            report = evaluation.result
        else:
            report = evaluate_runs(folders, manifest, split, resamples=resamples, **options)
        if folder is not None:
            from dinomed.apps.pages.evaluation import build_evaluation_page
            from dinomed.apps.pages.sections.runs import build_runs_page

            shown: dict[str, Any] = {"names": names, "mask": mask}
            page = build_evaluation_page(evaluation, manifest, **shown) if alone else build_runs_page(report)
            report |= {} if mask is None else {"masked_text": mask.record()}
            (folder / METRICS_FILE).unlink(missing_ok=True)  # metrics mark the folder as complete
            write_text(folder / REPORT_FILE, page)
            write_json(folder / METRICS_FILE, {key: value for key, value in report.items() if key != "adapter"})
            report |= {"report": str(folder / REPORT_FILE)}
    return report


def predict(
    adapter: FolderLike | Predictor,
    images: DatasetLike,
    out: PathLike,
    *,
    backbone: PathLike | None = None,
    unit: Unit | None = None,
    abstain: float | None = None,
    max_risk: float | None = None,
    sheet: bool = True,
    names: bool = False,
    coco: bool = False,
    coco_ids: PathLike | None = None,
    dicom_seg: bool = False,
    keep_ids: bool = False,
    id_key: PathLike | None = None,
    volumes: bool = False,
    series: PathLike | None = None,
    mask_text: bool = False,
    fps: float | None = None,
    step: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> PredictionResult:
    """Predict every image of a folder or a manifest, or every frame of videos, and write the predictions.

    A segmenter writes a mask for each image, a depth estimator a depth map; predictions.csv has a row for each image.
    Segmenters and classifiers write a contact sheet too: index.html, with thumbnails of at most 400 images. An
    interrupted call continues where it stopped. The command is ``dinomed predict``. For images in memory use
    ``load_adapter(folder).predict(images)``.

    For a video, or a folder of videos, an adapter writes a folder for each: a table with a row for each frame, a plot
    over time, summary.json with one answer, of a segmenter mask videos and an overlay video, and of a depth estimator a
    depth video and one in colours. A classifier for groups predicts evenly spaced frames, as it was trained.

    Args:
        adapter: adapter folder, the result of `dinomed.train`, or a loaded adapter.
        images: a manifest, or the path of a manifest, a folder, an image or a video.
        out: folder to write.
        backbone: path of its backbone, if that was moved.
        unit: for a classifier, ``"group"`` for one row for all images of a group; there is no contact sheet then.
        abstain: mark predictions as abstained, in a column of the table, whose confidence is below the threshold that
            abstained this share of the validation images.
        max_risk: the same with the threshold at which the kept validation images had at most this mean loss: the share
            of wrong classes, or 1 - Dice.
        sheet: write the contact sheet.
        names: show the paths of images in the contact sheet, and call the folders of videos like their files instead
            of by numbers; they may identify patients.
        coco: for a segmenter, write the masks as COCO results too: coco_results.json and coco_images.json.
        coco_ids: COCO file of the images, whose ids of images and categories the results have; sets `coco`.
        dicom_seg: for a segmenter and DICOM files, write masks as DICOM segmentations too (extra ``dicom``).
        keep_ids: with `dicom_seg`, copy identifiers of patient and study; else a placeholder.
        id_key: file with a secret key, as for `scan`: pseudonyms name the folders of videos, and the patient of
            `dicom_seg` instead of a placeholder.
        volumes: for a segmenter and the manifest.csv of `dinomed.slices`, write the mask of each volume too, in
            the format (of DICOM series NIfTI) and the geometry of the input, and volumes.csv, with Dice and HD95 in mm
            where the slices have masks.
        series: with `volumes` and `dicom_seg`, the folder of the DICOM series of the slices; each volume of a series is
            then written as a DICOM segmentation too.
        mask_text: mask burned-in text that the detector finds in the contact sheet and the overlay videos; it misses
            text. Predictions are those of the images as they are.
        fps: of videos, read so many frames a second, as near as every N-th frame comes to it; None for every frame.
        step: of videos, read every `step`-th frame instead.
        overwrite: replace an earlier prediction in `out`.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        The folder, the numbers of all, of earlier and of abstained predictions, and (path, reason) of unreadable files.
        For videos a `VideoPredictionResult`, with the folder of each video and the answers.

    Raises:
        UsageError: no images, `out` is in use, or an option does not fit the adapter or the images.
        DinomedError: the adapter is damaged, or nothing can be written.

    Example:
        >>> written = dinomed.predict("runs/seg", "lesions/images/SYN_00000_a.jpg", out="masks")
        >>> written.images, sorted(path.name for path in written.folder.glob("*.png"))
        (1, ['SYN_00000_a.png'])
    """
    check_unit(unit)
    videos = find_input_videos(images)
    mask = text_mask(mask_text, (sheet and unit != "group") or videos is not None, "leave it out")
    key = prediction_key(id_key, videos=videos is not None, names=names, dicom_seg=dicom_seg, keep_ids=keep_ids)
    if videos is not None:
        from dinomed.apps.pages.overlay import draw_mask

        predictor = _predictor(adapter, backbone, device)
        unit = None if unit == predictor.unit else unit
        refused = {f"unit={unit}": unit, "coco=True": coco, "coco_ids": coco_ids, "volumes=True": volumes}
        refuse_image_options(refused | {"series": series})
        check_image_options(None, dicom_seg, keep_ids, False, None)
        return predict_videos(
            predictor, videos, name_groups(videos, names, RESERVED, key), out, fps=fps, step=step, mask=mask,
            draw=partial(draw_mask, fill=0), overwrite=overwrite,
            rule=prediction_rule(predictor, abstain, max_risk, predictor.unit),
            seg=choose_seg_options(videos, keep_ids, key, fps, step) if dicom_seg else None)  # fmt: skip
    refuse_video_options({"fps": fps, "step": step}, images)
    check_image_options(unit, dicom_seg, keep_ids, volumes, series)
    predictor = _predictor(adapter, backbone, device)
    rule = prediction_rule(predictor, abstain, max_risk, unit)
    manifest = open_dataset(images, allow_unreadable=True)
    if unit != "group":
        from dinomed.apps.pages.sheet import build_sheet

        build = partial(build_sheet, predictor, manifest, names=names, mask=mask) if sheet else None
        done = predict_collection(
            predictor, manifest, out, unreadable=manifest.unreadable, overwrite=overwrite, build_sheet=build,
            coco=coco or coco_ids is not None, coco_ids=None if coco_ids is None else Path(coco_ids), rule=rule,
            dicom_seg=dicom_seg, keep_ids=keep_ids, key=key, volumes=volumes,
            series=None if series is None else Path(series), masked=mask is not None)  # fmt: skip
        return replace(done, masked_text=None if mask is None else mask.record())
    if coco or coco_ids is not None:
        raise UsageError("`coco=True` is for segmenters, and `unit=group` for classifiers; give one of the two")
    groups = find_task(predictor.task).predict_groups(predictor, manifest, Path(out), overwrite=overwrite, rule=rule)
    return PredictionResult(Path(out), groups.groups, groups.kept, groups.unreadable, None, rule, groups.abstained)


def _predictor(adapter: Any, backbone: PathLike | None, device: str) -> Predictor:
    return adapter if isinstance(adapter, Predictor) else load_adapter(adapter, backbone=backbone, device=device)
