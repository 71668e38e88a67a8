"""Checks of the installed packages, each of which names the fix in one line.

Standard library only at import, and versions are read from file names: the checks must be quick and
run where torch, cv2 or the mm packages cannot be imported.
"""

import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial

MIN_TORCH = "2.7"
# Distributions by the package that they install; a fork may have a suffix such as -cu128-torch2-8.
PROVIDERS = {
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "mmcv": ("mmcv-lite", "mmcv", "mmcv-full", "onedl-mmcv"),
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
}
DEFAULT_INSTALL = {
    "mmdet": "mmdet==3.3.0",
    "mmcv": "mmcv-lite==2.1.0",
    "mmengine": "mmengine==0.10.7",
}
# mmdet 3.3.0 asserts these when it is imported: from .. to, the end not included.
MMDET_NEEDS = {"mmcv": ("2.0.0", "2.2.0"), "mmengine": ("0.7.1", "1.0.0")}
HEADLESS_OPENCV = (
    "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless"
)


class StackError(ImportError):
    """The installed packages cannot work together; the message names them and the fix.

    `code` is the heading in docs/troubleshooting.md.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class StackWarning(UserWarning):
    """The installed packages may not work together; `code` as of StackError."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def check_distributions(installed: Mapping[str, str]) -> None:
    """Run the checks that need only versions, `installed` as installed_versions returns it."""
    for check in distribution_checks(installed):
        check()


def distribution_checks(installed: Mapping[str, str]) -> list[Callable[[], None]]:
    """The same checks one by one, each of which finds one finding at most."""
    requirements = (
        importlib.metadata.requires("torchvision") if "torchvision" in installed else None
    )
    return [
        partial(check_torch, installed),
        partial(check_torchvision, installed, requirements or ()),
        *(partial(check_one_provider, installed, package) for package in PROVIDERS),
        partial(check_one_family, installed),
        *(partial(check_mm_version, installed, package) for package in PROVIDERS),
    ]


def installed_versions(paths: Iterable[str] | None = None) -> dict[str, str]:
    """Normalised distribution name -> version, '' if unknown; the first on the path wins.

    Reads directory names, not metadata files, which take half a millisecond each.
    """
    versions: dict[str, str] = {}
    for path in sys.path if paths is None else paths:
        path = path or os.curdir
        if not os.path.isdir(path):
            continue
        for entry in sorted(os.listdir(path)):
            stem, extension = os.path.splitext(entry)
            if extension in (".dist-info", ".egg-info"):
                name, _, version = stem.partition("-")
                versions.setdefault(_normalised(name), version.partition("-py")[0])
    return versions


def check_torch(installed: Mapping[str, str]) -> None:
    """torch and torchvision are there, and torch is at least MIN_TORCH."""
    for name in ("torch", "torchvision"):
        if name not in installed and importlib.util.find_spec(name) is None:
            raise StackError(
                f"{name} is not installed: pip install torch torchvision", "torch-missing"
            )
    torch = installed.get("torch")
    if torch and _release(torch) < _release(MIN_TORCH):
        raise StackError(
            f"torch {torch} is too old, {MIN_TORCH} or later is needed: "
            "pip install -U torch torchvision",
            "torch-too-old",
        )


def check_torchvision(installed: Mapping[str, str], requirements: Iterable[str]) -> None:
    """torch is the version that torchvision's own `requirements` ask for."""
    torch = installed.get("torch")
    for requirement in requirements:
        wanted = re.match(r"torch\b\s*\(?\s*(==|>=)\s*([\w.]+)", requirement)
        if not (wanted and torch):
            continue
        operator, version = wanted.groups()
        ours, theirs = _release(torch), _release(version)
        if ours < theirs or (operator == "==" and ours != theirs):
            raise StackError(
                f"torchvision {installed['torchvision']} was built for torch {operator} {version}, "
                f"installed is torch {torch}: {_reinstall_torchvision(torch)}",
                "torchvision-mismatch",
            )


def check_one_provider(installed: Mapping[str, str], package: str) -> None:
    """No two distributions install `package`, a key of PROVIDERS, over each other."""
    distributions = providers(package, installed)
    if len(distributions) > 1:
        keep = DEFAULT_INSTALL[package]
        raise StackError(
            f"{' and '.join(distributions)} install the package '{package}' over each other: "
            f"pip uninstall -y {' '.join(distributions)} && pip install {keep} (or your choice)",
            "package-twice",
        )


def check_one_family(installed: Mapping[str, str]) -> None:
    """Warn where the packages of OpenMMLab and those of the fork stand side by side."""
    names = [name for package in PROVIDERS for name in providers(package, installed)]
    forks = [name for name in names if name.startswith("onedl-")]
    originals = [name for name in names if not name.startswith("onedl-")]
    if forks and originals:
        message = (
            f"two families of mm packages mixed, {', '.join(forks)} and {', '.join(originals)}; "
            f"should they misbehave, keep to one, pip uninstall -y {' '.join(forks)} && pip "
            f"install {' '.join(DEFAULT_INSTALL.values())}"
        )
        warnings.warn(StackWarning(message, "two-families"), stacklevel=3)


def check_mm_version(installed: Mapping[str, str], package: str) -> None:
    """`package`, a key of PROVIDERS, is there, in a version that mmdet 3.x takes."""
    if not providers(package, installed) and not is_importable(package):
        raise StackError(
            f"{package} is not installed: pip install {DEFAULT_INSTALL[package]}", "mm-missing"
        )
    mmdet = installed.get("mmdet")
    if not mmdet:
        return  # a fork or a source tree has bounds of its own; import_mmdet explains them
    if package == "mmdet":
        if _release(mmdet)[0] < 3:
            raise StackError(
                f"mmdet {mmdet} is too old: pip install {DEFAULT_INSTALL['mmdet']}", "mmdet-too-old"
            )
        return
    lowest, end = MMDET_NEEDS[package]
    for distribution in providers(package, installed):
        version = installed[distribution]
        if version and not _release(lowest) <= _release(version) < _release(end):
            raise StackError(
                f"mmdet {mmdet} refuses {distribution} {version}, it takes "
                f"{package} >= {lowest}, < {end}: pip uninstall -y {distribution} && "
                f"pip install {DEFAULT_INSTALL[package]}",
                "mm-versions",
            )


def import_cv2() -> None:
    """Import cv2; a missing system library is what slim images fail with."""
    try:
        import cv2  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise StackError(
            "cv2 is not installed: pip install opencv-python-headless", "cv2-missing"
        ) from error
    except ImportError as error:
        library = re.search(r"lib[\w.+-]*\.so[.\d]*", str(error))
        if library is None:
            raise
        raise StackError(
            f"cv2 cannot load {library.group(0)}, which this machine lacks and the headless OpenCV "
            f"does not need: {HEADLESS_OPENCV}",
            "cv2-library",
        ) from error


def import_torchvision() -> None:
    """Import torchvision, whose compiled part only fits the torch that it was built for."""
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise StackError(
            f"torchvision does not match torch {torch.__version__} ({reason}): "
            f"{_reinstall_torchvision(torch.__version__)}",
            "torchvision-mismatch",
        ) from error
    gpu_build = torch.version.cuda is not None and torch.cuda.is_available()
    if gpu_build and torchvision.version.cuda is None:
        raise StackError(
            f"torchvision {torchvision.__version__} was built without CUDA, torch "
            f"{torch.__version__} with it: {_reinstall_torchvision(torch.__version__)}, both from "
            "where torch came from",
            "torchvision-without-cuda",
        )


def import_compiled_ops() -> None:
    """Import `mmcv._ext`, stand-in or compiled; the latter fits only the torch it was built for."""
    try:
        import mmcv._ext  # noqa: F401
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise StackError(
            f"the compiled mmcv was built for another torch ({reason}): build it again, or "
            f"pip uninstall -y mmcv && pip install {DEFAULT_INSTALL['mmcv']}",
            "compiled-ops-broken",
        ) from error


def import_mmdet() -> None:
    """Import mmdet, which asserts the versions of mmcv and mmengine."""
    try:
        import mmdet  # noqa: F401
    except AssertionError as error:
        import mmcv
        import mmengine

        raise StackError(
            f"mmdet refuses mmcv {mmcv.__version__} or mmengine {mmengine.__version__} ({error}): "
            f"pip install {' '.join(DEFAULT_INSTALL.values())}",
            "mm-versions",
        ) from error


def providers(package: str, installed: Mapping[str, str]) -> list[str]:
    """The installed distributions that install `package`, in the order of PROVIDERS."""
    return [
        name
        for known in PROVIDERS[package]
        for name in sorted(installed)
        if name == known or (known.startswith("onedl-") and name.startswith(f"{known}-"))
    ]


def is_importable(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # None: a directory that was left behind


def _reinstall_torchvision(torch: str) -> str:
    return f"pip install --force-reinstall torchvision torch=={torch.partition('+')[0]}"


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _release(version: str) -> tuple[int, ...]:
    """(2, 15, 0) of '2.15.0+cpu' or '2.15.0rc1'; trailing zeros do not count."""
    numbers = [int(number) for number in re.match(r"[\d.]*\d", version).group(0).split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
