"""`ropevit mmdet`: MMDetection's own tools by name, each run in a forked process."""

import json
from pathlib import Path

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


def test_tools_run(tmp_path):
    config, data = write_tiny(tmp_path), "val_dataloader.dataset"
    checkpoint, results = tmp_path / "run/iter_2.pth", tmp_path / "results.pkl"
    option = "--cfg-options"
    commands = {
        "train": ["train", config, "--work-dir", tmp_path / "run"],
        "test": ["test", config, checkpoint, "--work-dir", tmp_path / "run", "--out", results],
        "config": ["print_config", ROOT / "configs/shapes_retinanet.py"],
        "flops": ["get_flops", ROOT / "configs/shapes_maskrcnn.py", "--num-images", 1, option]
        + [f"{data}.data_root={tmp_path}/data/", f"{data}.ann_file=annotations.json"]
        + [f"{data}.data_prefix.img=images/", f"{data}.metainfo.classes=(dark,light)"]
        + ["val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False"],
        "metric": ["eval_metric", config, results],
        "matrix": ["confusion_matrix", config, results, tmp_path / "matrix"],
        "analysis": ["analyze_results", config, results, tmp_path / "analysis", "--topk", 1],
        "browse": ["analysis_tools/browse_dataset", config, "--output-dir", tmp_path / "browsed"]
        + ["--not-show", option, "visualizer.name=browser"],
        "publish": ["publish_model", checkpoint, tmp_path / "small.pth"],
    }
    argvs = json.dumps({name: [str(arg) for arg in argv] for name, argv in commands.items()})
    done = run_python("-c", FORKED, tmp_path, argvs)
    assert done.returncode == 0, done.stderr[-2000:]
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in commands}
    for name, text in texts.items():
        assert (tmp_path / f"{name}.status").read_text() == "0", text[-2000:]
    for name, word in dict(
        test="Iter(test)",  # loads by plain `torch.load`, which needs our allow-list
        config="SimpleFeaturePyramid",
        flops="Params: 1.56",  # torch.jit.trace works on RoPEViT
        metric="'coco/bbox_mAP'",
        publish="small-",
    ).items():
        assert word in texts[name]
    assert (tmp_path / "matrix" / "confusion_matrix.png").stat().st_size > 1000
    assert len(list((tmp_path / "analysis").glob("*/*.png"))) == 2
    assert len(list((tmp_path / "browsed").glob("*.png"))) == 4


def test_tools_by_path_and_by_its_end(capsys):
    assert ropevit("mmdet", "--list") == 0
    assert capsys.readouterr().out.splitlines() == list(TOOLS)
    assert {"train", "test", "misc/print_config", "analysis_tools/get_flops"} <= TOOLS.keys()
    assert "deployment/mmdet_handler" not in TOOLS  # no program: TorchServe imports it
    for name in ("misc/print_config", "print_config", "print_config.py"):
        assert choose_tool(name, TOOLS) == TOOLS["misc/print_config"]
    words = "2 tools named 'browse_dataset': name one of analysis_tools/browse_dataset, analysis_"
    assert words in fails(capsys, "mmdet", "browse_dataset")
    assert "no tools named 'x': --list prints the names" in fails(capsys, "mmdet", "x", "--help")
