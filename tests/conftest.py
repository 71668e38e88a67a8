"""Fixtures shared by the tests."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import ropevit_mmdet  # noqa: F401  (prepares the mm stack before anything imports mmcv.ops)

from mmengine.logging import MMLogger  # isort: skip


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
