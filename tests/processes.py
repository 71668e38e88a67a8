"""For tests of whole programs: Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_python(*argv: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python *argv` outside the repository: only PYTHONPATH leads to the package.

    ``path`` is one more directory to import from.
    """
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, [ROOT, path])))},
        capture_output=True,
        text=True,
    )
