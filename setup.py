"""Ships the top-level `configs/` inside the package; all metadata is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies `configs/` into the package; an editable install reads it from the clone."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "ropevit_mmdet", "configs")
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", target, ignore=ignore, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
