"""birder checkpoints and our own, as state dicts of RoPEViT: strict both ways, nothing unpickled.

Formats: birder 0.8.4, ``birder/common/fs_ops.py`` (``.pt``: a dict with ``state``, ``signature``,
``class_to_idx``, ``rgb_stats``, optional ``config``; ``.safetensors``: the same fields as JSON
metadata), and mmengine's ``{'state_dict': ..., 'meta': ...}``. Files are read with
``weights_only=True``: a payload that needs code to unpickle is refused and nothing of it runs.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arch import Arch, arch_names, resolve_arch
from .stack.reading import read_torch_file

# Parts of a birder classifier that a detector has no use for.
IGNORED = ("classifier.", "attn_pool.", "embedding_norm.")

_RENAMED = (  # birder's key -> ours
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_embedding$", "pos_embed"),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pre_block\.\d+\.", "pre_norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"\.layer_scale_([12])\.gamma$", r".ls\1.gamma"),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.1\.", ".mlp.act."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds: weights under our names, and what its writer says of them."""

    path: Path
    state: dict[str, Tensor]
    origin: str  # 'birder' | 'mmengine'
    img_size: tuple[int, int] | None = None  # pixels, (height, width)
    rgb_stats: dict[str, tuple[float, ...]] | None = None  # mean and std in 0..1
    config: dict[str, Any] | None = None  # overrides of the named architecture
    class_to_idx: dict[str, int] | None = None
    version: str | None = None
    ignored: tuple[str, ...] = ()  # keys of the file that a detector has no use for


def read_checkpoint(path: str | Path, *, prefix: str = "backbone.") -> Checkpoint:
    """Reads a file without running anything that is in it; tensors stay mapped to the file.

    Args:
        path: a birder ``.pt`` or ``.safetensors``, or what mmengine saved of a detector or of
            the backbone alone.
        prefix: where a detector keeps the backbone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, cut short, of another kind, or one that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state"), Mapping):
        return _from_birder(path, content)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: neither a birder checkpoint nor one of mmengine")
    if "conv_proj.weight" in content or "conv_proj.0.weight" in content:
        return _from_birder(path, {"state": content})
    state = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
    return Checkpoint(path=path, state=dict(state or content), origin="mmengine")


def load_into(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies ``state`` into the parameters and buffers of ``module``, in place.

    Raises:
        ValueError: see ``check_fit``; nothing is copied then.
    """
    targets = module.state_dict(keep_vars=True)
    check_fit(targets, state, source)
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(state[key])


def check_fit(targets: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Refuses a state dict that has not exactly the names and shapes of ``targets``.

    Raises:
        ValueError: keys too many, keys too few, shapes that differ; names up to three of each.
    """
    missing = [key for key in targets if key not in state]
    unexpected = [key for key in state if key not in targets]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(target.shape)}"
        for key, target in targets.items()
        if key in state and state[key].shape != target.shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for keys, what in (
            (missing, "of the model's weights are not in it"),
            (unexpected, "of its weights are not in the model"),
            (shapes, "differ in shape"),
        )
        if keys
    ]
    if problems:
        raise ValueError(f"checkpoint {source} does not fit the model: {'; '.join(problems)}")


def check_arch(checkpoint: Checkpoint, arch: Arch) -> None:
    """Refuses a birder checkpoint of another architecture, with the line to paste.

    Raises:
        ValueError: the weights or the file's ``config`` contradict ``arch``.
    """
    for key, value in (checkpoint.config or {}).items():
        value = tuple(value) if isinstance(value, list) else value
        if getattr(arch, key, value) != value:
            raise ValueError(
                f"{checkpoint.path}: the file's config has {key}={value!r}, the model has "
                f"{getattr(arch, key)!r}; spell the architecture out with arch=dict(...) and "
                f"{key}={value!r}"
            )
    found, wanted = facts_of(checkpoint.state), arch_facts(arch)
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if not differing:
        return
    differences = ", ".join(f"{key} {found.get(key)} (not {wanted[key]})" for key in differing)
    names = [name for name in arch_names() if arch_facts(resolve_arch(name)) == found]
    cure = f"arch='{names[0]}'" if names else f"arch=dict({_as_arguments(found)}, ...)"
    others = f" (or one of {', '.join(names[1:])})" if names[1:] else ""
    raise ValueError(
        f"{checkpoint.path} holds another architecture: {differences}; set {cure}{others}"
    )


def facts_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture settings that weights under our names show by their keys and shapes."""
    stem = state.get("patch_embed.proj.weight")
    hidden_dim = state["blocks.0.norm1.weight"].shape[0]
    swiglu = "blocks.0.mlp.fc1_g.weight" in state
    fc1 = state["blocks.0.mlp.fc1_g.weight" if swiglu else "blocks.0.mlp.fc1.weight"]
    normed = "blocks.0.mlp.norm.weight" in state
    registers = state.get("reg_tokens")
    return dict(
        patch_size=16 if stem is None else stem.shape[-1],
        stem_type="hmlp" if stem is None else "patchify",
        num_layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        hidden_dim=hidden_dim,
        mlp_dim=fc1.shape[0],
        num_reg_tokens=0 if registers is None else registers.shape[1],
        class_token="cls_token" in state,
        abs_pos_embed="pos_embed" in state,
        pre_norm="pre_norm.weight" in state,
        norm_layer_type="LayerNorm" if "blocks.0.norm1.bias" in state else "RMSNorm",
        mlp_layer_type=("Norm_SwiGLU_FFN" if normed else "SwiGLU_FFN") if swiglu else "FFN",
        layer_scale="blocks.0.ls1.gamma" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        attn_norm="blocks.0.attn.norm.weight" in state,
    )


def arch_facts(arch: Arch) -> dict[str, Any]:
    """The same settings as an architecture has them."""
    special = {"layer_scale": arch.layer_scale_init_value is not None}
    return {key: special.get(key, getattr(arch, key, None)) for key in _FACTS}


_FACTS = (
    "patch_size stem_type num_layers hidden_dim mlp_dim num_reg_tokens class_token abs_pos_embed "
    "pre_norm norm_layer_type mlp_layer_type layer_scale qkv_bias qk_norm attn_norm"
).split()


def resample_patch_kernel(weight: Tensor, patch_size: int) -> Tensor:
    """A patch kernel [C, 3, p, p] at another patch size, as EVA-02 and Perception Encoder do.

    Bicubic, then scaled by the ratio of areas, so that a patch of one colour keeps its embedding.
    """
    if weight.shape[-1] == patch_size:
        return weight
    resized = F.interpolate(
        weight.float(), size=(patch_size, patch_size), mode="bicubic", antialias=True
    )
    return (resized * (weight.shape[-1] / patch_size) ** 2).to(weight.dtype)


def _as_arguments(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(f"{path}: pip install safetensors to read it") from None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: cut short, or not a safetensors file: {error}") from error
    fields = {key: metadata[key] for key in ("birder_version", "task") if key in metadata}
    for key in ("signature", "class_to_idx", "rgb_stats", "config"):
        if metadata.get(key):
            fields[key] = json.loads(metadata[key])
    return {"state": state, **fields}


def _from_birder(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    state, ignored = {}, []
    for key, value in content["state"].items():
        if key.startswith(IGNORED):
            ignored.append(key)
            continue
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    if "blocks.0.norm1.weight" not in state:
        raise ValueError(f"{path}: a birder checkpoint, but not of a RoPE ViT")
    stats = content.get("rgb_stats")
    return Checkpoint(
        path=path,
        state=state,
        origin="birder",
        img_size=_img_size(content.get("signature")),
        rgb_stats={k: tuple(stats[k]) for k in ("mean", "std")} if stats else None,
        config=dict(content.get("config") or {}) or None,
        class_to_idx=content.get("class_to_idx"),
        version=content.get("birder_version"),
        ignored=tuple(ignored),
    )


def _img_size(signature: Mapping[str, Any] | None) -> tuple[int, int] | None:
    if not signature or not signature.get("inputs"):
        return None
    return tuple(signature["inputs"][0]["data_shape"][-2:])
