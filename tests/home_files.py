"""Small checkpoint files with seeded weights, under the names of libraries other than birder.

The names are written out here, apart from the tables of the readers. `golden_maps` computes the
maps of the libraries: timm converts Meta's files, as their code is on no package index.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracle import seeded, seeded_images

SIZES = ((224, 224), (240, 320))
STEP = 7  # every 7th value of a map is a golden
DIM, HEADS, HIDDEN, DEPTH, REGISTERS, PATCHES = 32, 2, 48, 2, 3, 14 * 14

_LAYERS = dict(patch_size=16, num_layers=DEPTH, num_heads=HEADS, hidden_dim=DIM, mlp_dim=HIDDEN)
_DINOV3 = dict(num_reg_tokens=REGISTERS, abs_pos_embed=False, norm_layer_eps=1e-5, k_bias=False)
_DINOV3 |= _LAYERS | dict(layer_scale_init_value=1e-5)
_PE = dict(pre_norm=True, norm_layer_eps=1e-5, rope_rot_type="interleaved", rope_grid_offset=1)
_PE |= _LAYERS | dict(rope_grid_indexing="xy", rope_temperature=1e4, pos_embed_antialias=True)
_GATED = dict(mlp_layer_type="SwiGLU_FFN")
ARCHS: dict[str, dict[str, Any]] = {
    "Meta DINOv3": _DINOV3 | dict(rope_style="centered_periods"),
    "Meta DINOv3, gated": _DINOV3 | _GATED | dict(rope_style="centered_periods"),
    "Meta PE core": _PE | dict(pt_grid_size=(14, 14)),
    "Meta PE lang": _PE | dict(pt_grid_size=(14, 14), post_norm=False, layer_scale_init_value=0.1),
    "transformers": _DINOV3 | dict(rope_style="centered_separate"),
    "transformers, gated": _DINOV3 | _GATED | dict(rope_style="centered_separate"),
}


def weights_of(case: str) -> dict[str, Tensor]:
    """The weights of a file, by its home's names."""
    gated = case.endswith("gated")
    if case.startswith("Meta DINOv3"):
        shapes = _meta_dinov3(gated)
    elif case.startswith("Meta"):
        shapes = _meta_pe(core=case.endswith("core"))
    else:
        shapes = _transformers(gated)
    state = {name: seeded(name, shape) for name, shape in shapes.items()}
    for name in state:
        if name.endswith("bias_mask"):
            state[name] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(DIM)
        elif name == "rope_embed.periods":
            bands = DIM // HEADS // 4
            state[name] = (100.0 ** (torch.arange(bands) / bands)).bfloat16()
    return state


def golden_maps(case: str) -> dict[str, np.ndarray]:
    """The maps [1, C, rows, columns] of the library at `SIZES`, in float64, flat and thinned."""
    forward = _transformers_model(case) if case.startswith("transformers") else _timm_model(case)
    goldens = {}
    for height, width in SIZES:
        with torch.no_grad():
            tokens = forward(seeded_images((1, 3, height, width)))[:, -height * width // 256 :]
        flat = tokens.transpose(1, 2).flatten().numpy()[::STEP]
        goldens[f"{case} {height}x{width}"] = flat
    return goldens


def _linear(name: str, out: int, dim: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, dim)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}


def _meta_dinov3(gated: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, DIM), "mask_token": (1, DIM)}
    shapes |= {"storage_tokens": (1, REGISTERS, DIM), "rope_embed.periods": (1,)}
    shapes |= {"patch_embed.proj.weight": (DIM, 3, 16, 16), "patch_embed.proj.bias": (DIM,)}
    for i in range(DEPTH):
        b = f"blocks.{i}"
        shapes |= _norm(f"{b}.norm1") | _norm(f"{b}.norm2")
        shapes |= _linear(f"{b}.attn.qkv", 3 * DIM, DIM) | {f"{b}.attn.qkv.bias_mask": (3 * DIM,)}
        shapes |= _linear(f"{b}.attn.proj", DIM, DIM)
        shapes |= {f"{b}.ls1.gamma": (DIM,), f"{b}.ls2.gamma": (DIM,)}
        names = [("w1", HIDDEN, DIM), ("w2", HIDDEN, DIM), ("w3", DIM, HIDDEN)]
        for name, out, dim in names if gated else [("fc1", HIDDEN, DIM), ("fc2", DIM, HIDDEN)]:
            shapes |= _linear(f"{b}.mlp.{name}", out, dim)
    return shapes | _norm("norm") | _norm("local_cls_norm")


def _meta_pe(core: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (DIM, 3, 16, 16)}
    shapes |= {"class_embedding": (DIM,), "positional_embedding": (1 + PATCHES, DIM)}
    shapes |= _norm("ln_pre")
    for i in range(DEPTH):
        b = f"transformer.resblocks.{i}"
        shapes |= _norm(f"{b}.ln_1") | _norm(f"{b}.ln_2")
        shapes |= {f"{b}.attn.in_proj_weight": (3 * DIM, DIM), f"{b}.attn.in_proj_bias": (3 * DIM,)}
        shapes |= _linear(f"{b}.attn.out_proj", DIM, DIM)
        shapes |= _linear(f"{b}.mlp.c_fc", HIDDEN, DIM) | _linear(f"{b}.mlp.c_proj", DIM, HIDDEN)
        if not core:
            shapes |= {f"{b}.ls_1.gamma": (DIM,), f"{b}.ls_2.gamma": (DIM,)}
    if not core:
        return shapes
    pool = {"attn_pool.probe": (1, 1, DIM), "attn_pool.attn.in_proj_weight": (3 * DIM, DIM)}
    pool |= {"attn_pool.attn.in_proj_bias": (3 * DIM,), "proj": (DIM, 8)}
    pool |= _linear("attn_pool.attn.out_proj", DIM, DIM) | _norm("attn_pool.layernorm")
    pool |= _linear("attn_pool.mlp.c_fc", HIDDEN, DIM) | _linear(
        "attn_pool.mlp.c_proj", DIM, HIDDEN
    )
    shapes = {f"visual.{name}": shape for name, shape in (shapes | pool | _norm("ln_post")).items()}
    text = {"logit_scale": (1,), "text_projection": (8, 8), "positional_embedding": (4, 8)}
    return shapes | text | {"transformer.resblocks.0.ln_1.weight": (8,)}


def _transformers(gated: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embeddings.cls_token": (1, 1, DIM)}
    shapes |= {"embeddings.mask_token": (1, 1, DIM)}
    shapes |= {"embeddings.register_tokens": (1, REGISTERS, DIM)}
    shapes |= {"embeddings.patch_embeddings.weight": (DIM, 3, 16, 16)}
    shapes |= {"embeddings.patch_embeddings.bias": (DIM,)}
    for i in range(DEPTH):
        b = f"layer.{i}"
        shapes |= _norm(f"{b}.norm1") | _norm(f"{b}.norm2")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes |= _linear(f"{b}.attention.{name}", DIM, DIM, bias=name != "k_proj")
        shapes |= {f"{b}.layer_scale1.lambda1": (DIM,), f"{b}.layer_scale2.lambda1": (DIM,)}
        for name in ("up_proj", "gate_proj") if gated else ("up_proj",):
            shapes |= _linear(f"{b}.mlp.{name}", HIDDEN, DIM)
        shapes |= _linear(f"{b}.mlp.down_proj", DIM, HIDDEN)
    return shapes | _norm("norm")


def timm_model(**settings: Any) -> Any:
    """An `Eva` of timm for any input size; its RoPE stays in float32 when the model is cast."""
    from timm.layers import LayerNorm
    from timm.models.eva import Eva

    eps = settings.pop("eps", 1e-6)
    layers = dict(
        patch_size=16, embed_dim=DIM, num_heads=HEADS, mlp_ratio=HIDDEN / DIM, depth=DEPTH
    )
    common = dict(num_classes=0, dynamic_img_size=True, use_rot_pos_emb=True)
    norm = dict(norm_layer=lambda dim, **kwargs: LayerNorm(dim, eps=eps, **kwargs))
    return Eva(**layers | common | norm | settings)


def to_float64(model: Any) -> Any:
    """Casts timm's model, in eval mode; the tables of its RoPE are those of float32."""
    model = model.double().eval()
    if not hasattr(model.rope, "freqs"):
        model.rope.float().reset_parameters()
    return model


def _timm_model(case: str) -> Any:
    from timm.models.eva import checkpoint_filter_fn

    if "DINOv3" in case:
        settings = dict(rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, eps=1e-5)
        settings |= dict(num_reg_tokens=REGISTERS, use_abs_pos_emb=False, use_fc_norm=False)
        settings |= dict(init_values=1.0)
        if case.endswith("gated"):
            settings |= dict(swiglu_mlp=True, swiglu_align_to=8)
    else:
        core = case.endswith("core")
        settings = dict(attn_type="rope", use_pre_transformer_norm=True, rope_grid_offset=1.0)
        settings |= dict(ref_feat_shape=(14, 14), rope_grid_indexing="xy", eps=1e-5)
        settings |= dict(use_fc_norm=False, use_post_transformer_norm=core)
        settings |= {} if core else dict(init_values=0.1)
    model = timm_model(**settings)
    state = checkpoint_filter_fn(weights_of(case), model)
    head = {key for key in state if key.startswith(("attn_pool", "head."))}
    model.load_state_dict({key: value for key, value in state.items() if key not in head})
    return to_float64(model).forward_features


def _transformers_model(case: str) -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    gated = case.endswith("gated")
    layers = dict(patch_size=16, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=DEPTH)
    config = DINOv3ViTConfig(
        **layers,
        num_attention_heads=HEADS,
        num_register_tokens=REGISTERS,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )
    model = DINOv3ViTModel(config)
    weights = {k.replace("layer.", "model.layer.", 1) if k.startswith("layer.") else k: v
               for k, v in weights_of(case).items()}  # fmt: skip
    model.load_state_dict(weights)
    inverse = model.rope_embeddings.inv_freq.clone()
    model = model.double().eval()
    model.rope_embeddings.inv_freq = inverse
    return lambda images: model(images).last_hidden_state
