"""For tests of whole programs: Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(*argv: object) -> subprocess.CompletedProcess[str]:
    """Run `python *argv` outside the repository: only PYTHONPATH leads to the package."""
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
