"""The watch over memory and open files: it sees what grows, in child processes too."""

import mmap
import subprocess
import sys

import pytest
from PIL import Image

from ropevit_mmdet.apis.leak_test import GROWTH, Watch, WatchHook, plot_soak
from tests.processes import ROOT, run_python
from tests.tiny_coco import write_tiny


def watched(memory, files=None) -> Watch:
    watch = Watch()
    watch.steps = list(range(1, len(memory) + 1))
    watch.memory, watch.files = list(memory), list(files or [30] * len(memory))
    return watch


def test_growth_after_it_has_settled_is_found():
    start = [100 * 2**20 + step * 2**20 for step in range(50)]
    flat = [150 * 2**20] * 100
    assert watched(start + flat).growth(50) is None
    assert "memory by" in watched(start + flat).growth(1)
    creeping = [int(value * (1 + 2 * GROWTH * i / 100)) for i, value in enumerate(flat)]
    assert watched(start + creeping).growth(50).startswith("memory by")
    jumps = [value + (i % 9 == 0) * 2**26 for i, value in enumerate(flat)]
    assert watched(start + jumps).growth(50) is None
    leaking = [30 + step // 20 for step in range(150)]
    assert "open files by" in watched(start + flat, leaking).growth(50)
    summary = watched(start + creeping).summary(50)
    assert summary.startswith("from step 50 to 150 memory went from 15") and "30 to 30" in summary


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_real_memory_and_files_are_seen(tmp_path):
    watch = Watch()
    watch.sample(1)
    pages = mmap.mmap(-1, 2**26)  # malloc could serve this from memory that the process holds
    for start in range(0, len(pages), mmap.PAGESIZE):
        pages[start] = 1
    files = [open(tmp_path / str(i), "w") for i in range(7)]  # noqa: SIM115
    watch.sample(2)
    assert 2**26 <= watch.memory[1] - watch.memory[0] < 2**27
    assert watch.files[1] - watch.files[0] == 7
    for file in files:
        file.close()
    code = "import sys; hold = bytearray(b'1' * 2**25); print(1, flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
        child.stdout.readline()
        watch.sample(3)
        child.communicate(b"")
    assert watch.memory[2] - watch.memory[1] >= 2**25
    watch.sample(4)
    assert watch.memory[3] < watch.memory[2]


def test_the_hook_samples_every_so_many_iterations():
    watch = Watch()
    hook = WatchHook(watch, every=5)
    runner = type("Runner", (), {})()
    for runner.iter in range(20):
        hook.after_train_iter(runner, runner.iter)
    assert watch.steps == [1, 6, 11, 16]


def test_the_plot_shows_every_watch(tmp_path):
    watches = {"training": watched([2**20] * 30), "prediction": watched([2**20, 2**21] * 9)}
    plot_soak(watches, tmp_path / "soak.png", settled=10)
    assert Image.open(tmp_path / "soak.png").size == (1200, 600)
    with pytest.raises(ValueError, match="must end in"):
        plot_soak(watches, tmp_path / "soak.pdf", settled=10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_tool_watches_both(tmp_path):
    argv = [ROOT / "tools" / "soak.py", "--config", write_tiny(tmp_path)]
    argv += ["--work-dir", tmp_path / "run", "--iters", 6, "--images", 4, "--settled", 2]
    done = run_python(*argv)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("training: ", "predi"))]
    assert [line.split(" memory")[0] for line in lines] == [
        "training: from step 2 to 6",
        "prediction: from step 2 to 4",
    ], done.stderr[-3000:]
    assert done.returncode == any("is growth" in line for line in lines)
    assert (tmp_path / "run" / "soak.png").is_file()
