"""Settings: JSON Schemas that accept every config of dinomed and refuse mistakes, resolved configs, differences."""

import json
from pathlib import Path

import pytest

import dinomed
from dinomed.apps import cli
from dinomed.apps.api.configs import config_jobs
from dinomed.apps.commands.config import schema as schema_command
from dinomed.config import read_yaml
from dinomed.errors import UsageError

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def files_with_jobs() -> list[tuple[str, Path]]:
    jobs = {"pretrain": "pretrain", "ablations": "pretrain", "curation": "curate"}
    return [(jobs.get(path.parent.name, path.stem.partition("_")[0]), path) for path in sorted(CONFIGS.rglob("*.yaml"))]


@pytest.mark.parametrize(("job", "path"), files_with_jobs(), ids=lambda value: getattr(value, "stem", value))
def test_every_config_is_valid_by_the_schema_of_its_job(job: str, path: Path) -> None:
    jsonschema.validate(read_yaml(path), dinomed.config_schema(job))


def test_a_schema_refuses_what_dinomed_refuses() -> None:
    mistakes = [
        ("pretrain", {"optimizer": {"lerning_rate": 1}}),
        ("pretrain", {"run": {"steps": -1}}),
        ("classify", {"head": {"name": "no_such_head"}}),
        ("classify", {"head": {"name": "linear", "no_such_setting": 1}}),
        ("segment", {"fit": {"epochs": "many"}}),
        ("curate", {"seed": -1}),
        ("audit", {"near": "perhaps"}),
    ]
    for job, data in mistakes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, dinomed.config_schema(job))
    jsonschema.validate({"augment": "none", "tune": "lora:4"}, dinomed.config_schema("classify"))


def test_every_job_has_a_schema_that_is_itself_valid() -> None:
    for job in config_jobs():
        schema = dinomed.config_schema(job)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "base" in schema["properties"]
    with pytest.raises(UsageError, match="no settings of 'pretrian'; did you mean 'pretrain'"):
        dinomed.config_schema("pretrian")


def test_a_shown_config_is_read_back_to_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for job, name in (("pretrain", "vit_tiny_cpu"), ("segment", "segment_unet"), ("curate", "video")):
        cli.invoke(["config", "show", job, name, "--set", "seed=5" if job != "pretrain" else "run.seed=5"])
        (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
        again = dinomed.resolve_config(job, tmp_path / "shown.yaml")
        assert dinomed.compare_configs(job, tmp_path / "shown.yaml", tmp_path / "shown.yaml") == []
        different = {row["setting"]: row for row in dinomed.compare_configs(job, tmp_path / "shown.yaml", name)}
        assert set(different) == {"run.seed" if job == "pretrain" else "seed"}
        assert (again["run"] if job == "pretrain" else again)["seed"] == 5


def test_the_difference_of_two_configs_names_settings_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    cli.invoke(["config", "diff", "segment", "segment_unet", "segment", "--json"])
    report = json.loads(capsys.readouterr().out)
    heads = [row for row in report["differences"] if row["setting"] == "head.name"]
    assert heads == [{"setting": "head.name", "first": "unet", "second": "linear"}]
    cli.invoke(["config", "diff", "segment", "segment_unet"])
    assert "settings differ" in capsys.readouterr().out


def test_the_config_of_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "adapter.yaml").write_text("seed: 7\n")
    assert dinomed.resolve_config("classify", tmp_path)["seed"] == 7
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no config \(config.yaml or adapter.yaml\)"):
        dinomed.resolve_config("classify", tmp_path / "empty")


def test_a_schema_is_written_to_a_file(tmp_path: Path) -> None:
    cli.invoke(["config", "schema", "classify", "-o", str(tmp_path / "classify.json")])
    cli.invoke(["config", "schema", "classify", "-o", str(tmp_path / "classify.json")])  # an earlier one is replaced
    schema = json.loads((tmp_path / "classify.json").read_text())
    assert {head["properties"]["name"]["const"] for head in schema["properties"]["head"]["anyOf"]} >= {"linear", "knn"}
    (tmp_path / "labels.csv").write_text("image,label\n")
    with pytest.raises(UsageError, match="exists and is no JSON Schema"):
        schema_command("classify", tmp_path / "labels.csv")


@pytest.mark.parametrize("job", ["pretrain", "curate", "audit", "classify", "segment", "depth"])
def test_every_setting_has_a_description(job: str) -> None:
    schema = dinomed.config_schema(job)
    tables = [schema, *schema["$defs"].values(), *schema["properties"].get("head", {}).get("anyOf", [])]
    settings = [(table["title"], name, row) for table in tables for name, row in table.get("properties", {}).items()]
    assert len(settings) > 20  # the tables of all stages are there
    assert [f"{title}: {name}" for title, name, row in settings if len(row.get("description", "")) < 2] == []


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("pretrain", "--data", "DATA", "vit_tny"), "did you mean 'vit_tiny_cpu'?"),
        (("pretrain", "--data", "DATA", "pretrain/vit_tinycpu.yaml"), "did you mean 'vit_tiny_cpu'?"),
        (("curate", "--pool", "DATA", "--config", "xyz"), "known: clean_only, default, no_queries, video"),
        (("train", "segment", "-b", "B", "--data", "DATA", "--config", "segment-dpt"), "did you mean 'segment_dpt'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_config_that_does_not_exist_is_refused_with_names(
    arguments: tuple[str, ...], remedy: str, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"DATA": str(lesion_manifest), "B": str(tiny_backbone)}
    with pytest.raises(SystemExit) as end:
        cli.main([*(places.get(word, word) for word in arguments), "-o", str(tmp_path / "out.parquet")])
    message = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2
    assert f"{arguments[-1]} does not exist; give the path of a YAML file, or a name; {remedy}" in message
    assert not list(tmp_path.iterdir())
