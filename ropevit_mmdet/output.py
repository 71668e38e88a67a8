"""Files that appear together or not at all: written beside a folder, then moved into it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_folder(out_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder whose files are moved to the same places below `out_dir` in the end.

    Files of the same names there are replaced, others stay. After an exception nothing is moved,
    and nothing is left behind.
    """
    out_dir = Path(out_dir).resolve()
    partial = out_dir.with_name(f".{out_dir.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            place = out_dir / file.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
