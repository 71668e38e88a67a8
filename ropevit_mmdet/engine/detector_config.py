"""The config of a detector: a file, or the one in its checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ropevit_mmdet.compat.checkpoint import literal_config
from ropevit_mmdet.compat.config import packaged_config
from ropevit_mmdet.errors import UserError

SUFFIXES = (".py", ".json", ".yaml", ".yml")


def is_config(name: str) -> bool:
    """Whether an argument is a config, and no checkpoint: by its suffix, or as a packaged one."""
    packaged = not Path(name).exists() and packaged_config(name)
    return name.endswith(SUFFIXES) or "::" in name or bool(packaged)


def embedded_config(checkpoint: Mapping[str, Any], source: str | os.PathLike[str]) -> Config:
    """Reads the config in a checkpoint as literals, without its `work_dir` and imports.

    Raises:
        UserError: the checkpoint has no config, or one that could run code.
    """
    runtime = checkpoint.get("message_hub", {}).get("runtime_info", {})
    text = (checkpoint.get("meta") or {}).get("cfg") or runtime.get("cfg")
    if not isinstance(text, str):
        raise UserError(f"checkpoint {source} contains no config: pass one, as CONFIG or config=")
    settings = literal_config(text, str(source)).to_dict()
    for key in ("work_dir", "custom_imports"):
        settings.pop(key, None)
    return Config(settings, cfg_text=text, filename=f"{Path(source).stem}.py")
