"""Loading of checkpoints without running code in them: `weights_only=True` and safetensors.

torch's allow-list gets the classes that training checkpoints of mmengine 0.10 contain. A config in
a checkpoint, which `mmengine.infer` runs as Python, is read as literals.
"""

import argparse
import ast
import copy
import errno
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.infer import BaseInferencer
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.utils import get_object_from_string
from safetensors import safe_open
from torch import nn

from ropevit_mmdet.compat.config import type_name
from ropevit_mmdet.errors import UserError

_STACK = ("torch.nn.", "mmcv.", "mmdet.", "mmengine.", "ropevit_mmdet.")
# Methods in the state of mmengine's own objects, pickled as getattr(class, name).
_PICKLED_METHODS = {
    HistoryBuffer: ("min", "max", "current", "mean"),
    OneCycleParamScheduler: ("_annealing_cos", "_annealing_linear"),
}
# numpy's functions that rebuild arrays and scalars; numpy 1 and 2 pickle them by other names.
_RECONSTRUCT, _SCALAR = (value.__reduce__()[0] for value in (np.empty(0), np.float64(0)))
_NUMBERS = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
_BLOCK = 2**20  # bytes
_ARCHIVE = b"PK\3\4"  # start of a zip file, torch's format since 1.6
_MAX_HEADER = 100_000_000  # bytes, of a safetensors file
# What files are that are no checkpoints.
_STARTS = (
    (rb"$", "empty, of a save or download that was truncated: do it again"),
    (rb"version https://git-lfs", "a pointer of git-lfs to the file: run `git lfs pull`"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page or XML, a server's answer: download the file itself"),
    (rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"{\[\]}\d]", "JSON text: name the file of the weights"),
    (rb"\x08.[\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX model: name the checkpoint it was made of"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "compressed: unpack it first"),
)
_MEMBERS = (
    (r"(serialized_exported_program\.json|archive_format)$", "an exported program (.pt2)"),
    (r"(^|/)code/|constants\.pkl$", "a TorchScript archive"),
)

_REFUSED = re.compile(r"GLOBAL \S+|unrecognized function .+|but got .+")

_init_model = BaseInferencer._init_model
_kept: dict[tuple, Any] | None = None  # contents by file and device: see `keep_files`


def install() -> None:
    """Extends torch's allow-list and replaces the reading of configs in checkpoints."""
    # Training scripts, timm's too, save their arguments next to the weights.
    torch.serialization.add_safe_globals([*training_globals(), argparse.Namespace])
    BaseInferencer._init_model = _init_model_of_literals


def training_globals() -> list:
    """What a training checkpoint of mmengine contains besides tensors, for `add_safe_globals`.

    `getattr` is replaced by a function that knows only `_PICKLED_METHODS`.
    """
    functions: list[tuple[Any, str]] = [(_pickled_method, "builtins.getattr")]
    for core in ("core", "_core"):
        functions.append((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct"))
        functions.append((_SCALAR, f"numpy.{core}.multiarray.scalar"))
    dtypes = {type(np.dtype(code)) for code in _NUMBERS}
    return [*_PICKLED_METHODS, ConfigDict, np.ndarray, np.dtype, *dtypes, *functions]


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint with `~` expanded; a `UserError` if there is no such file."""
    file = os.path.expanduser(path)
    if not os.path.isfile(file):
        is_directory = os.path.isdir(file)
        what = "is a directory, name a file in it" if is_directory else "not found"
        raise UserError(f"checkpoint {what}: {path}")
    return Path(file)


def keep_files(keep: bool) -> None:
    """Keeps what `read_checkpoint_file` reads, for the next reader of the file, or releases it."""
    global _kept
    _kept = {} if keep else None


def read_checkpoint_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Reads a file of `torch.save` or a safetensors file; tensors stay mapped to it.

    Its content, not its suffix, shows which one it is. Without `meta['config']`, which mmengine's
    resume would run as Python.
    """
    path = existing_file(path)
    if _kept is None:
        return _read(path, map_location)
    status = path.stat()
    key = (path.absolute(), status.st_mtime_ns, status.st_size, str(map_location))
    if key not in _kept:
        _kept[key] = _read(path, map_location)
    return _copied(_kept[key])


def shards(path: Path) -> list[Path]:
    """The parts of a checkpoint, next to its `*.index.json`; none of any other file."""
    if not path.name.endswith(".index.json"):
        return []
    try:
        names = json.loads(path.read_bytes())["weight_map"].values()
        return [path.with_name(Path(name).name) for name in dict.fromkeys(names)]
    except (LookupError, TypeError, ValueError, AttributeError):  # read as any other file
        return []


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


def literal_config(text: str, source: str) -> Config:
    """Reads the text of a config, assignments of literals and `dict(a=1)`, without running it."""
    settings = {}
    try:
        statements: list[Any] = ast.parse(text).body
        for statement in statements:
            (target,) = statement.targets  # AttributeError: no assignment, or none to a name
            settings[target.id] = ast.literal_eval(_Literals().visit(statement.value))
    except (SyntaxError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {source}: its config is more than assignments of literals and could run "
            "code: pass the config as a file"
        ) from error
    return Config(_with_safe_types(settings))


def _with_safe_types(settings: Any) -> Any:
    """Settings whose types are registered names: mmengine calls whatever a dotted one names.

    A dotted name stays where it is a network layer of the stack, as in Python-style configs.
    """
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(_with_safe_types, settings))
    if not isinstance(settings, dict):
        return settings
    settings = {key: _with_safe_types(value) for key, value in settings.items()}
    for key, name in settings.items():
        if str(key).endswith(("type", "constructor")) and isinstance(name, str) and "." in name:
            layer = name.startswith(_STACK) and get_object_from_string(name)
            if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
                settings[key] = type_name({"type": name})
    return settings


class _Literals(ast.NodeTransformer):
    """Replaces `dict(a=1)` and `dict({'a': 1})` by `{'a': 1}`, and `inf` and `nan` by floats."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ("inf", "nan") else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        dicts = [argument for argument in node.args if isinstance(argument, ast.Dict)]
        names = [keyword.arg for keyword in node.keywords]
        if ast.unparse(node.func) != "dict" or node.args != dicts or None in names:  # None: **x
            return node
        dicts.append(ast.Dict(list(map(ast.Constant, names)), [k.value for k in node.keywords]))
        keys = [key for part in dicts for key in part.keys]
        return ast.Dict(keys, [value for part in dicts for value in part.values])


def _init_model_of_literals(
    self: BaseInferencer, cfg: Any, weights: str | None, device: str = "cpu"
) -> nn.Module:
    """`BaseInferencer._init_model`, which runs the checkpoint's config if `cfg` is empty."""
    if not cfg and weights is not None:
        checkpoint = CheckpointLoader.load_checkpoint(weights, map_location="cpu")
        cfg.update(embedded_config(checkpoint, weights)._cfg_dict)
    return _init_model(self, cfg, weights, device)


def _pickled_method(owner: type, name: str) -> Callable:
    if not isinstance(owner, type) or name not in _PICKLED_METHODS.get(owner, ()):
        raise pickle.UnpicklingError(f"GLOBAL builtins.getattr of {name!r} on {owner!r}")
    return getattr(owner, name)


def verify_archive(path: str | os.PathLike[str]) -> None:
    """Reads all entries of a zip file, which compares their checksums if they have any."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                while entry.CRC and file.read(_BLOCK):
                    pass


def _read(path: Path, map_location: Any) -> Any:
    try:
        if parts := shards(path):
            contents = [read_checkpoint_file(part, map_location) for part in parts]
            named = [content.get("state_dict", content) for content in contents]
            return {"state_dict": {key: one[key] for one in named for key in one}}
        with path.open("rb") as file:
            start = file.read(9)
        if _is_safetensors(start):
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return {**(file.metadata() or {}), "state_dict": tensors}
        archive = start.startswith(_ARCHIVE)
        if archive:
            verify_archive(path)
        mapped = archive and path.suffix != ".safetensors"  # which torch takes for one
        with path.open("rb") as file:
            try:
                source = path if mapped else file
                content = torch.load(source, map_location, weights_only=True, mmap=mapped)
            except RuntimeError as error:
                if "unable to mmap" not in str(error):  # of file systems such as Databricks' /dbfs
                    raise
                content = torch.load(file, map_location, weights_only=True)
    except UserError:  # of a part
        raise
    except Exception as error:  # corrupted files fail in many ways
        raise UserError(f"checkpoint {path} {_problem(error, path)}") from error
    if isinstance(content, dict) and isinstance(content.get("meta"), dict):
        content["meta"].pop("config", None)
    return content


def _copied(content: Any) -> Any:
    """Copies dicts and lists, which readers change, but no tensors."""
    if not isinstance(content, (dict, list)):
        return content
    copied: Any = copy.copy(content)
    for key in content if isinstance(content, dict) else range(len(content)):
        copied[key] = _copied(content[key])
    return copied


def _is_safetensors(start: bytes) -> bool:
    """The length of the header, 8 bytes, then the header in JSON."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < _MAX_HEADER


def _problem(error: Exception, path: Path) -> str:
    """One line for what torch explains in many."""
    text = str(error)
    system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    if system or isinstance(error, MemoryError) or "CUDA" in text or "enough memory" in text:
        first_line = text.partition("\n")[0]
        return f"cannot be loaded: {first_line or type(error).__name__}"
    if "safetensors" not in type(error).__module__ and (content := _described(path)):
        return f"is {content}"
    refused = _REFUSED.search(text)
    if refused:
        return f"is refused: {refused[0]} could run code; save only its state_dict and load that"
    return "is truncated or not a checkpoint: delete it, then save or download it again"


def _described(path: Path) -> str:
    """What a file is by its first bytes, or the names in its archive; '' if they do not show it."""
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # corrupted archives fail in many ways
        matching = (text for pattern, text in _STARTS if re.match(pattern, start, re.DOTALL))
        return next(matching, "")
    for pattern, text in _MEMBERS:
        if any(re.search(pattern, name) for name in names):
            return f"{text}: name the checkpoint it was made of"
    is_checkpoint = any(name.endswith("data.pkl") for name in names)
    return "" if is_checkpoint else "a zip file, but not a checkpoint: unpack it first"
