"""Say what is installed, what of it works, and every finding with its fix.

Needs nothing but Python: runs where the package, or what it needs, cannot be imported. Exit status
0 if all is well, 1 if something must be fixed.

--install-ops and --uninstall-ops are for programs that import mmcv.ops before ropevit_mmdet: they
put the stand-in for mmcv's compiled ops into the installed mmcv-lite, as mmcv/_ext.py, and take it
away again.
"""

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (to be told, the file parses on older ones)
    sys.exit("error: Python 3.10 or newer is needed, this is " + sys.version.split()[0])

TOOLS = Path(__file__).resolve().parent
PACKAGE = str(TOOLS.parent / "ropevit_mmdet")
sys.path[:] = [PACKAGE, *(path for path in sys.path if path and Path(path).resolve() != TOOLS)]
from stack import doctor, ops_file, probes  # noqa: E402 (without ropevit_mmdet/__init__.py)

sys.path.remove(PACKAGE)

DOCS = "docs/troubleshooting.md"


def main(argv=None):
    """Returns the exit status."""
    args = parse_args(argv)
    try:
        if args.install_ops:
            return install()
        if args.uninstall_ops:
            return uninstall()
    except ops_file.OpsFileError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if sys.stderr.isatty():
        sys.stderr.write("trying the imports, which takes some seconds ...\n")
    report = doctor.examine()
    print(json.dumps(report.as_json(), indent=1) if args.json else "\n".join(lines(report)))
    return 0 if report.healthy else 1


def install():
    directory = ops_file.mmcv_directory()
    if directory is None:
        raise ops_file.OpsFileError("mmcv is not installed: pip install mmcv-lite==2.1.0")
    path = ops_file.install_file(directory)
    print(f"{path} is in place: `import mmcv.ops` works in every program of this Python")
    print("--uninstall-ops takes it away; `pip uninstall mmcv-lite` would leave it there")
    return 0


def uninstall():
    directory = ops_file.mmcv_directory()
    path = ops_file.uninstall_file(directory) if directory else None
    print(f"removed {path}" if path else "there is no mmcv/_ext.py of ours: nothing to take away")
    return 0


def lines(report):
    """What a person reads: OK, WARN and FAIL in front, findings with their fixes at the end."""
    here = report.machine
    memory = f", {here.memory / 2**30:.1f} GiB of memory" if here.memory else ""
    yield "Machine"
    yield f"        Python {here.python}, {here.executable}"
    yield f"        {here.system}, {here.cores} CPU cores{memory}"
    for gpu in here.gpus:
        yield f"        {gpu.name}, {gpu.memory / 1024:.0f} GiB, driver {gpu.driver}"
    if not here.gpus:
        yield "        no NVIDIA GPU: all but --amp works, slowly"
    yield "Packages"
    for name, version in report.versions.items():
        yield f"        {name} {version}"
    yield "Imports"
    for step in probes.NEEDS:
        yield import_line(step, report.imports.get(step, {"skipped": ""}))
    yield "Ops of mmcv"
    yield from ops_lines(report)
    yield from finding_lines(report.findings)


def import_line(step, outcome):
    if "facts" in outcome:
        return f"  OK    {step}"
    if "error" in outcome:
        return f"  FAIL  {step}"
    cause = f"it needs {outcome['skipped']}" if outcome["skipped"] else "see below"
    return f"  --    {step} (not tried: {cause})"


def ops_lines(report):
    source, outcome = report.ops_source, report.imports.get("mmcv._ext", {})
    if source is None or "facts" not in outcome:
        yield "  --    not tried"
        return
    facts = outcome["facts"]
    yield (
        "  OK    "
        + {
            "compiled": f"compiled, {source.path}",
            "foreign": f"of a file that is not ours, {source.path}",
            "file": f"our stand-in, installed as {source.path}",
            "hook": "our stand-in, in programs that import ropevit_mmdet first",
        }[source.kind]
    )
    total = len(facts["real"]) + len(facts["unsupported"])
    yield from names_wrapped(f"  OK    {len(facts['real'])} of {total} functions:", facts["real"])
    if facts["unsupported"]:
        yield from names_wrapped(
            f"  --    {len(facts['unsupported'])} raise NotImplementedError when they are called:",
            facts["unsupported"],
        )


def names_wrapped(head, functions):
    """The ops that functions belong to: `nms`, and `roi_align` of roi_align_forward."""
    names = dict.fromkeys(re.sub(r"_(forward|backward).*", "", name) for name in functions)
    yield head
    indent = " " * 8
    yield textwrap.fill(
        ", ".join(names), 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=0
    )


def finding_lines(findings):
    if not findings:
        yield "All is well."
        return
    yield "To be fixed" if any(one.level == "FAIL" for one in findings) else "To be known"
    for finding in findings:
        yield f"  {finding.level}  {finding.text}"
        yield f"        more: {DOCS}#{finding.code}"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--json", action="store_true", help="print the findings for a program")
    one.add_argument(
        "--install-ops", action="store_true", help="put the stand-in into mmcv-lite as a file"
    )
    one.add_argument("--uninstall-ops", action="store_true", help="take that file away again")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
