"""What a checkpoint is: the architectures that fit, a description, and config lines for it."""

import json
import math
import re
from collections.abc import Iterable, Mapping

import torch

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.architectures import Arch, names_of, resolve_arch, with_defaults
from ropevit_mmdet.weights.checkpoint import Checkpoint, check_arch
from ropevit_mmdet.weights.detector_checkpoint import saved_classes
from ropevit_mmdet.weights.other_architectures import PUBLISHED
from ropevit_mmdet.weights.published import WEIGHTS
from ropevit_mmdet.weights.settings import (
    TRAINING_ONLY,
    arch_argument,
    contradictions,
    explicit_arguments,
)


def identify(checkpoint: Checkpoint, name: str | None = None) -> tuple[str, Arch]:
    """The one architecture that a checkpoint can have: birder's name, and its settings."""
    archs = choose_archs(checkpoint, name)
    if len(archs) == 1:
        return next(iter(archs.items()))
    if archs:
        names = ", ".join(map(repr, archs))
        problem = f"fits several architectures: set arch to one of {names}"
    else:
        base, inferred = resolve_arch("rope_vit_t16"), checkpoint.settings()
        changes = contradictions(base, inferred) | {"hidden_dim": (0, inferred["hidden_dim"])}
        arguments = explicit_arguments(base, changes)
        problem = f"fits no architecture that has a name: set arch=dict({arguments})"
    raise UserError(f"{checkpoint.path} {problem}")


def choose_archs(checkpoint: Checkpoint, name: str | None) -> dict[str, Arch]:
    """The architectures that a checkpoint can have, or the named one, with the file's `config`.

    Weights do not show everything; the name of a published file decides.
    """
    if name is not None:
        arch = checkpoint.with_config(resolve_arch(name))
        check_arch(checkpoint, arch)
        return {name: arch}
    fitting = checkpoint.named_archs()
    published = WEIGHTS.get(checkpoint.path.stem)
    if published and published.network in fitting:
        return {published.network: fitting[published.network]}
    distinct: dict[Arch, str] = {}
    for name, arch in fitting.items():
        distinct.setdefault(with_defaults(arch, TRAINING_ONLY), name)
    return {name: fitting[name] for name in distinct.values()}


def summary(checkpoint: Checkpoint, loaded: Iterable[str]) -> str:
    """What was loaded and what was ignored, for the log; `loaded` are the keys of a model."""
    loaded = set(loaded)
    ignored = _parts(key for key in (*checkpoint.state, *checkpoint.head) if key not in loaded)
    names = " or ".join(choose_archs(checkpoint, None)) or "an architecture without a name"
    own = checkpoint.meta or "reg_tokens" in checkpoint.state  # only files of ours have these
    plain = checkpoint.origin == "mmengine" and not own
    return (
        f"loaded {checkpoint.path} ({_writer(checkpoint)}): {len(loaded)} tensors of {names}\n"
        f"    ignored: {ignored or 'nothing'}"
        + "\n    nothing in it shows a RoPE: weights of a ViT without one do not work"
        * plain
    )


def describe(checkpoint: Checkpoint, archs: Mapping[str, Arch]) -> list[tuple[str, str]]:
    """What a file contains, as pairs of a word ('' continues the one before) and its text."""
    shown, size, stats = checkpoint.settings(), checkpoint.img_size, checkpoint.rgb_stats
    special = f"{shown['num_reg_tokens']} registers, {int(shown['class_token'])} class token"
    parameters = sum(tensor.numel() for tensor in checkpoint.state.values())
    rows = [
        ("file", f"{checkpoint.path}, {checkpoint.path.stat().st_size / 2**20:.1f} MB"),
        ("written by", _writer(checkpoint)),
        ("architecture", " or ".join(archs) or "custom (it has no name)"),
        ("", f"{shown['num_layers']} blocks of {shown['hidden_dim']} channels"),
        ("", f"patches of {shown['patch_size']} pixels, {special}"),
        ("backbone", f"{parameters:,} parameters, {_health(checkpoint)}"),
    ]
    if checkpoint.head:
        rows.append(("ignored", f"by detectors: {_parts(checkpoint.head)}"))
    if checkpoint.origin != "mmengine":
        rows.append(("images", f"{size[0]} x {size[1]} pixels" if size else "of unknown size"))
        rows.append(("", f"mean {stats['mean']}, std {stats['std']}" if stats else "no rgb_stats"))
        classes = sorted(checkpoint.class_to_idx, key=checkpoint.class_to_idx.__getitem__)
    else:
        classes = list(saved_classes({"meta": checkpoint.meta}))
    names = ", ".join(map(str, classes[:4])) + ", ..." * (len(classes) > 4)
    return [*rows, ("classes", f"{len(classes)}: {names}" if classes else "none")]


def pretrain_size(checkpoint: Checkpoint, arch: Arch) -> tuple[int, int] | None:
    """The image size of the pretraining: the file's, or what weights or publication show."""
    if checkpoint.img_size or "pos_embed" not in checkpoint.state:
        sides = {PUBLISHED[name].side for name in names_of(arch) if name in PUBLISHED}
        return checkpoint.img_size or ((max(sides),) * 2 if len(sides) == 1 else None)
    special = arch.num_special_tokens * arch.pos_embed_special_tokens
    side = math.isqrt(checkpoint.state["pos_embed"].shape[1] - special)
    return (side * arch.patch_size,) * 2


def pixel_stats(checkpoint: Checkpoint) -> dict[str, list[float]]:
    """Mean and standard deviation in 0..255, as a `data_preprocessor` has them; {} if unknown."""
    stats = checkpoint.rgb_stats or {}
    return {key: [round(255 * value, 4) for value in values] for key, values in stats.items()}


def config_lines(checkpoint: Checkpoint, arch: Arch, source: str) -> str:
    """Lines on top of the Mask R-CNN config that train from a checkpoint, named `source`."""
    stride, size = arch.patch_size, pretrain_size(checkpoint, arch)
    strides = [f"{stride * factor:g}" for factor in (0.25, 0.5, 1, 2, 4)]
    extractor = f"featmap_strides=[{', '.join(strides[:4])}], finest_scale={3.5 * stride:g}"
    named = arch_argument(arch).replace("'", '"').replace("dict(", "dict(_delete_=True, ", 1)
    statistics = pixel_stats(checkpoint).items()
    stats = "".join(f"        {key}={values},\n" for key, values in statistics)
    grid = ""
    if size:
        side = size[0] if size[0] == size[1] else size
        grid = f"        pretrain_img_size={side},\n        window_size={min(size) // stride},\n"
    return f"""model = dict(
    data_preprocessor=dict(
{stats}        bgr_to_rgb=True,
        pad_size_divisor={4 * stride},
    ),
    backbone=dict(
        arch={named},
{grid}        init_cfg=dict(type="Pretrained", checkpoint={json.dumps(source)}),
    ),
    neck=dict(in_channels={arch.hidden_dim}, in_stride={stride}),
    rpn_head=dict(anchor_generator=dict(strides=[{", ".join(strides)}])),
    roi_head=dict(
        bbox_roi_extractor=dict({extractor}),
        mask_roi_extractor=dict({extractor}),
    ),
)"""


def _writer(checkpoint: Checkpoint) -> str:
    """The program that wrote the file; of a detector also how long it was trained."""
    if checkpoint.origin == "birder":
        published = WEIGHTS.get(checkpoint.path.stem)
        by = f"birder {checkpoint.version or ''}".strip()
        return f"{by}, published as: {published.trained_on}" if published else by
    if checkpoint.origin != "mmengine":
        return checkpoint.origin
    meta = checkpoint.meta or {}
    done = [f"{meta[key]} {key}s" for key in ("epoch", "iter") if key in meta]
    return ", ".join([f"mmengine {meta.get('mmengine_version', '')}".strip(), *done])


def _health(checkpoint: Checkpoint) -> str:
    """The dtypes, and whether every value is finite."""
    tensors = [*checkpoint.state.values(), *checkpoint.head.values()]
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    broken = sum(not torch.isfinite(tensor).all() for tensor in tensors)
    finite = f"{broken} TENSORS CONTAIN NaN OR INFINITE VALUES" if broken else "all finite"
    return f"{', '.join(dtypes)}, {finite}"


def _parts(keys: Iterable[str]) -> str:
    """The parts of a model that keys belong to, in their order; blocks by their index."""
    return ", ".join(dict.fromkeys(re.findall(r"^(?:blocks\.)?[^.]+", key)[0] for key in keys))
