"""Architectures as data: birder's RoPE ViT names and the settings behind them.

Source: birder 0.8.4, ``birder/net/_rope_vit_configs.py`` and ``birder/net/_vit_configs.py``
(names and numbers), ``birder/net/rope_vit.py`` (keys and their defaults).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Arch:
    """The settings of one RoPE ViT, under the keys of birder's network config.

    Lengths are in channels, ``patch_size`` in pixels, ``pt_grid_size`` in patches (rows, columns).
    """

    patch_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    mlp_dim: int
    drop_path_rate: float = 0.0
    drop_path_uniform: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0

    stem_type: str = "patchify"  # | 'hmlp'
    stem_norm_layer_type: str | None = None  # hmlp: 'LayerNorm2d' (default) | 'BatchNorm2d'
    num_reg_tokens: int = 0
    class_token: bool = True
    abs_pos_embed: bool = True
    pos_embed_special_tokens: bool = True
    pos_embed_interpolation_mode: str = "bicubic"  # | 'bilinear'
    pos_embed_antialias: bool = False

    pre_norm: bool = False
    post_norm: bool = True
    norm_after_pool: bool = False
    norm_layer_type: str = "LayerNorm"  # | 'RMSNorm'
    norm_layer_eps: float = 1e-6
    layer_scale_init_value: float | None = None
    qkv_bias: bool = True
    qk_norm: bool = False
    attn_norm: bool = False
    mlp_layer_type: str = "FFN"  # | 'SwiGLU_FFN' | 'Norm_SwiGLU_FFN'
    act_layer_type: str | None = None  # default: gelu for FFN, silu for SwiGLU

    rope_style: str = "default"  # | 'axial' | 'centered_separate'
    rope_rot_type: str = "standard"  # | 'interleaved'
    rope_grid_indexing: str = "ij"  # | 'xy'
    rope_grid_offset: int = 0
    rope_temperature: float = 100.0
    rope_shift_coords: float | None = None
    rope_jitter_coords: float | None = None
    rope_rescale_coords: float | None = None
    pt_grid_size: tuple[int, int] | None = None

    attn_pool_head: bool = False
    attn_pool_type: str = "MultiHeadAttentionPool"  # | 'EfficientProbing'
    attn_pool_num_heads: int | None = None
    attn_pool_special_tokens: bool = False
    attn_pool_norm_eps: float = 1e-5
    attn_pool_act_layer_type: str = "gelu"
    mlp_head: bool = False
    head_bias: bool = True
    out_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # JSON and mmengine configs have lists for tuples
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        _check(self)

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads

    @property
    def num_special_tokens(self) -> int:
        return self.num_reg_tokens + int(self.class_token)

    @property
    def has_final_norm(self) -> bool:
        """Whether the encoder ends in a norm over the tokens."""
        return self.post_norm and not self.norm_after_pool


def resolve_arch(arch: str | Mapping[str, Any] | Arch) -> Arch:
    """The settings of a birder network name, or of a mapping with the keys of its config.

    Raises:
        ValueError: an unknown name or key, a missing key, a value out of range, soft MoE.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        return _by_name(arch)
    if not isinstance(arch, Mapping):
        raise ValueError(f"arch must be a birder network name or a dict, got {arch!r}")
    fields = {field.name: field for field in dataclasses.fields(Arch)}
    if any(arch.get(key) not in (None, 1) for key in arch if key.startswith("soft_moe_")):
        raise ValueError(_NO_SOFT_MOE)
    settings = {key: value for key, value in arch.items() if not key.startswith("soft_moe_")}
    unknown = [key for key in settings if key not in fields]
    if unknown:
        raise ValueError(f"unknown key in arch: {unknown[0]!r}{_closest(unknown[0], fields)}")
    missing = [name for name in _REQUIRED if name not in settings]
    if missing:
        raise ValueError(f"arch as a dict needs {', '.join(map(repr, missing))}, got {dict(arch)}")
    if settings.get("mlp_dim") is None:
        settings["mlp_dim"] = 4 * settings["hidden_dim"]
    return Arch(**settings)


def arch_names() -> tuple[str, ...]:
    """Every architecture that has a name, aliases left out."""
    return tuple(_TABLE)


def names_of(arch: Arch, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Names under which birder registers these settings, the fields in ``ignore`` aside."""

    def key(settings: Arch) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(settings).items() if k not in ignore}

    return [name for name, known in _TABLE.items() if key(known) == key(arch)]


def _by_name(name: str) -> Arch:
    key = name.lower()
    key = ALIASES.get(key, key)
    if key in _TABLE:
        return _TABLE[key]
    if "soft_moe" in key:
        raise ValueError(f"{name!r}: {_NO_SOFT_MOE}")
    raise ValueError(f"unknown arch {name!r}{_closest(key, [*_TABLE, *ALIASES])}")


def _closest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


ACTIVATION_NAMES = tuple(
    "identity relu relu6 leaky_relu elu prelu celu selu gelu gelu_tanh quick_gelu silu mish "
    "sigmoid tanh hard_sigmoid hard_swish hard_tanh".split()
)
_REQUIRED = ("patch_size", "num_layers", "num_heads", "hidden_dim")
_NO_SOFT_MOE = "soft mixture-of-experts MLPs (SoftMoE_FFN) are not supported"
_CHOICES = dict(
    stem_type=("patchify", "hmlp"),
    stem_norm_layer_type=(None, "LayerNorm2d", "BatchNorm2d"),
    pos_embed_interpolation_mode=("bicubic", "bilinear"),
    norm_layer_type=("LayerNorm", "RMSNorm"),
    mlp_layer_type=("FFN", "SwiGLU_FFN", "Norm_SwiGLU_FFN"),
    act_layer_type=(None, *ACTIVATION_NAMES),
    attn_pool_act_layer_type=ACTIVATION_NAMES,
    rope_style=("default", "axial", "centered_separate"),
    rope_rot_type=("standard", "interleaved"),
    rope_grid_indexing=("ij", "xy"),
    attn_pool_type=("MultiHeadAttentionPool", "EfficientProbing"),
)


def _check(arch: Arch) -> None:
    if arch.mlp_layer_type == "SoftMoE_FFN":
        raise ValueError(_NO_SOFT_MOE)
    for key, choices in _CHOICES.items():
        if getattr(arch, key) not in choices:
            raise ValueError(f"arch: {key} must be one of {choices}, got {getattr(arch, key)!r}")
    for key in ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim"):
        if not isinstance(getattr(arch, key), int) or getattr(arch, key) < 1:
            raise ValueError(f"arch: {key} must be a positive integer, got {getattr(arch, key)!r}")
    for key in ("drop_path_rate", "dropout", "attention_dropout", "projection_dropout"):
        if not 0 <= getattr(arch, key) <= 1:
            raise ValueError(f"arch: {key} must be 0 to 1, got {getattr(arch, key)!r}")
    for key in ("norm_layer_eps", "rope_temperature"):
        if not getattr(arch, key) > 0:
            raise ValueError(f"arch: {key} must be above 0, got {getattr(arch, key)!r}")
    if not isinstance(arch.num_reg_tokens, int) or arch.num_reg_tokens < 0:
        raise ValueError(f"arch: num_reg_tokens must be 0 or more, got {arch.num_reg_tokens!r}")
    if arch.hidden_dim % arch.num_heads or arch.head_dim % 4:
        raise ValueError(
            f"arch: hidden_dim {arch.hidden_dim} over num_heads {arch.num_heads} must be a "
            "multiple of 4, for each axis turns pairs of channels"
        )
    if arch.stem_type == "hmlp" and arch.patch_size != 16:
        raise ValueError(f"arch: the hmlp stem has patches of 16 pixels, got {arch.patch_size}")
    if arch.stem_type == "patchify" and arch.stem_norm_layer_type is not None:
        raise ValueError('arch: stem_norm_layer_type belongs to stem_type="hmlp"')
    _check_rope(arch)


def _check_rope(arch: Arch) -> None:
    for key, least in (("shift", 0.0), ("jitter", 1.0), ("rescale", 1.0)):
        value = getattr(arch, f"rope_{key}_coords")
        if value is None:
            continue
        if arch.rope_style != "centered_separate":
            raise ValueError(f'arch: rope_{key}_coords belongs to rope_style="centered_separate"')
        if value < least:
            raise ValueError(f"arch: rope_{key}_coords must be at least {least}, got {value}")
    pt = arch.pt_grid_size
    if pt is not None and not (isinstance(pt, tuple) and len(pt) == 2 and min(pt) > 0):
        raise ValueError(f"arch: pt_grid_size must be (rows, columns) in patches, got {pt!r}")
    if arch.rope_style == "default":
        return
    if arch.rope_grid_indexing != "ij" or arch.rope_grid_offset or arch.pt_grid_size is not None:
        raise ValueError(
            f"arch: rope_style {arch.rope_style!r} takes no rope_grid_indexing, rope_grid_offset "
            "or pt_grid_size"
        )
    needs = {"axial": "interleaved", "centered_separate": "standard"}[arch.rope_style]
    if arch.rope_rot_type != needs:
        raise ValueError(f"arch: rope_style {arch.rope_style!r} needs rope_rot_type={needs!r}")


def _size(num_layers: int, num_heads: int, hidden_dim: int, mlp_dim: int, drop_path: float) -> dict:
    return dict(
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
        drop_path_rate=drop_path,
    )


def _vit(size: dict, patch_size: int, *families: dict, reg: int = 0, **switches: Any) -> Arch:
    settings = dict(size, patch_size=patch_size, num_reg_tokens=reg)
    for family in families:
        settings |= family
    return Arch(**(settings | switches))


_T = _size(12, 3, 192, 768, 0.0)
_S = _size(12, 6, 384, 1536, 0.0)
_M = _size(12, 8, 512, 2048, 0.0)
_B = _size(12, 12, 768, 3072, 0.1)
_L = _size(24, 16, 1024, 4096, 0.1)
_H = _size(32, 16, 1280, 5120, 0.1)
_SO150 = _size(18, 16, 896, 2320, 0.1)
_SO400 = _size(27, 16, 1152, 4304, 0.1)
_G = _size(40, 16, 1408, 6144, 0.1)
_GIGANTIC = _size(48, 16, 1664, 8192, 0.1)

_AVG = dict(class_token=False)
_POOL = dict(class_token=False, attn_pool_head=True)
_RMS_SWIGLU = dict(norm_layer_type="RMSNorm", mlp_layer_type="SwiGLU_FFN")
_DEIT3 = dict(pos_embed_special_tokens=False, layer_scale_init_value=1e-5)
_CENTERED = dict(  # DINOv3, arXiv 2508.10104
    abs_pos_embed=False,
    layer_scale_init_value=1e-5,
    num_reg_tokens=4,
    rope_style="centered_separate",
)
_PE = dict(  # Perception Encoder, arXiv 2504.13181
    pre_norm=True,
    norm_layer_eps=1e-5,
    rope_rot_type="interleaved",
    rope_grid_indexing="xy",
    rope_grid_offset=1,
    rope_temperature=10000.0,
)
_PE_CORE = _PE | dict(attn_pool_head=True, attn_pool_num_heads=8, attn_pool_special_tokens=True)
_PE_SPATIAL = _PE | dict(num_reg_tokens=1, class_token=False, post_norm=False)

_TABLE: dict[str, Arch] = {
    "rope_vit_t32": _vit(_T, 32),
    "rope_vit_t16": _vit(_T, 16),
    "rope_vit_t14": _vit(_T, 14),
    "rope_vit_s32": _vit(_S, 32),
    "rope_vit_s16": _vit(_S, 16),
    "rope_vit_s16_avg": _vit(_S, 16, _AVG),
    "rope_a_vit_s16": _vit(_S, 16, rope_style="axial", rope_rot_type="interleaved"),
    "rope_cs_vit_reg4_s16_nape_ls": _vit(_S, 16, _CENTERED),
    "rope_cs_vit_reg4_s16_nape_ls_c1": _vit(_S, 16, _CENTERED, norm_layer_eps=1e-5),
    "rope_i_vit_s16_pn_aps_c1": _vit(_S, 16, _PE_CORE),
    "rope_vit_s14": _vit(_S, 14),
    "rope_vit_s14_swiglu_avg": _vit(_S, 14, _AVG, mlp_layer_type="SwiGLU_FFN"),
    "rope_vit_m32": _vit(_M, 32),
    "rope_vit_m16": _vit(_M, 16),
    "rope_vit_m16_avg": _vit(_M, 16, _AVG),
    "rope_vit_m14": _vit(_M, 14),
    "rope_vit_m14_swiglu_avg": _vit(_M, 14, _AVG, mlp_layer_type="SwiGLU_FFN"),
    "rope_vit_b32": _vit(_B, 32, drop_path_rate=0.0),
    "rope_vit_b16": _vit(_B, 16),
    "rope_vit_b16_qkn_ls": _vit(_B, 16, layer_scale_init_value=1e-5, qk_norm=True),
    "rope_vit_b16_nf_swiglu": _vit(_B, 16, attn_norm=True, mlp_layer_type="Norm_SwiGLU_FFN"),
    "rope_i_vit_b16_pn_aps_c1": _vit(_B, 16, _PE_CORE),
    "rope_vit_b14": _vit(_B, 14),
    "rope_vit_b14_swiglu_avg": _vit(_B, 14, _AVG, mlp_layer_type="SwiGLU_FFN"),
    "rope_vit_so150m_p14_ap": _vit(_SO150, 14, _POOL),
    "rope_vit_l32": _vit(_L, 32),
    "rope_vit_l16": _vit(_L, 16),
    "rope_vit_l14": _vit(_L, 14),
    "rope_i_vit_l14_pn_aps_c1": _vit(_L, 14, _PE_CORE),
    "rope_i_vit_l14_nf_swiglu_c1": _vit(
        _L,
        14,
        mlp_dim=2730,
        attn_norm=True,
        mlp_layer_type="Norm_SwiGLU_FFN",
        rope_rot_type="interleaved",
        rope_temperature=10000.0,
        pt_grid_size=(16, 16),
    ),
    "rope_vit_so400m_p14_ap": _vit(_SO400, 14, _POOL),
    "rope_vit_h16": _vit(_H, 16),
    "rope_vit_h14": _vit(_H, 14),
    "rope_vit_g16": _vit(_G, 16),
    "rope_vit_g14": _vit(_G, 14),
    "rope_vit_gigantic14": _vit(_GIGANTIC, 14),
    "rope_vit_reg1_t32": _vit(_T, 32, reg=1),
    "rope_vit_reg1_t16": _vit(_T, 16, reg=1),
    "rope_i_vit_reg1_t16_pn_npn_avg_c1": _vit(_T, 16, _PE_SPATIAL),
    "rope_vit_reg1_t14": _vit(_T, 14, reg=1),
    "rope_vit_reg1_s32": _vit(_S, 32, reg=1),
    "rope_vit_reg1_s16": _vit(_S, 16, reg=1),
    "rope_i_vit_reg1_s16_pn_npn_avg_c1": _vit(_S, 16, _PE_SPATIAL),
    "rope_vit_reg1_s14": _vit(_S, 14, reg=1),
    "rope_vit_reg4_m32": _vit(_M, 32, reg=4),
    "rope_vit_reg4_m16": _vit(_M, 16, reg=4),
    "rope_vit_reg4_m16_rms_avg": _vit(_M, 16, _AVG, reg=4, norm_layer_type="RMSNorm"),
    "rope_vit_reg4_m14": _vit(_M, 14, reg=4),
    "rope_vit_reg4_m14_avg": _vit(_M, 14, _AVG, reg=4),
    "rope_vit_reg4_b32": _vit(_B, 32, reg=4, drop_path_rate=0.0),
    "rope_vit_reg4_b16": _vit(_B, 16, reg=4),
    "rope_i_vit_reg1_b16_pn_npn_avg_c1": _vit(_B, 16, _PE_SPATIAL),
    "rope_cs_vit_reg4_b16_nape_ls": _vit(_B, 16, _CENTERED),
    "rope_cs_vit_reg4_b16_nape_ls_c1": _vit(_B, 16, _CENTERED, norm_layer_eps=1e-5),
    "rope_vit_reg4_b14": _vit(_B, 14, reg=4),
    "rope_vit_reg8_b14_nps_avg": _vit(_B, 14, _AVG, reg=8, pos_embed_special_tokens=False),
    "rope_vit_reg8_b14_nps_ap": _vit(_B, 14, _POOL, reg=8, pos_embed_special_tokens=False),
    "rope_cs_vit_reg4_so150m_p16_nape_ls": _vit(_SO150, 16, _CENTERED),
    "rope_vit_reg4_so150m_p14_ap": _vit(_SO150, 14, _POOL, reg=4),
    "rope_vit_reg8_so150m_p14_ap": _vit(_SO150, 14, _POOL, reg=8),
    "rope_vit_reg8_so150m_p14_swiglu_rms_avg": _vit(_SO150, 14, _RMS_SWIGLU, _AVG, reg=8),
    "rope_vit_reg8_so150m_p14_swiglu_rms_ap": _vit(_SO150, 14, _RMS_SWIGLU, _POOL, reg=8),
    "rope_vit_reg8_so150m_p14_swiglu_rms_aps": _vit(
        _SO150, 14, _RMS_SWIGLU, _POOL, reg=8, attn_pool_special_tokens=True
    ),
    "rope_vit_reg8_so150m_p14_swiglu_rms_eps": _vit(
        _SO150,
        14,
        _RMS_SWIGLU,
        _POOL,
        reg=8,
        attn_pool_type="EfficientProbing",
        attn_pool_special_tokens=True,
    ),
    "rope_vit_reg4_l32": _vit(_L, 32, reg=4),
    "rope_vit_reg4_l16": _vit(_L, 16, reg=4),
    "rope_cs_vit_reg4_l16_nape_ls_c1": _vit(_L, 16, _CENTERED, norm_layer_eps=1e-5),
    "rope_vit_reg4_l14": _vit(_L, 14, reg=4),
    "rope_vit_reg8_l14_rms_ap": _vit(_L, 14, _POOL, reg=8, norm_layer_type="RMSNorm"),
    "rope_vit_reg8_so400m_p14_ap": _vit(_SO400, 14, _POOL, reg=8),
    "rope_vit_reg4_h16": _vit(_H, 16, reg=4),
    "rope_vit_reg4_h14": _vit(_H, 14, reg=4),
    "rope_vit_reg4_g14": _vit(_G, 14, reg=4),
    "rope_deit3_t16": _vit(_T, 16, _DEIT3),
    "rope_deit3_s16": _vit(_S, 16, _DEIT3, drop_path_rate=0.05),
    "rope_deit3_s14": _vit(_S, 14, _DEIT3, drop_path_rate=0.05),
    "rope_deit3_m16": _vit(_M, 16, _DEIT3, drop_path_rate=0.1),
    "rope_deit3_m14": _vit(_M, 14, _DEIT3, drop_path_rate=0.1),
    "rope_deit3_b16": _vit(_B, 16, _DEIT3, drop_path_rate=0.2),
    "rope_deit3_b14": _vit(_B, 14, _DEIT3, drop_path_rate=0.2),
    "rope_deit3_l16": _vit(_L, 16, _DEIT3, drop_path_rate=0.45),
    "rope_deit3_l14": _vit(_L, 14, _DEIT3, drop_path_rate=0.45),
    "rope_deit3_reg4_t16": _vit(_T, 16, _DEIT3, reg=4),
    "rope_deit3_reg4_s16": _vit(_S, 16, _DEIT3, reg=4, drop_path_rate=0.05),
    "rope_deit3_reg4_s14": _vit(_S, 14, _DEIT3, reg=4, drop_path_rate=0.05),
    "rope_deit3_reg4_m16": _vit(_M, 16, _DEIT3, reg=4, drop_path_rate=0.1),
    "rope_deit3_reg4_m14": _vit(_M, 14, _DEIT3, reg=4, drop_path_rate=0.1),
    "rope_deit3_reg4_b16": _vit(_B, 16, _DEIT3, reg=4, drop_path_rate=0.2),
    "rope_deit3_reg4_b14": _vit(_B, 14, _DEIT3, reg=4, drop_path_rate=0.2),
    "rope_deit3_reg4_l16": _vit(_L, 16, _DEIT3, reg=4, drop_path_rate=0.45),
    "rope_deit3_reg4_l14": _vit(_L, 14, _DEIT3, reg=4, drop_path_rate=0.45),
}

ALIASES = {
    "pe_spatial_t16": "rope_i_vit_reg1_t16_pn_npn_avg_c1",
    "pe_spatial_s16": "rope_i_vit_reg1_s16_pn_npn_avg_c1",
    "pe_spatial_b16": "rope_i_vit_reg1_b16_pn_npn_avg_c1",
}
