"""Every head that is trained by epochs, in a step in half precision under the rules of CUDA's autocast."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.catalogue import BUILT_IN
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.config import BackboneTuneConfig
from dinomed.adapters.fitting.optimizers import half_precision, in_precision
from dinomed.adapters.fitting.tune import LearningBackbone
from dinomed.adapters.heads.decoders import DECODERS
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.depth.losses import gradient_loss, sig_loss
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.losses import build_loss
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import compute_features

CPU = torch.device("cpu")
RANGE = {"low": 0.5, "high": 4.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "classify.linear": {},
    "classify.attentive": {"registers": 2},
    "segment.linear": {},
    "segment.multiscale": {"blocks": [0, 1, 2]},
    "segment.dpt": {"channels": 16},
    "segment.dino_unet": {},
    "segment.hybrid_unet": {},
    "segment.multi_view": {"blocks": [0, 1, 2]},
    "depth.linear": RANGE,
    "depth.linear4": RANGE,
    "depth.dpt": {"channels": 16, **RANGE},
} | {f"segment.{name}": {"channels": [8, 8, 8, 16, 16], "detail": name == "unet"} for name in DECODERS}
"""Small settings of each head; their keys are all heads that are trained in half precision."""


def build(name: str, backbone: FrozenBackbone) -> Adapter:
    task, _, head = name.partition(".")
    config_class: Any = {"classify": ClassifyConfig, "segment": SegmentConfig, "depth": DepthConfig}[task]
    config = config_class.model_validate({"head": {"name": head, **SETTINGS[name]}})
    return build_adapter(config, backbone, num_classes=1 if task == "depth" else 2).train()


def loss_of(task: str, outputs: Tensor) -> Tensor:
    if task == "classify":
        return nn.functional.cross_entropy(outputs, torch.arange(len(outputs)) % 2)
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(outputs.shape, generator=generator)
    if task == "depth":
        return sig_loss(outputs, maps + 1) + gradient_loss(outputs, maps + 1)
    return build_loss("dice_ce", exclusive=False)(outputs, (maps > 0.5).to(torch.uint8))


def test_every_head_is_covered() -> None:
    solved = {"classify.knn", "classify.logistic", "classify.grid"}  # in float32, without the loop of epochs
    built_in = {f"{entry.task}.{entry.name}" for entry in BUILT_IN if entry.name != "auto"}
    assert built_in == SETTINGS.keys() | solved


@pytest.mark.parametrize("half", ["bfloat16", pytest.param("float16", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_has_finite_float32_gradients_near_those_of_float32(
    name: str, half: str, backbone: FrozenBackbone, cuda_autocast: Callable[[], Any]
) -> None:
    head = build(name, backbone)
    head.eval()  # no dropout, and no batch statistics of a few patches
    rows, columns = (15, 18) if name == "segment.pan" else (6, 6)
    images = torch.randn(4, 3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(0))
    spec, gradients = head.feature_spec, {}
    for precision in ("float32", half):
        head.zero_grad()
        with cuda_autocast():
            with half_precision(precision, CPU):
                features = compute_features(backbone, images, spec.blocks, spec.patches, check=False)
            outputs = in_precision(head, precision, CPU)(features)
            assert outputs.dtype == torch.float32
            loss_of(head.task, outputs).backward()
        parts = [p.grad for p in head.parameters() if p.grad is not None]  # some decoders read not every level
        assert {part.dtype for part in parts} == {torch.float32}
        gradients[precision] = torch.cat([part.flatten() for part in parts])
    assert gradients[half].isfinite().all()
    # bfloat16 has 8 bits, of tokens as well as of products
    assert torch.cosine_similarity(gradients[half], gradients["float32"], dim=0) > 0.9


@pytest.mark.parametrize("tune", ["last:2", "lora:4"])
def test_a_step_of_a_tuned_backbone_has_finite_float32_gradients(
    tune: str, backbone: FrozenBackbone, cuda_autocast: Callable[[], Any]
) -> None:
    tuned = LearningBackbone(backbone, BackboneTuneConfig.model_validate(tune), (2,), seed=0)
    head = build("segment.linear", backbone)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with cuda_autocast():
        with half_precision("bfloat16", CPU):
            features = compute_features(tuned, images, (2,), patches=True, check=False)
        loss_of("segment", in_precision(head, "bfloat16", CPU)(features)).backward()
    gradients = [p.grad for p in tuned.parameters() if p.requires_grad]
    assert gradients
    assert all(grad is not None and grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients)
