"""Make a checkpoint fit to be given away: its weights and what a user must know, nothing else.

As mmdet's `publish_model`, the name ends in eight digits of the file's hash. Unlike that one it
writes plain data alone, which loads anywhere under `weights_only=True`, and leaves out where its
author keeps things.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import fileio
from torch import Tensor

from ropevit_mmdet.deploy.redaction import redact
from ropevit_mmdet.weights.checkpoint import check_finite, check_plain
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from ropevit_mmdet.weights.download import shown

HASH_DIGITS = 8
# What mmengine and mmdet write into `meta` that says what the weights are. The rest, such as the
# seed, the time and hook messages, is about the run.
KEPT_META = (
    *("dataset_meta", "CLASSES", "PALETTE", "cfg", "epoch", "iter"),
    *("mmdet_version", "mmengine_version", "mmcv_version"),
)
# A detector has weights outside of these; a classifier or a pretrained encoder does not.
NO_DETECTOR = ("backbone.", "neck.", "head.", "data_preprocessor.")


@dataclass(frozen=True)
class Published:
    """What was written: `weights` is 'EMA', 'raw' or 'only' (there was no choice), `removed` keys
    of the checkpoint, `redacted` old text -> new text in its meta data, sizes in bytes.
    """

    path: Path
    weights: str
    removed: tuple[str, ...]
    redacted: dict[str, str]
    size_before: int
    size: int


def publish(source: str | Path, target: str | Path, *, raw: bool = False) -> Published:
    """Write `source`, a detector's checkpoint, for others to use.

    Args:
        source: path of a checkpoint.
        target: a name that ends in .pth, into which the hash is put, or a directory.
        raw: of a run with EMA the weights of the last step instead of their average.

    Raises:
        FileNotFoundError, ValueError: see read_detector_checkpoint; also weights that are no
            detector's or are not finite, and `raw` where there is no EMA.
    """
    if "://" in str(source):
        raise ValueError(f"{shown(str(source))} is a URL: download it, and publish the file")
    checkpoint = read_detector_checkpoint(str(source))
    weights, kind = _choose_weights(checkpoint, str(source), raw)
    _check_weights(weights, str(source))
    try:
        meta, redacted = redact(_plain(_kept_meta(checkpoint)))
    except RecursionError as error:
        raise ValueError(f"checkpoint {source}: its meta is nested without end") from error
    buffer = io.BytesIO()
    torch.save({"meta": meta, "state_dict": weights}, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    target = Path(target)
    stem = target.with_suffix("") if target.suffix == ".pth" else target / Path(source).stem
    path = stem.with_name(f"{stem.name}-{digest}.pth")
    fileio.put(content, path)  # beside it and renamed: see stack.writing
    removed = tuple(key for key in checkpoint if key not in ("meta", "state_dict"))
    size_before = Path(source).expanduser().stat().st_size
    return Published(path, kind, removed, redacted, size_before, len(content))


def _choose_weights(
    checkpoint: Mapping[str, Any], source: str, raw: bool
) -> tuple[dict[str, Tensor], str]:
    """mmengine's EMAHook swaps the two when it saves: `state_dict` has the averaged weights, and
    `ema_state_dict`, under `module.`, the raw ones.
    """
    weights, swapped = checkpoint["state_dict"], checkpoint.get("ema_state_dict")
    if swapped is None:
        if raw:
            raise ValueError(f"checkpoint {source} holds no EMA: its weights are the raw ones")
        return _compact(weights), "only"
    if not raw:
        return _compact(weights), "EMA"
    prefix, swapped = "module.", swapped if isinstance(swapped, dict) else {}
    named = {
        str(key).removeprefix(prefix): value
        for key, value in swapped.items()
        if str(key).startswith(prefix) and isinstance(value, Tensor)
    }
    if not named or named.keys() - weights.keys():
        raise ValueError(f"checkpoint {source}: its ema_state_dict is not of mmengine's EMAHook")
    weights = {**weights, **named}
    check_plain(weights, source)  # those of the state_dict were checked as they were read
    check_finite(weights, source)
    return _compact(weights), "raw"


def _compact(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the rest of a larger storage that they may be a view of."""
    return {
        name: value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
        for name, value in weights.items()
    }


def _check_weights(weights: Mapping[str, Tensor], source: str) -> None:
    if all(name.startswith(NO_DETECTOR) for name in weights):
        raise ValueError(
            f"checkpoint {source} holds no detector, only "
            f"{' and '.join(sorted({name.partition('.')[0] for name in weights}))}"
        )


def _kept_meta(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    meta = checkpoint.get("meta") or {}
    return {key: meta[key] for key in KEPT_META if key in meta}


def _plain(value: Any) -> Any:
    """Dicts, lists, tuples, strings and numbers instead of mmengine's and numpy's kinds of them.

    Whatever else is there becomes its text.
    """
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)
