"""The comparison of training steps: the slow path is the same objective, FLOP are those counted by hand, and what is
asked of a GPU runs on a CPU."""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dinomed.pretrain.model.dinov2 import backbone_of
from dinomed.pretrain.monitoring.cost_estimate import estimate
from dinomed.pretrain.train_step import TrainStep

CPU = torch.device("cpu")
Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def contenders(script: Script) -> ModuleType:
    return script("contenders")


@pytest.fixture(scope="module")
def slow(script: Script) -> ModuleType:
    return script("slow")


@pytest.fixture(scope="module")
def flops(script: Script) -> ModuleType:
    return script("flops")


@pytest.fixture(scope="module")
def gpu(script: Script) -> ModuleType:
    return script("gpu")


def test_without_stochastic_depth_the_slow_path_gives_the_same_loss_and_gradients(
    contenders: ModuleType, slow: ModuleType
) -> None:
    setting = contenders.Setting(model="tiny", batch=3, drop_path=0.0)
    train_step = TrainStep(contenders.make_config(setting), CPU)
    fast = train_step.model.double()
    fast.centers.float()  # as the targets are
    with torch.no_grad():  # at 1e-5 LayerScale hides what a block does
        for name, parameter in fast.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(1.0)
    plain = copy.deepcopy(fast)
    slow.slow_down(plain)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in fast.named_parameters()]
    batch = train_step._to_device(contenders.make_raw(train_step.config, setting.sizes))
    batch = replace(batch, globals=batch.globals.double(), locals=batch.locals.double())
    for ours, theirs in zip(fast.student_tokens(batch), plain.student_tokens(batch), strict=True):
        # float64: only the order of sums differs
        torch.testing.assert_close(ours.patches, theirs.patches, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.cls, theirs.cls, rtol=1e-10, atol=1e-10)
    losses = [model(batch, 0.07).total for model in (fast, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)  # the losses are float32 whatever comes in
    for loss in losses:
        loss.backward()
    for (name, ours), (_, theirs) in zip(
        fast.student.named_parameters(), plain.student.named_parameters(), strict=True
    ):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    moved = [p.grad is not None and bool(p.grad.any()) for p in backbone_of(plain.student).blocks.parameters()]
    assert all(moved)


def test_masked_stochastic_depth_scales_a_residual_or_drops_it(slow: ModuleType) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 2, 3)
    kept = (slow.add_masked(x, lambda x: torch.ones_like(x), 0.3) - x).mean((1, 2))
    scaled = kept > 0.5
    torch.testing.assert_close(kept[scaled], torch.full((int(scaled.sum()),), 1 / 0.7))
    torch.testing.assert_close(kept[~scaled], torch.zeros(int((~scaled).sum())), atol=1e-6, rtol=0)
    assert 0.62 < scaled.float().mean() < 0.78  # 3.5 standard errors of a share of 0.7 of 400


def _by_hand(setting: Any, config: Any, masked: int, kept: float) -> float:
    """FLOP of a step: each weight of a linear layer meets a row of input once in the forward (2 FLOP) and twice in the
    backward, patches have no gradient; attention is two products of N x N x C forwards, four backwards."""
    vit, head = config.backbone, config.objective.dino_head
    c, hidden = vit.embed_dim, int(vit.embed_dim * vit.mlp_ratio)
    weights = vit.depth * (4 * c * c + 2 * c * hidden)

    def forward(images: float, size: int, share: float) -> tuple[float, float]:
        patches = (size // vit.patch_size) ** 2
        n = patches + 1
        blocks = share * images * n * (2 * weights + vit.depth * 4 * n * c)
        return blocks, images * patches * 2 * vit.in_channels * vit.patch_size**2 * c

    large, small = setting.sizes
    student = [forward(2 * setting.batch, large, kept), forward(8 * setting.batch, small, kept)]
    teacher = forward(2 * setting.batch, large, 1.0)
    total = sum(3 * blocks + 2 * patches for blocks, patches in student) + sum(teacher)
    size = c * head.hidden + head.hidden**2 + head.hidden * head.bottleneck + head.bottleneck * head.prototypes
    return total + 2 * size * (3 * (10 * setting.batch + masked) + 2 * setting.batch + masked)


@pytest.mark.parametrize(
    ("model", "batch", "drop"),
    [("tiny", 10, 0.0), ("tiny", 10, 0.3), pytest.param("vits14", 10, 0.3, marks=pytest.mark.long)],
)
def test_flop_equal_those_counted_by_hand(
    contenders: ModuleType, flops: ModuleType, model: str, batch: int, drop: float
) -> None:
    setting = contenders.Setting(model=model, batch=batch, drop_path=drop)
    config = contenders.make_config(setting)
    masked = len(contenders.make_raw(config, (1, 1)).masked)
    # 0.1% here: KoLeo's products, and the scores times their targets. A batch of 10 drops 0.3 exactly.
    assert flops.count_flops(setting) == pytest.approx(_by_hand(setting, config, masked, 1 - drop), rel=0.005)
    # what is dropped after it was computed was computed
    dropped_late = flops.count_flops(setting, slow=True)
    assert dropped_late == pytest.approx(flops.count_flops(replace(setting, drop_path=0.0)), rel=0.001)


@pytest.mark.long
def test_the_estimate_of_a_dry_run_equals_the_counted_flop(contenders: ModuleType, flops: ModuleType) -> None:
    setting = contenders.Setting(batch=10)
    estimated = estimate(contenders.make_config(setting), CPU).teraflop_per_step
    assert estimated == pytest.approx(
        flops.count_flops(setting) / 1e12, rel=0.03
    )  # the masks are the expected ones there


def test_peaks_are_known_for_whole_devices_only(flops: ModuleType) -> None:
    assert flops.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert flops.peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert flops.peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert flops.peak_flops("NVIDIA L4", "bfloat16") == 121e12
    assert flops.peak_flops("NVIDIA L40S", "float32") == 91.6e12
    for unknown in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "cpu, 2 threads, x86_64", "Tesla K80", "NVIDIA A1000"):
        assert flops.peak_flops(unknown, "bfloat16") is None


def test_batches_double_until_memory_is_full(gpu: ModuleType) -> None:
    speeds: dict[int, dict[str, Any]] = {n: {"images_per_second": s} for n, s in ((4, 10.0), (8, 30.0), (16, 25.0))}
    speeds_by_batch = gpu.try_batches(lambda batch: speeds.get(batch, {"full": True}), 4, 4096)
    assert speeds_by_batch == {4: 10.0, 8: 30.0, 16: 25.0, 32: None}
    assert gpu.best_of(speeds_by_batch) == 8
    assert gpu.try_batches(lambda batch: speeds[batch], 4, 12) == {4: 10.0, 8: 30.0}
    assert gpu.best_of({4: None}) is None


def test_full_memory_is_distinguished_from_other_errors(
    contenders: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_(error: Exception) -> Callable[[Any], Callable[[], None]]:
        def make(_: Any) -> Callable[[], None]:
            raise error

        return make

    setting = contenders.Setting(model="tiny")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")):
        monkeypatch.setitem(contenders.STEPS, "dinomed", raise_(error))
        assert contenders.measure("dinomed", setting) == {"full": True}
    monkeypatch.setitem(contenders.STEPS, "dinomed", raise_(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes"):
        contenders.measure("dinomed", setting)


@pytest.mark.long
def test_the_common_batch_is_the_largest_that_all_can_hold(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow path runs full at 16 and 4 is its best; ours goes on to 32."""
    speeds = {"dinomed": {4: 10.0, 8: 20.0, 16: 30.0, 32: 40.0}, "slow": {4: 9.0, 8: 8.0}}

    def measure(who: str, setting: Any, python: str = "") -> dict[str, Any]:
        speed = speeds[who].get(setting.batch)
        gib = setting.batch * (1.0 if who == "dinomed" else 3.0)
        return {"full": True} if speed is None else {"images_per_second": speed, "gib": gib}

    monkeypatch.setattr(gpu, "measure_apart", measure)
    monkeypatch.setattr(sys.modules["contenders"], "measure_apart", measure)
    setting = gpu.Setting(model="tiny", compile=True)
    report = gpu.compare(
        setting, {"dinomed": "python", "slow": "python"}, smallest=4, largest=32, rounds=2, peak=1e12
    )  # fmt: skip
    best, common = report["best_batch"], report["one_batch"]
    assert {who: figures["batch"] for who, figures in best["figures"].items()} == {"dinomed": 32, "slow": 4}
    assert {figures["batch"] for figures in common["figures"].values()} == {8}
    assert best["ours_to_theirs"]["slow"]["images_per_second"]["median"] == pytest.approx(40 / 9)
    assert common["ours_to_theirs"]["slow"]["gib"]["median"] == pytest.approx(1 / 3)
    figures = common["figures"]["dinomed"]
    assert figures["mfu"] == pytest.approx(20 * figures["model_teraflop_per_image"] * 1e12 / 1e12)
    assert gpu.settings_of("slow", setting).compile is False


@pytest.mark.long
def test_the_comparison_runs_on_a_cpu(
    gpu: ModuleType, contenders: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(who: str, setting: Any, python: str = "") -> dict[str, Any]:
        """As in a process of its own, without the seconds that one takes to import torch."""
        figures: dict[str, Any] = contenders.measure(who, setting)
        return figures

    monkeypatch.setattr(gpu, "measure_apart", here)
    monkeypatch.setattr(contenders, "measure_apart", here)
    words = "gpu.py --device cpu --model tiny --smallest 2 --largest 4 --rounds 2 --steps 1 --checkpoint-activations"
    monkeypatch.setattr(sys, "argv", words.split())
    gpu.main()
    report = json.loads(capsys.readouterr().out)
    assert report["peak_teraflop_per_second"] is None
    for kind in ("best_batch", "one_batch"):
        for figures in report["tiny"][kind]["figures"].values():
            assert figures["images_per_second"]["min"] > 0
            assert "mfu" not in figures
        assert report["tiny"][kind]["ours_to_theirs"]["slow"]["images_per_second"]["median"] > 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--who", "lightly"], "needs --peer"),
        (["--largest", "2"], "--largest no less than --smallest"),
        (["--device", "cuda:99"], "device=cuda:99"),
    ],
)
def test_invalid_options_are_refused(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_a_failing_process_is_reported_with_its_last_line(contenders: ModuleType, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'Traceback' >&2\necho \"ModuleNotFoundError: no lightly_train\" >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SystemExit, match=r"lightly with .* failed: ModuleNotFoundError: no lightly_train"):
        contenders.measure_apart("lightly", contenders.Setting(), str(broken))
