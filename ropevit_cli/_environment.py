"""The doctor: what is installed, what of it works, and every finding with its fix.

Runs where neither the package nor what it needs can be imported: standard library only, versions
are read from file names, imports are tried in processes of their own (`probes`). tools/doctor.py
shows the result.
"""

import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ropevit_cli import _machine as machine
from ropevit_cli import _probes as probes
from ropevit_cli._machine import GIB, Machine
from ropevit_mmdet.compat import checks, ops_file
from ropevit_mmdet.compat.ops_file import OpsSource

PACKAGE = Path(__file__).parent.parent
# Shown in this order where they are installed; the mm packages and OpenCV under whatever name.
SHOWN = ("torch", "torchvision", "numpy", *checks.PROVIDERS, "opencv", "birder", "ropevit-mmdet")
SMALL_SHARED_MEMORY = GIB  # Docker gives 64 MiB unless it is told otherwise


@dataclass(frozen=True)
class Finding:
    """A finding; `code` is its heading in docs/troubleshooting.md, `level` FAIL or WARN."""

    code: str
    level: str
    text: str


@dataclass(frozen=True)
class Report:
    """Everything that the doctor found; all is well where no finding has the level FAIL."""

    machine: Machine
    versions: dict[str, str]
    imports: dict[str, probes.Outcome]
    ops_source: OpsSource | None
    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        return not any(finding.level == "FAIL" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        source = self.ops_source
        return {
            "healthy": self.healthy,
            "machine": asdict(self.machine),
            "versions": self.versions,
            "imports": self.imports,
            "ops": source and {"source": source.kind, "file": source.path and str(source.path)},
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine() -> Report:
    """Look at this Python and this machine. Takes seconds, most of them for importing torch."""
    here = machine.this_machine()
    installed = checks.installed_versions()
    directory = ops_file.mmcv_directory()
    source = ops_file.ops_source(directory) if directory else None
    absent = [name for name in probes.NEEDS if not checks.is_importable(name.partition(".")[0])]
    if source is not None and source.kind == "file" and "ropevit_mmdet" in absent:
        absent.append("mmcv._ext")  # its file could only say that it lacks ropevit_mmdet
    findings = [*_of_this_package(), *_of_versions(installed), *_of_opencv(installed)]
    findings += [*_of_ops_file(source, absent)]
    outcomes = probes.probe(absent)
    findings += [*_of_imports(outcomes, absent, findings), *_of_machine(here, outcomes)]
    findings.sort(key=lambda finding: finding.level)  # FAIL first
    return Report(here, _shown(installed), outcomes, source, findings)


def _of_versions(installed: Mapping[str, str]) -> Iterator[Finding]:
    for check in checks.distribution_checks(installed):
        yield from _of_check(check)


def _of_check(check: Callable[[], None]) -> Iterator[Finding]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check()
        except checks.StackError as error:
            yield Finding(error.code, "FAIL", str(error))
    for warning in caught:
        if isinstance(warning.message, checks.StackWarning):
            yield Finding(warning.message.code, "WARN", str(warning.message))


def _of_opencv(installed: Mapping[str, str]) -> Iterator[Finding]:
    # tools/bootstrap.py installs an empty opencv-python 1.2.3+headless beside the headless one
    names = [
        name
        for name, version in installed.items()
        if name.startswith("opencv-") and not version.endswith("+headless")
    ]
    if len(names) > 1:
        yield Finding(
            "opencv-twice",
            "WARN",
            f"{' and '.join(sorted(names))} install the package 'cv2' over each other: "
            f"pip uninstall -y {' '.join(sorted(names))} && pip install opencv-python-headless",
        )


def _of_this_package() -> Iterator[Finding]:
    """Whether Python finds this very copy of the package."""
    spec = importlib.util.find_spec("ropevit_mmdet")
    if spec is None or spec.origin is None:
        yield Finding(
            "not-installed",
            "FAIL",
            f"Python does not find ropevit_mmdet: pip install -e {_quoted(PACKAGE.parent)}, "
            "which brings what else is missing",
        )
    elif Path(spec.origin).resolve().parent != PACKAGE.resolve():
        yield Finding(
            "another-copy",
            "WARN",
            f"Python takes ropevit_mmdet from {Path(spec.origin).parent}, not from {PACKAGE}, "
            f"where this doctor is: pip install -e {_quoted(PACKAGE.parent)}, or use the tools of "
            "the other copy",
        )


def _of_ops_file(source: OpsSource | None, absent: list[str]) -> Iterator[Finding]:
    if source is None:
        return
    if source.kind == "foreign":
        yield Finding(
            "ops-file-foreign",
            "WARN",
            f"{source.path} was written neither by mmcv nor by ropevit_mmdet, and is what mmcv's "
            f"ops come from: rm {_quoted(source.path)}, unless you know it",
        )
    if source.kind == "file" and "ropevit_mmdet" in absent:
        yield Finding(
            "ops-file-orphan",
            "FAIL",
            f"{source.path} is ropevit_mmdet's stand-in, and Python does not find ropevit_mmdet: "
            "install that again, or take the file away: python tools/doctor.py --uninstall-ops",
        )


def _of_imports(
    outcomes: Mapping[str, probes.Outcome], absent: list[str], known: list[Finding]
) -> Iterator[Finding]:
    codes = {finding.code for finding in known if finding.level == "FAIL"}
    for name in ("numpy", "pycocotools"):  # the others are missed by the checks of versions
        if name in absent:
            text = f"{name} is not installed: pip install {name}"
            yield Finding("package-missing", "FAIL", text)
    if "cv2" in absent:
        yield from _of_check(checks.import_cv2)
    for outcome in outcomes.values():
        if "error" in outcome and outcome["code"] not in codes:
            yield Finding(outcome["code"], "FAIL", outcome["error"])


def _of_machine(here: Machine, outcomes: Mapping[str, probes.Outcome]) -> Iterator[Finding]:
    torch = outcomes.get("torch", {}).get("facts")
    if here.gpus and torch and not torch["usable_gpus"]:
        name = here.gpus[0].name
        if torch["cuda"] is None:
            yield Finding(
                "gpu-unused",
                "WARN",
                f"torch {torch['version']} was built without CUDA and leaves the {name} alone: "
                "pip uninstall -y torch torchvision, and install them by the line that "
                "pytorch.org/get-started gives for your CUDA",
            )
        else:
            reason = torch["reason"] or "it gives no reason; is CUDA_VISIBLE_DEVICES set?"
            yield Finding(
                "gpu-not-usable",
                "WARN",
                f"torch {torch['version']} (CUDA {torch['cuda']}) cannot use the {name} under "
                f"driver {here.gpus[0].driver}: {reason}; update the driver, or install a torch "
                "for an older CUDA from pytorch.org/get-started",
            )
    if here.shared_memory is not None and here.shared_memory < SMALL_SHARED_MEMORY:
        yield Finding(
            "shared-memory",
            "WARN",
            f"/dev/shm holds {here.shared_memory / 2**20:.0f} MiB, through which data loader "
            "workers hand over their images; a bus error may follow: docker run --shm-size=8g, "
            "or --cfg-options train_dataloader.num_workers=0 "
            "train_dataloader.persistent_workers=False",
        )


def _shown(installed: Mapping[str, str]) -> dict[str, str]:
    """Versions of what SHOWN names, under the names of the distributions."""
    shown: dict[str, str] = {}
    for wanted in SHOWN:
        if wanted == "opencv":
            names = sorted(name for name in installed if name.startswith("opencv-"))
        else:
            names = checks.providers(wanted, installed) if wanted in checks.PROVIDERS else [wanted]
        shown |= {name: installed[name] for name in names if name in installed}
    source = PACKAGE / "__init__.py"
    ours = re.search(r'^__version__ = "(.+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    shown.setdefault("ropevit-mmdet", f"{ours.group(1)} (not installed by pip)" if ours else "")
    return shown


def _quoted(path: object) -> str:
    return f'"{path}"' if " " in str(path) else str(path)
