"""Values that no function can use: one line, and nothing is computed."""

from pathlib import Path

import numpy as np
import pytest

import dinomed
from dinomed.errors import UsageError


def test_one_image_in_place_of_a_list_is_not_predicted_row_by_row(user_folder: Path) -> None:
    predictor = dinomed.load_adapter(user_folder / "cls", backbone=user_folder / "ssl")
    picture = np.zeros((48, 36, 3), np.uint8)
    with pytest.raises(UsageError, match="`images` is one ndarray; give a list"):
        predictor.predict(picture)
    assert len(predictor.predict([picture])) == 1


def test_numbers_out_of_range_are_named(user_folder: Path, tmp_path: Path) -> None:
    data = user_folder / "derm.parquet"
    with pytest.raises(UsageError, match="`resamples=0`: give 1 or more"):
        dinomed.evaluate(user_folder / "cls", data, resamples=0)
    with pytest.raises(UsageError, match="`adapter` is empty"):
        dinomed.evaluate([], data)
    with pytest.raises(UsageError, match="`gem_power=nan`: give 1 to 64"):
        dinomed.build_index(user_folder / "ssl", data, tmp_path / "idx", pool="gem", gem_power=float("nan"))
    with pytest.raises(UsageError, match="`workers=-1`: give 1 or more"):
        dinomed.scan(user_folder / "lesions", workers=-1)
    with pytest.raises(UsageError, match="an empty list holds no video"):
        dinomed.frames([], tmp_path / "frames")
    index = dinomed.load_index(user_folder / "idx", backbone=user_folder / "ssl")
    with pytest.raises(UsageError, match="`k` is of type float; give a whole number"):
        index.search(np.zeros((48, 36, 3), np.uint8), k=1.5)  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())
