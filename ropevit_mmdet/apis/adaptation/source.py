"""Reads the config to adapt, as plain values, and finds its detector."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ropevit_mmdet.apis.adaptation.edits import Path as KeyPath
from ropevit_mmdet.apis.adaptation.edits import walk
from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError


class Source(NamedTuple):
    """The settings of a config as plain values, and its file for configs based on it."""

    settings: dict[str, Any]  # types that are classes as dotted names
    base: str | None = None  # an absolute path or PACKAGE::NAME
    is_python_style: bool = False  # inherited by `read_base`

    def heading(self, directory: Path) -> str:
        """The first lines of a config in a directory that inherits this one; '' if none can."""
        if self.base is None:
            return ""
        if "::" in self.base:
            return f'_base_ = "{self.base}"\n'
        relative = os.path.relpath(self.base, directory.resolve())
        if not self.is_python_style:
            return f'_base_ = "{relative}"\n'
        up, names = (
            relative.count("../"),
            relative.removesuffix(".py").replace("../", "").split("/"),
        )
        if not all(map(str.isidentifier, names)):
            return ""
        module = "." * (up + 1) + ".".join(names)
        return f"""from mmengine.config import read_base

with read_base():
    from {module} import *  # noqa: F403
"""


def read_config(config: str | os.PathLike[str] | Config) -> Source:
    """Reads a config: a file, `PACKAGE::NAME`, the name of a packaged config, or a `Config`."""
    if isinstance(config, Config):
        return Source(_plain(config.to_dict()))
    name = os.fspath(config)
    loaded = load_config(name, imports=False)  # modules of the old backbone may be absent
    settings = _plain(loaded.to_dict())
    del settings["launcher"], settings["work_dir"]  # of load_config
    is_packaged = "::" in name
    base = f"{name.removesuffix('.py')}.py" if is_packaged else str(Path(loaded.filename).resolve())
    return Source(settings, base, base.endswith(".py") and Config._is_lazy_import(loaded.filename))


def detector_path(model: Mapping[str, Any]) -> KeyPath:
    """The path of the detector in a model: of the outermost dict with a backbone.

    Raises:
        UserError: there is none, or it is none for single images; with the reason.
    """
    found = [path for path, part in walk(model) if type_name(part.get("backbone"))]
    part: Any = model
    for key in (path := min(found, key=len, default=())):
        part = part[key]
    others = [key for key in part if key.endswith("backbone") and not key.startswith("teacher")]
    heads = [key for key in part if "head" in key or key == "decoder"]
    preprocessor = type_name(model.get("data_preprocessor"))
    video = {"tracker", "track_head"} & model.keys() or preprocessor == "TrackDataPreprocessor"
    reason = (
        not found and "it has no backbone"
        or video and "it tracks objects in videos"
        or "language_model" in part and "it has a language model"
        or "head" in part and "it is a classifier"
        or "num_branch" in part["backbone"] and "its head needs the branches of its backbone"
        or not heads and "it has no head"
        or len(others) > 1 and f"it has several backbones: {', '.join(others)}"
    )  # fmt: skip
    if reason:
        raise UserError(f"cannot adapt {type_name(model) or 'a model without a type'}: {reason}")
    return path


def _plain(value: Any) -> Any:
    """Without registry scopes, with classes and functions as dotted names."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items() if key != "_scope_"}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part) for part in value)
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value
