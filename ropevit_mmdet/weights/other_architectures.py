"""RoPE ViTs of timm and transformers, as data.

Sources: timm 1.0.31, `timm/models/eva.py`; transformers 5.24, `models/dinov3_vit`. Meta's own files
of DINOv3 and of the Perception Encoder have the architectures of timm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Published(NamedTuple):
    """A named architecture, and the first of its published weights."""

    settings: dict[str, Any]  # keys of `Arch`
    side: int  # pixels: trained on squares of this side
    stats: tuple[tuple[float, ...], tuple[float, ...]] | None  # mean, std; None: not always equal
    tag: str  # after the name in timm's repositories


def _size(num_layers: int, num_heads: int, hidden_dim: int, mlp_dim: int) -> dict[str, Any]:
    names = ("num_layers", "num_heads", "hidden_dim", "mlp_dim")
    return dict(zip(names, (num_layers, num_heads, hidden_dim, mlp_dim)))


_TINY, _SMALL, _BASE = _size(12, 3, 192, 768), _size(12, 6, 384, 1536), _size(12, 12, 768, 3072)
_LARGE = _size(24, 16, 1024, 4096)
_HUGE, _7B = _size(32, 20, 1280, 5120), _size(40, 32, 4096, 8192)
_SWIGLU = dict(mlp_layer_type="SwiGLU_FFN")
_LAYER_SCALE = dict(layer_scale_init_value=1e-5)


def _eva02(name: str, side: int, tag: str, size: dict, patch: int = 14, **more: Any) -> tuple:
    """EVA-02, arXiv 2303.11331; its CLIP models, arXiv 2303.15389."""
    tokens = dict(class_token=True, pos_embed_antialias=True, qkv_bias=True, k_bias=False)
    rope = dict(rope_rot_type="interleaved", rope_temperature=10000.0, pt_grid_size=(16, 16))
    settings = dict(patch_size=patch, norm_after_pool=True, **size, **tokens, **rope) | more
    return f"eva02_{name}_{side}", Published(settings, side, _CLIP, tag)


def _sbb(name: str, size: dict, registers: int, stats: tuple = _HALF, **more: Any) -> tuple:
    """ViTs of timm's own recipe."""
    tokens = dict(num_reg_tokens=registers, class_token=False, abs_pos_embed=False)
    rope = dict(rope_rot_type="interleaved", rope_temperature=10000.0, pt_grid_size=(16, 16))
    settings = dict(patch_size=16, norm_after_pool=True, k_bias=False, **size, **tokens, **rope)
    name = f"vit_{name}_patch16_rope_reg{registers}_gap_256"
    return name, Published(settings | _LAYER_SCALE | more, 256, stats, "sbb_in1k")


def _naver(name: str, size: dict, kind: str) -> tuple:
    """RoPE for ViT, arXiv 2403.13298: kind is '', 'mixed', 'ape' or 'mixed_ape'."""
    positions = dict(abs_pos_embed="ape" in kind, pos_embed_special_tokens=False)
    rope = dict(rope_style="axial", rope_temperature=100.0)
    if "mixed" in kind:
        rope = dict(rope_style="mixed", rope_temperature=10.0)
    settings = dict(patch_size=16, rope_rot_type="interleaved", pos_embed_antialias=True, **size)
    name = f"vit_{name}_patch16_rope_{kind}{'_' if kind else ''}224"
    settings |= positions | rope | _LAYER_SCALE
    return name, Published(settings, 224, _IMAGENET, "naver_in1k")


def _dinov3(name: str, size: dict, tag: str = "lvd1689m", **more: Any) -> tuple:
    """DINOv3, arXiv 2508.10104. Of two sizes there are weights for satellite images, too."""
    tokens = dict(num_reg_tokens=4, abs_pos_embed=False, norm_layer_eps=1e-5, k_bias=False)
    settings = dict(patch_size=16, rope_style="centered_periods", **size, **tokens) | _LAYER_SCALE
    stats = None if size["hidden_dim"] in (1024, 4096) else _IMAGENET
    return name, Published(settings | more, 256, stats, tag)


def _pe(name: str, side: int, size: dict, grid: int, patch: int = 16, **more: Any) -> tuple:
    """Perception Encoder, arXiv 2504.13181; `grid` is that of the pretraining."""
    large = size["hidden_dim"] == 1536  # without a class token
    rope = dict(rope_rot_type="interleaved", rope_grid_indexing="xy", rope_temperature=10000.0)
    settings = dict(patch_size=patch, pre_norm=True, norm_layer_eps=1e-5, class_token=not large)
    settings |= dict(pos_embed_antialias=True, pt_grid_size=(grid, grid), **size, **rope)  # type: ignore[dict-item]
    settings |= dict(rope_grid_offset=0 if large else 1, **more)
    return f"vit_pe_{name}_patch{patch}_{side}", Published(settings, side, _HALF, "fb")


_EVA_TINY, _EVA_SMALL = _size(12, 3, 192, 512) | _SWIGLU, _size(12, 6, 384, 1024) | _SWIGLU
_NORMED = dict(mlp_layer_type="Norm_SwiGLU_FFN")
_EVA_BASE, _EVA_LARGE = _size(12, 12, 768, 2048) | _NORMED, _size(24, 16, 1024, 2730) | _NORMED
_CLIP_TOWER = dict(attn_norm=True, norm_after_pool=False)
_CORE = dict(attn_pool_head=True, attn_pool_num_heads=8)
_SPATIAL = dict(post_norm=False)
_LANG = dict(post_norm=False, layer_scale_init_value=0.1)

TIMM: dict[str, Published] = dict(
    [
        _eva02("tiny_patch14", 224, "mim_in22k", _EVA_TINY),
        _eva02("tiny_patch14", 336, "mim_in22k_ft_in1k", _EVA_TINY),
        _eva02("small_patch14", 224, "mim_in22k", _EVA_SMALL),
        _eva02("small_patch14", 336, "mim_in22k_ft_in1k", _EVA_SMALL),
        _eva02("base_patch14", 224, "mim_in22k", _EVA_BASE),
        _eva02("base_patch14", 448, "mim_in22k_ft_in22k_in1k", _EVA_BASE),
        _eva02("large_patch14", 224, "mim_in22k", _EVA_LARGE),
        _eva02("large_patch14", 448, "mim_in22k_ft_in22k_in1k", _EVA_LARGE),
        _eva02("base_patch16_clip", 224, "merged2b", _EVA_BASE, 16, **_CLIP_TOWER),
        _eva02("large_patch14_clip", 224, "merged2b", _EVA_LARGE, **_CLIP_TOWER),
        _eva02("large_patch14_clip", 336, "merged2b", _EVA_LARGE, **_CLIP_TOWER),
        _sbb("medium", _size(12, 8, 512, 2048), 1),
        _sbb("mediumd", _size(20, 8, 512, 2048), 1, qkv_bias=False),
        _sbb("betwixt", _size(12, 10, 640, 2560), 4, _CLIP),
        _sbb("base", _BASE, 1),
        *(
            _naver(name, size, kind)
            for name, size in (("small", _SMALL), ("base", _BASE), ("large", _LARGE))
            for kind in ("", "mixed", "ape", "mixed_ape")
        ),
        _dinov3("vit_tiny_patch16_dinov3_qkvb", _TINY, "eupe_lvd1689m"),
        *(
            _dinov3(f"vit_{name}_patch16_dinov3{bias}", size, qkv_bias=bool(bias))
            for name, size in (
                ("small", _SMALL),
                ("small_plus", _SMALL | _SWIGLU),
                ("base", _BASE),
                ("large", _LARGE),
                ("huge_plus", _HUGE | _SWIGLU),
            )
            for bias in ("", "_qkvb")
        ),
        _dinov3("vit_7b_patch16_dinov3", _7B | _SWIGLU, qkv_bias=False),
        _pe("core_tiny", 384, _TINY, 24, **_CORE),
        _pe("core_small", 384, _SMALL, 24, **_CORE),
        _pe("core_base", 224, _BASE, 14, **_CORE),
        _pe("core_large", 336, _LARGE, 24, 14, **_CORE),
        _pe("core_gigantic", 448, _size(50, 16, 1536, 8960), 32, 14, **_CORE),
        _pe("lang_large", 448, _LARGE | dict(num_layers=23), 32, 14, **_LANG),
        _pe("lang_gigantic", 448, _size(47, 16, 1536, 8960), 32, 14, **_LANG),
        _pe("spatial_tiny", 512, _TINY, 32, **_SPATIAL),
        _pe("spatial_small", 512, _SMALL, 32, **_SPATIAL),
        _pe("spatial_base", 512, _BASE, 32, **_SPATIAL),
        _pe("spatial_large", 448, _LARGE, 32, 14, **_SPATIAL),
        _pe("spatial_gigantic", 448, _size(50, 16, 1536, 8960), 32, 14, **_LANG),
    ]
)

# transformers multiplies coordinates by frequencies, timm divides them by periods: the tables
# differ in the last digit of float32.
TRANSFORMERS: dict[str, Published] = dict(
    _dinov3(f"dinov3_vit{name}_hf", size, "", rope_style="centered_separate", qkv_bias=bias)
    for name, size, bias in (
        ("s16", _SMALL, True),
        ("s16plus", _SMALL | _SWIGLU, True),
        ("b16", _BASE, True),
        ("l16", _LARGE, True),
        ("h16plus", _HUGE | _SWIGLU, True),
        ("7b16", _7B | _SWIGLU, False),
    )
)

PUBLISHED = TIMM | TRANSFORMERS
