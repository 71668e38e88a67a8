"""Runs Python programs in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_python(*argv: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python *argv` outside the repository, which only PYTHONPATH contains, and `path`."""
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, [ROOT, path])))},
        capture_output=True,
        text=True,
    )
