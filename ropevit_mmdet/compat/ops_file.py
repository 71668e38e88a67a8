"""The stand-in as a file, `mmcv/_ext.py`, for programs that import `mmcv.ops` before our package.

Only on request, and taken away again on request: `tools/doctor.py --install-ops`,
`--uninstall-ops`. Python prefers a compiled `_ext` to an `_ext.py` beside it
(`importlib.machinery.all_suffixes`), so a compiled mmcv that comes later wins. Standard library
only.
"""

import contextlib
import importlib.machinery
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

TEMPLATE = Path(__file__).with_name("mmcv_ext.py")
MARKER = "# Written by ropevit_mmdet:"  # how the template, and each file made from it, begins
COMPILED = (".so", ".pyd")


class OpsFileError(ValueError):
    """The file cannot be written or taken away; the message says why."""


class OpsSource(NamedTuple):
    """What answers to `import mmcv._ext`.

    `kind` is 'compiled', 'file' (ours), 'foreign' (a file that is not ours) or 'hook' (nothing
    there: our import hook, once ropevit_mmdet is imported).
    """

    kind: str
    path: Path | None = None


def mmcv_directory() -> Path | None:
    """Where mmcv is installed, or what is left of it; None if nowhere. mmcv is not imported."""
    spec = importlib.util.find_spec("mmcv")
    directories = list(spec.submodule_search_locations or ()) if spec else []
    return Path(directories[0]) if directories else None


def ops_source(directory: Path) -> OpsSource:
    """What `import mmcv._ext` finds in mmcv's directory, in Python's order."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = directory / f"_ext{suffix}"
        if path.is_file():
            return OpsSource("compiled", path)
    path = directory / "_ext.py"
    if path.is_file():
        return OpsSource("file" if _is_ours(path) else "foreign", path)
    return OpsSource("hook")


def install_file(directory: Path) -> Path:
    """Write `_ext.py` into mmcv's directory and return its path. A second call changes nothing.

    Raises OpsFileError where mmcv has ops of its own, has another file of that name or cannot be
    written to, and where Python does not find ropevit_mmdet, from which the file would load.
    """
    compiled = sorted(file for file in directory.glob("_ext*") if file.suffix in COMPILED)
    if compiled:
        raise OpsFileError(f"mmcv has compiled ops, {compiled[0]}: nothing needs to be installed")
    if not (directory / "__init__.py").is_file():
        raise OpsFileError(f"{directory} holds no mmcv: pip install mmcv-lite==2.1.0")
    if importlib.util.find_spec("ropevit_mmdet") is None:
        raise OpsFileError(
            "Python does not find ropevit_mmdet, from which the file would load: pip install -e ."
        )
    path = directory / "_ext.py"
    _refuse_foreign(path)
    if path.is_file() and path.read_bytes() == TEMPLATE.read_bytes():
        return path
    partial = directory / f".{path.name}.partial-{os.getpid()}"
    try:
        partial.write_bytes(TEMPLATE.read_bytes())
        os.replace(partial, path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses this too
            partial.unlink()
    return path


def uninstall_file(directory: Path) -> Path | None:
    """Take `_ext.py` away, if it is there; returns its path then. Raises OpsFileError."""
    path = directory / "_ext.py"
    if not path.is_file():
        return None
    _refuse_foreign(path)
    cached = Path(importlib.util.cache_from_source(str(path)))
    try:
        path.unlink()
        cached.unlink(missing_ok=True)
        for left in (cached.parent, directory):  # of an mmcv that was uninstalled before
            if left.is_dir() and not any(left.iterdir()):
                left.rmdir()
    except OSError as error:
        raise _not_writable(path, error) from error
    return path


def _is_ours(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(MARKER)


def _refuse_foreign(path: Path) -> None:
    if path.is_file() and not _is_ours(path):
        raise OpsFileError(f"{path} was not written by ropevit_mmdet: it is left alone")


def _not_writable(path: Path, error: OSError) -> OpsFileError:
    return OpsFileError(
        f"{path} cannot be changed: {error.strerror}; run this as the owner of that directory, or "
        "in a virtual environment of your own"
    )
