"""oneDNN keeps a bounded number of sizes; what that does to memory is watched by tools/soak.py."""

from ropevit_mmdet.stack.onednn import CAPACITY, PRIMITIVES
from tests.processes import run_python


def test_the_environment_has_the_last_word(monkeypatch):
    ask = f"import os, ropevit_mmdet; print(os.environ['{CAPACITY}'])"
    monkeypatch.delenv(CAPACITY, raising=False)
    assert run_python("-c", ask).stdout.split()[-1] == str(PRIMITIVES)
    monkeypatch.setenv(CAPACITY, "7")
    assert run_python("-c", ask).stdout.split()[-1] == "7"
