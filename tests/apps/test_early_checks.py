"""What is refused is refused before the work, not after it."""

from pathlib import Path

import numpy as np
import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest
from dinomed.images.read import read_image, write_mask


def call(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0), " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("wrong", [("--set", "run.stepz=3"), ("--set", "nonsense"), ("--device", "gpu")])
def test_a_quickstart_draws_nothing_for_settings_that_do_not_exist(
    wrong: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = call("quickstart", "-o", tmp_path / "out", *wrong, capsys=capsys)
    assert code == 2
    assert wrong[1].partition("=")[0].rpartition(".")[2] in message
    assert not (tmp_path / "out").exists()


def test_a_demo_draws_no_examples_for_an_adapter_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dinomed.apps.demos import launch

    def never(*_: object) -> None:
        raise AssertionError("examples are made")

    monkeypatch.setattr(launch, "choose_examples", never)
    code, message = call("demo", "segment", "--adapter", tmp_path / "nope", capsys=capsys)
    assert code == 2
    assert "nope" in message


def test_masks_without_any_lesion_are_nothing_to_learn_from(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_manifest(lesion_manifest)
    (tmp_path / "images").symlink_to(whole.root / "images")
    masks = []
    for i, name in enumerate(whole.column("image")):
        masks.append(f"masks/{i}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        write_mask(tmp_path / masks[-1], np.zeros(read_image(whole.root / name).shape[:2], np.uint8))
    columns = {name: whole.column(name) for name in whole.columns} | {"mask": masks}
    write_manifest(build_manifest(columns, tmp_path), tmp_path / "empty.parquet")
    code, message = call(
        "train", "segment", "-b", tiny_backbone, "--data", tmp_path / "empty.parquet", "-o", tmp_path / "seg", "-q",
        "--set", "image_size=32", capsys=capsys,
    )  # fmt: skip
    assert code == 2
    assert "every mask of train is empty" in message
