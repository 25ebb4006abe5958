"""Published backbones that `load_backbone` reads by name or from a file, as a table that needs no torch.

The sources are the model pages of the publishers. Licences and access change: the page of a model decides. No weights
of this table were downloaded; `tests/parity/test_families.py` compares its architectures with their libraries by random
weights.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedBackbone:
    """A row of the table.

    Attributes:
        name: value for ``--backbone``; for a file that its publisher distributes without a config, its page.
        domain: images on which it was pretrained.
        architecture: size, patch size, family.
        parameters: in millions.
        licence: as its page states it.
        access: open, or gated: its page asks for consent before a download.
        format: what its publisher distributes: a folder of timm or of transformers, or a file of weights alone.
        statistics: where mean and std come from: the config, or numbers to give by ``--mean`` and ``--std``.
        values: what mean and std are, as timm or the publisher states them.
        engine: what computes it: dinomed, timm or transformers.
        start: for whom it is a first choice; empty for the others.
    """

    name: str
    domain: str
    architecture: str
    parameters: int
    licence: str
    access: str
    engine: str
    format: str
    statistics: str = "config"
    values: str = "ImageNet"
    start: str = ""

    @property
    def command(self) -> str:
        """Return the options of a command that loads it."""
        if self.statistics == "config":
            return f"--backbone {self.name}"
        return f"--backbone FILE {self.statistics}"

    @property
    def tested(self) -> str:
        """Return what was tested; published weights never were."""
        if self.name in _TESTED:
            return _TESTED[self.name]
        return f"small model of this family, random weights, {_FORMATS[self.format]}"


_IMAGENET = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
_FORMATS = {
    "timm": "folder of timm",
    "transformers": "folder of transformers",
    "file": "file of weights alone",
}
_TESTED = {
    "timm/vit_small_patch14_dinov2.lvd142m": "this architecture, random weights, in timm",
    "YukunZhou/RETFound_mae_natureCFP": "small model of timm, random weights, in the layout of its file",
    "SiyuanYan1/PanDerm": "BEiT of timm, random weights, in the presumed layout of its file",
}
"""Rows for which it is not a small model of the family."""
_HALF = "0.5 and 0.5"
_UNCLEAR = "see its page"

PUBLISHED: tuple[PublishedBackbone, ...] = (
    PublishedBackbone(
        "timm/vit_small_patch14_dinov2.lvd142m", "natural images", "ViT-S/14, DINOv2", 22, "Apache-2.0", "open",
        "dinomed", "timm", start="start here: any modality, a computer without a GPU",
    ),
    PublishedBackbone(
        "hf-hub:facebook/dinov2-with-registers-base", "natural images", "ViT-B/14, DINOv2, 4 registers", 87,
        "Apache-2.0", "open", "dinomed", "transformers", start="start here: any modality, with a GPU; segmentation",
    ),
    PublishedBackbone(
        "hf-hub:microsoft/rad-dino", "chest X-ray", "ViT-B/14, DINOv2", 87, "MIT (earlier MSRLA)", "open",
        "dinomed", "transformers",
        start="start here: chest X-ray", values="its own, in its files",
    ),
    PublishedBackbone(
        "hf-hub:owkin/phikon-v2", "histology", "ViT-L/16, DINOv2", 304, "Owkin, non-commercial", "open",
        "dinomed", "transformers",
        start="start here: histology",
    ),
    PublishedBackbone(
        "hf-hub:owkin/phikon", "histology", "ViT-B/16, iBOT", 86, "Owkin, non-commercial", "open",
        "dinomed", "transformers",
    ),
    PublishedBackbone(
        "hf-hub:MahmoodLab/UNI", "histology", "ViT-L/16, DINOv2", 303, "CC-BY-NC-ND-4.0", "gated", "dinomed", "timm",
    ),
    PublishedBackbone(
        "hf-hub:MahmoodLab/UNI2-h", "histology", "ViT-H/14, DINOv2, SwiGLU, 8 registers", 681, "CC-BY-NC-ND-4.0",
        "gated", "dinomed", "timm",
    ),
    PublishedBackbone(
        "hf-hub:paige-ai/Virchow2", "histology", "ViT-H/14, DINOv2, SwiGLU, 4 registers", 632, "CC-BY-NC-ND-4.0",
        "gated", "dinomed", "timm",
    ),
    PublishedBackbone(
        "hf-hub:bioptimus/H-optimus-0", "histology", "ViT-g/14, DINOv2, 4 registers", 1135, "Apache-2.0", "gated",
        "dinomed", "timm", values="0.7072,0.5787,0.7036 and 0.2119,0.2301,0.1775",
    ),
    PublishedBackbone(
        "hf-hub:prov-gigapath/prov-gigapath", "histology", "ViT-g/16, DINOv2 (tile encoder)", 1135, _UNCLEAR, "gated",
        "dinomed", "timm",
    ),
    PublishedBackbone(
        "hf-hub:google/medsiglip-448", "X-ray, skin, eye, histology, CT, MRI", "so400m/14, SigLIP", 428,
        "Health AI Developer Foundations", "gated", "transformers", "transformers", values=_HALF,
    ),
    PublishedBackbone(
        "YukunZhou/RETFound_mae_natureCFP", "fundus", "ViT-L/16, MAE", 303, "CC-BY-NC-4.0", "gated", "dinomed", "file",
        statistics=_IMAGENET,
    ),
    PublishedBackbone(
        "egeozsoy/EndoViT", "endoscopy", "ViT-B/16, MAE", 86, _UNCLEAR, "open", "dinomed", "file",
        statistics="--mean 0.3464,0.2280,0.2228 --std 0.2520,0.2128,0.2093",
        values="0.3464,0.2280,0.2228 and 0.2520,0.2128,0.2093",
    ),
    PublishedBackbone(
        "SiyuanYan1/PanDerm", "skin", "ViT-L/16, CAE", 303, "CC-BY-NC-ND-4.0", "open", "dinomed", "file",
        statistics=_IMAGENET,
    ),
    PublishedBackbone(
        "timm/vit_small_patch16_dinov3.lvd1689m", "natural images", "ViT-S/16, DINOv3", 22, "DINOv3", "open",
        "dinomed", "timm",
    ),
    PublishedBackbone(
        "hf-hub:facebook/dinov3-vitb16-pretrain-lvd1689m", "natural images", "ViT-B/16, DINOv3", 86, "DINOv3", "gated",
        "dinomed", "transformers",
    ),
    PublishedBackbone(
        "timm/vit_small_patch16_224.dino", "natural images", "ViT-S/16, DINO v1", 22, "Apache-2.0", "open",
        "dinomed", "timm",
    ),
    PublishedBackbone(
        "timm/vit_base_patch16_224.mae", "natural images", "ViT-B/16, MAE", 86, "CC-BY-NC-4.0", "open",
        "dinomed", "timm",
    ),
    PublishedBackbone(
        "hf-hub:google/siglip2-base-patch16-224", "images and text", "ViT-B/16, SigLIP 2", 93, "Apache-2.0", "open",
        "transformers", "transformers", values=_HALF,
    ),
    PublishedBackbone(
        "timm/vit_base_patch16_siglip_224.v2_webli", "images and text", "ViT-B/16, SigLIP 2", 93, "Apache-2.0", "open",
        "timm", "timm", values=_HALF,
    ),
    PublishedBackbone(
        "timm/eva02_small_patch14_224.mim_in22k", "natural images", "ViT-S/14, EVA-02", 22, "MIT", "open",
        "timm", "timm", values="CLIP",
    ),
    PublishedBackbone(
        "hf-hub:openai/clip-vit-base-patch16", "images and text", "ViT-B/16, CLIP", 86, _UNCLEAR, "open",
        "transformers", "transformers", values="CLIP",
    ),
    PublishedBackbone(
        "hf-hub:microsoft/beit-base-patch16-224-pt22k", "natural images", "ViT-B/16, BEiT", 86, "Apache-2.0", "open",
        "transformers", "transformers", values=_HALF,
    ),
)  # fmt: skip
