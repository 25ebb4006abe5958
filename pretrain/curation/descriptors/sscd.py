"""SSCD, the copy-detection network that the DINOv2 paper uses for curation, loaded from a file of the user.

Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection", arXiv 2202.10261: a ResNet-50, generalised mean
pooling, 512 values. The weights are for non-commercial use and are never downloaded here.

Three file types are read: safetensors with the names of torchvision, the released `*.torchvision.pt` (tensors only),
and the released `*.torchscript.pt`. The last is a program, and runs only if the user allows it.
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
from dinomed.errors import DinomedError, UsageError, first_line
from dinomed.features.pooling import generalised_mean
from dinomed.log import logger

POOLING_POWER = 3.0
IMAGE_SIZE = 320  # px, without keeping the aspect ratio, as its authors recommend for batches


class GeneralisedMean(nn.Module):
    """Generalised mean pooling, (B, C, H, W) -> (B, C, 1, 1); negative values count as 0."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return generalised_mean(x, self.power, rescale=False)[..., None, None]


def load_sscd(path: str | Path, *, allow_code: bool = False) -> nn.Module:
    """Load the network: normalised images (B, 3, H, W) -> (B, 512), in eval mode.

    Args:
        allow_code: run the program in a TorchScript file; only for files from a trusted source.

    Raises:
        UsageError: the file does not exist, is TorchScript without `allow_code`, or holds another network.
        DinomedError: the file is damaged, or would run code when it is unpickled.
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
            raise DinomedError(f"{path}: damaged TorchScript ({first_line(error)})") from None
        return network.eval()
    return _from_state(_read_state(path), path)


def describe(network: nn.Module, images: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    """Compute raw features, float32 (B, 512), of B images, uint8 RGB ``(H, W, 3)``."""
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
        raise DinomedError(f"{path}: damaged, or more than tensors ({first_line(error)}); use safetensors") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DinomedError(f"{path}: holds no table of tensors; give the state dict of an SSCD network")
    return state


def _is_torchscript(path: Path) -> bool:
    """Return whether the file is a zip archive with code; a file of tensors has none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())
