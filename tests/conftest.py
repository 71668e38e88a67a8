"""Fixtures shared by the tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import ropevit_mmdet  # noqa: F401  (prepares the mm stack before anything imports mmcv.ops)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
