"""Fixtures of all tests. A test holds in any order and in parallel: it leaves no state behind."""

import logging
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from huggingface_hub import constants

import ropevit_mmdet  # noqa: F401  (prepares the mm stack before anything imports mmcv.ops)

from mmengine.logging import HistoryBuffer, MMLogger  # isort: skip
from mmengine.utils import ManagerMixin  # isort: skip

from tests.file_server import FileServer
from tests.network import stay_here

stay_here()


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Seeds PyTorch; afterwards restores what a run, a command or a checkpoint changes globally."""
    torch.manual_seed(0)
    _remove_closed_handlers()
    containers = [
        os.environ,
        sys.path,
        sys.argv,
        logging.getLogger().handlers,
        HistoryBuffer._statistics_methods,  # an unpickled HistoryBuffer replaces functions here
        *(manager._instance_dict for manager in _managers(ManagerMixin)),
    ]
    contents = [container.copy() for container in containers]
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    for manager in _managers(ManagerMixin):
        if not any(manager._instance_dict is container for container in containers):
            manager._instance_dict.clear()  # of a class that this test was the first to import
    for container, content in zip(containers, contents):
        if container != content:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def unformatted(monkeypatch) -> None:
    """mmengine formats configs for logs and checkpoints, which takes half of a short run."""
    from tests.fault_injection import FORMATTER

    monkeypatch.setattr(FORMATTER, "FormatCode", lambda text, **_: (text, False))


def _managers(owner: type) -> Iterator[type]:
    """mmengine's classes with global instances: loggers, message hubs, visualizers, scopes."""
    for manager in owner.__subclasses__():
        yield manager
        yield from _managers(manager)


def _remove_closed_handlers() -> None:
    """Loggers of mmengine keep the captured stream of the test that created them."""
    for logger in [logging.getLogger(), *MMLogger._instance_dict.values()]:
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="module")
def mmengine_instances() -> Iterator[None]:
    """Restores the default scope, loggers and message hubs that a module's tests replace."""
    with pytest.MonkeyPatch.context() as patch:
        for manager in _managers(ManagerMixin):
            patch.setattr(manager, "_instance_dict", manager._instance_dict.copy())
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The `checkpoints` directory of torch.hub; it and the cache of huggingface_hub are empty."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch_hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_hub"))
    return tmp_path / "torch_hub" / "checkpoints"


@pytest.fixture
def server(cache) -> Iterator[FileServer]:
    """Serves files over loopback; no download comes from an earlier test."""
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def hf_hub(server, monkeypatch) -> FileServer:
    """The same as endpoint of `huggingface_hub`, online."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return server


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A small RetinaNet and its ONNX file, which one of the processes of a test run writes."""
    from tests.exportable_models import exported_detector  # takes seconds

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "exported.lock"):
        return exported_detector(root / "exported")
