"""The environment check: what is installed, what can be imported, and findings with their fixes."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PAIR = "pip install --force-reinstall torch torchvision"


class Package(NamedTuple):
    """What pip installs for a module, from OpenMMLab or the fork; `names` are its distributions."""

    install: str
    fork: str = ""
    names: str = "-"  # a regular expression; a fork's may have a suffix such as -cu128-torch2-8
    versions: tuple[str, str] = ("0", "9999")  # from, up to but not including; not of the fork


PACKAGES = {  # mmdet 3.3.0 asserts the versions of mmcv and mmengine
    "numpy": Package("numpy"),
    "cv2": Package("opencv-python-headless", names="opencv-(contrib-)?python(-headless)?"),
    "pycocotools": Package("pycocotools"),
    "torch": Package("torch torchvision", names="torch", versions=("2.10", "3")),
    "torchvision": Package("torch torchvision"),
    "mmengine": Package("mmengine==0.10.7", "onedl-mmengine==0.10.12",
                        "mmengine(-lite)?|onedl-mmengine(-.*)?", ("0.7.1", "1")),
    "mmcv": Package("mmcv-lite==2.1.0", "onedl-mmcv==2.3.6",
                    "mmcv(-lite|-full)?|onedl-mmcv(-.*)?", ("2.0", "2.2")),
    "mmdet": Package("mmdet==3.3.0", "onedl-mmdetection==3.5.1",
                     "mmdet|onedl-mmdetection(-.*)?", ("3.3", "4")),
    "ropevit_mmdet": Package("ropevit-mmdet"),
}  # fmt: skip
# Errors of imports: pattern, code and fix of the finding.
IMPORT_ERRORS = (
    (r"torchvision::nms|torchvision.*undefined symbol", "torchvision-mismatch", PAIR),
    (r"_ext.*undefined symbol", "compiled-ops-broken",
     "build mmcv again, or pip uninstall -y mmcv onedl-mmcv && pip install {mmcv}"),
    (r"used but incompatible", "wrong-version", "pip install {mmcv} {mmengine}"),
    (r"import cv2 .*lib[\w.+-]*\.so", "cv2-library",
     "pip uninstall -y opencv-python && pip install --force-reinstall {cv2}"),
    (r"ends its process", "import-crashes", "pip install --force-reinstall {package}"),
    (r"", "import-fails", "pip install --force-reinstall {package}"),
)  # fmt: skip
IMPORTS = ("numpy", "cv2", "pycocotools.mask", "torch", "torchvision", "mmdet", "ropevit_mmdet")
IMPORT_PROGRAM = """
import importlib, sys
for module in sys.argv[1:]:
    print("importing", module, flush=True)
    importlib.import_module(module)
"""
GPU_PROGRAM = """
import torch, torchvision
torchvision.ops.nms(torch.ones(1, 4, device="cuda"), torch.ones(1, device="cuda"), 0.5)
"""
SHOWN = re.compile(r"torch(vision)?|numpy|(onedl-)?mm(cv|engine|det).*|opencv-.*|ropevit-mmdet")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
SHARED_MEMORY = 2**30  # bytes; Docker's default is 64 MiB


class Finding(NamedTuple):
    """`code` is a heading of docs/troubleshooting.md, `level` FAIL or WARN."""

    code: str
    level: str
    text: str


def examine() -> dict[str, Any]:
    """Checks this Python and this machine; the imports take some seconds."""
    machine, installed = this_machine(), installed_versions()
    packages = packages_to_install(installed)
    absent = [module for module in packages if importlib.util.find_spec(module) is None]
    findings = [
        Finding("package-missing", "FAIL", f"{one} is not installed: pip install {packages[one]}")
        for one in absent
    ]
    findings += version_findings(installed)
    if not any(finding.level == "FAIL" for finding in findings):
        findings += import_findings(*failing_import(IMPORTS), packages)
        findings += gpu_findings(machine["gpus"])
    findings += shared_memory_findings(machine["shared_memory"])
    return {
        "healthy": all(finding.level != "FAIL" for finding in findings),
        "machine": machine,
        "versions": {name: text for name, text in installed.items() if SHOWN.fullmatch(name)},
        "findings": [one._asdict() for one in sorted(findings, key=lambda one: one.level)],
    }


def this_machine() -> dict[str, Any]:
    """The machine or container; shared memory in bytes, a line of nvidia-smi for each GPU."""
    try:
        gpus = subprocess.check_output(NVIDIA_SMI, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        gpus = ""
    return {
        "python": f"Python {platform.python_version()}, {sys.executable}",
        "system": f"{platform.platform()}, {os.cpu_count()} CPU cores",
        "shared_memory": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        "gpus": gpus.splitlines(),
    }


def installed_versions() -> dict[str, str]:
    """Versions by normalized name of the distribution; the first on the path wins."""
    found = [(one.name, one.version) for one in importlib.metadata.distributions() if one.name]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in reversed(found)}


def packages_to_install(installed: Mapping[str, str]) -> dict[str, str]:
    """What pip installs for each module, of the family of packages that is in use."""
    is_fork = "mmdet" not in installed and any(name.startswith("onedl-") for name in installed)
    return {key: one.fork if is_fork and one.fork else one.install for key, one in PACKAGES.items()}


def version_findings(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Findings about versions that do not work, or not together."""
    packages = packages_to_install(installed)
    for module, package in PACKAGES.items():
        names = [name for name in sorted(installed) if re.fullmatch(package.names, name)]
        # not the empty alias of tools/bootstrap.py
        names = [name for name in names if not installed[name].endswith("+headless")]
        lowest, end = package.versions
        for name in [name for name in names if not name.startswith("onedl-")]:
            if not _release(lowest) <= _release(installed[name]) < _release(end):
                text = f"{name} {installed[name]} does not work, expected is >= {lowest}, < {end}"
                fix = f"pip install -U {packages[module]}"
                yield Finding("wrong-version", "FAIL", f"{text}: {fix}")
        if len(names) > 1:
            fix = f"pip uninstall -y {' '.join(names)} && pip install {packages[module]}"
            text = f"{' and '.join(names)} install the package {module!r} over each other: {fix}"
            yield Finding("package-twice", "WARN" if module == "cv2" else "FAIL", text)


def failing_import(modules: Sequence[str]) -> tuple[str, str]:
    """Imports modules in order in a process, which may crash: the one that fails, and its error."""
    error, output = _run(IMPORT_PROGRAM, *modules)
    return re.findall(r"^importing (\S+)$", output, re.MULTILINE)[-1], error


def import_findings(module: str, error: str, packages: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for an import that failed; `packages` are what pip installs for the modules."""
    text = f"import {module} fails, {error}"
    if missing := re.search(r"No module named '(\w+)", error):
        fix = f"pip install {packages.get(missing[1], missing[1])}"
        yield Finding("package-missing", "FAIL", f"{text}: {fix}")
    elif error:
        code, fix = next(rest for pattern, *rest in IMPORT_ERRORS if re.search(pattern, text))
        fix = fix.format(**packages, package=packages[module.partition(".")[0]])
        yield Finding(code, "FAIL", f"{text}: {fix}")


def gpu_findings(gpus: Sequence[str]) -> Iterator[Finding]:
    """Findings about GPUs that torch or torchvision cannot use."""
    error = _run(GPU_PROGRAM)[0] if gpus else ""
    if "torchvision::nms" in error:
        text = f"torchvision was built without CUDA, torch with it: {PAIR}"
        yield Finding("torchvision-mismatch", "FAIL", text)
    elif error:
        text = f"torch cannot use {gpus[0]}: {error}: update the driver, or see "
        yield Finding("gpu-not-usable", "WARN", f"{text}pytorch.org/get-started for its CUDA")


def shared_memory_findings(size: int | None) -> Iterator[Finding]:
    """A finding if the data loader's workers have too little shared memory, in bytes."""
    if size is not None and size < SHARED_MEMORY:
        text = f"/dev/shm has {size / 2**20:.0f} MiB, too few for data loader workers: docker run "
        text += "--shm-size=8g, or train_dataloader.num_workers=0"
        yield Finding("shared-memory", "WARN", text)


def _run(program: str, *argv: str) -> tuple[str, str]:
    """Why a program fails in a process, or '', and what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", program, *argv],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if done.returncode < 0:
        return f"ends its process by {signal.Signals(-done.returncode).name}", done.stdout
    raised = re.findall(r"^[\w.]*(?:Error|Exception|Exit)\b.*", done.stderr, re.MULTILINE)
    raised = raised or [f"ends its process with status {done.returncode}"]
    return raised[-1] if done.returncode else "", done.stdout


def _release(version: str) -> tuple[int, ...]:
    """(2, 15, 0) of '2.15.0+cpu' or '2.15'."""
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
    return (*numbers, 0, 0, 0)[:3]
