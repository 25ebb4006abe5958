"""Records of adapters with values that no fit writes are refused with one line."""

from types import SimpleNamespace
from typing import Any

import pytest

from dinomed.adapters.tasks.classify.answer import answer_from
from dinomed.errors import DinomedError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", 1e-40),  # logits divided by it are infinite
        ("temperature", -1.5),
        ("temperature", 1e9),
        ("temperature", "warm"),
        ("frames", -1),
        ("width", 0),
        ("unit", "hospital"),
        ("columns", 7),
    ],
)
def test_a_setting_out_of_its_range_is_refused(name: str, value: Any) -> None:
    record: Any = SimpleNamespace(usage={name: value})
    with pytest.raises(DinomedError, match=rf"^the record of the adapter is damaged: usage\.{name}: .*; train again$"):
        answer_from(record)
