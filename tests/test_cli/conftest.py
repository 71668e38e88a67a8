"""A tiny detector for the tests of commands."""

import pytest

from tests.commands import ropevit
from tests.tiny_coco import write_tiny


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny config in an own directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROPEVIT_DEBUG", raising=False)
    return write_tiny(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The config and checkpoint of a run of two iterations."""
    directory = tmp_path_factory.mktemp("trained")
    config = write_tiny(directory)
    assert ropevit("train", config, "--work-dir", directory / "run") == 0
    return config, directory / "run" / "iter_2.pth"
