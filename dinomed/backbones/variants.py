"""Named backbone architectures, as a table that needs no torch, so that the command line can list it quickly.

`dinov2_*` have released weights (Oquab et al. 2023; `_reg`: four registers, Darcet et al. 2023). `vit_*` are for
pretraining from scratch; the micro and tiny ones train on a CPU.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dinomed.registry import Registry

if TYPE_CHECKING:
    from dinomed.backbones.config import ViTConfig
    from dinomed.backbones.vit import VisionTransformer


@dataclass(frozen=True)
class Release:
    """Origin of the weights of a variant.

    The publisher lists no checksums. The checksums below are those that other public projects recorded; each was found
    in at least three of them. A downloaded file with another checksum is refused (`dinomed.backbones.hub`).
    """

    url: str
    sha256: str
    source: str = "Meta AI, DINOv2 (LVD-142M)"
    licence: str = "Apache-2.0"

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Variant:
    """Dimensions of an architecture.

    `image_size` is the image side of the position embedding, px. `position_*` say how the position embedding is
    resized, which is a property of the weights (see `ViTConfig`).
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    image_size: int = 224
    num_registers: int = 0
    feed_forward: Literal["mlp", "swiglu"] = "mlp"
    position_antialias: bool = True
    position_offset: float = 0.0
    release: Release | None = None

    def config(self, **overrides: Any) -> "ViTConfig":
        """Return the config of the architecture; `overrides` are fields of `ViTConfig`."""
        from dinomed.backbones.config import ViTConfig

        fields = {key: value for key, value in vars(self).items() if key != "release"}
        return ViTConfig(**{**fields, **overrides})


VARIANTS: Registry[Variant] = Registry("backbone")

_SIZES = {
    "micro": Variant(128, 6, 4, patch_size=8),
    "tiny": Variant(192, 12, 3, patch_size=16),
    "small": Variant(384, 12, 6, patch_size=14),
    "base": Variant(768, 12, 12, patch_size=14),
    "large": Variant(1024, 24, 16, patch_size=14),
    "giant": Variant(1536, 40, 24, patch_size=14, feed_forward="swiglu"),
}
_PATCHES = {
    "micro": (8, 16),
    "tiny": (8, 14, 16),
    "small": (8, 14, 16),
    "base": (14, 16),
    "large": (14, 16),
    "giant": (14,),
}
_SHA256 = {
    "dinov2_vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "dinov2_vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "dinov2_vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    "dinov2_vitg14": "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3",
    "dinov2_vits14_reg": "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb",
    "dinov2_vitb14_reg": "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71",
    "dinov2_vitl14_reg": "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51",
    "dinov2_vitg14_reg": "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283",
}

for _size, _patches in _PATCHES.items():
    for _patch in _patches:
        VARIANTS.register(f"vit_{_size}_patch{_patch}")(replace(_SIZES[_size], patch_size=_patch))

for _size in ("small", "base", "large", "giant"):
    _name = f"dinov2_vit{_size[0]}14"
    _url = f"https://dl.fbaipublicfiles.com/dinov2/{_name}/{_name}"
    _plain = replace(_SIZES[_size], image_size=518, position_antialias=False, position_offset=0.1)
    VARIANTS.register(_name)(replace(_plain, release=Release(f"{_url}_pretrain.pth", _SHA256[_name])))
    _registers = replace(_SIZES[_size], image_size=518, num_registers=4)
    _release = Release(f"{_url}_reg4_pretrain.pth", _SHA256[f"{_name}_reg"])
    VARIANTS.register(f"{_name}_reg")(replace(_registers, release=_release))


def build_vit(name: str, **overrides: Any) -> "VisionTransformer":
    """Build a ViT with random weights: ``build_vit("vit_tiny_patch8", in_channels=1)``.

    Raises:
        UsageError: no such name.
    """
    from dinomed.backbones.vit import VisionTransformer

    return VisionTransformer(VARIANTS[name].config(**overrides))
