"""birder checkpoints and our own, as state dicts of RoPEViT: strict both ways, nothing unpickled.

Formats: birder 0.8.4, ``birder/common/fs_ops.py`` (``.pt``: a dict with ``state``, ``signature``,
``class_to_idx``, ``rgb_stats``, optional ``config``; ``.safetensors``: the same fields as JSON
metadata), and mmengine's ``{'state_dict': ..., 'meta': ...}``. Files are read with
``weights_only=True``: a payload that needs code to unpickle is refused and nothing of it runs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropevit_mmdet.compat.reading import local_file, read_torch_file
from ropevit_mmdet.weights.architectures import Arch, arch_names, resolve_arch
from ropevit_mmdet.weights.settings import (
    HEAD,
    TRAINING_ONLY,
    arch_argument,
    check_axes,
    contradictions,
    explicit,
    settings_of,
)

# Parts of a birder classifier that a detector has no use for: its head.
IGNORED = ("classifier.", "attn_pool.", "embedding_norm.")

MOST_HEADER = 16 * 2**20  # bytes of JSON in a safetensors file, which take 5 times that to read
MOST_PIXELS = 8192  # a side of the images that a network was trained on

_DTYPES = tuple(
    getattr(torch, name)
    for name in "float64 float32 float16 bfloat16 bool uint8 int8 int16 int32 int64".split()
)
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
    head: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # under birder's names
    meta: Mapping[str, Any] | None = None  # what mmengine notes of a run

    @property
    def ignored(self) -> tuple[str, ...]:
        """Keys of the file that a detector has no use for: those of the classifier's head."""
        return tuple(self.head)


def read_checkpoint(path: str | Path, *, prefix: str = "backbone.") -> Checkpoint:
    """Reads a file without running anything that is in it; tensors stay mapped to the file.

    Args:
        path: a birder ``.pt`` or ``.safetensors``, or what mmengine saved of a detector or of
            the backbone alone.
        prefix: where a detector keeps the backbone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, truncated, of another kind, one that would run code, or whose
            weights or metadata are invalid.
    """
    named, path = path, local_file(path)
    if path is None:
        raise FileNotFoundError(f"checkpoint not found: {named}")
    checkpoint = _read(path, prefix)
    weights = checkpoint.state | checkpoint.head
    check_plain(weights, str(path))
    check_axes(weights, str(path))
    check_meta(checkpoint.meta, str(path))
    return checkpoint


def _read(path: Path, prefix: str) -> Checkpoint:
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state"), Mapping):
        return _from_birder(path, content)
    meta = None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        meta, content = content.get("meta"), content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: neither a birder checkpoint nor one of mmengine")
    if "conv_proj.weight" in content or "conv_proj.0.weight" in content:
        return _from_birder(path, {"state": content})
    state = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
    return Checkpoint(path=path, state=dict(state or content), origin="mmengine", meta=meta)


def load_into(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies ``state`` into the parameters and buffers of ``module``, in place.

    Raises:
        ValueError: see ``check_fit`` and ``check_finite``; nothing is copied then.
    """
    targets = module.state_dict(keep_vars=True)
    check_fit(targets, state, source)
    check_finite(state, source)
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


def check_plain(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuses numbers of a kind that no model has here, such as 8-bit floats and complex ones.

    Raises:
        ValueError: the first such tensor.
    """
    for key, value in weights.items():
        if value.dtype not in _DTYPES:
            raise ValueError(f"checkpoint {source}: {key} is of {value.dtype}: save it as float32")


def check_meta(meta: Any, source: str) -> None:
    """Refuses metadata of a detector that are not what mmengine writes.

    Raises:
        ValueError: ``meta`` or its ``dataset_meta`` is no dict, or classes are no names.
    """
    dataset = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    found = [("meta", meta, Mapping), ("dataset_meta", dataset, Mapping)]
    if isinstance(dataset, Mapping):
        found += [(key, dataset.get(key), (str, list, tuple)) for key in ("classes", "CLASSES")]
    for name, value, kind in found:
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"checkpoint {source}: its {name} is {reprlib.repr(value)}, which is invalid"
            )


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuses weights among which are NaN or infinite numbers: a run that went wrong saved them.

    Raises:
        ValueError: how many tensors, and the names of up to three.
    """
    broken = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"checkpoint {source} holds NaN or infinite values in {len(broken)} of {len(state)} "
            f"tensors: {', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}; it was saved "
            "by a run that had gone wrong, or is damaged: take an earlier one"
        )


def check_arch(checkpoint: Checkpoint, arch: Arch) -> None:
    """Refuses a birder checkpoint of another architecture, with the line to paste.

    Raises:
        ValueError: the weights or the file's ``config`` contradict ``arch``.
    """
    path = checkpoint.path
    named = _with_config(path, arch, checkpoint.config)
    for key in checkpoint.config or {}:
        if key not in (*TRAINING_ONLY, *HEAD) and getattr(named, key) != getattr(arch, key):
            raise ValueError(
                f"{path}: the file's config has {key}={getattr(named, key)!r}, the model has "
                f"{getattr(arch, key)!r}; set arch={arch_argument(named)}"
            )
    colors = checkpoint.state.get("patch_embed.proj.weight")
    if colors is not None and colors.shape[1] != 3:
        raise ValueError(f"{path} is for images of {colors.shape[1]} channels, RoPEViT takes 3")
    try:
        found = settings_of(checkpoint.state, checkpoint.head, checkpoint.img_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    changes = contradictions(arch, found)
    if not changes:
        return
    differences = ", ".join(f"{key} {new} (not {old})" for key, (old, new) in changes.items())
    fitting = [name for name in arch_names() if not contradictions(resolve_arch(name), found)]
    if fitting:
        others = f" (or one of {', '.join(fitting[1:])})" if fitting[1:] else ""
        fix = f"arch='{fitting[0]}'{others}"
    else:
        fix = f"arch=dict({explicit(arch, changes)})"
        fix += ", with the num_heads that it was trained with" * ("num_heads=..." in fix)
    raise ValueError(f"{path} holds another architecture: {differences}; set {fix}")


def check_img_size(checkpoint: Checkpoint, arch: Arch, img_size: tuple[int, int]) -> None:
    """Refuses a birder checkpoint that was trained on images of another size.

    Args:
        img_size: pixels, (height, width): what the model is built for.

    Raises:
        ValueError: the signature, or the length of the position embedding, contradicts; with the
            line to paste.
    """
    path, size = checkpoint.path, checkpoint.img_size or img_size
    if size != img_size:
        raise ValueError(
            f"{path} was trained at {size[0]} x {size[1]} pixels, the model has "
            f"{img_size}; set pretrain_img_size={size[0] if size[0] == size[1] else size}"
        )
    if "pos_embed" not in checkpoint.state:
        return
    positions = checkpoint.state["pos_embed"].shape[1]
    special = arch.num_special_tokens if arch.pos_embed_special_tokens else 0
    rows, columns = (side // arch.patch_size for side in size)
    if positions == special + rows * columns:
        return
    message = (
        f"{path} has {positions} positions, the model {special} special tokens and {rows} x "
        f"{columns} patches"
    )
    if checkpoint.img_size:
        raise ValueError(f"{message}: they contradict the size that its signature gives")
    if positions - rows * columns in (0, arch.num_special_tokens):
        flag = not arch.pos_embed_special_tokens
        raise ValueError(f"{message}; set pos_embed_special_tokens={flag} in arch=dict(...)")
    side = math.isqrt(max(positions - special, 0))
    if side * side != positions - special:
        side = 0
    fix = f"pretrain_img_size={side * arch.patch_size}" if side else "pretrain_img_size to its own"
    raise ValueError(f"{message}, and no signature; set {fix}")


def with_overrides(arch: Arch, config: Mapping[str, Any] | None) -> Arch:
    """An architecture with the settings that a file's ``config`` overrides.

    Raises:
        ValueError: values that ``Arch`` refuses.
    """
    known = {field.name for field in dataclasses.fields(Arch)}
    overrides = {key: value for key, value in (config or {}).items() if key in known}
    try:
        return dataclasses.replace(arch, **overrides)
    except (TypeError, ValueError) as error:  # the former from comparing text with a number
        raise ValueError(f"with the file's config, {error}") from error


def _with_config(path: Path, arch: Arch, config: Mapping[str, Any] | None) -> Arch:
    """The architecture with the overrides of a file's ``config``."""
    known = {field.name for field in dataclasses.fields(Arch)}
    overrides = {k: v for k, v in (config or {}).items() if not k.startswith("soft_moe_")}
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ValueError(f"{path}: the file's config has {unknown[0]!r}, which is not supported")
    try:
        return with_overrides(arch, overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(f"{path}: pip install safetensors to read it") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER and length < path.stat().st_size:
        raise ValueError(f"{path}: its header of {length / 2**20:.0f} MB is no safetensors file's")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file: {error}") from error
    fields = {key: metadata[key] for key in ("birder_version", "task") if key in metadata}
    for key in ("signature", "class_to_idx", "rgb_stats", "config"):
        if metadata.get(key):
            try:
                fields[key] = json.loads(metadata[key])
            except (ValueError, RecursionError) as error:  # also of thousands of digits
                raise ValueError(f"{path}: {key} in its metadata is not JSON: {error}") from error
    return {"state": state, **fields}


def _from_birder(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    state, head = {}, {}
    for key, value in content["state"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key!r} in its state is not a tensor under a name")
        if key.startswith(IGNORED):
            head[key] = value
            continue
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    if "blocks.0.norm1.weight" not in state:
        raise ValueError(f"{path}: a birder checkpoint, but not of a RoPE ViT")
    config = _field(path, content, "config", Mapping)
    class_to_idx = _field(path, content, "class_to_idx", Mapping) or {}
    if not all(isinstance(k, str) and isinstance(v, int) for k, v in class_to_idx.items()):
        raise ValueError(f"{path}: its class_to_idx numbers no names: {reprlib.repr(class_to_idx)}")
    return Checkpoint(
        path=path,
        state=state,
        origin="birder",
        img_size=_img_size(path, content),
        rgb_stats=_rgb_stats(path, content),
        config=dict(config) if config else None,
        class_to_idx=dict(class_to_idx) or None,
        version=_field(path, content, "birder_version", str),
        head=head,
    )


def _field(path: Path, content: Mapping[str, Any], key: str, kind: type) -> Any:
    """What the writer of a file says of it: None, or a value of that kind."""
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{path}: its {key} is {reprlib.repr(value)}, which is invalid")
    return value


def _img_size(path: Path, content: Mapping[str, Any]) -> tuple[int, int] | None:
    signature = _field(path, content, "signature", Mapping)
    if not signature:
        return None
    try:
        height, width = signature["inputs"][0]["data_shape"][-2:]
    except (LookupError, TypeError, ValueError):
        height = width = None
    if not all(isinstance(side, int) and 0 < side <= MOST_PIXELS for side in (height, width)):
        raise ValueError(
            f"{path}: its signature gives no image size: {reprlib.repr(dict(signature))}"
        )
    return height, width


def _rgb_stats(path: Path, content: Mapping[str, Any]) -> dict[str, tuple[float, ...]] | None:
    stats = _field(path, content, "rgb_stats", Mapping)
    if not stats:
        return None
    values = {key: stats.get(key) for key in ("mean", "std")}
    for value in values.values():
        numbers = isinstance(value, Sequence) and all(isinstance(v, int | float) for v in value)
        if not numbers or len(value) != 3 or not all(abs(v) < 256 for v in value):
            raise ValueError(
                f"{path}: its rgb_stats are not three means and stds: {reprlib.repr(dict(stats))}"
            )
    return {key: tuple(map(float, value)) for key, value in values.items()}
