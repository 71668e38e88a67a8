"""Finds the configs that packages ship, without `pkg_resources`, which setuptools 82 removed.

mmengine 0.10.7 needs it for `_base_ = "mmdet::..."` and for `from PACKAGE... import *` under
`with read_base()`, and accepts only the names of OpenMMLab's packages.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmengine.config.config as mmengine_config
from mmengine.config import Config
from mmengine.utils import check_file_exist

KeyPath = tuple[Any, ...]  # keys and list indices from the top of a config
_CONFIGS_OF_WHEEL = Path(__file__).parents[1] / "configs"
CONFIGS = _CONFIGS_OF_WHEEL if _CONFIGS_OF_WHEEL.is_dir() else Path(__file__).parents[2] / "configs"
_mmengine_path = Config._get_cfg_path


def install() -> None:
    """Makes mmengine's `Config` use the functions of this module. Idempotent."""
    mmengine_config.get_installed_path = installed_path
    Config._get_cfg_path = staticmethod(base_path)


def packaged_config(name: str) -> Path | None:
    """The file of a config of this package by its path in `configs/`, `.py` optional, or None."""
    path = CONFIGS / f"{name.removesuffix('.py')}.py"
    return path if path.is_file() else None


def base_path(path: str, filename: str) -> tuple[str, str | None]:
    """The file of an entry of `_base_` in `filename`, and the registry scope of its settings.

    Configs of this package have no scope of their own: they load as by their path.
    """
    package, separator, name = path.partition("::")
    if not separator:
        return _mmengine_path(path, filename)
    if package == "ropevit_mmdet":
        file, scope = CONFIGS / name, None
    else:
        file, scope = shipped_directory(package, "configs") / name, package
    check_file_exist(str(file))
    return str(file), scope


def shipped_directory(package: str, name: str) -> Path:
    """`configs` or `tools` of one of OpenMMLab's packages: in its wheel, or next to its sources.

    An editable install of a current pip does not make `.mim`.
    """
    directory = Path(installed_path(package))
    shipped = directory / ".mim" / name
    return shipped if shipped.is_dir() else directory.parent / name


def installed_path(package: str) -> str:
    """The directory of an importable package, without importing it."""
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No package named {package!r}", name=package)
    return spec.submodule_search_locations[0]  # type: ignore[index]


def type_name(settings: Any) -> str:
    """The registered class name of a config entry, however its `type` is written.

    Args:
        settings: an entry whose `type` is a name, scoped or dotted (`"mmdet.CocoMetric"`), or
            a class or function, as in Python-style configs. Anything else has the name `""`.
    """
    given = settings.get("type") if isinstance(settings, Mapping) else None
    name = given.rpartition(".")[2] if isinstance(given, str) else getattr(given, "__name__", "")
    return "Pretrained" if name == "PretrainedInit" else name


def flat(value: Any, at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """A value and all values in it, outermost first; what is yielded may be changed."""
    yield at, value
    items = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, inner in list(value.items() if isinstance(value, Mapping) else items):
        yield from flat(inner, (*at, key))


def walk(value: Any) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """All dicts in a value, as of `flat`."""
    return ((at, one) for at, one in flat(value) if isinstance(one, dict))


def as_list(value: Any) -> list[Any]:
    """A list of what is one, several or None."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def metric_settings(evaluator: Any) -> list[Any]:
    """The entries of the metrics of an evaluator: one, a list, or those of an `Evaluator`."""
    metrics = evaluator.get("metrics", evaluator) if isinstance(evaluator, Mapping) else evaluator
    return [metric for metric in as_list(metrics) if isinstance(metric, Mapping)]


def innermost_datasets(dataset: Any) -> Iterator[Any]:
    """The datasets inside wrappers such as RepeatDataset and ConcatDataset: settings or objects."""
    fields = dataset if isinstance(dataset, Mapping) else getattr(dataset, "__dict__", {})
    inner = fields.get("datasets") or ([fields["dataset"]] if fields.get("dataset") else [])
    for part in inner:
        yield from innermost_datasets(part)
    if not inner:
        yield dataset
