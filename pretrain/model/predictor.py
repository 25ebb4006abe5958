"""Predictor of masked patches from visible ones, for an encoder that sees only the visible patches.

It is the small decoder of MAE (He et al. 2022, section 3): mask tokens with positions join the encoded tokens in a few
transformer blocks. As in CAPI (Darcet et al. 2025, arXiv 2502.08769), it predicts the teacher's targets.

Shape suffixes: V views, P patches of a view, N visible and M masked patches of a view, C embedding width.
"""

import torch
from torch import Tensor, nn

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.vit import Tokens
from dinomed.layers.block import Block
from dinomed.layers.initialisation import init_linear_layers
from dinomed.layers.patch_embedding import resize_position_embedding


class MaskedPatchPredictor(nn.Module):
    """Function from the tokens of visible patches to tokens of the masked ones."""

    def __init__(self, backbone: ViTConfig, depth: int) -> None:
        super().__init__()
        dim = backbone.embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, (backbone.image_size // backbone.patch_size) ** 2, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim, backbone.num_heads, feed_forward=backbone.feed_forward, hidden=int(dim * backbone.mlp_ratio),
                layerscale=backbone.layerscale, drop_path=0.0,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        init_linear_layers(self.modules())

    def forward(self, tokens: Tokens, masks_VP: Tensor) -> Tensor:
        """Predict tokens (V, M, C) of the masked patches, in the order of their indices.

        Args:
            tokens: of the visible patches.
            masks_VP: bool, True where masked; every view has the same number. The grid of patches is square.
        """
        views, patches = masks_VP.shape
        side = round(patches**0.5)
        position = resize_position_embedding(self.position, (side, side), antialias=True, offset=0.0)
        position_VPC = position.expand(views, -1, -1)
        masked_VMC = position_VPC[masks_VP].view(views, -1, position.shape[-1]) + self.mask_token
        visible_VNC = tokens.patches + position_VPC[~masks_VP].view_as(tokens.patches)
        x = torch.cat([tokens.cls.unsqueeze(1), tokens.registers, visible_VNC, masked_VMC.to(visible_VNC.dtype)], dim=1)
        for block in self.blocks:
            (x,) = block([x])
        predicted: Tensor = self.norm(x[:, -masked_VMC.shape[1] :])
        return predicted
