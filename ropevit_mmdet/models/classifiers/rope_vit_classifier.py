"""A birder checkpoint as the classifier that it is: probabilities, embedding, detection map.

The model card's three uses, equal to birder's: a quick look at whether weights are alive before a
detector trains on them for days. Reference implementation: birder 0.8.4, ``birder/net/rope_vit.py``
and ``birder/layers/attention_pool.py``. Attentive probing: arXiv 2506.10178.
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

from ropevit_mmdet._images import open_image
from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.block import ACTIVATIONS, norm_layer
from ropevit_mmdet.weights.architectures import Arch, resolve_arch
from ropevit_mmdet.weights.checkpoint import (
    Checkpoint,
    check_arch,
    check_img_size,
    load_into,
    read_checkpoint,
    with_overrides,
)
from ropevit_mmdet.weights.identify import identify
from ropevit_mmdet.weights.lookup import resolve_weights


def load_classifier(
    checkpoint: str | Path, arch: str | Mapping[str, Any] | Arch | None = None
) -> RoPEViTClassifier:
    """The network of a birder checkpoint with its head, on the CPU, in eval mode, frozen.

    Args:
        checkpoint: a file, an http(s) URL or ``birder://NAME``, as for ``RoPEViT``.
        arch: as for ``RoPEViT``; default: what ``weights.identify.identify`` finds out.

    Raises:
        FileNotFoundError, ValueError, DownloadError: see ``weights.lookup.resolve_weights``,
            ``checkpoint.read_checkpoint`` and ``weights.identify.identify``; also a checkpoint of
            a detector, and weights that do not fit the architecture, both ways.
    """
    content = read_checkpoint(resolve_weights(checkpoint))
    if content.origin != "birder":
        raise ValueError(f"{content.path} is no classifier of birder's, but of a detector")
    if content.img_size is None:
        raise ValueError(f"{content.path} has no signature: the image size is not known")
    if arch is None:
        _, arch = identify(content)
    elif isinstance(arch, str):
        arch = with_overrides(resolve_arch(arch), content.config)
    else:
        arch = resolve_arch(arch)
    check_arch(content, arch)
    check_img_size(content, arch, content.img_size)
    net = RoPEViTClassifier(content, arch)
    state = {f"encoder.{key}": value for key, value in content.state.items()} | content.head
    load_into(net, state, source=str(content.path))
    return net.eval().requires_grad_(False)


class RoPEViTClassifier(nn.Module):
    """The encoder and the head of a classifier; weights are ``load_classifier``'s business.

    Images are normalised by ``rgb_stats``, RGB, [B, 3, H, W]; of any size, but trained at
    ``img_size`` (height, width).
    """

    def __init__(self, checkpoint: Checkpoint, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.img_size = checkpoint.img_size
        self.rgb_stats = checkpoint.rgb_stats
        self.encoder = RoPEViT(
            arch,
            pretrain_img_size=self.img_size,
            rope_interpolation="none",
            out_indices=arch.num_layers - 1,
        )
        self.attn_pool = _attention_pool(arch) if arch.attn_pool_head else None
        normed = arch.post_norm and arch.norm_after_pool
        self.embedding_norm = norm_layer(arch)(arch.hidden_dim) if normed else nn.Identity()
        self.classifier, self.num_classes = _classifier(checkpoint, arch.hidden_dim)
        self.class_names = _class_names(checkpoint, self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes], as ``classify`` of the ``embedding``."""
        return self.classify(self.embedding(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [B, num_classes].

        Raises:
            ValueError: the checkpoint has no classes.
        """
        return self(images).softmax(dim=1)

    def embedding(self, images: Tensor) -> Tensor:
        """The pooled features of the images, [B, C]."""
        return self.embedding_norm(self._pool(self.encoder.forward_tokens(images)))

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits [B, num_classes] of an embedding [B, C].

        Raises:
            ValueError: the checkpoint has no classes.
        """
        if self.classifier is None:
            raise ValueError(
                "this checkpoint has no classes: it was pretrained without labels, and has an "
                "embedding and a detection map only"
            )
        return self.classifier(embedding)

    def detection_features(self, images: Tensor) -> dict[str, Tensor]:
        """The map that a detector gets, {'neck': [B, C, ceil(H / patch), ceil(W / patch)]}.

        It is the last block's with the encoder's norm: birder's ``neck`` up to 0.2, the norm of
        its ``stage1`` since.
        """
        return {"neck": self.encoder(images)[-1]}

    def preprocess(self, image: str | Path | Image.Image) -> Tensor:
        """An image as the network takes it, [1, 3, height, width] of ``img_size``.

        Resized to that size whatever its aspect, bicubic, as birder does; a photo that says which
        way is up is turned first.

        Raises:
            ValueError: a file that is no image, a checkpoint without ``rgb_stats``.
        """
        if self.rgb_stats is None:
            raise ValueError("this checkpoint has no rgb_stats: it does not say how to normalise")
        image = image if isinstance(image, Image.Image) else _open(Path(image))
        image = ImageOps.exif_transpose(image).convert("RGB")
        image = image.resize(self.img_size[::-1], Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # [3, H, W]
        mean, std = (torch.tensor(self.rgb_stats[key]).view(3, 1, 1) for key in ("mean", "std"))
        return ((pixels.float() / 255 - mean) / std)[None]

    def _pool(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S + N, C] to one embedding [B, C]."""
        patches = tokens[:, self.arch.num_special_tokens :]
        if self.attn_pool is not None:
            return self.attn_pool(tokens if self.arch.attn_pool_special_tokens else patches)
        return tokens[:, self.arch.num_reg_tokens] if self.arch.class_token else patches.mean(dim=1)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; an MLP beside a residual path follows."""

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
        self.mlp = nn.Sequential(  # the places of birder's layers, one of them its dropout
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
    """Each of 32 learned queries weights the tokens for its own share of the channels.

    The tokens are the keys themselves; only values are projected. Weights are the mean over heads.
    """

    num_queries = 32

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        dim = arch.hidden_dim
        if dim % self.num_queries:
            raise ValueError(f"EfficientProbing: hidden_dim {dim} is not a multiple of 32")
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


def _attention_pool(arch: Arch) -> nn.Module:
    kind = AttentionPool if arch.attn_pool_type == "MultiHeadAttentionPool" else EfficientProbing
    heads = arch.attn_pool_num_heads
    if heads is not None and (heads < 1 or arch.hidden_dim % heads):
        raise ValueError(f"attn_pool_num_heads {heads} does not divide {arch.hidden_dim} channels")
    return kind(arch)


def _classifier(checkpoint: Checkpoint, dim: int) -> tuple[nn.Module | None, int]:
    """The layers that the file has, without weights, and the number of classes."""
    head, path = checkpoint.head, checkpoint.path
    hidden = "classifier.0.weight" in head
    last = head.get("classifier.3.weight" if hidden else "classifier.weight")
    if last is None:
        return None, 0
    if last.shape[1] != dim * (3 if hidden else 1):
        raise ValueError(f"{path}: its classifier is {tuple(last.shape)}, and has {dim} channels")
    bias = ("classifier.3.bias" if hidden else "classifier.bias") in head
    if not hidden:
        return nn.Linear(dim, len(last), bias=bias), len(last)
    layers = (nn.Linear(dim, 3 * dim), nn.GELU(), nn.LayerNorm(3 * dim, eps=1e-6))
    return nn.Sequential(*layers, nn.Linear(3 * dim, len(last), bias=bias)), len(last)


def _class_names(checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    """Names in the order of the logits; () where the file has none."""
    indices = checkpoint.class_to_idx or {}
    if not num_classes or not indices:
        return ()
    if sorted(indices.values()) != list(range(num_classes)):
        raise ValueError(
            f"{checkpoint.path}: its class_to_idx does not number its {num_classes} classes"
        )
    return tuple(sorted(indices, key=indices.get))


def _open(path: Path) -> Image.Image:
    try:
        with open_image(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(f"image not found: {path}") from None
    except (OSError, Image.DecompressionBombError) as error:  # PIL's for what it cannot decode
        raise ValueError(f"image {path} cannot be read: {error}") from error
