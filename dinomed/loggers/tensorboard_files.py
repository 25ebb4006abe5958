"""Logger for TensorBoard: one event file in ``tensorboard/`` of a run."""

import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.io.files import replacing
from dinomed.loggers.logger import LoggedRun, RunLogger

_SETTINGS = "settings"


class TensorBoardFiles(RunLogger):
    """Scalars, images and the settings (as text) for TensorBoard.

    A resumed run gets a new file with the events up to its first step, so no step stands in it twice. Each event is
    written at once: after a kill the file lacks nothing. Unlike those of torch's writer, names of files do not contain
    the name of the machine.
    """

    def __init__(self, run: LoggedRun) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = run.folder / "tensorboard"
        old_files = sorted(folder.glob("events.out.tfevents.*"))
        kept = list(_read_events(old_files, run.first_step)) if run.first_step else []
        self.held = frozenset((value.tag, event.step) for event in kept for value in event.summary.value)
        path = folder / f"events.out.tfevents.{time.time_ns():020d}"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            writer = RecordWriter(file)
            for event in (*_first_events(), *kept):
                writer.write(event.SerializeToString())
            writer.flush()
        for old_file in old_files:
            old_file.unlink()
        self._writer = RecordWriter(open(path, "ab"))  # noqa: SIM115 (closed by `close`)
        if (_SETTINGS, 0) not in self.held and run.parameters:
            self._write(0, _settings_summary(run.parameters))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite values of a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Log an image (rows, columns, 3), uint8."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        rows, columns = pixels.shape[:2]
        image = Summary.Image(height=rows, width=columns, colorspace=3, encoded_image_string=png.getvalue())
        self._write(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
        self._writer.flush()


def _first_events() -> tuple[Any, Any]:
    """Return the two events at the start of a file; by the second an open TensorBoard drops what it read before."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    now = time.time()
    return (
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START)),
    )


def _read_events(paths: list[Path], last_step: int) -> Iterator[Any]:
    """Yield the events with values up to a step, each once; an event that a kill has cut off ends its file.

    After a kill during a resume both the old and the new file may exist.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    seen: set[tuple[str, int]] = set()
    for path in paths:
        for event in LegacyEventFileLoader(str(path)).Load():
            names = {(value.tag, event.step) for value in event.summary.value}
            if event.step <= last_step and names - seen:
                seen |= names
                yield event


def _settings_summary(parameters: Mapping[str, Any]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    table = "".join(f"| {name} | {json.dumps(value)} |\n" for name, value in parameters.items())
    text = TensorProto(dtype="DT_STRING", string_val=[f"| setting | value |\n|---|---|\n{table}".encode()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary(value=[Summary.Value(tag=_SETTINGS, metadata=metadata, tensor=text)])
