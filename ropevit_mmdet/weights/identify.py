"""What a checkpoint file is: the named architectures that its weights fit, in words and as config.

A file of birder does not name its architecture. Names and shapes of the weights tell most of it;
what they cannot tell (angles of the rope, eps of the norms) leaves several names in rare cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ropevit_mmdet.weights.architectures import Arch, arch_names, resolve_arch
from ropevit_mmdet.weights.checkpoint import Checkpoint, with_overrides
from ropevit_mmdet.weights.published import WEIGHTS
from ropevit_mmdet.weights.settings import (
    TRAINING_ONLY,
    contradictions,
    explicit,
    facts_of,
    settings_of,
)


def identify(checkpoint: Checkpoint) -> tuple[str, Arch]:
    """The one architecture that a checkpoint can be of, and birder's name of it.

    Its settings are those of the name with the overrides of the file's ``config``. A file that is
    called as birder publishes it is of the architecture that was published under that name.

    Raises:
        ValueError: no named architecture fits, or several do; says which.
    """
    fitting = fitting_archs(checkpoint)
    published = WEIGHTS.get(checkpoint.path.stem)
    if published and published.network in fitting:
        return published.network, fitting[published.network]
    if not fitting:
        raise ValueError(
            f"{checkpoint.path} fits no architecture that has a name; spell it out with "
            f"arch=dict({_explicit(_shown(checkpoint))}), num_heads as it was trained"
        )
    name, *others = distinct(fitting)
    if others:
        raise ValueError(
            f"{checkpoint.path} may be of several architectures, which its weights cannot tell "
            f"apart; give arch, one of {', '.join(map(repr, (name, *others)))}"
        )
    return name, fitting[name]


def fitting_archs(checkpoint: Checkpoint) -> dict[str, Arch]:
    """The named architectures whose weights have the names and shapes that the file's have.

    Raises:
        ValueError: the weights are not of a RoPE ViT, or no name goes with the file's ``config``.
    """
    if "blocks.0.norm1.weight" not in checkpoint.state:
        raise ValueError(f"{checkpoint.path} holds no weights of a RoPE ViT")
    found, fitting, refused = _shown(checkpoint), {}, 0
    for name in arch_names():
        try:
            arch = with_overrides(resolve_arch(name), checkpoint.config)
        except ValueError as error:  # overrides that are not meant for this one
            refused += 1
            if refused == len(arch_names()):
                raise ValueError(f"{checkpoint.path}: {error}") from error
            continue
        if not contradictions(arch, found) and _pool_fits(checkpoint, arch):
            fitting[name] = arch
    return fitting


def distinct(archs: Mapping[str, Arch]) -> list[str]:
    """One name for each architecture among them, told apart by what acts beyond training."""
    names: list[str] = []
    for name, arch in archs.items():
        if all(_of_inference(arch) != _of_inference(archs[other]) for other in names):
            names.append(name)
    return names


def summary(checkpoint: Checkpoint, loaded: Iterable[str]) -> str:
    """What was loaded and what was not, for the log.

    Args:
        loaded: the keys of the checkpoint's state that went into a model.
    """
    loaded = set(loaded)
    unused = [key for key in (*checkpoint.state, *checkpoint.head) if key not in loaded]
    writer = f"birder {checkpoint.version or ''}".strip()
    size, stats = checkpoint.img_size, checkpoint.rgb_stats
    fitting = fitting_archs(checkpoint)
    names = " or ".join(distinct(fitting)) or "an architecture without a name"
    lines = [
        f"loaded {checkpoint.path} ({writer if checkpoint.origin == 'birder' else 'mmengine'}): "
        f"{len(loaded)} tensors of {names}"
    ]
    if checkpoint.origin == "birder":
        lines.append(
            f"trained at {f'{size[0]} x {size[1]} pixels' if size else 'a size it does not say'}, "
            + (f"rgb mean {stats['mean']}, std {stats['std']}" if stats else "without rgb_stats")
        )
    lines.append(f"ignored: {', '.join(parts_of(unused)) or 'nothing'}")
    return "\n    ".join(lines)


def parts_of(keys: Iterable[str]) -> list[str]:
    """The parts of a model that keys belong to, in their order; blocks by their number."""
    parts = (".".join(key.split(".")[: 2 if key.startswith("blocks.") else 1]) for key in keys)
    return list(dict.fromkeys(parts))


def _shown(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the weights show of the architecture; a detector may have left parts of it out."""
    if checkpoint.origin != "birder":
        return facts_of(checkpoint.state)
    return settings_of(checkpoint.state, checkpoint.head, checkpoint.img_size)


def _pool_fits(checkpoint: Checkpoint, arch: Arch) -> bool:
    if checkpoint.origin != "birder":
        return True
    pool = None
    if "attn_pool.latent" in checkpoint.head:
        multi_head = "attn_pool.q.weight" in checkpoint.head
        pool = "MultiHeadAttentionPool" if multi_head else "EfficientProbing"
    return pool == (arch.attn_pool_type if arch.attn_pool_head else None)


def _of_inference(arch: Arch) -> dict[str, Any]:
    settings = dataclasses.asdict(arch)
    return {key: value for key, value in settings.items() if key not in TRAINING_ONLY}


def _explicit(found: Mapping[str, Any]) -> str:
    """Arguments of ``arch=dict(...)`` for what weights show; they do not show all."""
    start = resolve_arch("rope_vit_t16")
    changes = contradictions(start, found) | {"hidden_dim": (None, found["hidden_dim"])}
    return explicit(start, changes)
