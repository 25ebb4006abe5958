"""`import dinomed` is fast, and exposes the public functions before and after the packages of the same names."""

import inspect
import subprocess
import sys
import typing

import pytest

import dinomed

HEAVY = ("torch", "numpy", "pyarrow", "PIL", "pydantic", "typer", "rich")
MAX_SECONDS = 0.1


def processor_seconds(code: str) -> float:
    """Return the smallest processor time of three fresh interpreters that run `code`, s."""
    script = f"{code}\nimport time; print(time.process_time())"
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    return min(float(run.stdout) for run in runs)


def test_the_import_takes_less_than_a_tenth_of_a_second() -> None:
    # Processor time, and the least of three: it does not grow much on a busy machine, as wall time does.
    assert processor_seconds("import dinomed") - processor_seconds("pass") < MAX_SECONDS


def test_the_import_loads_no_large_library() -> None:
    code = f"import dinomed, sys; dir(dinomed); print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", [name for name in dinomed.__all__ if not name.startswith("_")])
def test_a_public_function_is_typed_and_listed(name: str) -> None:
    function = getattr(dinomed, name)
    assert name in dir(dinomed)
    function = inspect.unwrap(function) if inspect.isfunction(function) else dinomed.__getattr__(name)
    hints = inspect.get_annotations(function)
    assert set(hints) == {*inspect.signature(function).parameters, "return"}


@pytest.mark.parametrize("first", ["dinomed.pretrain", "import_module('dinomed.pretrain.config')"])
def test_pretrain_is_callable_before_and_after_its_package_is_imported(first: str) -> None:
    code = (
        "from importlib import import_module; import dinomed; from dinomed.errors import UsageError\n"
        f"{first}\n"
        "import dinomed.pretrain.config as config; assert config.PretrainConfig\n"
        "try: dinomed.pretrain('no_such_config', 'x', 'y')\n"
        "except UsageError as error: print(error)\n"
        "import sys; assert 'torch' not in sys.modules\n"  # a wrong config is named at once
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no_such_config does not exist" in done.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        typing.cast(typing.Any, dinomed).pretrian  # noqa: B018
