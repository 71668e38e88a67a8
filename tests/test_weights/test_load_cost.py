"""Loading a full checkpoint takes little time and no more memory than the file is large.

Measured in a fresh process: the high-water mark of resident memory, pages of the mapped file
included, from the built model to the loaded one. What is read is in the page cache: the time of
a disk is not the loader's.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle import birder_net, write_checkpoint, write_safetensors

SECONDS, TIMES_THE_FILE = 3.0, 1.2
MEASURE = """
import json, sys, time
import torch
from ropevit_mmdet import RoPEViT

def resident(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return 1024 * int(line.split()[1])

path = sys.argv[1]
torch.set_num_threads(2)
model = RoPEViT("rope_vit_reg4_b14", init_cfg=dict(type="Pretrained", checkpoint=path))
with open(path, "rb") as file:
    while file.read(2**24):
        pass
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here
before, start = resident("VmRSS"), time.perf_counter()
model.init_weights()
seconds = time.perf_counter() - start
added, kept = (resident(key) - before for key in ("VmHWM", "VmRSS"))
print(json.dumps(dict(seconds=seconds, added=added, kept=kept)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("write", [write_checkpoint, write_safetensors])
def test_a_full_checkpoint_loads_fast_and_in_place(tmp_path, write):
    pytest.importorskip("birder")
    path = write(birder_net("rope_vit_reg4_b14", num_classes=365), tmp_path)
    cost = measure(path)
    print(f"{path.name}: {cost}")
    assert cost["seconds"] < SECONDS
    assert cost["added"] <= TIMES_THE_FILE * path.stat().st_size


def measure(path: Path) -> dict[str, float]:
    """Seconds of ``init_weights``, and bytes that it added at most and in the end."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEASURE, str(path)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])
