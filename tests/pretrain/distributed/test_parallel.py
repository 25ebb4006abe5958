"""Two real processes give the results of one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dinomed.config import to_yaml
from dinomed.io.checkpoint import list_checkpoints
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.distributed.parallel import precision_policy
from dinomed.pretrain.losses.targets import sinkhorn_knopp
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
HERE = Path(__file__).parent


def run(count: int, config: PretrainConfig, data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `dinomed pretrain` in `count` processes."""
    path = out.with_suffix(".yaml")
    path.write_text(to_yaml(config))
    command = ["pretrain", str(path), "--data", str(data), "-o", str(out), "--device", "cpu", *options]
    command = [sys.executable, "-m", "dinomed", *command, "--nproc", str(count)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "backbone" / "model.safetensors")


def log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def assert_same_run(a: Path, b: Path) -> None:
    """Compare losses and weights, up to the order in which gradients are summed."""
    for step, (first_line, second_line) in enumerate(zip(log(a), log(b), strict=True)):
        for name in ("dino", "ibot", "target_entropy", "target_entropy_mean"):
            # float32 sums in another order; the second step on also through AdamW, which enlarges rounding
            assert first_line[name] == pytest.approx(second_line[name], rel=2e-3), name
        if step == 0:  # later, the logarithm of KoLeo magnifies rounding: tokens of a new network lie close together
            for name in ("loss", "koleo"):
                assert first_line[name] == pytest.approx(second_line[name], rel=1e-5), name
    assert [len(list((run / "tensorboard").iterdir())) for run in (a, b)] == [1, 1]  # of rank 0 only
    first, second = weights(a), weights(b)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("half", [torch.bfloat16, None])
def test_gradients_are_reduced_in_float32_whatever_the_precision(half: torch.dtype | None) -> None:
    policy = precision_policy(half)
    assert policy.param_dtype == half
    assert (policy.reduce_dtype or torch.float32) == torch.float32


@pytest.mark.long
def test_every_collective_operation(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(HERE / "two_processes.py"), str(tmp_path)], check=True, capture_output=True)
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for results in both:
        assert results["gathered"] == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
        assert results["gradient"] == [[3, 3]] * 3
        assert results["averaged"] == {"both.weight": [[1.5, 3.0]], "one.weight": [[3.0, 4.0]], "frozen.weight": None}
        assert results["max"] == 5
        assert results["objects"] == ["rank 0", "rank 1"]
        assert results["main"] == 0
        assert results["error"] == "only rank 0 was asked"
        assert results["size"] == 2
    first, second = (results["targets"] for results in both)
    wanted = sinkhorn_knopp(torch.tensor(first["logits"]), first["temperature"])
    for share in ("uneven", "one"):  # rows on both ranks, and on one rank only
        actual = torch.tensor([*first[share], *second[share]])
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)


@pytest.fixture
def single_run(tiny: Tiny, pictures: Path, tmp_path: Path) -> Path:
    """A run of one process, without stochastic depth (each process has its own random subsets)."""
    pretrain(settings(tiny), pictures, tmp_path / "one", device="cpu")
    return tmp_path / "one"


def settings(tiny: Tiny, **run: object) -> PretrainConfig:
    return tiny(backbone={"drop_path": 0.0}, run={"steps": 4, **run})


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": "shard"},
        pytest.param({"parallel": "replicate"}, marks=pytest.mark.long),
        pytest.param({"parallel": "shard", "micro_batch": 1}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_two_processes_train_as_one(
    tiny: Tiny, pictures: Path, tmp_path: Path, single_run: Path, changes: dict[str, object]
) -> None:
    done = run(2, settings(tiny, **changes), pictures, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert_same_run(single_run, tmp_path / "two")


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_processes_distil_a_backbone_of_another_library_as_one(
    tiny: Tiny, pictures: Path, tmp_path: Path, parallel: str
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    clip = transformers.CLIPVisionConfig(**shape, image_size=32, patch_size=8)
    transformers.CLIPVisionModel(clip).save_pretrained(tmp_path / "clip")
    config = tiny(distill={"method": "features"}, run={"steps": 2, "parallel": parallel})
    pretrain(config, pictures, tmp_path / "one", device="cpu", teacher=tmp_path / "clip")
    (tmp_path / "two.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "dinomed", "distill", str(tmp_path / "two.yaml"), "--data", str(pictures)]
    command += ["--teacher", str(tmp_path / "clip"), "-o", str(tmp_path / "two"), "--device", "cpu", "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (log(tmp_path / name)[0]["loss"] for name in ("one", "two"))
    assert first == pytest.approx(second, rel=1e-5)  # float32 sums in another order


@pytest.mark.long
def test_two_processes_adapt_as_one_and_one_process_resumes(
    tiny: Tiny, pictures: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    lora = {"lora": {"rank": 2, "alpha": 4, "targets": ["qkv", "proj", "fc1"]}}
    start = {"weights": str(tiny_backbone), "warmup": 0.0}
    config = settings(tiny).model_dump() | {"tune": lora, "start": start}
    config = PretrainConfig.model_validate(config)
    pretrain(config, pictures, tmp_path / "one", device="cpu")
    done = run(2, config, pictures, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
    base = load_file(tiny_backbone / "model.safetensors")
    moved = {name for name, tensor in weights(tmp_path / "two").items() if not torch.equal(tensor, base[name])}
    assert moved - {"mask_token"} == {
        f"blocks.{i}.{layer}.weight" for i in range(3) for layer in ("attn.qkv", "attn.proj", "mlp.fc1")
    }
    checkpoints = list_checkpoints(tmp_path / "two" / "checkpoints")
    shutil.rmtree(checkpoints[-1])
    pretrain(config, pictures, tmp_path / "two", device="cpu", resume=True)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    sharded = config.model_copy(update={"run": config.run.model_copy(update={"parallel": "shard"})})
    refused = run(2, sharded, pictures, tmp_path / "sharded")
    assert refused.returncode == 2
    assert "run.parallel=replicate" in refused.stderr


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_resumes_with_another_number_of_processes(
    tiny: Tiny, pictures: Path, tmp_path: Path, single_run: Path, before: int, after: int
) -> None:
    config, out = settings(tiny, parallel="shard", checkpoint_every=2), tmp_path / "changed"
    assert run(before, config, pictures, out).returncode == 0
    # as if it had been killed after step 2
    for folder in (out / "checkpoints").glob("step_00000004"):
        (folder / "state.json").unlink()
    done = run(after, config, pictures, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert_same_run(single_run, out)


@pytest.mark.long
def test_a_killed_process_ends_the_run_and_it_can_be_resumed(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    config, out = settings(tiny, steps=400, checkpoint_every=2, log_every=1), tmp_path / "killed"
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    process = start(path, pictures, out)
    wait_for(lambda: (out / "checkpoints" / "step_00000002").exists(), process)
    os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "error: process 1 of 2 was killed (SIGKILL), so the others were ended; continue from the last" in errors
    assert not any(word in errors for word in ("Traceback", "internal error", "UserWarning"))
    assert list_checkpoints(out / "checkpoints")


@pytest.mark.long
def test_a_process_that_hangs_ends_the_run_after_the_timeout(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    """The other process waits for `run.timeout_s`, and the launcher then ends the one that hangs."""
    config, out = settings(tiny, steps=400, checkpoint_every=2, log_every=1, timeout_s=10), tmp_path / "hung"
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    process = start(path, pictures, out)
    wait_for(lambda: (out / "checkpoints" / "step_00000002").exists(), process)
    hung = child_of_rank(process.pid, 1)
    os.kill(hung, signal.SIGSTOP)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1
    assert "error: process 0 lost another process, which died or hung for 10 s" in errors
    assert "error: process 0 of 2 failed (its message is above), so the others were ended" in errors
    assert not any(word in errors for word in ("Traceback", "internal error", "UserWarning"))
    assert not Path(f"/proc/{hung}").exists()
    assert list_checkpoints(out / "checkpoints")


@pytest.mark.long
def test_at_a_graceful_stop_all_processes_save_the_same_step(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    config, out = settings(tiny, steps=400, checkpoint_every=1000, log_every=1), tmp_path / "stopped"
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    process = start(path, pictures, out)
    wait_for(lambda: (out / "log.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 143, errors
    (saved,) = list_checkpoints(out / "checkpoints")
    assert f"stopped after step {int(saved.name.removeprefix('step_'))} of 400" in errors


@pytest.mark.long
def test_a_batch_that_the_processes_do_not_divide_is_refused(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    done = run(2, settings(tiny, batch_size=3), pictures, tmp_path / "odd")
    assert done.returncode == 2
    assert (
        done.stderr == "error: run.batch_size=3 is not divisible by the number of processes (2); change one of them\n"
    )


def start(config: Path, data: Path, out: Path) -> subprocess.Popen[str]:
    command = ["pretrain", str(config), "--data", str(data), "-o", str(out), "--device", "cpu", "--nproc", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "dinomed", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.1)


def child_of_rank(parent: int, rank: int) -> int:
    """The process that the launcher started with this rank (Linux: read from its environment)."""
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = status.read_bytes()
        except OSError:
            continue
        stat = (status.parent / "stat").read_text().rsplit(")", 1)[1].split()
        if f"\0RANK={rank}\0".encode() in environment and int(stat[1]) == parent:
            return int(status.parent.name)
    raise AssertionError("no such process")
