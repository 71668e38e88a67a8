"""`ropevit mmdet`: MMDetection's own tools by name, each run in a forked process."""

import json
from pathlib import Path

import pytest

from ropevit_cli.mmdet import choose_tool, find_tools, tools_directory
from tests.commands import fails, ropevit
from tests.processes import run_python
from tests.tiny_coco import write_tiny

ROOT = Path(__file__).parents[2]
TOOLS = find_tools(tools_directory())
# Runs commands one after the other, each in a fork of a process that has imported everything.
FORKED = """
import gc, json, os, sys, traceback
import ropevit_mmdet, mmdet.apis, matplotlib.pyplot, pycocotools.cocoeval, mmengine.analysis
from ropevit_cli.main import main
directory, commands = sys.argv[1], json.loads(sys.argv[2])
gc.freeze()
for name, argv in commands.items():
    child = os.fork()
    if child == 0:
        output = os.open(f"{directory}/{name}.txt", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(output, 1), os.dup2(output, 2)
        try:
            status = main(["mmdet", *argv])
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(f"{directory}/{name}.status", "w").write(str(status))
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where the commands below ran; NAME.txt has the output of one, NAME.status its status."""
    directory = tmp_path_factory.mktemp("tools")
    config = write_tiny(directory)
    checkpoint, results = directory / "run/iter_2.pth", directory / "results.pkl"
    option, dataset = "--cfg-options", "val_dataloader.dataset"
    commands = {
        "train": ["train", config, "--work-dir", directory / "run"],
        "test": ["test", config, checkpoint, "--work-dir", directory / "run", "--out", results],
        "config": ["print_config", ROOT / "configs/shapes_retinanet.py"],
        "flops": ["get_flops", ROOT / "configs/shapes_maskrcnn.py", "--num-images", 1, option]
        + [f"{dataset}.data_root={directory}/data/", f"{dataset}.ann_file=annotations.json"]
        + [f"{dataset}.data_prefix.img=images/", f"{dataset}.metainfo.classes=(dark,light)"]
        + ["val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False"],
        "metric": ["eval_metric", config, results],
        "matrix": ["confusion_matrix", config, results, directory / "matrix"],
        "analysis": ["analyze_results", config, results, directory / "analysis", "--topk", 1],
        "browse": ["analysis_tools/browse_dataset", config, "--output-dir", directory / "browsed"]
        + ["--not-show", option, "visualizer.name=browser"],
        "publish": ["publish_model", checkpoint, directory / "small.pth"],
    }
    commands = json.dumps({name: [str(arg) for arg in argv] for name, argv in commands.items()})
    done = run_python("-c", FORKED, directory, commands)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


@pytest.fixture
def output(directory):
    def read(name):
        text = (directory / f"{name}.txt").read_text()
        assert (directory / f"{name}.status").read_text() == "0", text[-2000:]
        return text

    return read


def test_tools_by_path_and_by_its_end(capsys):
    assert ropevit("mmdet", "--list") == 0
    assert capsys.readouterr().out.splitlines() == list(TOOLS)
    assert {"train", "test", "misc/print_config", "analysis_tools/get_flops"} <= TOOLS.keys()
    assert "deployment/mmdet_handler" not in TOOLS  # no program: TorchServe imports it
    for name in ("misc/print_config", "print_config", "print_config.py"):
        assert choose_tool(name, TOOLS) == TOOLS["misc/print_config"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("analyse_logs", "no tools named 'analyse_logs'; did you mean analyze_logs?"),
        ("browse_dataset", "analysis_tools/browse_dataset or analysis_tools/mot/browse_dataset"),
    ],
)
def test_wrong_name(name, words, capsys):
    assert words in fails(capsys, "mmdet", name, "--help")


def test_config_and_flops(output):
    assert "SimpleFeaturePyramid" in output("config")
    flops = output("flops")  # torch.jit.trace works on RoPEViT
    assert "Flops: " in flops and "Params: 1.56" in flops


def test_train_test_and_publish(output):
    """mmdet's tool loads the checkpoint by plain `torch.load`, which needs our allow-list."""
    output("train")
    assert "Iter(test)" in output("test")
    assert "small-" in output("publish")


def test_analysis_of_results(directory, output):
    assert "'coco/bbox_mAP'" in output("metric")
    output("matrix")
    assert (directory / "matrix" / "confusion_matrix.png").stat().st_size > 1000
    output("analysis")
    assert len(list((directory / "analysis").glob("*/*.png"))) == 2


def test_browse(directory, output):
    output("browse")
    assert len(list((directory / "browsed").glob("*.png"))) == 4
