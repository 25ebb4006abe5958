"""Fixtures of all tests: real images, a small backbone, a manifest of synthetic lesions, a folder as a user has it."""

import gc
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Loggers are tested with their real packages: nothing that a test imports itself reports to anyone.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}

# A background job of a shell ignores SIGINT; the processes that tests start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect the tests without garbage collection, and leave their modules out of every later one.

    They are a million objects that live until the end. Collecting all tests takes a third less processor time, and a
    full garbage collection during the tests half a second less.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter free at its end what is left out: triton names each of its objects that is not freed."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leave out `fsync` in this process: it matters after a power cut only, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _default_log_level() -> Iterator[None]:
    """Undo what a command or a benchmark sets in this process: the next test expects its messages."""
    from dinomed.log import default_level, set_level

    yield
    set_level(default_level())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command in this process; return its exit code, stdout and stderr."""
    from dinomed.apps import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def tensorboard_scalars() -> Callable[[Path, str], list[tuple[int, float]]]:
    """Read the steps and values of a scalar from the folder of a run, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path, name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        return [(event.step, event.value) for event in events.Scalars(name)]

    return read


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, DINOMED_TEST_DATA (default: ../shared/data beside the project); skip if absent."""
    folder = Path(os.environ.get("DINOMED_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "dermoscopy" / "labels.csv").is_file():
        pytest.skip(f"no real images at {folder}; set DINOMED_TEST_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random ViT: 32 channels, 3 blocks, patches of 8 px, images of 32 px."""
    import torch

    from dinomed.backbones.config import ViTConfig
    from dinomed.backbones.load import save_backbone
    from dinomed.backbones.preprocessing import Preprocessing
    from dinomed.backbones.vit import VisionTransformer

    folder = tmp_path_factory.mktemp("backbones") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(embed_dim=32, depth=3, num_heads=2, patch_size=8, image_size=32, layerscale=None)
        save_backbone(folder, VisionTransformer(config), Preprocessing(image_size=32))
    return folder


@pytest.fixture(scope="session")
def tiny_pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of pretraining, as a file: a ViT of 16 channels and 2 blocks, 2 steps of 4 images. Read-only."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(
        "backbone: {embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8}\n"
        "crops: {global_size: 32, local_size: 16, num_local: 2, blur_kernel: 3}\n"
        "objective:\n"
        "  dino_head: {prototypes: 24, hidden: 16, bottleneck: 8}\n"
        "  ibot_head: {prototypes: 16, hidden: 16, bottleneck: 8}\n"
        "run: {steps: 2, batch_size: 4, workers: 0, checkpoint_every: 2, log_every: 1, pca_images: 2}\n"
    )
    return path


@pytest.fixture(scope="session")
def lesion_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 60 small synthetic lesions with labels, groups, splits and masks. Read-only."""
    from dinomed.datasets.manifest import write_manifest
    from dinomed.datasets.scan.scan import scan
    from dinomed.datasets.synthetic.lesions import write_lesions

    folder = tmp_path_factory.mktemp("collections")
    write_lesions(folder / "lesions", count=60, size=(36, 48), broken=0)
    result = scan(folder / "lesions", labels="labels.csv", group="lesion_id", keep=["age", "sex"])
    write_manifest(result.manifest, folder / "lesions.parquet")
    return folder / "lesions.parquet"


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory, lesion_manifest: Path, tiny_backbone: Path) -> Path:
    """A folder as a user has it: lesions/, derm.parquet, ssl/ (a run with its untrained backbone), the adapters cls/
    and seg/, and the index idx/. Read-only."""
    from dinomed.apps import cli

    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(lesion_manifest.parent / "lesions", folder / "lesions")
    shutil.copy(lesion_manifest, folder / "derm.parquet")
    for name in ("backbone", "untrained"):
        shutil.copytree(tiny_backbone, folder / "ssl" / name)
    options = ("--backbone", str(folder / "ssl"), "--quiet")
    fast = ("--data", str(folder / "derm.parquet"), "--set", "fit.epochs=2", "--set", "fit.min_steps=0")
    for arguments in (
        ("train", "classify", "-o", str(folder / "cls"), *fast),
        ("train", "segment", "-o", str(folder / "seg"), *fast, "--set", "fit.refit=never"),
        ("index", str(folder / "derm.parquet"), "-o", str(folder / "idx")),
    ):
        cli.invoke([*arguments, *options])
    return folder


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Any]:
    """See `pretrain/curation/curation_page.py`."""
    return runpy.run_path(str(ROOT / "tests" / "pretrain" / "curation" / "curation_page.py"))["make_result"]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the documentation site, built strictly: a warning is a failure."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'dinomed[docs]'")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def cuda_autocast() -> Callable[[], Any]:
    """A context in which a CPU computes in float32 what CUDA's autocast computes in float32.

    Most of these functions stay in half precision on a CPU. On CUDA tensors of two precisions meet in the next layer.
    """
    import torch
    from torch import Tensor
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    names = ["cumsum", "exp", "log", "log_softmax", "norm", "pow", "prod", "reciprocal", "rsqrt", "softmax", "sum"]
    in_float32 = {getattr(place, name) for place in (torch, Tensor) for name in names} | {
        functional.binary_cross_entropy_with_logits, functional.cosine_similarity, functional.cross_entropy,
        functional.group_norm, functional.layer_norm, functional.log_softmax, functional.normalize, functional.softmax,
    }  # fmt: skip

    def float32(value: Any) -> Any:
        is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if is_half else value

    class CudaAutocast(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if function in in_float32 and torch.is_autocast_enabled("cpu"):
                args = tuple(float32(value) for value in args)
                kwargs = {name: float32(value) for name, value in kwargs.items()}
            return function(*args, **kwargs)

    return CudaAutocast
