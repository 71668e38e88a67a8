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

# What pip installs for each module.
INSTALL = {
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "pycocotools": "pycocotools",
    "torch": "torch torchvision",
    "torchvision": "torch torchvision",
    "mmengine": "mmengine==0.10.7",
    "mmcv": "mmcv-lite==2.1.0",
    "mmdet": "mmdet==3.3.0",
    "ropevit_mmdet": "ropevit-mmdet",
}
# Distributions that install the same package; a fork's may have a suffix such as -cu128-torch2-8.
PROVIDERS = {
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "mmcv": ("mmcv-lite", "mmcv", "mmcv-full", "onedl-mmcv"),
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
}
# From, and up to but not including; mmdet 3.3.0 asserts those of mmcv and mmengine.
BOUNDS = {
    "torch": ("2.10", "3", "torch torchvision"),
    "mmdet": ("3.3", "4", INSTALL["mmdet"]),
    **dict.fromkeys(("mmcv-lite", "mmcv", "mmcv-full"), ("2.0", "2.2", INSTALL["mmcv"])),
    **dict.fromkeys(("mmengine", "mmengine-lite"), ("0.7.1", "1", INSTALL["mmengine"])),
}
PAIR = "pip install --force-reinstall torch torchvision"
MMCV_LITE = f"pip uninstall -y mmcv && pip install {INSTALL['mmcv']}"
HEADLESS = f"pip uninstall -y opencv-python && pip install --force-reinstall {INSTALL['cv2']}"
# Errors of imports: pattern, code and fix of the finding.
IMPORT_ERRORS = (
    (r"torchvision::nms|torchvision.*undefined symbol", "torchvision-mismatch", PAIR),
    (r"_ext.*undefined symbol", "compiled-ops-broken", f"build mmcv again, or {MMCV_LITE}"),
    (r"used but incompatible", "wrong-version", f"pip install {INSTALL['mmcv']} mmengine==0.10.7"),
    (r"import cv2 .*lib[\w.+-]*\.so", "cv2-library", HEADLESS),
)
# Modules, each after those that it cannot be imported without.
NEEDS = {
    "numpy": (),
    "cv2": ("numpy",),
    "pycocotools.mask": ("numpy",),
    "torch": (),
    "torchvision": ("torch",),
    "mmdet": ("numpy", "cv2", "torch", "torchvision"),
    "ropevit_mmdet": ("numpy", "cv2", "pycocotools.mask", "torch", "torchvision", "mmdet"),
}
GPU_PROGRAM = """
import torch, torchvision
torchvision.ops.nms(torch.ones(1, 4, device="cuda"), torch.ones(1, device="cuda"), 0.5)
"""
SHOWN = re.compile(r"torch(vision)?|numpy|(onedl-)?mm(cv|engine|det).*|opencv-.*|ropevit-mmdet")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
CRASH = "ends its process"
SHARED_MEMORY = 2**30  # bytes; Docker's default is 64 MiB


class Finding(NamedTuple):
    """`code` is a heading of docs/troubleshooting.md, `level` FAIL or WARN."""

    code: str
    level: str
    text: str


def examine() -> dict[str, Any]:
    """Checks this Python and this machine; the imports take some seconds."""
    machine, installed = this_machine(), installed_versions()
    absent = [module for module in INSTALL if importlib.util.find_spec(module) is None]
    findings = [
        Finding("package-missing", "FAIL", f"{one} is not installed: pip install {INSTALL[one]}")
        for one in absent
    ]
    findings += version_findings(installed)
    imports = import_errors([one for one in NEEDS if one.partition(".")[0] not in absent])
    codes = {finding.code for finding in findings if finding.level == "FAIL"}
    findings += [one for one in import_findings(imports) if one.code not in codes]
    findings += machine_findings(machine, imports.get("torchvision") == "")
    return {
        "healthy": all(finding.level != "FAIL" for finding in findings),
        "machine": machine,
        "versions": {name: text for name, text in installed.items() if SHOWN.fullmatch(name)},
        "imports": imports,
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


def version_findings(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Findings about versions that do not work, or not together."""
    for name, (lowest, end, fix) in BOUNDS.items():
        if name in installed and not _release(lowest) <= _release(installed[name]) < _release(end):
            text = f"{name} {installed[name]} does not work, expected is >= {lowest}, < {end}"
            yield Finding("wrong-version", "FAIL", f"{text}: pip install -U {fix}")
    if "torch" in installed and "torchvision" in installed:
        for requirement in importlib.metadata.requires("torchvision") or ():
            pinned = re.match(r"torch\b\s*\(?==\s*([\w.]+)", requirement)
            if pinned and _release(pinned[1]) != _release(installed["torch"]):
                text = f"torchvision needs torch {pinned[1]}, installed is {installed['torch']}"
                yield Finding("torchvision-mismatch", "FAIL", f"{text}: {PAIR}")
    providers = {module: _providers(module, installed) for module in PROVIDERS}
    for module, names in providers.items():
        if len(names) > 1:
            fix = f"pip uninstall -y {' '.join(names)} && pip install {INSTALL[module]}"
            text = f"{' and '.join(names)} install the package {module!r} over each other: {fix}"
            yield Finding("package-twice", "WARN" if module == "cv2" else "FAIL", text)
    names = [*providers["mmdet"], *providers["mmcv"], *providers["mmengine"]]
    if len({name.startswith("onedl-") for name in names}) == 2:
        text = f"packages of two families are mixed, {', '.join(names)}: keep to one if they fail"
        yield Finding("two-families", "WARN", text)


def import_errors(modules: Sequence[str]) -> dict[str, str]:
    """Imports modules of `NEEDS` at the same time, each in its own process, which may crash.

    By module: '' after an import; else 'needs NAME', of one that is absent or failed, or an error.
    """
    children = {module: _start(f"import {module}") for module in modules}
    errors: dict[str, str] = {}
    for module, child in children.items():
        error = _error(child)
        missing = [f"needs {one}" for one in NEEDS[module] if errors.get(one, "absent")]
        errors[module] = missing[0] if missing else error
    return errors


def import_findings(errors: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for each import that failed."""
    for module, error in errors.items():
        if not error or error.startswith("needs "):
            continue
        text = f"import {module} fails, {error}"
        code = "import-crashes" if error.startswith(CRASH) else "import-fails"
        fix = f"pip install --force-reinstall {INSTALL[module.partition('.')[0]]}"
        if missing := re.search(r"No module named '(\w+)", text):
            code, fix = "package-missing", f"pip install {INSTALL.get(missing[1], missing[1])}"
        for pattern, known_code, known_fix in IMPORT_ERRORS:
            if re.search(pattern, text):
                code, fix = known_code, known_fix
        yield Finding(code, "FAIL", f"{text}: {fix}")


def machine_findings(machine: Mapping[str, Any], has_torchvision: bool) -> Iterator[Finding]:
    """Findings about GPUs and shared memory."""
    if machine["gpus"] and has_torchvision and (error := _error(_start(GPU_PROGRAM))):
        if "torchvision::nms" in error:
            text = f"torchvision was built without CUDA, torch with it: {PAIR}"
            yield Finding("torchvision-mismatch", "FAIL", text)
        else:
            text = f"torch cannot use {machine['gpus'][0]}: {error}: update the driver, or see "
            text += "pytorch.org/get-started for its CUDA"
            yield Finding("gpu-not-usable", "WARN", text)
    if machine["shared_memory"] is not None and machine["shared_memory"] < SHARED_MEMORY:
        text = f"/dev/shm has {machine['shared_memory'] / 2**20:.0f} MiB, too few for data loader "
        text += "workers: docker run --shm-size=8g, or train_dataloader.num_workers=0"
        yield Finding("shared-memory", "WARN", text)


def _start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _error(child: subprocess.Popen[str]) -> str:
    """Why a process failed, or ''."""
    _, output = child.communicate()
    if child.returncode < 0:
        return f"{CRASH} by {signal.Signals(-child.returncode).name}"
    raised = re.findall(r"^[\w.]*(?:Error|Exception|Exit)\b.*", output, re.MULTILINE)
    if child.returncode:
        return raised[-1] if raised else f"{CRASH} with status {child.returncode}"
    return ""


def _providers(module: str, installed: Mapping[str, str]) -> list[str]:
    """The installed distributions that install a module."""
    pattern = "|".join(
        f"{name}(-.*)?" if name.startswith("onedl-") else name for name in PROVIDERS[module]
    )
    return [
        name
        for name, version in sorted(installed.items())
        if re.fullmatch(pattern, name)
        and not version.endswith("+headless")  # the empty opencv-python of tools/bootstrap.py
    ]


def _release(version: str) -> tuple[int, ...]:
    """(2, 15, 0) of '2.15.0+cpu' or '2.15'."""
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
    return (*numbers, 0, 0, 0)[:3]
