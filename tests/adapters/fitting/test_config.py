"""Settings of fits: defaults, files and refused values."""

from pathlib import Path

import pytest

from dinomed.adapters.fitting.config import adapter_class
from dinomed.adapters.heads.linear import LinearClassifier, LinearSegmenter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.config import load_config, to_yaml
from dinomed.errors import UsageError

KINDS = {"classify": ClassifyConfig, "segment": SegmentConfig, "depth": DepthConfig}
CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "adapters"


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_the_base_files_are_the_defaults(name: str, kind: type) -> None:
    assert load_config(kind, CONFIGS / f"{name}.yaml") == kind()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    kind = KINDS[path.stem.partition("_")[0]]
    config = load_config(kind, path)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(kind, tmp_path / "again.yaml") == config
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head.name=liner", "did you mean 'linear'"),
        ("head.tokns=mean", "did you mean 'tokens'"),
        ("head.blocks=[]", "head.*blocks"),
        ("fit.epoch=3", "did you mean 'fit.epochs'|did you mean 'epochs'"),
        ("fit.learning_rate=0", "greater than 0"),
        ("image_size=yes", "image_size"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(ClassifyConfig, None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head: {tokns: mean}", "head.yaml: head: unknown key 'tokns'; did you mean 'tokens'?"),
        ("head: {name: nosuch}", "head.yaml: head: classify has no head 'nosuch'; known: "),
        ("head: {name: liner}", "head.yaml: head: classify has no head 'liner'; did you mean 'linear'?"),
        ("head: {blocks: [one]}", "head.yaml: head: blocks.0: "),
        ("head: linear", "head.yaml: head: "),
        ("haed: {name: linear}", "head.yaml: unknown key 'haed'; did you mean 'head'?"),
        ("fit: {epochs: 0}", "head.yaml: fit.epochs: "),
        ("base: gone.yaml", "gone.yaml does not exist; give a path relative to the folder of head.yaml"),
    ],
)
def test_mistakes_in_a_file_name_the_file_and_the_nearest_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(ClassifyConfig, tmp_path / "head.yaml")
    assert f"{tmp_path}/{message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_heads_are_found_by_task_and_name() -> None:
    assert adapter_class("classify", "linear") is LinearClassifier
    assert adapter_class("segment", "linear") is LinearSegmenter
