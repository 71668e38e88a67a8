"""The transformer block of a RoPE ViT.

Papers: ViT, arXiv 2010.11929; RoPE for ViT, arXiv 2403.13298. Reference implementation: birder
0.8.4, `birder/net/rope_vit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ropevit_mmdet.models.layers._cpu import can_run_in_pieces, linear, run_in_pieces
from ropevit_mmdet.models.layers.mlp import Mlp, SwiGLU
from ropevit_mmdet.models.layers.norm import LayerScale, norm_layer
from ropevit_mmdet.models.layers.rope import MixedRope, Segment, apply_rope
from ropevit_mmdet.weights.architectures import Arch


class Block(nn.Module):
    """A pre-norm transformer block: attention and MLP, each with a residual connection.

    `drop_path` is the rate at which an image skips attention or MLP in training. With `with_cp`
    activations are computed again in the backward pass instead of being kept.
    """

    def __init__(self, arch: Arch, drop_path: float, *, with_cp: bool = False) -> None:
        super().__init__()
        norm = norm_layer(arch)
        self.norm1 = norm(arch.hidden_dim)
        self.attn = Attention(arch)
        self.norm2 = norm(arch.hidden_dim)
        self.mlp = Mlp(arch) if arch.mlp_layer_type == "FFN" else SwiGLU(arch)
        init = arch.layer_scale_init_value
        self.ls1 = nn.Identity() if init is None else LayerScale(arch.hidden_dim, init)
        self.ls2 = nn.Identity() if init is None else LayerScale(arch.hidden_dim, init)
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp
        self.has_dropout = max(arch.dropout, arch.attention_dropout, arch.projection_dropout) > 0

    def forward(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Tokens [B, tokens, C] to the same; each window of the segments attends within itself."""
        checkpointed = self.with_cp and self.training and torch.is_grad_enabled()
        if can_run_in_pieces(self, x, checkpointed=checkpointed):
            return run_in_pieces(self, x, segments, checkpointed=checkpointed)
        if checkpointed:
            return checkpoint(self.residuals, x, segments, use_reentrant=False)
        return self.residuals(x, segments)

    def residuals(
        self,
        x: Tensor,
        segments: Sequence[Segment],
        drop_attention: Callable[[Tensor], Tensor] | None = None,
        drop_mlp: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`add_attention`, then `add_mlp`, each with the block's drop path by default."""
        x = self.add_attention(x, segments, drop_attention or self.drop_path)
        return self.add_mlp(x, drop_mlp or self.drop_path)

    def add_attention(
        self, x: Tensor, segments: Sequence[Segment], drop_path: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`x` [B, tokens, C] plus its attention."""
        return x + drop_path(self.ls1(self.attn(self.norm1(x), segments)))

    def add_mlp(self, x: Tensor, drop_path: Callable[[Tensor], Tensor]) -> Tensor:
        """`x` [B, tokens, C] plus its MLP."""
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))))


class Attention(nn.Module):
    """Multi-head self-attention with rotary queries and keys, window by window."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        norm, dim = norm_layer(arch), arch.hidden_dim
        self.num_heads, self.head_dim = arch.num_heads, arch.head_dim
        self.rotation = arch.rope_rot_type
        self.dropout = arch.attention_dropout
        keyless = arch.qkv_bias and not arch.k_bias
        self.qkv = (KeylessLinear if keyless else nn.Linear)(dim, 3 * dim, bias=arch.qkv_bias)
        self.rope = None
        if arch.rope_style == "mixed":
            self.rope = MixedRope(arch.num_heads, arch.head_dim, arch.rope_temperature)
        self.q_norm = norm(arch.head_dim) if arch.qk_norm else nn.Identity()
        self.k_norm = norm(arch.head_dim) if arch.qk_norm else nn.Identity()
        self.norm = norm(dim) if arch.attn_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(arch.projection_dropout)

    def forward(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Normalized tokens [B, tokens, C] to the same, as for `Block.forward`."""
        qkv = linear(self.qkv, x)
        if len(segments) == 1:
            x = self._attend(qkv, segments[0])
        else:
            parts = qkv.split([s.windows * s.tokens for s in segments], dim=1)
            attended = [self._attend(part, s) for part, s in zip(parts, segments, strict=True)]
            x = torch.cat(attended, dim=1)
        return self.proj_drop(linear(self.proj, self.norm(x)))

    def heads(self, qkv: Tensor, segment: Segment) -> tuple[Tensor, Tensor, Tensor]:
        """Splits the [B, windows * tokens, 3 C] of a segment, and applies RoPE.

        Returns:
            Rotated queries, rotated keys and values, each [B * windows, h, tokens, D].
        """
        count = qkv.shape[0] * segment.windows
        qkv = qkv.reshape(count, segment.tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.unbind(2)  # [B * windows, tokens, h, D]
        cos, sin = segment.cos, segment.sin
        if self.rope is not None:
            cos, sin = self.rope(cos, sin)
        q = apply_rope(self.q_norm(q), cos, sin, self.rotation).to(v.dtype)
        k = apply_rope(self.k_norm(k), cos, sin, self.rotation).to(v.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _attend(self, qkv: Tensor, segment: Segment) -> Tensor:
        q, k, v = self.heads(qkv, segment)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=segment.mask, dropout_p=dropout)
        x = x.transpose(1, 2)  # [B * windows, tokens, h, D]
        return x.reshape(qkv.shape[0], qkv.shape[1], self.num_heads * self.head_dim)


class KeylessLinear(nn.Linear):
    """Queries, keys and values of which keys have no bias, as in BEiT (arXiv 2106.08254).

    That third of `bias` has no effect and no gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., 3 C]."""
        q, k, v = self.bias.chunk(3)
        return F.linear(x, self.weight, torch.cat((q, torch.zeros_like(k), v)))


class DropPath(nn.Module):
    """Stochastic depth: drops a residual path in training, sampled per image (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, C] to the same: zeros for dropped images, scaled by 1 / (1 - rate) else."""
        return self.sample(x)(x)

    def sample(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Samples which images of `x` are dropped: a function for any part of their tokens."""
        if not self.training or self.rate == 0.0:
            return _identity
        keep = x.new_empty(x.shape[0], 1, 1).bernoulli_(1.0 - self.rate)
        if self.rate < 1.0:
            keep = keep / (1.0 - self.rate)
        return partial(torch.mul, keep)


def _identity(x: Tensor) -> Tensor:
    return x
