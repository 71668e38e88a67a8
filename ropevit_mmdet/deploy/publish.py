"""Publication of a checkpoint: weights and metadata as plain data, without paths and secrets."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropevit_mmdet._output import atomic_file
from ropevit_mmdet.deploy._redaction import redact
from ropevit_mmdet.errors import UserError
from ropevit_mmdet.weights.checkpoint import check_finite
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint

KEPT_META = (  # describe the weights; the other keys describe the run
    *("dataset_meta", "CLASSES", "PALETTE", "cfg", "epoch", "iter"),
    *("mmdet_version", "mmengine_version", "mmcv_version"),
)
# A detector has weights with other prefixes too; a classifier or a pretrained encoder has not.
NO_DETECTOR = ("backbone.", "neck.", "head.", "data_preprocessor.")


@dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
        weights: 'EMA', 'raw', or 'only' for a run without EMA.
        removed: keys of the checkpoint that were removed.
        redacted: old text -> new text in its metadata.
        size_before, size: bytes.
    """

    path: Path
    weights: str
    removed: tuple[str, ...]
    redacted: dict[str, str]
    size_before: int
    size: int


def publish_checkpoint(source: str | Path, target: str | Path, *, raw: bool = False) -> Published:
    """Writes the checkpoint of a detector for others to use.

    Args:
        source: path of a checkpoint.
        target: a name that ends in .pth, which the hash is added to, or a directory.
        raw: of a run with EMA, the weights of the last step instead of their average.

    Raises:
        UserError, ValueError: a file without a detector, or `raw` for a run without EMA; see also
            `read_detector_checkpoint`.
    """
    source, target = Path(source).expanduser(), Path(target)
    checkpoint = read_detector_checkpoint(str(source))
    weights, choice = _choose_weights(checkpoint, raw)
    if all(name.startswith(NO_DETECTOR) for name in weights):
        prefixes = sorted({name.partition(".")[0] for name in weights})
        raise UserError(f"checkpoint {source} contains no detector, only {', '.join(prefixes)}")
    if raw and choice != "raw":
        raise UserError(f"checkpoint {source} contains no EMA: leave out --raw")
    meta = checkpoint.get("meta") or {}
    meta, redacted = redact({key: meta[key] for key in KEPT_META if key in meta})
    buffer = io.BytesIO()
    weights = {name: value.clone() for name, value in weights.items()}  # not views of a storage
    torch.save({"meta": meta, "state_dict": weights}, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:8]  # as in mmdet's publish_model
    stem = target.with_suffix("") if target.suffix == ".pth" else target / source.stem
    path = stem.with_name(f"{stem.name}-{digest}.pth")
    with atomic_file(path) as file:
        file.write(content)
    removed = tuple(key for key in checkpoint if key not in ("meta", "state_dict"))
    return Published(path, choice, removed, redacted, source.stat().st_size, len(content))


def _choose_weights(checkpoint: Mapping[str, Any], raw: bool) -> tuple[dict[str, Tensor], str]:
    """EMAHook saves the averaged weights as `state_dict`, the raw ones as `ema_state_dict`."""
    weights, swapped = checkpoint["state_dict"], checkpoint.get("ema_state_dict")
    if not swapped or not raw:
        return weights, "EMA" if swapped else "only"
    raw_weights = {
        key.removeprefix("module."): value
        for key, value in swapped.items()
        if key.startswith("module.")
    }
    if not raw_weights or raw_weights.keys() - weights.keys():
        raise UserError("its ema_state_dict is not that of mmengine's EMAHook: leave out --raw")
    check_finite(raw_weights, "ema_state_dict")
    return {**weights, **raw_weights}, "raw"
