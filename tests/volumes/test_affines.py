"""NIfTI files whose sform and qform contradict each other: a warning, and the sform as in nibabel."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from dinomed.volumes.find import find_volumes
from dinomed.volumes.read import Volume, read_volume

nibabel = pytest.importorskip("nibabel")
made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_nifti = made["numbers"], made["write_nifti"]
SHAPE = (6, 5, 4)
TILTED = np.array([[1.9, 0.1, 0.3, -20], [-0.1, 3.0, 0.2, 15], [-0.2, -0.1, 5.0, 30], [0, 0, 0, 1]])


def read(path: Path) -> Volume:
    (source,) = find_volumes([path]).sources
    return read_volume(source)


def test_a_sform_and_a_qform_that_contradict_each_other_give_a_warning_and_the_sform_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write(name: str, qform: np.ndarray, codes: tuple[int, int] = (1, 1)) -> Path:
        image = nibabel.Nifti1Image(numbers(SHAPE), TILTED)
        image.set_sform(TILTED, code=codes[0])
        image.set_qform(qform, code=codes[1], strip_shears=True)
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    straight = np.diag([2.0, 3.0, 5.0, 1.0])
    straight[:3, 3] = -20, 15, 30
    near = nibabel.Nifti1Image(numbers(SHAPE), straight)
    near.set_qform(straight, code=1)
    near.set_sform(straight + 0.001, code=1)  # programs round
    nibabel.save(near, tmp_path / "rounded.nii")
    for path in (tmp_path / "rounded.nii", write("one.nii", straight, (1, 0)), write("other.nii", straight, (0, 1))):
        read(path)
        assert caplog.records == [], path
    shifted = TILTED.copy()
    shifted[0, 3] += 7
    for name, qform in (("shifted.nii.gz", shifted), ("mirrored.nii.gz", straight @ np.diag([-1, 1, 1, 1.0]))):
        path = write(name, qform, (2, 1))
        volume = read(path)
        (record,) = caplog.records
        assert str(path) in record.message
        assert "sform (code 2) and qform (code 1) contradict each other" in record.message
        assert "\n" not in record.message
        assert np.array_equal(volume.grid.affine, nibabel.load(path).affine)
        caplog.clear()
    header = {"qform_code": 1, "quatern_b": 5.0}  # no rotation
    write_nifti(tmp_path / "broken.nii", numbers(SHAPE), TILTED, **header)
    assert np.array_equal(read(tmp_path / "broken.nii").grid.affine, nibabel.load(tmp_path / "broken.nii").affine)
    assert caplog.records == []
