"""The two vision towers, DINOv2 and SigLIP, with the names of the published files.

A tower's features are the patches after its last block but one, without the final normalization; its class token and
registers are dropped. The last block, that normalization and SigLIP's pooling head are in the files and never run.
Source: timm 0.9.10 (`VisionTransformer`), and the authors' `PrismaticVisionBackbone`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ript_ray.policies.openvla_oft.architecture import Tower

COLORS = 3


class VisionBackbone(nn.Module):
    """Both towers: every camera is seen by each of them, normalized in its way."""

    def __init__(self, dino: Tower, siglip: Tower):
        super().__init__()
        self.featurizer = VisionTransformer(dino, is_dino=True)
        self.fused_featurizer = VisionTransformer(siglip, is_dino=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of all patches (B, cameras x patches, width of both towers), camera after camera.

        Args:
            pixels: (B, cameras x 6, height, width): per camera the three colors as DINOv2 reads them, then as SigLIP.
        """
        images = pixels.unflatten(1, (-1, 2, COLORS)).flatten(0, 1)
        features = [self.featurizer(images[:, 0]), self.fused_featurizer(images[:, 1])]
        return torch.cat(features, dim=-1).unflatten(0, (len(pixels), -1)).flatten(1, 2)


class VisionTransformer(nn.Module):
    """A vision transformer: DINOv2's with class token, registers and layer scale, or SigLIP's with a pooling head."""

    def __init__(self, sizes: Tower, *, is_dino: bool):
        super().__init__()
        width = sizes.embed_dim
        self.num_extra = 1 + sizes.register_tokens if is_dino else 0
        if is_dino:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.reg_token = nn.Parameter(torch.zeros(1, sizes.register_tokens, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.num_patches, width))
        self.patch_embed = PatchEmbedding(sizes)
        self.blocks = nn.ModuleList(Block(sizes, is_scaled=is_dino) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, sizes.layer_norm_eps)
        if not is_dino:
            self.attn_pool = AttentionPool(sizes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (B, patches, width) of images (B, 3, height, width)."""
        x = self.patch_embed(images) + self.pos_embed
        if self.num_extra:
            extra = torch.cat([self.cls_token, self.reg_token], dim=1)
            x = torch.cat([extra.expand(len(x), -1, -1), x], dim=1)
        for block in [*self.blocks][:-1]:
            x = block(x)
        return x[:, self.num_extra :]


class PatchEmbedding(nn.Module):
    """A linear layer on each patch."""

    def __init__(self, sizes: Tower):
        super().__init__()
        self.proj = nn.Conv2d(COLORS, sizes.embed_dim, sizes.patch_size, sizes.patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, patches, width), row after row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, sizes: Tower, *, is_scaled: bool):
        super().__init__()
        width = sizes.embed_dim
        self.norm1 = nn.LayerNorm(width, sizes.layer_norm_eps)
        self.attn = SelfAttention(width, sizes.num_heads)
        self.ls1 = LayerScale(width) if is_scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, sizes.layer_norm_eps)
        self.mlp = MLP(width, int(width * sizes.mlp_ratio))
        self.ls2 = LayerScale(width) if is_scaled else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform (B, L, width)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class SelfAttention(nn.Module):
    """Self-attention without a mask."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform (B, L, width)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2))


class LayerScale(nn.Module):
    """A factor per channel; `gamma` in timm, renamed in the published files."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale (..., width)."""
        return x * self.scale_factor


class MLP(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform (..., width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: weights of the published files that are never used."""

    def __init__(self, sizes: Tower):
        super().__init__()
        width = sizes.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, sizes.layer_norm_eps)
        self.mlp = MLP(width, int(width * sizes.mlp_ratio))
