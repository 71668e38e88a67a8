"""birder's RoPE ViT names and their settings, as data.

Source: birder 0.8.4, `birder/net/_rope_vit_configs.py`, `_vit_configs.py` and `rope_vit.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.other_architectures import PUBLISHED, TIMM, TRANSFORMERS


@dataclasses.dataclass(frozen=True)
class Arch:
    """The settings of one RoPE ViT, under the keys of birder's network config.

    What birder does not have: `k_bias`, the styles 'centered_periods' and 'mixed'.
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
    k_bias: bool = True  # False: queries and values only
    qk_norm: bool = False
    attn_norm: bool = False
    mlp_layer_type: str = "FFN"  # | 'SwiGLU_FFN' | 'Norm_SwiGLU_FFN'
    act_layer_type: str | None = None  # default: gelu for FFN, silu for SwiGLU

    rope_style: str = "default"  # | 'axial' | 'centered_separate' | 'centered_periods' | 'mixed'
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
    findings = [f"unknown key {key!r}{closest(key, fields)}" for key in arch if key not in fields]
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


def arch_names(home: str = "birder") -> tuple[str, ...]:
    """Every architecture that has a name in 'birder', 'timm' or 'transformers', without aliases."""
    return tuple(_HOMES[home])


def names_of(arch: Arch, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Names, without aliases, of these settings, birder's first; fields in `ignore` may differ."""
    wanted = with_defaults(arch, ignore)
    known = {name: _by_name(name) for home in _HOMES.values() for name in home}
    return [name for name, own in known.items() if with_defaults(own, ignore) == wanted]


def with_defaults(arch: Arch, keys: tuple[str, ...]) -> Arch:
    """The architecture with birder's defaults for some of its fields."""
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Arch)}
    return dataclasses.replace(arch, **{key: defaults[key] for key in keys})


def closest(word: str, known: Iterable[str]) -> str:
    """Text that asks whether one of the similar known words was meant; `""` if none is similar."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


@cache
def _by_name(name: str) -> Arch:
    key = ALIASES.get(name.lower(), name.lower())
    if key in _TABLE:
        return _TABLE[key]
    if key not in PUBLISHED:
        raise UserError(f"unknown arch {name!r}{closest(key, [*_TABLE, *ALIASES, *PUBLISHED])}")
    return Arch(**PUBLISHED[key].settings)


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
    rope_style=("default", "axial", "centered_separate", "centered_periods", "mixed"),
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
    if not style.startswith("centered"):
        for key in ("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"):
            value = getattr(arch, key)
            yield value is None, f"arch: {key} of rope_style {style!r}", "None", value
    if style != "default":
        grid = (arch.rope_grid_indexing, arch.rope_grid_offset, arch.pt_grid_size)
        name = "(rope_grid_indexing, rope_grid_offset, pt_grid_size)"
        plain = ("ij", 0, None)
        yield grid == plain, f"arch: {name} of rope_style {style!r}", str(plain), grid
        rule = "interleaved" if style in ("axial", "mixed") else "standard"
        yield rotation == rule, f"arch: rope_rot_type of {style!r}", repr(rule), rotation


_SIZES = {  # blocks, heads, width, width of the MLP, drop path rate
    "t": (12, 3, 192, 768, 0.0),
    "s": (12, 6, 384, 1536, 0.0),
    "m": (12, 8, 512, 2048, 0.0),
    "b": (12, 12, 768, 3072, 0.1),
    "l": (24, 16, 1024, 4096, 0.1),
    "h": (32, 16, 1280, 5120, 0.1),
    "so150m_p": (18, 16, 896, 2320, 0.1),
    "so400m_p": (27, 16, 1152, 4304, 0.1),
    "g": (40, 16, 1408, 6144, 0.1),
    "gigantic": (48, 16, 1664, 8192, 0.1),
}
_DEIT3_DROP_PATH = {"t": 0.0, "s": 0.05, "m": 0.1, "b": 0.2, "l": 0.45}

_AVG = dict(class_token=False)
_POOL = dict(class_token=False, attn_pool_head=True)
_POOL_SPECIAL = _POOL | dict(attn_pool_special_tokens=True)
_PROBE = _POOL_SPECIAL | dict(attn_pool_type="EfficientProbing")
_LS = dict(layer_scale_init_value=1e-5)
_NPS = dict(pos_embed_special_tokens=False)
_RMS = dict(norm_layer_type="RMSNorm")
_SWIGLU = dict(mlp_layer_type="SwiGLU_FFN")
_NF_SWIGLU = dict(attn_norm=True, mlp_layer_type="Norm_SwiGLU_FFN")
_AXIAL = dict(rope_style="axial", rope_rot_type="interleaved")
_C1 = dict(norm_layer_eps=1e-5)
_CENTERED = _LS | dict(abs_pos_embed=False, rope_style="centered_separate")  # DINOv3, 2508.10104
_EVA02 = _NF_SWIGLU | dict(  # arXiv 2303.11331
    mlp_dim=2730, rope_rot_type="interleaved", rope_temperature=10000.0, pt_grid_size=(16, 16)
)
_PE = _C1 | dict(  # Perception Encoder, arXiv 2504.13181
    pre_norm=True,
    rope_rot_type="interleaved",
    rope_grid_indexing="xy",
    rope_grid_offset=1,
    rope_temperature=10000.0,
)
_PE_CORE = _PE | dict(attn_pool_head=True, attn_pool_num_heads=8, attn_pool_special_tokens=True)
_PE_SPATIAL = _PE | dict(class_token=False, post_norm=False)

_FAMILIES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    # start of the names, sizes and patches, end of the names, settings
    ("rope_vit", "t32 t16 t14 s32 s16 s14 m32 m16 m14 b32 b16 b14", "", {}),
    ("rope_vit", "l32 l16 l14 h16 h14 g16 g14 gigantic14", "", {}),
    ("rope_vit", "s16 m16", "_avg", _AVG),
    ("rope_vit", "s14 m14 b14", "_swiglu_avg", _SWIGLU | _AVG),
    ("rope_vit", "b16", "_qkn_ls", _LS | dict(qk_norm=True)),
    ("rope_vit", "b16", "_nf_swiglu", _NF_SWIGLU),
    ("rope_vit", "so150m_p14 so400m_p14", "_ap", _POOL),
    ("rope_a_vit", "s16", "", _AXIAL),
    ("rope_i_vit", "s16 b16 l14", "_pn_aps_c1", _PE_CORE),
    ("rope_i_vit", "l14", "_nf_swiglu_c1", _EVA02),
    ("rope_vit_reg1", "t32 t16 t14 s32 s16 s14", "", {}),
    ("rope_i_vit_reg1", "t16 s16 b16", "_pn_npn_avg_c1", _PE_SPATIAL),
    ("rope_vit_reg4", "m32 m16 m14 b32 b16 b14 l32 l16 l14 h16 h14 g14", "", {}),
    ("rope_vit_reg4", "m14", "_avg", _AVG),
    ("rope_vit_reg4", "m16", "_rms_avg", _RMS | _AVG),
    ("rope_vit_reg4", "so150m_p14", "_ap", _POOL),
    ("rope_cs_vit_reg4", "s16 b16 so150m_p16", "_nape_ls", _CENTERED),
    ("rope_cs_vit_reg4", "s16 b16 l16", "_nape_ls_c1", _CENTERED | _C1),
    ("rope_vit_reg8", "b14", "_nps_avg", _NPS | _AVG),
    ("rope_vit_reg8", "b14", "_nps_ap", _NPS | _POOL),
    ("rope_vit_reg8", "so150m_p14 so400m_p14", "_ap", _POOL),
    ("rope_vit_reg8", "so150m_p14", "_swiglu_rms_avg", _SWIGLU | _RMS | _AVG),
    ("rope_vit_reg8", "so150m_p14", "_swiglu_rms_ap", _SWIGLU | _RMS | _POOL),
    ("rope_vit_reg8", "so150m_p14", "_swiglu_rms_aps", _SWIGLU | _RMS | _POOL_SPECIAL),
    ("rope_vit_reg8", "so150m_p14", "_swiglu_rms_eps", _SWIGLU | _RMS | _PROBE),
    ("rope_vit_reg8", "l14", "_rms_ap", _RMS | _POOL),
    ("rope_deit3", "t16 s16 s14 m16 m14 b16 b14 l16 l14", "", _NPS | _LS),
    ("rope_deit3_reg4", "t16 s16 s14 m16 m14 b16 b14 l16 l14", "", _NPS | _LS),
)


def _arch(start: str, size: str, patch_size: int, settings: Mapping[str, Any]) -> Arch:
    keys = ("num_layers", "num_heads", "hidden_dim", "mlp_dim", "drop_path_rate")
    values = dict(zip(keys, _SIZES[size]), patch_size=patch_size)
    values["num_reg_tokens"] = int(start.partition("_reg")[2] or 0)
    if start.startswith("rope_deit3"):
        values["drop_path_rate"] = _DEIT3_DROP_PATH[size]
    elif patch_size == 32 and size == "b":
        values["drop_path_rate"] = 0.0
    return Arch(**{**values, **settings})


_TABLE = {
    f"{start}_{size}{end}": _arch(start, size[:-2], int(size[-2:]), settings)
    for start, sizes, end, settings in _FAMILIES
    for size in sizes.split()
}

_HOMES: dict[str, Mapping[str, Any]] = dict(birder=_TABLE, timm=TIMM, transformers=TRANSFORMERS)

ALIASES = {
    "pe_spatial_t16": "rope_i_vit_reg1_t16_pn_npn_avg_c1",
    "pe_spatial_s16": "rope_i_vit_reg1_s16_pn_npn_avg_c1",
    "pe_spatial_b16": "rope_i_vit_reg1_b16_pn_npn_avg_c1",
}
