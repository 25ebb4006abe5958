"""Arguments of a wrong type: one line that names the argument and what it takes."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dinomed
from dinomed.arguments import check_arguments, hint_options, resolve_hint
from dinomed.errors import UsageError

FUNCTIONS = [name for name in dinomed.__all__ if not name.startswith("_")]


class Wrong:
    """A type that no function takes."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_argument_of_a_wrong_type_is_named(name: str) -> None:
    function = dinomed.__getattr__(name)
    count = 0
    for parameter in inspect.signature(function).parameters:
        if Any in hint_options(resolve_hint(inspect.unwrap(function), parameter)):
            continue
        with pytest.raises(UsageError, match=f"^`{parameter}` is of type Wrong; give [A-Za-z0-9]") as refused:
            check_arguments(inspect.unwrap(function), (), {parameter: Wrong()})
        assert "typing" not in str(refused.value)
        count += 1
    assert count or not inspect.signature(function).parameters


def refused(name: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UsageError) as error:
        dinomed.__getattr__(name)(*args, **kwargs)
    return str(error.value)


def test_the_message_says_what_is_accepted() -> None:
    assert refused("open_dataset", None) == "`data` is None; give a manifest or a path"
    assert refused("open_dataset", ["a"]) == "`data` is of type list; give a manifest or a path"
    assert refused("scan", b"a") == "`folder` is of type bytes; give a path"
    assert refused("scan", "") == "`folder` is an empty text; give a path"
    assert refused("scan", "a", keep="age") == "`keep` is of type str; give a list of texts"
    assert refused("scan", "a", keep=[3]) == "`keep` is of type list; give a list of texts"
    assert refused("scan", "a", keep=None) == "`keep` is None; give a list of texts"
    assert refused("scan", "a", ratios=3) == "`ratios` is of type int; give a list of numbers or None"
    assert refused("scan", "a", seed="x") == "`seed` is of type str; give a whole number"
    assert refused("search", "a", "b", k=1.5) == "`k` is of type float; give a whole number"
    assert refused("train", "classify", "b", "c", "d", settings=[3]).startswith(
        "`settings` is of type list; give a mapping"
    )
    assert refused("load_backbone", "a", device=3) == "`device` is of type int; give a text or a torch.device"


@pytest.mark.parametrize("path", ["x" * 256, "x/" * 2500, "ä" * 128])
def test_a_path_that_no_system_opens_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        (tmp_path / path).exists() or (tmp_path / path).stat()
    assert refused("scan", path).startswith(f"`folder` is a path of {len(path):,} characters; a path has at most")
    assert "`out` is a path" in refused("scan", tmp_path, out=Path(path))
    assert "does not exist" in refused("scan", "x" * 255)


def test_other_forms_of_accepted_values_pass(tmp_path: Path) -> None:
    import torch

    for function, values in (
        ("search", {"k": np.int64(3), "out": None, "where": ("a=1",), "device": "cpu"}),
        ("scan", {"ratios": np.array([0.7, 0.1, 0.2]), "fps": np.float32(1), "overwrite": np.bool_(True)}),
        ("load_adapter", {"device": torch.device("cpu"), "folder": tmp_path}),
        ("train", {"settings": {"fit.epochs": 1}, "label": ["a", "b"], "unit": "x"}),
    ):
        check_arguments(inspect.unwrap(dinomed.__getattr__(function)), (), values)
    with pytest.raises(TypeError, match="nosuch"):
        dinomed.scan("a", nosuch=1)  # type: ignore[call-arg]
