"""Fixtures shared by the tests."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ropevit_mmdet  # noqa: F401  (prepares the mm stack before anything imports mmcv.ops)

from mmengine.logging import MMLogger  # isort: skip

from tests.file_server import FileServer
from tests.network import stay_here

stay_here()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _open_streams() -> None:
    """mmengine's loggers outlive the test that made them, and write to what it captured."""
    for logger in [logging.getLogger(), *MMLogger._instance_dict.values()]:
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache directory of its own."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def server(request) -> Iterator[FileServer]:
    """Serves the CONTENT of a test's module over loopback."""
    server = FileServer(request.module.CONTENT)
    yield server
    server.close()
