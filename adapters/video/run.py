"""Prediction of videos: one folder for each, with a table, written videos, a plot and one answer."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from dinomed.adapters.inference.plan import (
    FAILED_FILE,
    PLAN_FILE,
    ROWS_FILE,
    SHEET_FILE,
    TABLE_FILE,
    PredictionPlan,
    check_not_taken,
    own_files,
    read_plan,
)
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.task import find_task
from dinomed.adapters.video.answer import DrawMask, VideoAnswer
from dinomed.adapters.video.checks import FrameChecks
from dinomed.adapters.video.dicom_seg import VideoSegOptions
from dinomed.adapters.video.frames import FrameReader, check_rate, choose_step
from dinomed.adapters.video.result import SUMMARY_FILE, VideoPredictionResult
from dinomed.adapters.writer import Row
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.tables import write_csv
from dinomed.errors import DinomedError, UsageError
from dinomed.features.finite import compute_finite
from dinomed.html.drawing import write_drawing
from dinomed.images.decode import UnreadableImage
from dinomed.io.files import read_json, write_json
from dinomed.io.output_folder import STAGE, check_free, open_output_folder
from dinomed.io.prefetch import batched
from dinomed.io.publish import READY_FILE, publish
from dinomed.log import logger
from dinomed.metrics.uncertainty.abstention import AbstentionRule
from dinomed.notice import RESEARCH_USE
from dinomed.progress import bar
from dinomed.video.facts import VideoFrame
from dinomed.video.video import Video

RESERVED = (PLAN_FILE, SUMMARY_FILE, READY_FILE, TABLE_FILE, FAILED_FILE, ROWS_FILE, SHEET_FILE)
"""Names that no folder of a video may have."""
_BATCH, _BATCH_BYTES = 16, 2**28  # frames; of their pixels and probability maps
_OTHER_INTENSITY = (
    "the adapter has intensity settings (bits, window or percentiles), and frames of DICOM files are read without "
    "them; give a manifest of `dinomed scan`, which reads the first frame of each file by these settings"
)
_DIGITS = 16  # of the hash that stands for a video in the plan


def predict_videos(
    predictor: Predictor,
    videos: Sequence[Path],
    groups: Sequence[str],
    out: str | Path,
    *,
    fps: float | None = None,
    step: int | None = None,
    draw: DrawMask,
    mask: TextMask | None = None,
    overwrite: bool = False,
    rule: AbstentionRule | None = None,
    seg: VideoSegOptions | None = None,
) -> VideoPredictionResult:
    """Predict the frames of videos.

    GROUP/predictions.csv has a row for each frame, GROUP/summary.json one answer for the video, beside a plot and the
    videos of the task. summary.json holds the answers of all. The folder is filled at the
    end. After an interruption the same call keeps the finished videos.

    Args:
        predictor: result of `load_adapter`.
        videos: paths of the videos.
        groups: folder of each video in `out`.
        out: output folder.
        fps: read so many frames a second, as near as a whole step between frames comes to it; None for every frame.
        step: read every `step`-th frame.
        draw: draws the outline of a mask on a frame.
        mask: masks burned-in text in the frames of the overlay videos.
        overwrite: replace an earlier result in `out`.
        rule: marks frames of low confidence as abstained; None for no such column.
        seg: of a segmenter and DICOM files, also write a DICOM segmentation of each file.

    Raises:
        UsageError: the task or the adapter does not predict videos, or writes none whose text can be masked, or no
            masks for `seg`; `fps` or `step` is out of range; or `out` is in use, holds finished videos of an
            interrupted call with other settings, or another file at the path of a result.
        DinomedError: no video has a frame that can be read, or nothing can be written.
    """
    check_rate(fps, step)
    shown = draw if mask is None else lambda frame, outline: draw(mask(frame), outline)
    out, build = Path(out), _answer_builder(predictor, shown, seg)
    first = build()
    if mask is not None and not first.shows_frames:
        title = find_task(predictor.task).title
        raise UsageError(f"`mask_text=True`: a {title} writes no overlay videos; leave it out")
    settings = _settings(predictor, videos, groups, fps, step) | ({} if rule is None else {"abstain": rule.threshold})
    settings |= ({} if mask is None else {"mask_text": True}) | ({} if seg is None else seg.settings)
    problems: list[tuple[str, str]] = []
    answers: list[dict[str, Any]] = []
    if not overwrite:
        _check_unfinished(out, settings)
    with open_output_folder(out, marker=PLAN_FILE, overwrite=overwrite, keep=[PLAN_FILE, *groups]) as stage:
        earlier = own_files(out, read_plan(out))
        names = _file_names(first)
        check_not_taken(out, [SUMMARY_FILE, *(f"{group}/{name}" for group in groups for name in names)], earlier)
        check_not_taken(out, [group for group in groups if not (out / group).is_dir()], earlier)
        kept = _keep_finished(stage, settings, groups)
        for path, group in zip(videos, groups, strict=True):
            if group not in kept:
                _predict_video(predictor, path, build(), rule, stage / group, group, (fps, step), problems, mask)
            if (stage / group / SUMMARY_FILE).exists():
                answers.append(read_json(stage / group / SUMMARY_FILE))
                problems += [(str(path), reason) for reason in answers[-1]["problems"]]
        for name, reason in problems:
            logger.warning(f"{name}: {reason}")
        if not answers:
            shutil.rmtree(stage)
            more = f"none of {len(videos)} videos can be read; the first: " if len(videos) > 1 else ""
            raise DinomedError(f"{more}{problems[0][0]}: {problems[0][1]}")
        named = dict(zip(map(str, videos), groups, strict=True))
        failed = [{"video": named[name], "reason": reason} for name, reason in problems]
        head = {"notice": RESEARCH_USE, "task": predictor.task}
        write_json(stage / SUMMARY_FILE, head | {"videos": answers, "problems": failed})
        files = [f"{answer['video']}/{name}" for answer in answers for name in answer["files"]]
        PredictionPlan(settings, (*files, SUMMARY_FILE), complete=True).write(stage)
        publish(stage, out, [*files, SUMMARY_FILE, PLAN_FILE], remove=[PLAN_FILE, *earlier])
    frames = sum(answer["frames"] for answer in answers)
    counts = None if mask is None else _count_masked(answers)
    return VideoPredictionResult(
        out, frames, len(kept), problems, rule=rule, groups=named, answers=answers, masked_text=counts,
        abstained=sum(answer.get("frames_abstained", 0) for answer in answers),
        abstained_videos=sum(answer.get("abstained", False) for answer in answers),
        abstention=None if rule is None else first.describe_abstention(rule),
    )  # fmt: skip


def _predict_video(
    predictor: Predictor, path: Path, answer: VideoAnswer, rule: AbstentionRule | None, folder: Path, group: str,
    rate: tuple[float | None, int | None], problems: list[tuple[str, str]],
    mask: TextMask | None = None,
) -> None:  # fmt: skip
    """Write the folder of a video, its summary last. A video without a prediction gets none, and a problem instead."""
    before, checks = {} if mask is None else mask.record(), FrameChecks(rule, answer.abstains_by)
    try:
        video = Video(path)
        if video.facts.container == "DICOM" and not predictor.backbone.preprocessing.intensity.is_plain:
            raise UnreadableImage(path, _OTHER_INTENSITY)
        reader = FrameReader(video, choose_step(video.facts.fps, *rate), answer.wanted_frames)
        answer.begin(path)
        folder.mkdir()
        facts = video.facts
        with answer.writing(folder, (facts.height, facts.width), facts.fps / reader.step):
            rows = _predict_frames(len(predictor.classes), reader, answer, checks, group)
            if not answer.frames:
                reason = reader.problem or next((row[-1] for row in rows), "no frame can be decoded")
                raise UnreadableImage(path, reason)
    except UnreadableImage as error:
        shutil.rmtree(folder, ignore_errors=True)
        problems.append((str(path), error.reason))
        return
    facts, lost = video.facts, len(rows) - len(answer.frames)
    reasons = [reason for reason in (reader.problem, facts.problem) if reason is not None]
    reasons += answer.finish(folder, reasons[0] if reasons else None)
    if lost:
        reasons.append(f"{lost:,} frames have no prediction; the column problem of {group}/{TABLE_FILE} says why")
    write_csv(folder / TABLE_FILE, ["frame", "time_s", *answer.columns, *checks.columns, "problem"], rows)
    write_drawing(answer.plot(), folder / answer.plot_file, "")
    summary = {
        "notice": RESEARCH_USE, "video": group, "frames": len(answer.frames), "frames_without_prediction": lost,
        "width": facts.width, "height": facts.height, "source_frames": facts.frames, "source_fps": facts.fps,
        "step": reader.step, "fps": facts.fps / reader.step, **answer.summarize(),
        **checks.summarize(answer.confidence_of_video),
        "problems": reasons, "note": facts.note, "files": _file_names(answer),
    }  # fmt: skip
    if mask is not None:
        summary["frames_with_masked_text"] = mask.images_with_text - before["images_with_text"]
        summary["regions_of_masked_text"] = mask.regions - before["regions"]
    write_json(folder / SUMMARY_FILE, summary)


def _count_masked(answers: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the counts of masked text in the overlay videos, also of those that an interrupted call wrote."""
    names = {"images": "frames", "images_with_text": "frames_with_masked_text", "regions": "regions_of_masked_text"}
    return {name: sum(answer.get(column, 0) for answer in answers) for name, column in names.items()}


def _predict_frames(
    classes: int, reader: FrameReader, answer: VideoAnswer, checks: FrameChecks, group: str
) -> list[Row]:
    """Predict and write the frames of a video; return the rows of its table."""
    facts, rows = reader.video.facts, list[Row]()
    empty = len(answer.columns) + len(checks.columns)
    bytes_a_frame = facts.width * facts.height * (3 + 5 * max(classes, 1))
    with bar(f"frames of video {group}", reader.total) as progress:
        for batch in batched(reader, max(1, min(_BATCH, _BATCH_BYTES // bytes_a_frame))):
            frames = [frame for frame in batch if isinstance(frame, VideoFrame)]
            kept, results, reasons = compute_finite(_predictions_of(answer, frames), len(frames))
            predictions = {frames[i].number: result for i, result in zip(kept, results or [], strict=True)}
            not_finite = {frames[i].number: reason for i, reason in reasons.items()}
            for frame in batch:
                if frame.number in predictions and isinstance(frame, VideoFrame):
                    prediction, familiarity = predictions[frame.number]
                    cells = answer.add(frame, prediction)
                    confidence = None if checks.by_frame is None else answer.confidence(prediction)
                    cells += checks.add(familiarity, confidence)
                    rows.append([frame.number, f"{frame.time_s:.3f}", *cells, None])
                    continue
                answer.add_lost()
                if isinstance(frame, VideoFrame):
                    time_s, reason = f"{frame.time_s:.3f}", not_finite[frame.number]
                else:
                    time_s, reason = None, frame.reason
                rows.append([frame.number, time_s, *[None] * empty, reason])
            progress.advance(len(batch))
    return rows


def _file_names(answer: VideoAnswer) -> list[str]:
    """Return the names of the files in the folder of a video."""
    return [TABLE_FILE, answer.plot_file, *answer.video_files, *answer.other_files, SUMMARY_FILE]


def _predictions_of(answer: VideoAnswer, frames: Sequence[VideoFrame]) -> Callable[[list[int]], list[Any]]:
    return lambda rows: answer.predict([frames[row] for row in rows])


def _answer_builder(
    predictor: Predictor, draw: DrawMask, seg: VideoSegOptions | None = None
) -> Callable[[], VideoAnswer]:
    """Return what makes the answer of a video; raise a `UsageError` if the adapter does not predict videos, or with
    `seg` no masks."""
    task = find_task(predictor.task)
    if not task.video_answer:
        raise UsageError(
            f"a {task.title} predicts no videos; write frames by `dinomed frames VIDEO -o DIR`, and predict "
            "DIR/manifest.csv"
        )
    kind: Callable[..., VideoAnswer] = resolve_name(task.video_answer)

    def build() -> VideoAnswer:
        answer = kind(predictor, draw)
        if seg is not None:
            answer.add_dicom_seg(seg)
        return answer

    return build


def _settings(
    predictor: Predictor, videos: Sequence[Path], groups: Sequence[str], fps: float | None, step: int | None
) -> dict[str, Any]:
    """Return the settings that decide over the result. A hash stands for the path, size and time of each video."""
    marks = []
    for path in videos:
        status = os.stat(path)
        mark = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        marks.append(hashlib.sha256(mark.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS])
    return {
        "task": predictor.task,
        "classes": list(predictor.classes),
        "adapter": predictor.metadata["weights_sha256"],
        "usage": predictor.metadata.get("usage"),
        "threshold": predictor.metadata.get("threshold"),
        "backbone": predictor.backbone.fingerprint,
        "videos": dict(zip(groups, marks, strict=True)),
        "fps": fps,
        "step": step,
        "version": version("dinomed"),
    }


def _check_unfinished(out: Path, settings: dict[str, Any]) -> None:
    """Raise a `UsageError` if an interrupted call with other settings has finished videos, which would be lost."""
    check_free(out)
    stage = out / STAGE
    try:
        old = read_plan(stage)
    except DinomedError:
        return
    is_whole = (stage / READY_FILE).exists()  # it is moved to its place first
    if old is not None and old.settings != settings and not is_whole and any(stage.glob(f"*/{SUMMARY_FILE}")):
        raise UsageError(
            f"output folder {out} holds an unfinished prediction by another adapter, of other videos or with other "
            "settings; add `overwrite=True` to replace it"
        )


def _keep_finished(stage: Path, settings: dict[str, Any], groups: Sequence[str]) -> list[str]:
    """Return the videos that an interrupted call with the same settings has finished; remove everything else."""
    try:
        old = read_plan(stage)  # with all files, if the call ended before they were moved
    except DinomedError:
        old = None
    same = old is not None and old.settings == settings
    kept = [group for group in groups if same and (stage / group / SUMMARY_FILE).is_file()]
    for path in stage.iterdir():
        if path.name not in (PLAN_FILE, *kept):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    PredictionPlan(settings, ()).write(stage)
    if kept:
        logger.info(f"{len(kept)} of {len(groups)} videos are done already")
    return kept
