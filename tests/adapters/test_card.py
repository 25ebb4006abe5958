"""The model card: valid front matter, all required statements, and no private information."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from dinomed.adapters.card import build_card
from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import find_task
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest

DATA = {
    "train": {"images": 1200, "manifest": "a" * 64},
    "val": {"images": 150, "manifest": "b" * 64},
    "val_made_here": True,
    "by_group": True,
}


def record(**changes: Any) -> AdapterRecord:
    values: dict[str, Any] = {
        "task": "classify",
        "head": {"name": "linear", "blocks": [-1]},
        "classes": ("a|b <script>", "mel"),
        "usage": {"temperature": 1.234, "unit": "image"},
        "backbone": {"name": "dinov2_vits14", "fingerprint": "f" * 64, "embed_dim": 384},
        "preprocessing": Preprocessing(image_size=56),
        "validation": {"n": 150, "auroc": 0.87654, "ece": float("nan"), "per_class": {"mel": {"n": 3}}},
        "training": {"data": DATA, "classes": {"a|b <script>": 1188, "mel": 12}, "written": "2026-01-01"},
        "weights_sha256": "0" * 64,
    }
    return AdapterRecord.model_validate({**values, **changes})


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_front_matter_is_that_of_the_hub() -> None:
    front = front_matter(build_card(record()))
    assert front["pipeline_tag"] == "image-classification"
    metrics = {row["type"]: row["value"] for row in front["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"n": 150, "auroc": 0.8765}  # what is undefined is left out


def test_the_card_states_data_split_licence_metrics_and_limits() -> None:
    card = build_card(record())
    expected = ["research use only", "| train | 1,200 | `aaaaaaaaaaaaaaaa` |", "Split by group", "set aside from train"]
    expected += ["Apache-2.0", "| auroc | 0.877 |", "1.234", "Fewer than 30 training examples of: mel"]
    for part in expected:
        assert part.lower() in card.lower(), part
    assert "may be in two splits" in build_card(record(training={"data": {**DATA, "by_group": False}}))


def test_local_weights_have_an_unknown_licence_and_their_path_is_not_in_the_card() -> None:
    backbone = {"name": "ssl", "path": "../../secret/place", "fingerprint": "f" * 64, "embed_dim": 8}
    card = build_card(record(backbone=backbone))
    assert "unknown: it depends" in card
    assert "Apache" not in card
    assert "secret" not in card


def test_a_class_name_is_escaped_in_tables_and_html() -> None:
    card = build_card(record())
    assert "<script>" not in card.split("---\n", 2)[2]
    assert "a\\|b" in card


def test_the_threshold_of_a_segmenter_has_its_origin() -> None:
    def member(origin: str, threshold: float) -> AdapterRecord:
        usage = {"thresholds": [threshold], "thresholds_origin": origin, "mask_schema": None, "views": {}}
        return record(task="segment", classes=("lesion",), usage=usage, threshold=threshold)

    assert "| threshold | 0.5, fixed, since val has few groups |" in build_card(member("fixed", 0.5))
    assert "| threshold | 0.35, chosen on val |" in build_card(member("val", 0.35))
    manifest = Manifest(pa.table({"image": ["a"]}), Path())
    evaluated = EvaluatedValues(manifest, ["a"], {"dice": np.ones(1)}, lambda rows: {}, cases=[{"lesion": None}])
    for origins, text in (
        (("val", "val"), "0.3, the mean of the members' thresholds"),
        (("val", "fixed"), "0.4, the mean of the members' thresholds"),
        (("fixed", "fixed"), "0.5, fixed, since val has few groups"),
    ):
        members = [member(origin, 0.3 if origin == "val" else 0.5) for origin in origins]
        use = find_task("segment").combine_use(members, [evaluated])
        card = build_card(record(task="segment", classes=("lesion",), usage=use.usage, threshold=use.threshold))
        assert f"| threshold | {text} |" in card


def test_the_card_says_whether_unlike_images_are_recognised() -> None:
    for stored, problem in ((True, None), (True, "no controls"), (False, "3 groups")):
        card = build_card(record(training={"data": DATA, "unlike_check": {"stored": stored, "problem": problem}}))
        assert ("The bundle holds mean features" in card) == stored
        assert ("images that are unlike them are recognised" in card) == (problem is None)
        assert problem is None or f"unlike the training images are not recognised: {problem}." in card
    assert "not recognised: no features of the training images are stored." in build_card(record())


def test_other_tasks_and_old_records_have_a_card_too() -> None:
    segment = build_card(record(task="segment", classes=("lesion",), usage={}, threshold=0.35, training={}))
    assert "| threshold | 0.35, chosen on val |" in segment
    assert front_matter(segment)["pipeline_tag"] == "image-segmentation"
    assert front_matter(build_card(record(task="depth", classes=("depth",))))["pipeline_tag"] == "depth-estimation"
