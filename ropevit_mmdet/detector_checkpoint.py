"""Read the checkpoint of a whole detector and make sure that it fits the model, before it is used.

mmengine loads detectors non-strictly: what does not fit stays at its random start, with a warning
among many lines. Here it is an error. Backbone weights are the business of `checkpoint`.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, find_latest_checkpoint
from torch import nn

from ropevit_mmdet.run_config import build_detector


def check_weights(config: Config) -> None:
    """Check the model and the weights that a training run will begin with.

    Builds the model once; reads the backbone's own checkpoint, if it has one, and what
    `load_from` and `resume` name. Raises ValueError with what is wrong.
    """
    model = build_detector(config)
    backbone = getattr(model, "backbone", None)
    start = config.get("load_from")
    if config.get("resume") and start is None:
        start = _latest(config.work_dir)
    if start is not None:
        checkpoint = read_detector_checkpoint(start)
        if config.get("resume"):
            check_fit(model, checkpoint, start)
    elif type(backbone).__module__.startswith("ropevit_mmdet.") and backbone.init_cfg:
        backbone.init_weights()  # reads the file, strictly


def read_detector_checkpoint(path: str) -> dict[str, Any]:
    """The checkpoint at a path or URL, on the CPU; `state_dict` is always in it.

    A local file is mapped into memory, so that only what is looked at is read. Raises ValueError if
    it is missing, cut short, not a checkpoint, or not one of a detector.
    """
    try:
        if "://" in str(path):
            checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
        else:
            if not Path(path).is_file():
                raise ValueError(f"checkpoint {path} does not exist")
            mapped = zipfile.is_zipfile(path)  # torch's format since 1.6; older ones cannot be
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: it is cut short, not a checkpoint, or holds more "
            f"than weights and plain data ({_first_sentence(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: it is cut short or not a checkpoint "
            f"({_first_sentence(error)})"
        ) from error
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
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"checkpoint {path} holds no weights of a detector")
    return checkpoint


def check_fit(model: nn.Module, checkpoint: dict[str, Any], path: str) -> None:
    """Raise ValueError unless the checkpoint has exactly the model's weights, in name and shape."""
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {
        re.sub(r"^module\.", "", name): tuple(value.shape)
        for name, value in checkpoint["state_dict"].items()
    }
    missing = [name for name in ours if name not in theirs]
    unknown = [name for name in theirs if name not in ours]
    other = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the model's weights are not in it, e.g. {missing[0]}")
    if unknown:
        problems.append(f"{len(unknown)} of its weights are not in the model, e.g. {unknown[0]}")
    if other:
        name = other[0]
        problems.append(
            f"{len(other)} differ in shape, e.g. {name}: {theirs[name]} in the file, {ours[name]} "
            "in the model"
        )
    if problems:
        run = (checkpoint.get("meta") or {}).get("experiment_name")
        origin = f", which the run {run} wrote," if run else ""
        raise ValueError(
            f"checkpoint {path}{origin} does not fit the config: {'; '.join(problems)}"
        )


def _latest(work_dir: str) -> str | None:
    """The checkpoint that `--resume` alone goes on from; none yet is no error, as in mmengine."""
    return find_latest_checkpoint(work_dir) if Path(work_dir).is_dir() else None


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return re.split(r"(?<=\w)\. |\.$", text)[0][:200] or type(error).__name__
