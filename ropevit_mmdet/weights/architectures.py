"""birder's RoPE ViT names and their settings, as data.

Source: birder 0.8.4, `birder/net/_rope_vit_configs.py`, `_vit_configs.py` and `rope_vit.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ropevit_mmdet.errors import UserError


@dataclasses.dataclass(frozen=True)
class Arch:
    """The settings of one RoPE ViT, under the keys of birder's network config.

    Widths are in channels, `patch_size` in pixels, `pt_grid_size` in patches (rows, columns).
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
        check_values(*_value_rows(self))
        check_values(*_relation_rows(self))

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_dim // self.num_heads

    @property
    def num_special_tokens(self) -> int:
        """Registers and class token."""
        return self.num_reg_tokens + int(self.class_token)

    @property
    def has_final_norm(self) -> bool:
        """Whether the encoder ends in a norm over the tokens."""
        return self.post_norm and not self.norm_after_pool


def resolve_arch(arch: str | Mapping[str, Any] | Arch) -> Arch:
    """The settings of birder's name, or of a mapping with the keys of birder's network config."""
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        return _by_name(arch)
    settings, fields = dict(arch), [field.name for field in dataclasses.fields(Arch)]
    findings = [f"unknown key {key!r}{_closest(key, fields)}" for key in arch if key not in fields]
    findings += [f"it needs {key!r}" for key in _LENGTHS[:-1] if key not in arch]
    if findings:
        raise UserError(f"arch as a dict: {'; '.join(findings)}")
    if settings.get("mlp_dim") is None:
        settings["mlp_dim"] = 4 * settings["hidden_dim"]
    return Arch(**settings)


def check_values(*rows: tuple[bool, str, str, Any]) -> None:
    """Raises a `UserError` if any row of (is valid, name, what it must be, value) is not valid."""
    invalid = [f"{name} must be {rule}, got {value!r}" for ok, name, rule, value in rows if not ok]
    if invalid:
        raise UserError("; ".join(invalid))


def arch_names() -> tuple[str, ...]:
    """Every architecture that has a name, without aliases."""
    return tuple(_TABLE)


def names_of(arch: Arch, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Names, without aliases, of these settings in birder; fields in `ignore` may differ."""
    wanted = with_defaults(arch, ignore)
    return [name for name, known in _TABLE.items() if with_defaults(known, ignore) == wanted]


def with_defaults(arch: Arch, keys: tuple[str, ...]) -> Arch:
    """The architecture with birder's defaults for some of its fields."""
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Arch)}
    return dataclasses.replace(arch, **{key: defaults[key] for key in keys})


def _by_name(name: str) -> Arch:
    key = ALIASES.get(name.lower(), name.lower())
    if key not in _TABLE:
        raise UserError(f"unknown arch {name!r}{_closest(key, [*_TABLE, *ALIASES])}")
    return _TABLE[key]


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


ACTIVATION_NAMES = tuple(
    "identity relu relu6 leaky_relu elu prelu celu selu gelu gelu_tanh quick_gelu silu mish "
    "sigmoid tanh hard_sigmoid hard_swish hard_tanh".split()
)
_LENGTHS = ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim")
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


def _value_rows(arch: Arch) -> Iterator[tuple[bool, str, str, Any]]:
    """Rules for single fields, as rows for `check_values`."""
    for key, choices in _CHOICES.items():
        value = getattr(arch, key)
        yield value in choices, f"arch: {key}", f"one of {choices}", value
    for key in _LENGTHS:
        value = getattr(arch, key)
        yield isinstance(value, int) and value > 0, f"arch: {key}", "a positive integer", value
    for key in ("drop_path_rate", "dropout", "attention_dropout", "projection_dropout"):
        value = getattr(arch, key)
        yield 0 <= value <= 1, f"arch: {key}", "0 to 1", value
    for key in ("norm_layer_eps", "rope_temperature"):
        value = getattr(arch, key)
        yield value > 0, f"arch: {key}", "above 0", value
    registers = arch.num_reg_tokens
    yield isinstance(registers, int) and registers >= 0, "arch: num_reg_tokens", ">= 0", registers
    pt = arch.pt_grid_size
    is_grid = pt is None or isinstance(pt, tuple) and len(pt) == 2 and min(pt) > 0
    yield is_grid, "arch: pt_grid_size", "None or (rows, columns) in patches", pt


def _relation_rows(arch: Arch) -> Iterator[tuple[bool, str, str, Any]]:
    """Rules between fields: RoPE rotates pairs of channels per axis; styles take some settings."""
    width = (arch.hidden_dim, arch.num_heads)
    rule = "num_heads times a multiple of 4"
    yield width[0] % (4 * width[1]) == 0, "arch: (hidden_dim, num_heads)", rule, width
    if arch.stem_type == "hmlp":
        yield arch.patch_size == 16, "arch: patch_size of an hmlp stem", "16", arch.patch_size
    else:
        norm = arch.stem_norm_layer_type
        yield norm is None, "arch: stem_norm_layer_type of a patchify stem", "None", norm
    style, rotation = arch.rope_style, arch.rope_rot_type
    if style != "centered_separate":
        for key in ("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"):
            value = getattr(arch, key)
            yield value is None, f"arch: {key} of rope_style {style!r}", "None", value
    if style != "default":
        grid = (arch.rope_grid_indexing, arch.rope_grid_offset, arch.pt_grid_size)
        name = "(rope_grid_indexing, rope_grid_offset, pt_grid_size)"
        plain = ("ij", 0, None)
        yield grid == plain, f"arch: {name} of rope_style {style!r}", str(plain), grid
        rule = "interleaved" if style == "axial" else "standard"
        yield rotation == rule, f"arch: rope_rot_type of {style!r}", repr(rule), rotation


def _size(num_layers: int, num_heads: int, hidden_dim: int, mlp_dim: int, drop_path: float) -> dict:
    names = ("num_layers", "num_heads", "hidden_dim", "mlp_dim", "drop_path_rate")
    return dict(zip(names, (num_layers, num_heads, hidden_dim, mlp_dim, drop_path)))


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
_PROBE = _POOL | dict(attn_pool_type="EfficientProbing", attn_pool_special_tokens=True)
_RMS_SWIGLU = dict(norm_layer_type="RMSNorm", mlp_layer_type="SwiGLU_FFN")
_EVA02 = dict(  # arXiv 2303.11331
    mlp_dim=2730,
    attn_norm=True,
    mlp_layer_type="Norm_SwiGLU_FFN",
    rope_rot_type="interleaved",
    rope_temperature=10000.0,
    pt_grid_size=(16, 16),
)
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
    "rope_i_vit_l14_nf_swiglu_c1": _vit(_L, 14, _EVA02),
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
    "rope_vit_reg8_so150m_p14_swiglu_rms_eps": _vit(_SO150, 14, _RMS_SWIGLU, _PROBE, reg=8),
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
