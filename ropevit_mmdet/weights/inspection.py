"""A checkpoint's facts in words, and the config lines that fit it, for a look before training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ropevit_mmdet.weights.architectures import Arch, resolve_arch
from ropevit_mmdet.weights.checkpoint import Checkpoint, check_arch, with_overrides
from ropevit_mmdet.weights.identify import distinct, fitting_archs, parts_of
from ropevit_mmdet.weights.published import WEIGHTS
from ropevit_mmdet.weights.settings import arch_argument, facts_of


def choose_archs(checkpoint: Checkpoint, name: str | None) -> dict[str, Arch]:
    """The architectures that a checkpoint may be of: those that fit, or the one that is named.

    Raises:
        ValueError: an unknown name, or one that the weights do not fit; no weights of a RoPE ViT.
    """
    fitting = fitting_archs(checkpoint)
    published = WEIGHTS.get(checkpoint.path.stem)
    if name is None and published and published.network in fitting:
        name = published.network
    if name is None:
        return {key: fitting[key] for key in distinct(fitting)}
    arch = with_overrides(resolve_arch(name), checkpoint.config)
    if checkpoint.origin == "birder":
        check_arch(checkpoint, arch)
    elif name not in fitting:
        raise ValueError(f"{checkpoint.path} is not of {name}, but of {_or(fitting)}")
    return {name: arch}


def facts(checkpoint: Checkpoint, archs: Mapping[str, Arch]) -> list[tuple[str, str]]:
    """What a file holds, as pairs of a word ('' for more of the one before) and what it is.

    Args:
        archs: what it may be of, from ``choose_archs``.
    """
    from_birder = checkpoint.origin == "birder"
    found = [
        ("file", f"{checkpoint.path}, {checkpoint.path.stat().st_size / 2**20:.1f} MB"),
        ("written by", _writer(checkpoint) if from_birder else _run(checkpoint.meta)),
        ("architecture", _or(archs)),
        ("", _shape(facts_of(checkpoint.state))),
        ("backbone", f"{_number(checkpoint.state)} parameters, {_health(checkpoint)}"),
    ]
    if checkpoint.head:
        parts = ", ".join(parts_of(checkpoint.head))
        found.append(("ignored", f"by detectors: {parts}, {_number(checkpoint.head)} parameters"))
    if from_birder:
        size, stats = checkpoint.img_size, checkpoint.rgb_stats
        colors = f"mean {stats['mean']}, std {stats['std']}" if stats else "no rgb_stats"
        found.append(("images", f"{size[0]} x {size[1]} pixels" if size else "of unknown size"))
        found.append(("", colors))
        classes = sorted(checkpoint.class_to_idx or {}, key=(checkpoint.class_to_idx or {}).get)
    else:
        classes = ((checkpoint.meta or {}).get("dataset_meta") or {}).get("classes") or ()
    found.append(("classes", _classes(classes)))
    return found


def config_lines(checkpoint: Checkpoint, arch: Arch, source: str) -> str:
    """What a config on top of the Mask R-CNN one says to train from a birder checkpoint.

    Args:
        source: what the config gives as the checkpoint.
    """
    stride, size, stats = arch.patch_size, checkpoint.img_size, checkpoint.rgb_stats
    strides = [_plain(stride * factor) for factor in (0.25, 0.5, 1, 2, 4)]
    extractor = f"dict(featmap_strides={strides[:4]}, finest_scale={_plain(14 * strides[0])})"
    lines = ["model = dict(", "    data_preprocessor=dict("]
    for key in ("mean", "std") if stats else ():
        lines.append(f"        {key}={[round(255 * value, 4) for value in stats[key]]},")
    lines += [
        "        bgr_to_rgb=True,",
        f"        pad_size_divisor={4 * stride},",
        "    ),",
        "    backbone=dict(",
        f"        arch={_double_quoted(arch_argument(arch))},",
    ]
    if size:
        lines += [
            f"        pretrain_img_size={size[0] if size[0] == size[1] else size},",
            f"        window_size={min(size) // stride},",
        ]
    lines += [
        f'        init_cfg=dict(type="Pretrained", checkpoint={json.dumps(source)}),',
        "    ),",
        f"    neck=dict(in_channels={arch.hidden_dim}, in_stride={stride}),",
        f"    rpn_head=dict(anchor_generator=dict(strides={strides})),",
        "    roi_head=dict(",
        f"        bbox_roi_extractor={extractor},",
        f"        mask_roi_extractor={extractor},",
        "    ),",
        ")",
    ]
    return "\n".join(lines)


def _double_quoted(argument: str) -> str:
    """A value as our configs write it; settings explicit replace the name that they inherit."""
    return argument.replace("'", '"').replace("dict(", "dict(_delete_=True, ", 1)


def _writer(checkpoint: Checkpoint) -> str:
    published = WEIGHTS.get(checkpoint.path.stem)
    by = f"birder {checkpoint.version}" if checkpoint.version else "birder"
    return f"{by}, published as: {published.trained_on}" if published else by


def _run(meta: Mapping | None) -> str:
    """Who wrote a detector's checkpoint, and after how long."""
    meta = meta or {}
    done = [
        f"{meta[key]} {word}"
        for key, word in (("epoch", "epochs"), ("iter", "iterations"))
        if isinstance(meta.get(key), int)
    ]
    by = f"mmengine {meta['mmengine_version']}" if "mmengine_version" in meta else "mmengine"
    return f"{by}, a training run after {', '.join(done)}" if done else by


def _shape(found: Mapping) -> str:
    count = found["num_reg_tokens"]
    special = [f"{count} register{'s' if count > 1 else ''}"] if count else []
    special += ["a class token"] if found["class_token"] else []
    return (
        f"{found['num_layers']} blocks of {found['hidden_dim']} channels, patches of "
        f"{found['patch_size']} pixels, {' and '.join(special) or 'no special tokens'}"
    )


def _health(checkpoint: Checkpoint) -> str:
    """The dtypes, and whether every number is one."""
    tensors = [*checkpoint.state.values(), *checkpoint.head.values()]
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    broken = sum(not torch.isfinite(tensor).all() for tensor in tensors)
    state = f"{broken} TENSORS HOLD NaN OR INFINITE VALUES" if broken else "all finite"
    return f"{', '.join(dtypes)}, {state}"


def _classes(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)}: {', '.join(map(str, names[:4]))}{', ...' if len(names) > 4 else ''}"


def _number(tensors: Mapping[str, Tensor]) -> str:
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def _or(archs: Mapping[str, Arch]) -> str:
    return " or ".join(archs) or "none that has a name"


def _plain(stride: float) -> int | float:
    return int(stride) if stride == int(stride) else stride
