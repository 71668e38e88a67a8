"""Compares the config of a resumed run with the one of its checkpoint."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ropevit_mmdet.compat.checkpoint import literal_config
from ropevit_mmdet.compat.config import flat, type_name
from ropevit_mmdet.errors import UserError

_COMPARED = (
    *("optim_wrapper.", "param_scheduler.", "auto_scale_lr.", "train_cfg.", "processes."),
    *(f"train_dataloader.{key}." for key in ("batch_size", "batch_sampler", "sampler")),
)
_MAX_LISTED = 8


def resume_warning(checkpoint: Mapping[str, Any], config: Config, processes: int) -> str | None:
    """Returns a warning if the settings of training differ from those of a checkpoint, else None.

    `checkpoint` is mmengine's, `processes` the number of this run. A checkpoint whose config cannot
    be read as literals is not compared.
    """
    try:
        saved = literal_config(checkpoint.get("meta", {}).get("cfg", ""), "resumed from")
    except UserError:
        return None
    if not saved or not config:
        return None
    old, new = map(_settings, (saved, config))
    if states := checkpoint.get("random_states"):  # not in those of mmengine's own hook
        old["processes"], new["processes"] = len(states), processes
    changed = [
        f"{key} {old.get(key)!r} -> {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and f"{key}.".startswith(_COMPARED)
    ]
    more = f" and {len(changed) - _MAX_LISTED} more" if len(changed) > _MAX_LISTED else ""
    text = (
        f"the config differs from the checkpoint's: {', '.join(changed[:_MAX_LISTED])}{more}. "
        "Optimizer and schedule continue with the checkpoint's settings: to start with new ones "
        "from these weights, use load_from and not resume"
    )
    return text if changed else None


def _settings(config: Config) -> dict[str, Any]:
    """Numbers and texts by dotted key."""
    return {
        ".".join(map(str, at)): type_name({"type": one}) if at[-1] == "type" else one
        for at, one in flat(config._cfg_dict.to_dict())
        if not isinstance(one, (Mapping, list, tuple))
    }
