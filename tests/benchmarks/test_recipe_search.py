"""The recipe search: its results file, its runs, its choice and its table."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dinomed.datasets.manifest import read_manifest

Row = dict[str, Any]


@pytest.fixture
def search_module(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("recipe_search")


def row(variant: str, auroc: float, dice: float, seed: int = 0, minutes: float = 12) -> Row:
    return {"variant": variant, "minutes": minutes, "seed": seed, "knn": 0.5, "auroc": auroc, "dice_200": dice}


def test_a_cut_line_is_ignored_and_new_lines_are_kept(search_module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    search_module.Results(path).add(kind="run", variant="base")
    with path.open("a") as file:
        file.write('{"kind": "ru\n')
    results = search_module.Results(path)
    results.add(kind="run", variant="muon")
    assert [row["variant"] for row in search_module.Results(path).select(kind="run")] == ["base", "muon"]


def test_the_best_variant_has_the_highest_mean_of_both_metrics(search_module: ModuleType) -> None:
    rows = [row("base", 0.9, 0.7), row("a", 0.8, 0.85), row("b", 0.85, 0.84), row("b", 0.85, 0.82, seed=1)]
    rows.append(row("untrained", 1.0, 1.0))
    assert search_module.choose_best(rows, "dice_200") == ("b", 12)
    text = search_module.table(rows, ["auroc", "dice_200"]).splitlines()
    assert len(text) == 2 + 4
    assert "| b | 12 | 2 | 0.850 (0.850 to 0.850) | 0.830 (0.820 to 0.840) |" in text


def test_steps_fill_the_minutes_and_nothing_is_done_twice(
    search_module: ModuleType, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = SimpleNamespace(now=0.0), list[tuple[int, bool]]()

    def train(config: Any, data: Path, out: Path, *, resume: bool = False, **_: Any) -> None:
        calls.append((config.run.steps, resume))
        clock.now += 5 + 0.5 * config.run.steps  # a constant beside half a second a step

    monkeypatch.setattr(search_module, "pretrain", train)
    monkeypatch.setattr(search_module.time, "process_time", lambda: clock.now)
    monkeypatch.setattr(search_module.Search, "measure", lambda *_: {"knn": 0.5, "auroc": 0.8, "dice_25": 0.7})
    words = ["--data", str(lesion_manifest), "-o", str(tmp_path), "--variants", "base", "muon", "--minutes", "2"]
    words += ["--masks", "25"]
    search_module.main(words)
    assert [steps for steps, _ in calls] == [2, 2] + 3 * [16, 4, 16, 4] + [240, 240]
    table = (tmp_path / "val.md").read_text()
    search_module.main(words)
    assert len(calls) == 16
    assert (tmp_path / "val.md").read_text() == table
    search_module.main([*words, "--scaling", "1,2"])
    assert [steps for steps, _ in calls[16:]] == [120, 120]
    search_module.main([*words, "--test"])
    assert len(calls) == 18  # the finished runs are judged
    assert (tmp_path / "test.md").read_text().count("\n") == 2 + 3 - 1  # base is the best: it has one row


def test_a_variant_that_is_timed_on_a_busier_machine_has_the_same_budget(
    search_module: ModuleType, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0, load=1.0)

    def train(config: Any, data: Path, out: Path, **_: Any) -> None:
        clock.now += clock.load * config.run.steps * (0.25 if config.run.batch_size == 16 else 1)

    monkeypatch.setattr(search_module, "pretrain", train)
    monkeypatch.setattr(search_module.time, "process_time", lambda: clock.now)
    search = search_module.Search(lesion_manifest, lesion_manifest, tmp_path, 96, [25])
    assert search.seconds_per_step("base") == 1
    clock.load = 1.7
    assert search.seconds_per_step("muon") == pytest.approx(1)
    assert search.seconds_per_step("small_batch") == pytest.approx(0.25)


def test_only_the_distilled_variants_have_the_teacher(
    search_module: ModuleType, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, teachers = SimpleNamespace(now=0.0), dict[str, Path | None]()

    def train(config: Any, data: Path, out: Path, *, teacher: Path | None = None, **_: Any) -> None:
        clock.now += config.run.steps
        teachers.setdefault(f"{config.backbone.embed_dim} {config.distill.method}", teacher)

    monkeypatch.setattr(search_module, "pretrain", train)
    monkeypatch.setattr(search_module.time, "process_time", lambda: clock.now)
    monkeypatch.setattr(search_module.Search, "measure", lambda *_: {"knn": 0.5, "auroc": 0.8, "dice_25": 0.7})
    words = ["--data", str(lesion_manifest), "-o", str(tmp_path), "--minutes", "1", "--masks", "25"]
    with pytest.raises(SystemExit, match="distill_features is distilled from a run; name it with --teacher"):
        search_module.main([*words, "--variants", "distill_features"])
    search_module.main([*words, "--variants", "small_student", "distill_features", "--teacher", "runs/large"])
    assert teachers == {"128 heads": None, "64 heads": None, "64 features": Path("runs/large")}


def test_an_interrupted_run_continues_and_its_time_counts(
    search_module: ModuleType, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, resumes = SimpleNamespace(now=0.0), list[bool]()

    def train(config: Any, data: Path, out: Path, *, resume: bool = False, **_: Any) -> None:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        clock.now += config.run.steps
        if config.run.steps > 16:  # no timed run
            resumes.append(resume)
            if not resume:
                raise SystemExit(143)

    monkeypatch.setattr(search_module, "pretrain", train)
    monkeypatch.setattr(search_module.time, "process_time", lambda: clock.now)
    search = search_module.Search(lesion_manifest, lesion_manifest, tmp_path, 96, [25])
    with pytest.raises(SystemExit):
        search.train("base", 1, 0)
    search = search_module.Search(lesion_manifest, lesion_manifest, tmp_path, 96, [25])
    search.train("base", 1, 0)
    assert resumes == [False, True]
    assert search.results.select(kind="run")[0]["seconds"] == 120


def test_draws_keep_the_splits_and_are_the_same_each_time(search_module: ModuleType, lesion_manifest: Path) -> None:
    manifest = read_manifest(lesion_manifest)
    drawn = search_module.draw(manifest, train=3)
    splits = drawn.column("split")
    assert splits.count("train") == 3
    assert splits.count("val") == manifest.column("split").count("val")
    assert drawn.column("image") == search_module.draw(manifest, train=3).column("image")


def test_the_curves_have_the_lengths_of_a_variant_and_the_range_of_its_seeds(search_module: ModuleType) -> None:
    rows = [row("base", 0.8, 0.7), row("base", 0.9, 0.7, seed=1), row("base", 0.95, 0.8, minutes=45)]
    rows += [row("muon", 0.1, 0.1), row("untrained", 0.5, 0.6)]
    columns = ["knn", "auroc", "dice_200"]
    drawings = search_module.draw_curves(rows, columns, "val")
    assert list(drawings) == ["auroc", "dice"]
    auroc, dice = drawings["auroc"].to_svg(), drawings["dice"].to_svg()
    for text in ("macro AUROC: split val", "k-NN, k = 20", "logistic regression", ">0<", ">12<", ">45<"):
        assert text in auroc
    assert "200 masks" not in auroc
    assert "200 masks" in dice
    assert "k-NN" not in dice
    assert "muon" not in auroc + dice  # one length is no curve
    assert dice.count("<circle") == 3  # untrained, 12 and 45 minutes
    same = [row("base", 0.85, 0.7, seed=item["seed"]) if item["minutes"] == 12 else item for item in rows[:3]]
    flat = search_module.draw_curves([*same, *rows[3:]], columns, "val")["auroc"].to_svg()
    lines, bands = re.compile("<polyline[^>]*>"), re.compile("<polygon[^>]*>")
    assert len(bands.findall(auroc)) == len(bands.findall(flat)) == 2
    assert lines.findall(flat)[-1] == lines.findall(auroc)[-1]  # the same mean of two seeds
    assert bands.findall(flat)[-1] != bands.findall(auroc)[-1]
    assert search_module.draw_curves([row("base", 0.8, 0.7), row("muon", 0.8, 0.7)], columns, "val") == {}
