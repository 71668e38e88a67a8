"""Reads checkpoints as weights under our names, and loads them strictly.

Weights that do not fit the model are an error, with the line to paste into the config.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropevit_mmdet.compat.checkpoint import existing_file, read_checkpoint_file
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import Arch, arch_names, resolve_arch, with_defaults
from ropevit_mmdet.weights.formats import FORMATS
from ropevit_mmdet.weights.settings import (
    HEAD,
    TRAINING_ONLY,
    arch_argument,
    contradictions,
    explicit_arguments,
    inferred_settings,
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights under our names, and the metadata of their file."""

    path: Path
    state: dict[str, Tensor]
    origin: str  # the format that it has: 'birder' | 'mmengine'
    img_size: tuple[int, int] | None = None  # pixels, (height, width)
    rgb_stats: dict[str, tuple[float, ...]] | None = None  # mean and std in 0..1
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # overrides of the arch
    class_to_idx: Mapping[str, int] = dataclasses.field(default_factory=dict)
    version: str | None = None
    head: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # under birder's names
    meta: Mapping[str, Any] | None = None  # mmengine's, of a training run

    def settings(self) -> dict[str, Any]:
        """The settings that the weights show: see `inferred_settings`."""
        head = None if self.origin == "mmengine" else self.head
        try:
            return inferred_settings(self.state, head, self.img_size)
        except KeyError as error:
            raise UserError(f"{self.path}: it does not contain {error}") from error

    def with_config(self, arch: Arch) -> Arch:
        """An architecture with the overrides of the file's `config`."""
        overrides = {k: v for k, v in self.config.items() if not k.startswith("soft_moe_")}
        try:
            return dataclasses.replace(arch, **overrides)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.path}: the file's config is not supported: {error}") from error


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint without running code in it; tensors stay mapped to the file.

    Args:
        path: a birder `.pt` or `.safetensors`; or what mmengine saved of a detector, or of its
            backbone only.

    Returns:
        The weights under our names, and the metadata.

    Raises:
        UserError: no such file; truncated; not a checkpoint of a RoPE ViT; one that would run code.
    """
    path = existing_file(path)
    content = read_checkpoint_file(path)
    try:
        metadata = dict(content)
        weights = metadata.pop("state", None) or metadata.pop("state_dict", None) or content
        reader = next(reader for reader in FORMATS if reader.matches(weights))
        return Checkpoint(path=path, **reader.read(weights, metadata))
    except StopIteration:
        problem = "it contains no weights of a RoPE ViT"
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"its metadata are not those of a checkpoint: {error!r}"
    raise UserError(f"{path}: {problem}")


def load_into(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies `state` into `module` in place: all of it, or nothing if `check_fit` fails."""
    targets = module.state_dict(keep_vars=True)
    check_fit(targets, state, source)
    check_finite(state, source)
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(state[key])


def check_fit(targets: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Checks that a state dict has exactly the names and shapes of `targets`."""
    keys_by_problem = {
        "of the model's weights are not in it": [key for key in targets if key not in state],
        "of its weights are not in the model": [key for key in state if key not in targets],
        "differ in shape": [
            f"{key} is {tuple(state[key].shape)}, the model has {tuple(target.shape)}"
            for key, target in targets.items()
            if key in state and state[key].shape != target.shape
        ],
    }
    problems = [
        f"{len(keys)} {what}: {_first(keys)}" for what, keys in keys_by_problem.items() if keys
    ]
    if problems:
        raise UserError(f"checkpoint {source} does not fit the model: {'; '.join(problems)}")


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Checks that weights are numbers: a run that diverged saves NaN."""
    broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise UserError(
            f"checkpoint {source} contains NaN or infinite values in {len(broken)} of "
            f"{len(state)} tensors: {_first(broken)}; the run diverged: take an earlier checkpoint"
        )


def check_arch(checkpoint: Checkpoint, arch: Arch) -> None:
    """Checks that the weights of a checkpoint and its `config` are of an architecture."""
    problem = _config_problem(checkpoint, arch) or _settings_problem(checkpoint, arch)
    if problem:
        raise UserError(f"{checkpoint.path}: {problem}")


def check_img_size(checkpoint: Checkpoint, arch: Arch, img_size: tuple[int, int]) -> None:
    """Checks signature and position embedding of a checkpoint against pixels (height, width)."""
    size = checkpoint.img_size or img_size
    if size != img_size:
        problem = f"it was trained at {size} pixels, the model has {img_size}; "
        problem += f"set pretrain_img_size={size[0] if size[0] == size[1] else size}"
    else:
        problem = _positions_problem(checkpoint, arch, img_size)
    if problem:
        raise UserError(f"{checkpoint.path}: {problem}")


def _config_problem(checkpoint: Checkpoint, arch: Arch) -> str:
    named = checkpoint.with_config(arch)
    unused = (*TRAINING_ONLY, *HEAD)
    if with_defaults(named, unused) == with_defaults(arch, unused):
        return ""
    return f"the file's config has other settings than the model: set arch={arch_argument(named)}"


def _settings_problem(checkpoint: Checkpoint, arch: Arch) -> str:
    inferred = checkpoint.settings()
    changes = contradictions(arch, inferred)
    if not changes:
        return ""
    differences = ", ".join(f"{key} {new} (not {old})" for key, (old, new) in changes.items())
    fitting = [name for name in arch_names() if not contradictions(resolve_arch(name), inferred)]
    fix = " or ".join(map(repr, fitting)) or f"dict({explicit_arguments(arch, changes)})"
    return f"it has another architecture: {differences}; set arch={fix}"


def _positions_problem(checkpoint: Checkpoint, arch: Arch, img_size: tuple[int, int]) -> str:
    """What is wrong with the length of the position embedding, which shows the image size."""
    if "pos_embed" not in checkpoint.state:
        return ""
    positions = checkpoint.state["pos_embed"].shape[1]
    special = arch.num_special_tokens if arch.pos_embed_special_tokens else 0
    rows, columns = (side // arch.patch_size for side in img_size)
    if positions == special + rows * columns:
        return ""
    if checkpoint.img_size:
        fix = "they contradict its signature"
    elif positions - rows * columns in (0, arch.num_special_tokens):
        fix = f"set pos_embed_special_tokens={not arch.pos_embed_special_tokens} in arch=dict(...)"
    else:
        side = math.isqrt(max(positions - special, 0))
        fix = f"set pretrain_img_size={side * arch.patch_size}"
        if side**2 != positions - special:
            fix = "set pretrain_img_size to the size it was trained at"
    return f"it has {positions} positions, the model {special} + {rows} x {columns}; {fix}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
