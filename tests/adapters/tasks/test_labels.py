"""Labels in columns: one class, several labels in a cell or in several columns, and every kind of error."""

from pathlib import Path

import numpy as np
import pytest

from dinomed.adapters.tasks.classify.labels import LabelColumns, prevalence
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.errors import UsageError


def table(**columns: list[str | None]) -> Manifest:
    n = len(next(iter(columns.values())))
    fixed = {"width": [8] * n, "height": [8] * n, "bytes": [1] * n, "mode": ["RGB"] * n, "format": ["PNG"] * n}
    names = {"image": [f"{i}.png" for i in range(n)], "sha256": [f"{i:064x}" for i in range(n)]}
    return build_manifest({**names, **fixed, **columns}, Path("."))


def test_several_labels_in_a_cell() -> None:
    manifest = table(finding=["a|b", "b", None, " a | c ", "b|"])
    columns = LabelColumns(("finding",), "|")
    rows = columns.usable(manifest)
    assert len(rows) == 4
    names = columns.names(rows)
    targets, wide = columns.read_targets(rows, names, "train")
    assert names == wide == ["a", "b", "c"]
    assert targets.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert prevalence(targets, names) == {"a": 2, "b": 3, "c": 1}


def test_a_label_that_is_not_in_train_gets_a_column_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    targets, wide = LabelColumns(("f",), "|").read_targets(table(f=["a|z", "a"]), ["a", "b"], "test")
    assert wide == ["a", "b", "z"]
    assert targets.tolist() == [[1, 0, 1], [1, 0, 0]]
    errors = capsys.readouterr().err
    assert "label 'z' (1 times), unknown to training" in errors
    assert "no image of label 'b'" in errors


def test_labels_of_which_an_adapter_knows_none_are_refused() -> None:
    single, several = LabelColumns(("f",)), LabelColumns(("f",), "|")
    for columns, cells in ((single, ["Nevus", "Melanoma"]), (several, ["Nevus|Melanoma", "Nevus"])):
        rows = table(f=cells)
        columns.check_known(rows, ["Nevus", "x"], "test")
        with pytest.raises(UsageError, match=r"no image of split 'test' .* 'nevus', 'x'; .* 'Melanoma', 'Nevus'"):
            columns.check_known(rows, ["nevus", "x"], "test")
    LabelColumns(("a", "b")).check_known(table(a=["0"], b=["0"]), ["a", "b"], "test")  # no label is present


def test_empty_cells_in_columns_of_0_and_1_are_unknown_labels() -> None:
    manifest = table(a=["1", "0.0", None, "true"], b=["0", None, None, "1.0"])
    columns = LabelColumns(("a", "b"))
    rows = columns.usable(manifest)
    assert len(rows) == 3  # the third knows nothing
    targets, _ = columns.read_targets(rows, columns.names(rows), "train")
    np.testing.assert_array_equal(targets, [[1, 0], [0, np.nan], [1, 1]])


def test_invalid_labels_raise_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="column 'b' holds '-1'"):
        LabelColumns(("a", "b")).usable(table(a=["1"], b=["-1"]))
    with pytest.raises(UsageError, match="no column 'c'"):
        LabelColumns(("a", "c")).usable(table(a=["1"]))
    with pytest.raises(UsageError, match="nothing to learn"):
        LabelColumns(("a", "b")).names(table(a=["1", "1"], b=["0", "0"]))
    LabelColumns(("a", "b")).names(table(a=["1", "1"], b=["0", "1"]))
    assert "label 'a' has one value only" in capsys.readouterr().err


def test_columns_that_hold_no_labels_or_none_of_train_are_refused() -> None:
    with pytest.raises(UsageError, match=r"column 'group' holds no labels \(columns that may: a\)"):
        LabelColumns(("group",)).usable(table(a=["1"], group=["p"]))
    with pytest.raises(UsageError, match=r"no column 'c', 'd' for labels a, c, d \(columns: a\)"):
        LabelColumns(("a", "c", "d")).usable(table(a=["1"]))
    with pytest.raises(UsageError, match="label 'b': unknown for every training image; leave it out"):
        LabelColumns(("a", "b")).names(table(a=["1", "0"], b=[None, None]))


def test_a_separator_that_no_cell_contains_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert LabelColumns(("f",), "|").names(table(f=["a", "b"])) == ["a", "b"]
    assert "no cell of column 'f' holds the separator '|'" in capsys.readouterr().err
    LabelColumns(("f",), "|").names(table(f=["a|b", "b"]))
    assert "no cell" not in capsys.readouterr().err


def test_classes_that_may_be_several_labels_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    columns = LabelColumns(("f",))
    assert columns.names(table(f=["oedema", "effusion | oedema", "none"])) == ["effusion | oedema", "none", "oedema"]
    assert "class 'effusion | oedema' is treated as a class of its own, but may be" in capsys.readouterr().err
    columns.names(table(f=["nevus, benign", "nevus, atypical", "melanoma"]))  # a comma in a name separates nothing
    columns.names(table(f=["a|b", "|", "c"]))
    assert "may be several labels" not in capsys.readouterr().err


def test_one_column_without_a_separator_is_a_class() -> None:
    columns = LabelColumns(("label",))
    rows = columns.usable(table(label=["x", "y", None, "x"]))
    targets, names = columns.read_targets(rows, columns.names(rows), "train")
    assert (targets.tolist(), names, columns.multilabel) == ([0, 1, 0], ["x", "y"], False)
