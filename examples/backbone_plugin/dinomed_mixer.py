"""A plug-in family of backbones for dinomed: convolutions on a grid of patches, without a class token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dinomed.backbones.families.registry import LoadedFamily
from dinomed.backbones.families.statistics import PROCESSOR_FILE, transformers_preprocessing, transformers_processor
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import TokenModel, Tokens, resolve_indices
from dinomed.backbones.weights import differences, read_tensor_table
from dinomed.errors import UsageError
from dinomed.io.files import write_json
from dinomed.io.tensor_file import write_tensors


class PatchMixer(TokenModel):
    """Patches, then blocks of a depthwise and a pointwise convolution on their grid. The class token is their mean."""

    family = "patch_mixer"

    def __init__(self, embed_dim: int, depth: int, patch_size: int) -> None:
        super().__init__()
        self.embed_dim, self.depth, self.patch_size, self.in_channels = embed_dim, depth, patch_size, 3
        self.stem = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim),
                nn.GELU(),
                nn.Conv2d(embed_dim, embed_dim, 1),
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def architecture(self) -> dict[str, Any]:
        return {"family": self.family, "embed_dim": self.embed_dim, "depth": self.depth, "patch_size": self.patch_size}

    def write_folder(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Write a folder that `load_mixer` reads: with it, `dinomed export --format safetensors` works."""
        config = {
            "model_type": self.family,
            "hidden_size": self.embed_dim,
            "num_hidden_layers": self.depth,
            "patch_size": self.patch_size,
        }
        write_json(folder / "config.json", config)
        write_json(folder / PROCESSOR_FILE, transformers_processor(preprocessing, "BitImageProcessor"))
        write_tensors(folder / "model.safetensors", self.state_dict())

    def forward_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        indices, outputs = resolve_indices(blocks, self.depth), {}
        grid = self.stem(images)
        for index, block in enumerate(self.blocks):
            grid = grid + block(grid)
            outputs[index] = self.norm(grid.flatten(2).transpose(1, 2))
        chosen = [outputs[index] for index in indices]
        return [Tokens(cls=x.mean(dim=1), registers=x[:, :0], patches=x) for x in chosen]


def load_mixer(folder: Path, config: dict[str, Any]) -> LoadedFamily:
    """Load a folder with `config.json` and `model.safetensors`."""
    model = PatchMixer(config["hidden_size"], config["num_hidden_layers"], config["patch_size"])
    state = read_tensor_table(folder)
    problems = differences({key: value.shape for key, value in model.state_dict().items()}, state)
    if problems:
        raise UsageError(f"{folder}: weights of another architecture: {'; '.join(problems)}")
    model.load_state_dict(state)
    preprocessing, known = transformers_preprocessing(folder, model, config.get("image_size"))
    return LoadedFamily(model, preprocessing, known)
