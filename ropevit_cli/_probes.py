"""Tries the imports that a training run needs, in a process that may die of them.

A package whose binaries do not fit can end its process, not only raise. So the doctor runs `main`
in a process of its own, and starts another for what is left when that one dies. Standard library
at import.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ropevit_mmdet.compat import checks, ops

# In the order of trying, with what must have gone well before; without that, it is not tried.
NEEDS = {
    "numpy": (),
    "cv2": ("numpy",),
    "pycocotools": ("numpy",),
    "torch": (),
    "torchvision": ("torch",),
    "mmcv._ext": ("numpy", "cv2", "torch", "torchvision"),
    "mmdet": ("mmcv._ext",),
    "ropevit_mmdet": ("pycocotools", "mmdet"),
}
# What pip calls a package that is imported under another name.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "mmcv": "mmcv-lite==2.1.0", "PIL": "pillow"}
TIMEOUT = 300  # seconds for all of them; a cold disk needs a minute or two
PROGRAM = """import sys
sys.path[:] = [{package!r}, *(path for path in sys.path if path)]  # not the current directory
from stack import probes  # without ropevit_mmdet/__init__.py
sys.path.pop(0)
probes.main({steps!r}, {failed!r})
"""

Outcome = dict[str, Any]


def probe(absent: Sequence[str] = (), timeout: float = TIMEOUT) -> dict[str, Outcome]:
    """Import everything in NEEDS; what came of each, in that order.

    An outcome has `facts`; or `error`, one line with the fix, and `code`, its heading in
    docs/troubleshooting.md; or `skipped`, the name of what it would need. What is `absent` is
    neither tried nor in the result.
    """
    outcomes: dict[str, Outcome] = {}
    steps = [step for step in NEEDS if step not in absent]
    while len(outcomes) < len(steps):
        failed = [step for step, outcome in outcomes.items() if "facts" not in outcome]
        answers, end = _run(steps[len(outcomes) :], [*absent, *failed], timeout)
        outcomes |= answers
        if len(outcomes) < len(steps):
            step = steps[len(outcomes)]
            error = f"import {step} {end}: {_reinstall(step)}"
            outcomes[step] = {"code": "import-crashes", "error": error}
    return outcomes


def main(steps: Sequence[str], failed: Sequence[str]) -> None:
    """Try the steps one after the other; a line of JSON on stdout for each, as soon as it is known.

    Whatever else is printed meanwhile goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    failed = set(failed)
    for step in steps:
        missing = next((need for need in NEEDS[step] if need in failed), None)
        outcome = _attempt(step) if missing is None else {"skipped": missing}
        if "facts" not in outcome:
            failed.add(step)
        answers.write(json.dumps({step: outcome}) + "\n")
        answers.flush()


def _run(steps: list[str], failed: list[str], timeout: float) -> tuple[dict[str, Outcome], str]:
    """What a process answered before it ended, and how it ended."""
    package = str(Path(__file__).parent.parent)
    program = PROGRAM.format(package=package, steps=steps, failed=failed)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, said = process.communicate(timeout=timeout)
        end = _end(process.returncode)
    except subprocess.TimeoutExpired:
        process.kill()
        output, said = process.communicate()
        end = f"does not come back within {timeout:.0f} s"
    answers: dict[str, Outcome] = {}
    for line in output.decode(errors="replace").splitlines():
        answers |= json.loads(line)
    last = said.decode(errors="replace").strip().splitlines()[-1:]
    return answers, end + "".join(f" ({line.strip()})" for line in last)


def _end(status: int) -> str:
    if status < 0:
        return f"ends the whole process by {signal.Signals(-status).name}"
    return f"ends the whole process with status {status}"


def _attempt(step: str) -> Outcome:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"facts": TRIALS[step]()}
    except checks.StackError as error:
        return {"code": error.code, "error": str(error)}
    except ModuleNotFoundError as error:
        package = (error.name or step).partition(".")[0]
        fix = f"pip install {DISTRIBUTIONS.get(package, package)}"
        return {"code": "package-missing", "error": f"import {step}: {error}: {fix}"}
    except (Exception, SystemExit) as error:  # anything: that is what is being asked
        first = str(error).strip().partition("\n")[0]
        said = f"import {step} fails, {type(error).__name__}: {first}: {_reinstall(step)}"
        return {"code": "import-fails", "error": said}


def _reinstall(step: str) -> str:
    fresh = "a fresh environment, python3 tools/bootstrap.py env"
    package = step.partition(".")[0]
    if package == "ropevit_mmdet":
        return fresh
    return f"pip install --force-reinstall {DISTRIBUTIONS.get(package, package)}, or {fresh}"


def _version(package: str) -> Callable[[], Outcome]:
    def trial() -> Outcome:
        module = importlib.import_module(package)
        return {"version": str(getattr(module, "__version__", ""))}

    return trial


def _cv2() -> Outcome:
    checks.import_cv2()
    return _version("cv2")()


def _pycocotools() -> Outcome:
    importlib.import_module("pycocotools.mask")  # compiled against one numpy
    return {}


def _torch() -> Outcome:
    """Whether torch sees GPUs, and can compute on the first one."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    reason = str(caught[-1].message).strip().partition("\n")[0] if caught else ""
    if usable:
        try:
            torch.ones(1, device="cuda").add_(1).item()
        except RuntimeError as error:
            usable, reason = False, str(error).strip().partition("\n")[0]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "usable_gpus": torch.cuda.device_count() if usable else 0,
        "reason": reason,
    }


def _torchvision() -> Outcome:
    checks.import_torchvision()
    return _version("torchvision")()


def _ops() -> Outcome:
    """Which of the names that mmcv asks for work, compiled or not."""
    ops.install()
    checks.import_compiled_ops()
    module = sys.modules[ops.EXT_NAME]
    unsupported = ops.unsupported_names(module)
    return {
        "standin": ops.is_standin(module),
        "real": [name for name in ops.EXT_FUNCTIONS if name not in unsupported],
        "unsupported": unsupported,
    }


def _mmdet() -> Outcome:
    checks.import_mmdet()
    return _version("mmdet")()


TRIALS: dict[str, Callable[[], Outcome]] = {
    "numpy": _version("numpy"),
    "cv2": _cv2,
    "pycocotools": _pycocotools,
    "torch": _torch,
    "torchvision": _torchvision,
    "mmcv._ext": _ops,
    "mmdet": _mmdet,
    "ropevit_mmdet": _version("ropevit_mmdet"),
}
