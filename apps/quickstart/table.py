"""Table of the results of a quickstart: methods in rows, metrics on the test split in columns."""

from typing import Any

COLUMNS = {
    "knn_auroc": "k-NN AUROC",
    "knn_balanced_accuracy": "k-NN bal. acc.",
    "logistic_auroc": "logistic AUROC",
    "logistic_balanced_accuracy": "logistic bal. acc.",
    "dice": "Dice",
}
SYNTHETIC = "synthetic lesions"


def table_of(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the names of columns and the rows; a column without any value is left out."""
    keys = [key for key in COLUMNS if any(key in row for row in results["results"])]
    rows = [[row["method"], *(row.get(key) for key in keys)] for row in results["results"]]
    return ["on the frozen features", *(COLUMNS[key] for key in keys)], rows


def probe_columns(report: dict[str, Any]) -> dict[str, float]:
    """Return the values of the report of ``dinomed probe`` by column."""
    metrics = ("auroc", "balanced_accuracy")
    return {f"{method}_{metric}": report[method][metric] for method in ("knn", "logistic") for metric in metrics}
