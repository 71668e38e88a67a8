"""Read the checkpoint of a whole detector and make sure that it fits the model, before it is used.

mmengine loads detectors non-strictly: what does not fit stays at its random start, with a warning
among many lines. Here it is an error. Backbone weights are the business of `checkpoint`.
"""

from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from ropevit_mmdet.compat.checkpoint import register_scheme
from ropevit_mmdet.compat.reading import read_torch_file
from ropevit_mmdet.weights.checkpoint import check_finite, check_fit, check_meta, check_plain
from ropevit_mmdet.weights.download import shown
from ropevit_mmdet.weights.lookup import resolve_weights


def check_start(model: nn.Module, config: Config) -> None:
    """Check the weights that a training run will begin with against its freshly built model.

    Reads the backbone's own checkpoint into the model, if it has one, or what `load_from` names;
    with `resume` that must fit exactly and be of a training. Raises ValueError with what is wrong.
    """
    backbone = getattr(model, "backbone", None)
    backbone = getattr(backbone, "backbone", backbone)  # in a FrozenBackbone
    start = config.get("load_from")
    if start is not None:
        checkpoint = read_detector_checkpoint(start)
        if config.get("resume"):
            check_fit(model.state_dict(), checkpoint["state_dict"], named(start))
            _check_training(checkpoint, named(start))
    elif type(backbone).__module__.startswith("ropevit_mmdet.") and backbone.init_cfg:
        backbone.init_weights()  # reads the file, strictly


def read_detector_checkpoint(path: str) -> dict[str, Any]:
    """The checkpoint at a path or URL, on the CPU; `state_dict` is always in it, under
    the names of a model that no wrapper holds.

    A local file is mapped into memory. Raises FileNotFoundError, DownloadError, or ValueError if it
    is truncated, not a checkpoint of a detector, not finite, or of no sense: see `check_plain` and
    `check_meta`.
    """
    if "://" in str(path):
        checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
    else:
        checkpoint = read_torch_file(path)
    path = named(path)
    if isinstance(checkpoint, dict) and "state" in checkpoint and "state_dict" not in checkpoint:
        raise ValueError(
            f"checkpoint {path} is birder's, of a backbone alone, and a detector is needed here; "
            "to train one from it, set model.backbone.init_cfg = "
            f"dict(type='Pretrained', checkpoint='{path}')"
        )
    if not isinstance(checkpoint, dict):
        raise ValueError(f"checkpoint {path} holds a {type(checkpoint).__name__}, not weights")
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint}
    weights = checkpoint["state_dict"]
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(value, torch.Tensor) for value in weights.values())
    ):
        raise ValueError(f"checkpoint {path} holds no weights of a detector")
    weights = {str(name).removeprefix("module."): value for name, value in weights.items()}
    check_plain(weights, path)
    check_finite(weights, path)
    check_meta(checkpoint.get("meta"), path)
    return {**checkpoint, "state_dict": weights}


def named(path: str) -> str:
    """A path or URL for messages."""
    return shown(path) if "://" in str(path) else str(path)


def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """mmengine's scheme for URLs: fetched once into the cache, bounded in time, and read safely.

    Raises DownloadError, or ValueError as read_torch_file does.
    """
    return read_torch_file(resolve_weights(filename), map_location)


def take_over_urls() -> None:
    """Have mmengine load http(s) URLs, also those its other schemes look up, by `load_from_http`.

    Its own waits for ever where a server stalls. Idempotent.
    """
    register_scheme(("http://", "https://"), load_from_http)
    # torchvision://, open-mmlab:// and mmcls:// end in this function, looked up in its module.
    mmengine_checkpoint.load_from_http = load_from_http


def _check_training(checkpoint: dict[str, Any], source: str) -> None:
    """Refuses what a run cannot continue from: mmengine ends in a KeyError, the directory written."""
    meta = checkpoint.get("meta") or {}
    missing = [f"meta.{key}" for key in ("epoch", "iter") if not isinstance(meta.get(key), int)]
    missing += [k for k in ("message_hub", "optimizer") if not isinstance(checkpoint.get(k), dict)]
    if missing:
        raise ValueError(
            f"checkpoint {source} is not of a training, which it could continue from: it has no "
            f"{', '.join(missing)}; to start from its weights, give it as load_from, without resume"
        )
