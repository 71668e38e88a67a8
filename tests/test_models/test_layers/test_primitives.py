"""With a RoPE ViT in the process oneDNN keeps few primitives, or as many as it is told to."""

import os
import subprocess
import sys

import pytest
import torch

from ropevit_mmdet.compat.primitives import CAPACITY, VARIABLES
from tests.processes import ROOT

# Maps of more sizes than are kept, and the first of them again.
PROGRAM = f"""
import torch
from ropevit_mmdet import RoPEViT

RoPEViT("rope_vit_t14")
convolution = torch.nn.Conv2d(16, 16, 3)
for width in [8, *range(9, 12 + {CAPACITY}), 8]:
    print("width", width, flush=True)
    convolution(torch.zeros(16, 16, 8, width))  # a smaller batch takes other ways
"""


def made_for_the_last_map(**environment: str) -> bool:
    """Whether the last map's convolution was made again, as oneDNN tells."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    output = subprocess.check_output(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        text=True,
        env=kept | environment | {"ONEDNN_VERBOSE": "profile_create"},
    )
    last = output.split("width 8\n")[-1]
    found = [line for line in last.splitlines() if ",convolution," in line]
    assert found and all("create:cache_" in line for line in found)
    return any("create:cache_miss" in line for line in found)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_few_are_kept_and_the_environment_has_the_last_word():
    assert made_for_the_last_map()
    assert not made_for_the_last_map(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")
