"""A birder checkpoint as a classifier: probabilities, embedding, detection feature map.

The three uses of birder's model cards, with birder's results, to check weights before training a
detector. Reference implementation: birder 0.8.4, `birder/net/rope_vit.py` and
`birder/layers/attention_pool.py`. Attentive probing: arXiv 2506.10178.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from ropevit_mmdet._images import read_image
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.mlp import ACTIVATIONS
from ropevit_mmdet.models.layers.norm import norm_layer
from ropevit_mmdet.weights.architectures import Arch, resolve_arch
from ropevit_mmdet.weights.checkpoint import (
    Checkpoint,
    check_arch,
    check_img_size,
    load_into,
    read_checkpoint,
)
from ropevit_mmdet.weights.hub import resolve_weights
from ropevit_mmdet.weights.inspection import identify


def load_classifier(
    checkpoint: str | Path, arch: str | Mapping[str, Any] | Arch | None = None
) -> RoPEViTClassifier:
    """Loads a birder checkpoint with its head, on the CPU, in eval mode, frozen.

    Args:
        checkpoint: a file, a URL or `birder://NAME`, as for `RoPEViT`.
        arch: as for `RoPEViT`; default: the result of `identify`.

    Returns:
        The classifier.

    Raises:
        UserError: no such file, no classifier, or weights that do not fit the architecture.
    """
    content = read_checkpoint(resolve_weights(checkpoint))
    if content.origin != "birder" or content.img_size is None:
        raise UserError(f"{content.path} is no classifier of birder with its signature")
    if arch is None or isinstance(arch, str):
        _, arch = identify(content, arch)
    arch = resolve_arch(arch)
    check_arch(content, arch)
    check_img_size(content, arch, content.img_size)
    net = RoPEViTClassifier(content, arch)
    state = {f"encoder.{key}": value for key, value in content.state.items()} | content.head
    load_into(net, state, source=str(content.path))
    return net.eval().requires_grad_(False)


class RoPEViTClassifier(nn.Module):
    """The encoder and the head of a classifier, without weights: see `load_classifier`.

    Attributes:
        img_size: pixels, (height, width) of the training images.
        rgb_stats: mean and std of RGB images in 0..1; None if the checkpoint has none.
        num_classes: 0 without a classifier.
        class_names: in the order of the logits; () if the checkpoint has none.
    """

    def __init__(self, checkpoint: Checkpoint, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        assert checkpoint.img_size is not None  # load_classifier checks
        self.img_size = checkpoint.img_size
        self.rgb_stats = checkpoint.rgb_stats
        self.encoder = RoPEViT(
            arch,
            pretrain_img_size=self.img_size,
            rope_interpolation="none",
            out_indices=arch.num_layers - 1,
        )
        attention = arch.attn_pool_type == "MultiHeadAttentionPool"
        pool = AttentionPool if attention else EfficientProbing
        self.attn_pool = pool(arch) if arch.attn_pool_head else None
        normed = arch.post_norm and arch.norm_after_pool
        self.embedding_norm = norm_layer(arch)(arch.hidden_dim) if normed else nn.Identity()
        self.classifier, self.num_classes = _classifier(checkpoint, arch.hidden_dim)
        self.class_names = _class_names(checkpoint, self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalized images [B, 3, H, W]."""
        if self.classifier is None:
            raise UserError("this checkpoint has no classes: it was pretrained without labels")
        return self.classifier(self.embedding(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [B, num_classes] of images."""
        return self(images).softmax(dim=1)

    def embedding(self, images: Tensor) -> Tensor:
        """The pooled features [B, C] of images."""
        return self.embedding_norm(self._pool(self.encoder.forward_tokens(images)))

    def detection_features(self, images: Tensor) -> dict[str, Tensor]:
        """The last feature map, {'neck': [B, C, ceil(H / patch), ceil(W / patch)]}, normalized.

        It is the `neck` of birder up to 0.2, and the norm of its `stage1` since.
        """
        return {"neck": self.encoder(images)[-1]}

    def preprocess(self, image: str | Path | Image.Image) -> Tensor:
        """Reads, resizes and normalizes an image to [1, 3, height, width] of `img_size`.

        Resizes bicubically without keeping the aspect, as birder does.
        """
        if self.rgb_stats is None:
            raise UserError("this checkpoint has no rgb_stats, which normalization needs")
        image = image if isinstance(image, Image.Image) else Image.fromarray(read_image(image))
        image = ImageOps.exif_transpose(image).convert("RGB")
        image = image.resize(self.img_size[::-1], Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()  # [3, H, W]
        mean, std = (pixels.new_tensor(self.rgb_stats[key]) for key in ("mean", "std"))
        return ((pixels / 255 - mean[:, None, None]) / std[:, None, None])[None]

    def _pool(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S + N, C] to one embedding [B, C]."""
        patches = tokens[:, self.arch.num_special_tokens :]
        if self.attn_pool is not None:
            return self.attn_pool(tokens if self.arch.attn_pool_special_tokens else patches)
        return tokens[:, self.arch.num_reg_tokens] if self.arch.class_token else patches.mean(dim=1)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; a residual MLP follows."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        dim, mlp_dim = arch.hidden_dim, arch.mlp_dim
        self.num_heads = arch.attn_pool_num_heads or arch.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=arch.attn_pool_norm_eps)
        activation = ACTIVATIONS[arch.attn_pool_act_layer_type]()
        self.mlp = nn.Sequential(  # indices as in birder, whose dropout is the third
            nn.Linear(dim, mlp_dim), activation, nn.Identity(), nn.Linear(mlp_dim, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] to [B, C]."""
        query = self.q(self.latent).expand(len(tokens), -1, -1)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, h, 1 or N, D]
            for part in (query, *self.kv(tokens).chunk(2, dim=-1))
        )
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, 1, C]
        pooled = self.proj(pooled)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class EfficientProbing(nn.Module):
    """Each of 32 learned queries pools the tokens for 1/32 of the channels.

    The tokens are the keys; only values are projected. Weights are the mean over heads.
    """

    num_queries = 32

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        dim = arch.hidden_dim
        self.num_heads = arch.attn_pool_num_heads or 1
        self.latent = nn.Parameter(torch.zeros(1, self.num_queries, dim))
        self.v = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] to [B, C]."""
        q, k = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [1 or B, h, 32 or N, D]
            for part in (self.latent, tokens)
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = scores.softmax(dim=-1).mean(dim=1)  # [B, 32, N]
        values = self.v(tokens).unflatten(-1, (self.num_queries, -1))  # [B, N, 32, C / 32]
        return torch.einsum("bqn,bnqc->bqc", weights, values).flatten(1)


def _classifier(checkpoint: Checkpoint, dim: int) -> tuple[nn.Module | None, int]:
    """The layers that the file has, without weights, and the number of classes."""
    head = checkpoint.head
    hidden = "classifier.0.weight" in head
    prefix = "classifier.3" if hidden else "classifier"
    if f"{prefix}.weight" not in head:
        return None, 0
    num_classes = len(head[f"{prefix}.weight"])
    last = nn.Linear(3 * dim if hidden else dim, num_classes, bias=f"{prefix}.bias" in head)
    if not hidden:
        return last, num_classes
    norm = nn.LayerNorm(3 * dim, eps=1e-6)
    return nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), norm, last), num_classes


def _class_names(checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    """Names in the order of the logits; () if the file has none."""
    indices = checkpoint.class_to_idx or {}
    if not num_classes or not indices:
        return ()
    if sorted(indices.values()) != list(range(num_classes)):
        raise UserError(f"{checkpoint.path}: class_to_idx does not fit its {num_classes} classes")
    return tuple(sorted(indices, key=indices.__getitem__))
