"""Configs: what plain YAML gets wrong, and errors that name the key."""

from pathlib import Path

import pytest

from dinomed.config import Config, build_config, load_config, parse_yaml, read_saved_config, read_yaml, to_yaml
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class Inner(Config):
    learning_rate: float = 1.0
    name: str = "a"


class Outer(Config):
    inner: Inner = Inner()
    steps: int = 1


def test_numbers_and_words_are_what_they_look_like() -> None:
    assert parse_yaml("a: 3e-4\nb: no\nc: true\nd: 12\ne: 2024-01-01", "x") == {
        "a": 3e-4, "b": "no", "c": True, "d": 12, "e": "2024-01-01",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("-07", -7), ("+3", 3), ("0", 0), ("0o17", 15), ("0x1F", 31),
        ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("1_000", "1_000"), ("0b11", "0b11"), ("08", 8), ("!!int '012'", 12),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    (number,) = parse_yaml(f"a: {text}", "x").values()
    assert (number, type(number)) == (value, type(value))


@pytest.mark.parametrize(
    "word", ["010", "1:30", "3e-4", "0o17", "0x1F", "1_000", "no", "true", "12", "2024-01-01", "null", "", "~", "1."]
)
def test_words_that_look_like_numbers_are_written_so_that_they_are_read_back(word: str) -> None:
    assert parse_yaml(to_yaml(Inner(name=word)), "x")["name"] == word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: key 'a' occurs twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: [", "line"),
        ("1: a", "not a string"),
        ("a: !!python/object/apply:os.system [ls]", "line 1"),
        ("x" * 1_000_001, "larger than"),
        ("a: !!int 1:30", "not valid YAML"),
    ],
)
def test_traps_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_yaml(text, "file.yaml")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"f\.yaml: unknown key 'inner\.learning_rte'; did you mean 'learning_rate'\?"):
        build_config(Outer, {"inner": {"learning_rte": 1}}, "f.yaml")


def test_a_delta_lies_over_its_base_and_overrides_over_both(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("steps: 5\ninner: {learning_rate: 2, name: b}")
    (tmp_path / "delta.yaml").write_text("base: base.yaml\ninner: {name: c}")
    config = load_config(Outer, tmp_path / "delta.yaml", ["inner.learning_rate=3e-4"])
    assert config == Outer(steps=5, inner=Inner(learning_rate=3e-4, name="c"))
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(Outer, tmp_path / "again.yaml") == config


def test_a_base_that_comes_back_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: a.yaml")
    with pytest.raises(UsageError, match="form a loop"):
        load_config(Outer, tmp_path / "a.yaml")


RECIPES = sorted(path for folder in ("pretrain", "ablations") for path in (CONFIGS / folder).glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_recipes_are_valid_and_their_comment_has_a_command(path: Path) -> None:
    config = load_config(PretrainConfig, path)
    assert config.backbone.image_size == config.crops.global_size
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(comment) >= 2
    assert any("dinomed " in line or "python benchmarks/" in line or "torchrun " in line for line in comment)


def test_an_ablation_changes_something_and_the_recipe_is_the_papers() -> None:
    base = load_config(PretrainConfig, CONFIGS / "pretrain" / "vit_tiny_cpu.yaml")
    for path in (CONFIGS / "ablations").glob("*.yaml"):
        assert load_config(PretrainConfig, path) != base, path.stem
    paper = load_config(PretrainConfig, CONFIGS / "pretrain" / "dinov2_vitg_long.yaml")
    assert paper.optimizer.peak_lr(paper.run.batch_size) == pytest.approx(3.5e-4, rel=0.02)  # section B.1
    assert paper.run.steps * paper.teacher.temperature_warmup == 37_500
    assert paper.run.steps * paper.optimizer.warmup == 100_000
    assert paper.run.steps * paper.optimizer.freeze_prototypes == 1_250
    for short in ("dinov2", "dinov2_vitl_short", "dinov2_vitb_short"):  # the reference: 10 of 100 epochs
        assert load_config(PretrainConfig, CONFIGS / "pretrain" / f"{short}.yaml").optimizer.warmup == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!bool abc", "not true or false"),
        ("a: !!timestamp abc", "tag"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !!int abc", "not valid YAML"),
        ("a: !!float abc", "not valid YAML"),
        ("a: !!binary abc", "tag"),
    ],
)
def test_tags_end_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_yaml(text, "x.yaml")


def test_a_base_with_a_nul_in_its_name_and_a_device_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('base: "a\\0b"\n')
    with pytest.raises(UsageError, match=r"a\\x00b does not exist; give a path relative to the folder of a\.yaml"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UsageError, match="larger than"):
        read_yaml("/dev/zero")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", "run: {}".encode("utf-16"), "# Größe".encode("latin-1")])
def test_a_file_that_is_no_text_ends_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    for read in (read_yaml, lambda file: read_saved_config(PretrainConfig, file)):
        with pytest.raises(UsageError) as caught:
            read(path)
        assert str(caught.value) == f"config {path} is not UTF-8 text; give a YAML file, saved in UTF-8"
    with pytest.raises(UsageError, match=r"config .* cannot be read: Is a directory$"):
        read_yaml(tmp_path)


def test_true_is_no_number() -> None:
    for setting in ("run.steps=true", "optimizer.lr=false", "mean=[true, 0.5, 0.5]", "run.micro_batch=true"):
        with pytest.raises(UsageError, match="expected a number"):
            load_config(PretrainConfig, None, [setting])
    assert load_config(PretrainConfig, None, ["run.compile=true"]).run.compile


@pytest.mark.parametrize(
    "setting",
    [
        "crops.global_size=1000000", "backbone.embed_dim=1000000", "backbone.depth=100000",
        "objective.dino_head.prototypes=1000000000", "crops.num_local=100000", "crops.blur_sigma=[0, 0]",
    ],
)  # fmt: skip
def test_a_setting_far_out_of_range_is_refused_with_its_name(setting: str) -> None:
    with pytest.raises(UsageError, match=setting.partition("=")[0].rpartition(".")[2]):
        load_config(PretrainConfig, None, [setting])
