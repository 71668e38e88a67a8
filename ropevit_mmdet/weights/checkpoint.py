"""Reads checkpoints as weights under our names, and loads them strictly.

Weights that do not fit the model are an error, with the line to paste into the config.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropevit_mmdet.compat.checkpoint import existing_file, read_checkpoint_file
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import (
    Arch,
    arch_names,
    names_of,
    resolve_arch,
)
from ropevit_mmdet.weights.formats import find_vits, mmengine
from ropevit_mmdet.weights.hub import NAMELESS, NEIGHBORS, resolve_weights
from ropevit_mmdet.weights.other_architectures import PUBLISHED, TIMM
from ropevit_mmdet.weights.settings import (
    HEAD,
    TRAINING_ONLY,
    arch_argument,
    contradictions,
    differences,
    explicit_arguments,
    inferred_settings,
)
from ropevit_mmdet.weights.state_dict import find_weights


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights under our names, and the metadata of their file."""

    path: Path
    state: dict[str, Tensor]
    origin: str  # the format that it has: 'birder' | 'timm' | 'transformers' | 'Meta' | 'mmengine'
    img_size: tuple[int, int] | None = None  # pixels, (height, width)
    rgb_stats: dict[str, tuple[float, ...]] | None = None  # mean and std in 0..1
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # overrides of the arch
    class_to_idx: Mapping[str, int] = dataclasses.field(default_factory=dict)
    version: str | None = None
    head: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # under their own names
    is_detector: bool = False  # of birder, without the final norm
    stated: str | Mapping[str, Any] | Arch | None = None  # by a config in or next to the file
    shown: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more settings of weights
    meta: Mapping[str, Any] | None = None  # mmengine's, of a training run

    def settings(self) -> dict[str, Any]:
        """The settings that the weights show: see `inferred_settings`."""
        head = None if self.origin == "mmengine" or self.is_detector else self.head
        try:
            return inferred_settings(self.state, head, self.img_size) | dict(self.shown)
        except KeyError as error:
            raise UserError(f"{self.path}: it does not contain {error}") from error

    def named_archs(self) -> dict[str, Arch]:
        """The architectures of the file's home that it states, else that have such weights."""
        if isinstance(self.stated, str):
            return {self.stated: resolve_arch(self.stated)}
        if self.stated is not None:
            arch = resolve_arch(self.stated)
            names = names_of(arch, ignore=(*TRAINING_ONLY, *HEAD))
            return {next(iter(names), "an architecture without a name"): arch}
        home = {"mmengine": "birder", "Meta": "timm"}.get(self.origin, self.origin)
        inferred, fitting = self.settings(), {}
        for name in arch_names(home):
            with contextlib.suppress(UserError):  # overrides that are not meant for this one
                arch = self.with_config(resolve_arch(name))
                if not contradictions(arch, inferred) and self._pool_fits(arch):
                    fitting[name] = arch
        return fitting

    def _pool_fits(self, arch: Arch) -> bool:
        if self.origin in ("mmengine", "Meta") or self.is_detector:
            return True
        if "attn_pool.latent" not in self.head:
            return not arch.attn_pool_head
        multi_head = arch.attn_pool_type == "MultiHeadAttentionPool"
        return arch.attn_pool_head and multi_head == ("attn_pool.q.weight" in self.head)

    def with_config(self, arch: Arch) -> Arch:
        """An architecture with the overrides of the file's `config`."""
        overrides = {k: v for k, v in self.config.items() if not k.startswith("soft_moe_")}
        try:
            return dataclasses.replace(arch, **overrides)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.path}: the file's config is not supported: {error}") from error


def read_checkpoint(
    path: str | Path, *, prefix: str | None = None, revise_keys: Sequence[tuple[str, str]] = ()
) -> Checkpoint:
    """Reads a checkpoint without running code in it; tensors stay mapped to the file.

    Args:
        path: a file of birder, timm, transformers or Meta; or what mmengine saved of a detector, or
            of its backbone only.
        prefix: of the names of weights in the file, as for `find_weights`.
        revise_keys: changes of these names, as for `find_weights`.

    Returns:
        The weights under our names, and the metadata.

    Raises:
        UserError: no such file; truncated; not a checkpoint of a RoPE ViT; one that would run code.
    """
    path = existing_file(path)
    content = read_checkpoint_file(path)
    weights, fields = find_weights(content, path, prefix=prefix, revise_keys=revise_keys)
    fields |= _neighbors(path)
    vits = find_vits(weights)
    stated = (fields.get("config.json") or {}).get("architecture")
    if isinstance(stated, str) and stated not in TIMM:
        problem = f"it is of {stated!r}, no RoPE ViT that this package knows"
    elif len(vits) > 1:
        prefixes = " or ".join(repr(prefix) for prefix, _ in vits)
        problem = f"it contains several RoPE ViTs: choose prefix={prefixes}"
    elif not vits:
        part = "; it is one of several parts, which their .index.json names" * ("-of-" in path.stem)
        problem = f"it contains no weights of a RoPE ViT, but {first_names(weights)}{part}"
    else:
        (prefix, reader), others = vits[0], {}
        if reader is not mmengine:
            others = {key: weights[key] for key in weights if not key.startswith(prefix)}
        vit = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        try:
            read = reader.read(vit, fields)
            read["head"] |= others
            return _with_known_stats(Checkpoint(path=path, **read))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            problem = f"its metadata are not those of a checkpoint: {error!r}"
    raise UserError(f"{path}: {problem}")


def read_pretrained(init_cfg: Any) -> Checkpoint | None:
    """Reads the last checkpoint that an `init_cfg` of mmengine names; None if it names none.

    Entries of another type than `Pretrained` have no effect on weights that are loaded afterwards,
    as in mmengine; nor has `map_location`, as weights are copied. Raises `UserError` for keys that
    mmengine does not have, and as `read_checkpoint`.
    """
    named = pretrained_entries(init_cfg)
    if not named:
        return None
    options = {key: value for key, value in named[-1].items() if key != "type"}
    source = options.pop("checkpoint", None)
    options.pop("map_location", None)
    if source is None or options.keys() - {"prefix", "revise_keys"}:
        raise UserError(
            f"init_cfg={named[-1]}: expected the keys type, checkpoint and, if needed, prefix, "
            "map_location, revise_keys"
        )
    return read_checkpoint(resolve_weights(source), **options)


def pretrained_entries(init_cfg: Any) -> list[dict[str, Any]]:
    """The entries of an `init_cfg`, in any of its forms, that name a checkpoint."""
    entries = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return [dict(entry) for entry in entries if type_name(entry) == "Pretrained"]


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
        f"{len(keys)} {what}: {first_names(keys)}" for what, keys in keys_by_problem.items() if keys
    ]
    missing = keys_by_problem["of the model's weights are not in it"]
    if missing and all(key.startswith("norm.") for key in missing):
        problems.append("set final_norm=False")  # as in a detector of birder
    if problems:
        raise UserError(f"checkpoint {source} does not fit the model: {'; '.join(problems)}")


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Checks that weights are numbers: a run that diverged saves NaN."""
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    # A finite sum has only finite terms, and takes a tenth of the time.
    broken = [
        key
        for key, value in floats.items()
        if not (value.sum(dtype=torch.float32).isfinite() or value.isfinite().all())
    ]
    if broken:
        raise UserError(
            f"checkpoint {source} contains NaN or infinite values in {len(broken)} of {len(state)} "
            f"tensors: {first_names(broken)}; the run diverged: take an earlier checkpoint"
        )


def first_names(names: Iterable[str]) -> str:
    """The first three names, as text."""
    names = list(names)
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3) or "none"


def check_arch(checkpoint: Checkpoint, arch: Arch) -> None:
    """Checks that the weights of a checkpoint and its `config` are of an architecture.

    Weights of other homes than birder do not show RoPE and eps: these are those of a name there.
    """
    with_config = checkpoint.with_config(arch)
    if changes := differences(arch, with_config):
        fix = arch_argument(with_config)
    else:
        changes = contradictions(arch, checkpoint.settings())
        foreign = checkpoint.origin not in ("birder", "mmengine")
        named = list(checkpoint.named_archs().values()) if changes or foreign else []
        if not changes and named and all(differences(arch, known) for known in named):
            changes = differences(arch, named[0])
        if not changes and foreign and not named and (names := names_of(arch)):
            raise UserError(
                f"{checkpoint.path}: it is of {checkpoint.origin} and not {names[0]}: set arch to "
                "its name there, or to dict(...) with its RoPE and eps"
            )
        fix = " or ".join(dict.fromkeys(map(arch_argument, named)))
        fix = fix or f"dict({explicit_arguments(arch, changes)})"
    if changes:
        listed = ", ".join(f"{key} {new} (not {old})" for key, (old, new) in changes.items())
        raise UserError(f"{checkpoint.path}: it has another architecture: {listed}; set arch={fix}")


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


def _neighbors(path: Path) -> dict[str, Any]:
    """The JSON files next to the file of a repository, whose name shows nothing."""
    found = {}
    for name in NEIGHBORS if path.name.partition(".")[0] in NAMELESS else ():
        neighbor = path.parent / name
        if neighbor.is_file():
            try:
                found[name] = json.loads(neighbor.read_text())
            except ValueError as error:
                raise UserError(f"{neighbor} is no JSON: {error}") from error
    return found


def _with_known_stats(checkpoint: Checkpoint) -> Checkpoint:
    """With the normalization of all published weights that it could be, if it states none."""
    if checkpoint.origin in ("birder", "mmengine") or checkpoint.rgb_stats:
        return checkpoint
    stats = {PUBLISHED[n].stats if n in PUBLISHED else None for n in checkpoint.named_archs()}
    known = stats.pop() if len(stats) == 1 else None
    return dataclasses.replace(
        checkpoint, rgb_stats=known and dict(zip(("mean", "std"), known, strict=True))
    )


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
