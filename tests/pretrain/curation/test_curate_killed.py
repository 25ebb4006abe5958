"""Killed in the middle of every stage and started again, a curation ends with the same bytes. So it does with Ray."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STAGES = ("images", "faces", "describe", "search-pool", "check-pool", "search-excluded", "embed", "retrieve", "write")
LIMIT = 900  # seconds: ends a process that hangs; a busy machine needs minutes
# A real process, and a real SIGKILL: when the first new piece of a stage lies there and has no record yet.
CHILD = """
import os, signal, sys
from pathlib import Path
from dinomed.apps import cli
from dinomed.pretrain.curation.output import write as result
from dinomed.io import artifacts

stage, arguments = sys.argv[1], sys.argv[2:]

def killing(function, is_here):
    def call(path, *rest):
        if is_here(Path(path)):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(path, *rest)
    return call

if stage == "write":
    result.write_json = killing(result.write_json, lambda path: True)
else:
    artifacts.write_json = killing(artifacts.write_json, lambda path: path.parent.name == stage)
cli.main(arguments)
"""


def settings(raw: Any) -> list[str]:
    settings = ("retrieval.mode=sample", "retrieval.k=1", "faces.action=drop", "duplicates.threshold=0.9",
            "duplicates.check_from=0.4")  # fmt: skip
    return [*raw.arguments, *(word for setting in settings for word in ("--set", setting)), "-q"]


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "dinomed", *arguments], check=True, timeout=LIMIT, stdout=-3)


def result_of(output: Path) -> dict[str, bytes]:
    stages = output.with_suffix(".stages")
    files = [output, output.with_suffix(".json"), stages / "rows.arrow"]
    # the header of safetensors has no fixed order; what the descriptor gives is compared in vectors.npy
    pieces = [p for p in stages.rglob("*") if p.parent != stages and p.is_file() and "safetensors" not in p.name]
    return {str(path.relative_to(output.parent)): path.read_bytes() for path in (*files, *pieces)}


@pytest.mark.long
def test_killed_in_every_stage_the_result_is_the_same(raw: Any, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole" / "curated.parquet", tmp_path / "broken" / "curated.parquet"
    for output in (whole, broken):
        output.parent.mkdir()
    run(["curate", "-o", str(whole), *settings(raw)])
    for stage in STAGES:
        command = [sys.executable, "-c", CHILD, stage, "curate", "-o", str(broken), *settings(raw)]
        ended = subprocess.run(command, timeout=LIMIT, stdout=-3)
        assert ended.returncode == -signal.SIGKILL, stage
        assert not broken.exists()
    run(["curate", "-o", str(broken), *settings(raw)])
    assert result_of(broken) == result_of(whole)


@pytest.mark.long
def test_both_executors_give_the_same(raw: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    outputs = [tmp_path / name / "curated.parquet" for name in ("local", "ray")]
    for output, engine in zip(outputs, ("local", "ray"), strict=True):
        output.parent.mkdir()
        run(["curate", "-o", str(output), *settings(raw), "--engine", engine, "--workers", "2"])
    assert result_of(outputs[0]) == result_of(outputs[1])


class DiesOnce:
    """Work that kills its process the first time."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __call__(self, item: int) -> Any:
        import os

        import pyarrow as pa

        if item == 3:
            try:
                os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return pa.table({"row": [item]})
            os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({"row": [item]})


@pytest.mark.long
def test_a_worker_that_dies_loses_and_doubles_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ray = pytest.importorskip("ray")
    from dinomed.pretrain.curation.runtime.ray_executor import RayExecutor

    ray.cloudpickle.register_pickle_by_value(sys.modules[DiesOnce.__module__])  # workers do not know the tests
    engine = RayExecutor(workers=1)
    try:
        row_blocks = [table["row"].to_pylist() for table in engine.map(DiesOnce(tmp_path / "died"), range(8))]
    finally:
        engine.close()
    assert row_blocks == [[row] for row in range(8)]
    assert (tmp_path / "died").exists()
    assert "a Ray worker died" in capsys.readouterr().err
