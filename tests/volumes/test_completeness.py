"""Hints that a series lacks slices at its ends: one warning by what its headers count, and none without a reason."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from dinomed.volumes.completeness import completeness_hint
from dinomed.volumes.find import find_volumes
from dinomed.volumes.read import read_volume

made = runpy.run_path(str(Path(__file__).with_name("made.py")))
HINT = "slices may be missing (a hint, no proof): "


@pytest.mark.parametrize(
    ("elements", "hint"),
    [
        ({}, None),
        ({"InstanceNumber": lambda k: k}, None),  # from 0
        ({"InstanceNumber": lambda k: k + 5}, "its instance numbers start at 5"),
        ({"InstanceNumber": lambda k: 2 * k + 1}, "5 of its instance numbers from 1 to 11 are missing"),
        ({"InstanceNumber": lambda k: 7}, None),  # of all slices
        ({"ImagesInAcquisition": 6, "AcquisitionNumber": 1}, None),
        (
            {"ImagesInAcquisition": 40, "AcquisitionNumber": 1},
            "its headers state 40 images in the acquisition, and it has 6",
        ),
        ({"ImagesInAcquisition": 40, "AcquisitionNumber": lambda k: k}, None),
        ({"ImagesInAcquisition": 18, "AcquisitionNumber": 1, "NumberOfTemporalPositions": 3}, None),  # one series each
        (
            {"ImagesInAcquisition": 24, "AcquisitionNumber": 1, "NumberOfTemporalPositions": 3},
            "its headers state 24 images in the acquisition, and it has 6",
        ),
    ],
)
def test_a_series_whose_headers_count_more_slices_gives_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, elements: dict[str, Any], hint: str | None
) -> None:
    made["write_series"](tmp_path / "ct", made["numbers"]((6, 5, 4)), **elements)
    (source,) = find_volumes([tmp_path]).sources
    assert read_volume(source).grid.shape == (4, 5, 6)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ([] if hint is None else [f"{source.path}: {HINT}{hint}"])


def test_positions_in_the_stack_of_an_enhanced_image_are_compared() -> None:
    frames = [{"StackID": "1", "InStackPositionNumber": number, "InstanceNumber": 1} for number in (3, 4, 5)]
    assert completeness_hint(frames, 1) == f"{HINT}its positions in the stack start at 3"
    several = [frame | {"StackID": str(number)} for number, frame in enumerate(frames)]
    assert completeness_hint(several, 1) is None
