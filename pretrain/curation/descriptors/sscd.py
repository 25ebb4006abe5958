"""SSCD, the copy-detection network of the DINOv2 paper's curation, from a file that the user has.

Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection", arXiv 2202.10261: a ResNet-50, generalised mean
pooling, 512 values. Its weights are for non-commercial use and are never fetched here.

Three kinds of file are read: safetensors with torchvision's names, the released `*.torchvision.pt` (tensors only), and
the released `*.torchscript.pt`. The last is a program: it is run only where the user says so.
"""

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.errors import DinomedError, UsageError
from dinomed.features.pooling import generalised_mean
from dinomed.log import logger

POOLING_POWER = 3.0
IMAGE_SIZE = 320  # px; squashed, which its authors recommend for batches


class GeneralisedMean(nn.Module):
    """Generalised mean over rows and columns, (B, C, H, W) -> (B, C, 1, 1); negative values count as 0."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return generalised_mean(x, self.power, rescale=False)[..., None, None]


def load_sscd(path: str | Path, *, allow_code: bool = False) -> nn.Module:
    """The network: normalised images (B, 3, H, W) -> (B, 512), in eval mode.

    Args:
        allow_code: run the program in a TorchScript file. Only for files whose origin you trust.

    Raises:
        UsageError: no such file; a TorchScript file without `allow_code`; weights of another network.
        DinomedError: a damaged file, or one that wants to run code in another way.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"weights {path} do not exist; give the file of an SSCD network")
    if _is_torchscript(path):
        if not allow_code:
            raise UsageError(
                f"{path} is TorchScript, a program that runs when it is loaded; if you trust its origin, set "
                "allow_code: true, else use the *.torchvision.pt file of the same release, or safetensors made of it"
            )
        logger.warning(f"{path}: running the code in this TorchScript file, as allow_code says")
        try:
            network = torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, ValueError) as error:
            raise DinomedError(f"{path}: damaged TorchScript ({str(error).splitlines()[0][:100]})") from None
        return network.eval()
    return _from_state(_read_state(path), path)


def describe(network: nn.Module, images: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    """Pictures, uint8 RGB ``(H, W, 3)``, to float32 (B, 512)."""
    batch = Preprocessing(image_size=IMAGE_SIZE).stack(images).to(device)
    with torch.no_grad():
        return np.asarray(network(batch).float().cpu().numpy())


def _from_state(state: dict[str, Tensor], path: Path) -> nn.Module:
    from torchvision.models import resnet50

    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    if "fc.weight" not in state or state["fc.weight"].ndim != 2:
        raise UsageError(
            f"{path}: not the weights of an SSCD ResNet-50 with torchvision's names (no fc.weight); "
            "use a *.torchvision.pt file, or safetensors made of it"
        )
    network = resnet50(num_classes=len(state["fc.weight"]))
    network.avgpool = GeneralisedMean(POOLING_POWER)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: not the weights of an SSCD ResNet-50 ({lines})") from None
    return network.eval().requires_grad_(False)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise DinomedError(f"{path}: damaged, or more than tensors ({reason}); use safetensors") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DinomedError(f"{path}: holds no table of tensors; give the state dict of an SSCD network")
    return state


def _is_torchscript(path: Path) -> bool:
    """A zip archive with code in it; a file of tensors has none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
