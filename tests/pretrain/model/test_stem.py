"""Pretraining with a convolutional stem: exact resumption, its backbone as a source of other runs, other channels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.backbones.load import load_backbone
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model.dinov2 import DINOv2
from dinomed.pretrain.model.initialisation import load_initialisation, read_initialisation
from dinomed.pretrain.monitoring.cost_estimate import estimate
from dinomed.pretrain.resolve import fit_to_initialisation
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
STEM = {"stem": "convolutional"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, pictures: Path) -> Path:
    """The folder of a finished run with a convolutional stem. Read-only."""
    return pretrain(tiny(backbone=STEM), pictures, tmp_path_factory.mktemp("stem") / "run", device="cpu").folder


def test_it_resumes_exactly_and_every_part_learns(
    resumed_equals: Callable[..., bool], tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    config = tiny(backbone=STEM)
    whole = pretrain(config, pictures, tmp_path / "whole", device="cpu")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (whole.folder / "untrained", whole.folder / "backbone")
    )
    unchanged = [name for name in before if "patch_embed" in name and torch.equal(before[name], after[name])]
    assert not unchanged
    assert resumed_equals(config, whole)


def test_a_folder_and_a_bare_file_are_read_as_the_same_backbone(run: Path, tmp_path: Path) -> None:
    backbone = load_backbone(run)
    assert backbone.vit.config.stem == "convolutional"
    save_file(backbone.vit.state_dict(), tmp_path / "weights.safetensors")
    heads = backbone.vit.config.num_heads  # not visible in the tensors
    bare = load_backbone(tmp_path / "weights.safetensors", image_size=32).vit.config
    same = {"num_heads", "drop_path", "layerscale"}
    assert bare.model_copy(update={"num_heads": heads}).model_dump(exclude=same) == backbone.vit.config.model_dump(
        exclude=same
    )


def test_a_run_from_it_keeps_the_stem_and_takes_other_channels(run: Path, tiny: Tiny) -> None:
    """The config asks for a linear patch embedding, and the weights decide."""
    start = {"weights": str(run)}
    config = tiny(start=start, backbone={"in_channels": 1}, mean=[0.5], std=[0.25])
    initialisation = read_initialisation(config.start)
    resolved = fit_to_initialisation(config, initialisation)
    assert resolved.backbone.stem == "convolutional"
    model = DINOv2(resolved.backbone, resolved.objective)
    load_initialisation(initialisation, model)
    ours, theirs = model.sides[-1]["backbone"], load_backbone(run).vit
    gray = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        # a gray picture in one channel gives what it gives in three; float32, sums in another order
        torch.testing.assert_close(
            ours.patch_embed(gray), theirs.patch_embed(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_other_libraries_have_no_such_model(run: Path, library: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a convolutional stem cannot be written in this format; use `format=safe"):
        export(load_source(str(run)), library, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_estimate_counts_its_memory(tiny: Tiny) -> None:
    cpu = torch.device("cpu")
    plain, stem = (estimate(tiny(backbone=settings, run={"batch_size": 64}), cpu) for settings in ({}, STEM))
    assert stem.memory_gib > plain.memory_gib
    assert stem.teraflop_per_step > plain.teraflop_per_step
