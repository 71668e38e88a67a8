"""The parts of a RoPE ViT: patch embedding, attention over segments of tokens, MLPs, block.

Reference implementation: birder 0.8.4, ``birder/net/rope_vit.py`` and ``birder/layers``. Shapes:
B images, C channels, h heads, D channels of a head, tokens as in ``windows``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as run_checkpointed

from ropevit_mmdet.models.layers._cpu import Linear
from ropevit_mmdet.models.layers.rope import rotate
from ropevit_mmdet.models.layers.rope_tables import Segment
from ropevit_mmdet.weights.architectures import Arch

# Tokens at a time on a CPU where nothing is kept for a backward pass: four windows of 16 x 16
# patches and their special tokens. The MLP's hidden channels then stay in the cache, which takes
# less time, and the peak is lower, also of what is computed again under checkpointing.
_PIECE_TOKENS = 1100


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] to a map of patch embeddings [B, rows, columns, C].

    Sides that the patch does not divide are padded with zeros at the right and bottom.
    """

    def __init__(self, arch: Arch, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        if arch.stem_type == "hmlp":
            self.proj = _hmlp_stem(arch)
        else:
            self.proj = StridedConv(
                3, arch.hidden_dim, patch_size, stride=patch_size, bias=not arch.pre_norm
            )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
        return self.proj(images).permute(0, 2, 3, 1)  # [B, rows, columns, C]


class StridedConv(nn.Conv2d):
    """A convolution that is fast on a GPU, and right where its result has few columns.

    For patches that do not overlap cuDNN (9.19, PyTorch 2.11) has no fast kernel, and in float32
    rounds to TF32: they go through a matrix product. In bfloat16 on a CPU with AMX oneDNN (PyTorch
    2.15) returns what memory held for one or two columns: columns of zeros to the right, which are
    cut off again, make it wider.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if maps.device.type == "cuda" and self._cuts_patches(maps):
            return self.by_product(maps)
        half = maps.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if maps.device.type != "cpu" or not half:
            return super().forward(maps)
        free = maps.shape[-1] + 2 * self.padding[1] - self.kernel_size[1]
        stride = self.stride[1]
        return super().forward(F.pad(maps, (0, 2 * stride)))[..., : free // stride + 1]

    def by_product(self, maps: Tensor) -> Tensor:
        """The same for patches that divide the map and do not overlap."""
        height, width = self.kernel_size
        patches = maps.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [B, rows, columns, C h w]
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    def _cuts_patches(self, maps: Tensor) -> bool:
        sides = zip(maps.shape[-2:], self.kernel_size, self.stride, self.padding)
        whole = all(s == k and p == 0 and side % k == 0 for side, k, s, p in sides)
        return whole and self.groups == 1


class Block(nn.Module):
    """A transformer block: attention and MLP, each behind a norm and beside a residual path."""

    def __init__(self, arch: Arch, drop_path: float) -> None:
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
        self.draws = max(arch.dropout, arch.attention_dropout, arch.projection_dropout) > 0

    def forward(
        self, x: Tensor, segments: Sequence[Segment], *, checkpointed: bool = False
    ) -> Tensor:
        """[B, tokens, C] to the same; the segments' tokens add up to ``tokens``.

        ``checkpointed``: computed again in the backward pass instead of kept for it.
        """
        if checkpointed:
            return self._checkpointed(x, segments)
        if not torch.is_grad_enabled() and self._may_divide(x):
            return self._in_pieces(x, segments, _call)
        return self._add_mlp(self._add_attention(x, segments, self.drop_path), self.drop_path)

    def _checkpointed(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        if self._may_divide(x):
            run = partial(run_checkpointed, use_reentrant=False, preserve_rng_state=False)
            return self._in_pieces(x, segments, run)
        return run_checkpointed(self, x, segments, use_reentrant=False)

    def _may_divide(self, x: Tensor) -> bool:
        """Whether pieces pay, and nothing but the drop path is drawn, which pieces can share."""
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return x.device.type == "cpu" and not tracing and not (self.training and self.draws)

    def _in_pieces(self, x: Tensor, segments: Sequence[Segment], run: Callable) -> Tensor:
        """The same in pieces of tokens, which ``run`` calls a function on, one after the other.

        Whole windows go through attention and MLP together; a window larger than a piece attends
        in one go, and only its MLP is divided.
        """
        limit = max(1, _PIECE_TOKENS // len(x))
        pieces = [piece for segment in segments for piece in segment.divided(limit)]
        drops = self.drop_path.drawn(x), self.drop_path.drawn(x)
        outputs = []
        for part, piece in zip(x.split([p.windows * p.tokens for p in pieces], dim=1), pieces):
            if part.shape[1] <= limit:
                outputs.append(run(self._add_both, part, [piece], *drops))
            else:
                attended = run(self._add_attention, part, [piece], drops[0])
                outputs += [run(self._add_mlp, p, drops[1]) for p in attended.split(limit, dim=1)]
        return torch.cat(outputs, dim=1)

    def _add_both(
        self, x: Tensor, segments: Sequence[Segment], first: Callable, second: Callable
    ) -> Tensor:
        return self._add_mlp(self._add_attention(x, segments, first), second)

    def _add_attention(self, x: Tensor, segments: Sequence[Segment], drop: Callable) -> Tensor:
        return x + drop(self.ls1(self.attn(self.norm1(x), segments)))

    def _add_mlp(self, x: Tensor, drop: Callable) -> Tensor:
        return x + drop(self.ls2(self.mlp(self.norm2(x))))


class Attention(nn.Module):
    """Multi-head self-attention with rotary queries and keys, window by window."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        norm, dim = norm_layer(arch), arch.hidden_dim
        self.num_heads = arch.num_heads
        self.rotation = arch.rope_rot_type
        self.dropout = arch.attention_dropout
        self.qkv = Linear(dim, 3 * dim, bias=arch.qkv_bias)
        self.q_norm = norm(arch.head_dim) if arch.qk_norm else nn.Identity()
        self.k_norm = norm(arch.head_dim) if arch.qk_norm else nn.Identity()
        self.norm = norm(dim) if arch.attn_norm else nn.Identity()
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(arch.projection_dropout)

    def forward(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """[B, tokens, C] to the same; the segments' tokens add up to ``tokens``."""
        qkv = self.qkv(x)
        sizes = [segment.windows * segment.tokens for segment in segments]
        parts = [
            self._attend(part, segment)
            for part, segment in zip(qkv.split(sizes, dim=1), segments, strict=True)
        ]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.proj_drop(self.proj(self.norm(x)))

    def heads(self, qkv: Tensor, segment: Segment) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of a segment's [B, windows * tokens, 3 C].

        Each is [B * windows, h, tokens, D].
        """
        count = qkv.shape[0] * segment.windows
        qkv = qkv.reshape(count, segment.tokens, 3, self.num_heads, -1)
        q, k, v = qkv.unbind(2)  # [B * windows, tokens, h, D]
        q = rotate(self.q_norm(q), segment.cos, segment.sin, self.rotation).to(v.dtype)
        k = rotate(self.k_norm(k), segment.cos, segment.sin, self.rotation).to(v.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _attend(self, qkv: Tensor, segment: Segment) -> Tensor:
        batch, size, _ = qkv.shape
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(*self.heads(qkv, segment), dropout_p=dropout)
        return x.transpose(1, 2).reshape(batch, size, -1)


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.fc1 = Linear(arch.hidden_dim, arch.mlp_dim)
        self.act = ACTIVATIONS[arch.act_layer_type or "gelu"]()
        self.drop = nn.Dropout(arch.dropout)
        self.fc2 = Linear(arch.mlp_dim, arch.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.act, nn.GELU) and self.act.approximate == "none":
            x = self.fc1(x, gelu=True)
        else:
            x = self.act(self.fc1(x))
        return self.drop(self.fc2(self.drop(x)))


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202), with a norm on the gated channels in the NormFormer form."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.fc1_g = Linear(arch.hidden_dim, arch.mlp_dim)
        self.fc1_x = Linear(arch.hidden_dim, arch.mlp_dim)
        self.act = ACTIVATIONS[arch.act_layer_type or "silu"]()
        self.drop = nn.Dropout(arch.dropout)
        normed = arch.mlp_layer_type == "Norm_SwiGLU_FFN"
        self.norm = norm_layer(arch)(arch.mlp_dim) if normed else nn.Identity()
        self.fc2 = Linear(arch.mlp_dim, arch.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1_g(x)) * self.fc1_x(x))
        return self.drop(self.fc2(self.norm(x)))


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Drops a residual path in training, drawn once per image (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return self.drawn(x)(x)

    def drawn(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Draws for the images of ``x`` [B, ...]: a function for all the pieces of their tokens.

        It takes [B, tokens, C] to the same.
        """
        if not self.training or self.rate == 0.0:
            return _identity
        keep = x.new_empty(x.shape[0], 1, 1).bernoulli_(1.0 - self.rate)
        if self.rate < 1.0:
            keep = keep / (1.0 - self.rate)
        return partial(torch.mul, keep)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, H, W], as ViTDet's necks and heads have it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that CLIP models use."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_swish": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
}


def norm_layer(arch: Arch) -> Callable[[int], nn.Module]:
    """The architecture's norm, a function of the number of channels."""
    norm = nn.RMSNorm if arch.norm_layer_type == "RMSNorm" else nn.LayerNorm
    return partial(norm, eps=arch.norm_layer_eps)


def _identity(x: Tensor) -> Tensor:
    return x


def _call(function: Callable, *args: object) -> Tensor:
    return function(*args)


def _hmlp_stem(arch: Arch) -> nn.Sequential:
    """Patches of 16 pixels by 4 x 2 x 2 (hMLP, arXiv 2203.09795)."""
    norm = nn.BatchNorm2d if arch.stem_norm_layer_type == "BatchNorm2d" else LayerNorm2d
    dim, inner = arch.hidden_dim, arch.hidden_dim // 4
    return nn.Sequential(
        StridedConv(3, inner, 4, stride=4),
        norm(inner),
        nn.GELU(),
        StridedConv(inner, inner, 2, stride=2),
        norm(inner),
        nn.GELU(),
        StridedConv(inner, dim, 2, stride=2),
        norm(dim),
    )
