"""The leak test detects growing memory and open files, in child processes too."""

import mmap
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks.leak_watch import GROWTH, Watch
from tests.processes import run_python
from tests.tiny_coco import write_tiny


def watched(memory, files=None) -> Watch:
    return Watch(list(range(1, len(memory) + 1)), list(memory), list(files or [30] * len(memory)))


def test_growth_counts_only_after_settling():
    start = [100 * 2**20 + step * 2**20 for step in range(50)]
    flat = [150 * 2**20] * 100
    assert watched(start + flat).growth(50) is None
    assert "memory grew" in watched(start + flat).growth(1)
    growing = [int(value * (1 + 2 * GROWTH * i / 100)) for i, value in enumerate(flat)]
    assert watched(start + growing).growth(50).startswith("memory grew by")
    jumps = [value + (i % 9 == 0) * 2**26 for i, value in enumerate(flat)]
    assert watched(start + jumps).growth(50) is None
    leaking = [30 + step // 20 for step in range(150)]
    assert watched(start + flat, leaking).growth(50).startswith("open files grew by")
    summary = watched(start + growing).summary(50)
    assert summary.startswith("steps 50 to 150: memory 15") and "30 to 30" in summary


def test_watch_samples_real_memory_and_files(tmp_path):
    watch = Watch()
    watch.sample(1)
    pages = mmap.mmap(-1, 2**26)  # malloc could reuse memory that the process has already
    for start in range(0, len(pages), mmap.PAGESIZE):
        pages[start] = 1
    files = [open(tmp_path / str(i), "w") for i in range(7)]  # noqa: SIM115
    watch.sample(2)
    assert 2**26 <= watch.memory[1] - watch.memory[0] < 2**27
    assert watch.files[1] - watch.files[0] == 7
    for file in files:
        file.close()
    code = "import sys; kept = bytearray(b'1' * 2**25); print(1, flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
        child.stdout.readline()
        watch.sample(3)
        child.communicate(b"")
    assert watch.memory[2] - watch.memory[1] >= 2**25
    watch.sample(4)
    assert watch.memory[3] < watch.memory[2]


@pytest.mark.slow  # 16 s: processes that train and predict
def test_leak_test_watches_training_and_prediction(tmp_path):
    argv = ["-m", "benchmarks.leak_test", "--config", write_tiny(tmp_path)]
    argv += ["--work-dir", tmp_path / "run", "--iters", 6, "--images", 4, "--settled", 2]
    done = run_python(*argv)
    lines = [line for line in done.stdout.splitlines() if ", steps 2 to " in line]
    assert [line.split(":")[0] for line in lines] == [
        "training, steps 2 to 6",
        "prediction, steps 2 to 4",
    ], done.stderr[-3000:]
    assert done.returncode == any("grew" in line for line in lines)
    assert Image.open(tmp_path / "run" / "leak_test.png").size == (1200, 600)
