"""`dinomed pretrain` and `dinomed distill` as a person calls them, and what other commands make of their runs."""

import json
from pathlib import Path

import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest, write_manifest
from dinomed.datasets.synthetic import write_lesions

TINY = """\
backbone: {embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8}
crops: {global_size: 32, local_size: 16, num_local: 2, blur_kernel: 3}
objective:
  dino_head: {prototypes: 24, hidden: 16, bottleneck: 8}
  ibot_head: {prototypes: 16, hidden: 16, bottleneck: 8}
run: {steps: 2, batch_size: 4, workers: 0, checkpoint_every: 2, log_every: 1, pca_images: 2}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


def call(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr without its line breaks."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, " ".join(captured.err.split())


@pytest.fixture(scope="module")
def run(config: Path, lesion_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "ssl"
    with pytest.raises(SystemExit) as end:
        cli.main(["pretrain", str(config), "--data", str(lesion_manifest), "-o", str(out), "--device", "cpu"])
    assert not end.value.code
    return out


def test_a_run_can_be_asked_whether_it_has_seen_images(
    run: Path, lesion_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = read_manifest(lesion_manifest).select(split="train")
    write_manifest(train, tmp_path / "train.parquet")
    code, out, _ = call("audit", run, tmp_path / "train.parquet", "--json", capsys=capsys)
    assert code == 1
    found = {pair["test"] for pair in json.loads(out)["pairs"] if pair["kind"] == "exact"}
    assert found == set(train.column("image"))
    strangers = write_lesions(tmp_path / "others", count=8, seed=99, size=(36, 48), broken=0)
    code, out, errors = call("audit", run, strangers, "--json", capsys=capsys)
    assert (code, json.loads(out)["pairs"]) == (0, []), errors
