"""Floating point operations of a RoPEViT forward pass, in closed form.

Counters that hook operators miss fused attention on a CPU; a sum over layers misses nothing.
A multiplication with its addition counts as two operations. Counted are matrix products (the patch
embedding, linear layers, attention); norms, activations and rotations are not: they are what keeps
a model below the machine's matrix-multiply rate.
"""

from __future__ import annotations

from ropevit_mmdet.models.backbones.rope_vit import RoPEViT
from ropevit_mmdet.models.layers.windows import window_groups


def count_flops(model: RoPEViT, height: int, width: int) -> int:
    """Operations of one image of height x width pixels."""
    arch, patch = model.arch, model.patch_size
    grid = (-(-height // patch), -(-width // patch))
    groups = window_groups(grid, model.window_size)
    special, dim = arch.num_special_tokens, arch.hidden_dim
    patches = grid[0] * grid[1]

    gated = arch.mlp_layer_type != "FFN"
    weights_per_token = 4 * dim * dim + (3 if gated else 2) * dim * arch.mlp_dim
    total = _stem_flops(model, patches)
    for i in range(len(model.blocks)):
        if model.window_size is None or i in model.global_attn_indices:
            runs = [(1, special + patches)]
        else:
            runs = [(g.windows, special + g.patches) for g in groups]
        for windows, tokens in runs:
            total += 2 * windows * tokens * weights_per_token
            total += 2 * windows * 2 * tokens * tokens * dim  # q times k, then times v
    return total


def _stem_flops(model: RoPEViT, patches: int) -> int:
    """A convolution whose stride is its kernel multiplies every weight once per output cell."""
    proj, total, cells = model.patch_embed.proj, 0, patches
    convs = [layer for layer in proj.modules() if hasattr(layer, "kernel_size")]
    for conv in reversed(convs):  # from the patches up to the pixels
        total += 2 * cells * conv.weight.numel()
        cells *= conv.stride[0] * conv.stride[1]
    return total
