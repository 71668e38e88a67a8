"""mmdet's own tools, found by name and run as they are, each in a process of its own."""

import json
import os
import pickle

import pytest

from ropevit_cli import _mmdet_tools as mmdet_tools
from tests.malformed_files import Payload
from tests.processes import ROOT, run_python
from tests.tiny_coco import write_tiny

TOOL = ROOT / "tools" / "mmdet_tool.py"
DOCS = ROOT / "docs" / "mmdet_tools.md"
TOOLS = mmdet_tools.find_tools(mmdet_tools.tools_directory())
# tools/mmdet_tool.py over and over, forked from a process that has paid for the imports.
FORKED = """
import gc, json, os, runpy, sys, traceback
import ropevit_mmdet, mmdet.apis, matplotlib.pyplot, pycocotools.cocoeval, mmengine.analysis
tool, directory, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
gc.freeze()
for name, argv in commands.items():
    child = os.fork()
    if child == 0:
        output = os.open(f"{directory}/{name}.txt", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv = [tool, *argv]
        status = 0
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as error:
            status = error.code or 0
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
    annotations = json.loads((directory / "data" / "annotations.json").read_text())
    for category in annotations["categories"]:
        category["supercategory"] = "shade"  # coco_error_analysis has a KeyError without
    (directory / "super.json").write_text(json.dumps(annotations))
    (directory / "names.txt").write_text("dark\nlight\n")
    checkpoint, results, option = (
        directory / "run/iter_2.pth",
        directory / "results.pkl",
        "--cfg-options",
    )
    commands = {
        "list": [],
        "unknown": ["print_confi"],
        "train": ["train", config, "--work-dir", directory / "run"],
        "test": ["test", config, checkpoint, "--work-dir", directory / "run", "--out", results]
        + [option, f"test_evaluator.outfile_prefix={directory / 'coco'}"],
        "config": ["print_config", ROOT / "configs/shapes_retinanet.py"],
        "flops": ["get_flops", ROOT / "configs/shapes_maskrcnn.py", "--num-images", 1, option]
        + [f"val_dataloader.dataset.{key}" for key in (f"data_root={directory}/data/",
           "ann_file=annotations.json", "data_prefix.img=images/", "metainfo.classes=(dark,light)"
           )] + ["val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False"],
        "metric": ["eval_metric", config, results],
        "matrix": ["confusion_matrix", config, results, directory / "matrix"],
        "analysed": ["analyze_results", config, results, directory / "analysed", "--topk", 1],
        "errors": ["coco_error_analysis", directory / "coco.bbox.json", directory]
        + ["--ann", directory / "super.json"],
        "browse": ["analysis_tools/browse_dataset", config, "--output-dir", directory / "browsed"]
        + ["--not-show", option, "visualizer.name=browser"],
        "publish": ["publish_model", checkpoint, directory / "small.pth"],
        "images": ["images2coco", directory / "data/images", directory / "names.txt", "new.json"],
    }  # fmt: skip
    commands = json.dumps({name: [str(arg) for arg in argv] for name, argv in commands.items()})
    done = run_python("-c", FORKED, TOOL, directory, commands)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


@pytest.fixture
def said(directory):
    def output(name, status=0):
        text = (directory / f"{name}.txt").read_text()
        assert (directory / f"{name}.status").read_text() == str(status), text[-2000:]
        return text

    return output


def test_every_program_is_found_by_its_short_name():
    assert {"train", "test", "misc/print_config", "analysis_tools/get_flops"} <= TOOLS.keys()
    assert "deployment/mmdet_handler" not in TOOLS  # no program: TorchServe imports it
    for path, file in TOOLS.items():
        short = mmdet_tools.short_name(path, TOOLS)
        for name in (path, short, f"{short}.py"):
            assert mmdet_tools.choose_tool(name, TOOLS) == file
    assert mmdet_tools.short_name("misc/print_config", TOOLS) == "print_config"
    assert mmdet_tools.short_name("analysis_tools/mot/browse_dataset", TOOLS) == (
        "mot/browse_dataset"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("analyse_logs", ["'analyse_logs'", "did you mean analyze_logs", "--list"]),
        ("zzzz", ["no tool 'zzzz': --list"]),
        ("browse_dataset", ["analysis_tools/browse_dataset or analysis_tools/mot/browse_dataset"]),
    ],
)
def test_names_that_are_not_clear(name, words):
    with pytest.raises(ValueError) as caught:
        mmdet_tools.choose_tool(name, TOOLS)
    assert all(word in str(caught.value) for word in words), caught.value


def test_tools_of_a_source_checkout(tmp_path, monkeypatch):
    (tmp_path / "mmdet").mkdir()
    (tmp_path / "mmdet" / "__init__.py").touch()
    monkeypatch.setattr(
        mmdet_tools.importlib.util,
        "find_spec",
        lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path / name)]}),
    )
    with pytest.raises(ValueError, match="came without its tools"):
        mmdet_tools.tools_directory()
    (tmp_path / "tools" / "analysis_tools").mkdir(parents=True)
    assert mmdet_tools.tools_directory() == tmp_path / "tools"


def test_the_table_names_each(said):
    table = said("list")
    for path in TOOLS:
        assert f"  {mmdet_tools.short_name(path, TOOLS)}" in table
    assert "print_config                      Print the whole config" in table


def test_an_unknown_name_is_one_line(said):
    line = said("unknown", status=2).strip()
    assert line.startswith("error: mmdet has no tool 'print_confi': did you mean print_config")


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(mmdet_tools.sys, "path", list(mmdet_tools.sys.path))
    monkeypatch.setattr(mmdet_tools.sys, "argv", [])
    file = tmp_path / "lonely.py"
    file.write_text("import model_archiver.no_such_package\n")
    with pytest.raises(ImportError, match="lonely needs .*pip install torch-model-archiver"):
        mmdet_tools.run_tool(file, [])
    file.write_text("import json.no_such_module\n")  # json is there: a bug, not a missing package
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        mmdet_tools.run_tool(file, [])


def test_pickles_that_a_tool_opens_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mmdet_tools.sys, "path", list(mmdet_tools.sys.path))
    monkeypatch.setattr(mmdet_tools.sys, "argv", [])
    results, tool = tmp_path / "results.pkl", tmp_path / "tool.py"
    tool.write_text(f"import mmengine\nmmengine.load({str(results)!r}, encoding='latin1')\n")
    marker = tmp_path / "ran"
    results.write_bytes(
        pickle.dumps([dict(img_id=1, pred_instances=Payload(os.mkdir, str(marker)))])
    )
    with pytest.raises(
        ValueError, match=r"pickle that the tool opens is refused: .*could run code"
    ):
        mmdet_tools.run_tool(tool, [])
    assert not marker.exists()


def test_config_and_flops(said):
    assert "SimpleFeaturePyramid" in said("config")
    flops = said("flops")  # torch.jit.trace goes through RoPEViT
    assert "Flops: " in flops and "Params: 1.56" in flops


def test_results_are_analysed(directory, said):
    assert "Iter(test)" in said("test")
    assert "'coco/bbox_mAP'" in said("metric")
    said("matrix")
    assert (directory / "matrix" / "confusion_matrix.png").stat().st_size > 1000
    said("analysed")
    assert len(list((directory / "analysed").glob("*/*.png"))) == 2
    said("errors")
    assert list((directory / "bbox").glob("*dark*.png"))


def test_a_dataset_is_browsed_and_made(directory, said):
    said("browse")
    assert len(list((directory / "browsed").glob("*.png"))) == 4
    said("images")
    made = json.loads((directory / "data" / "annotations" / "new.json").read_text())
    assert len(made["images"]) == 4


def test_a_training_checkpoint_is_published(directory, said):
    """mmdet's tool loads it by plain torch.load, which refuses its log buffers without us."""
    said("train")
    assert "small-" in said("publish")


def test_the_docs_have_a_line_for_each():
    text = DOCS.read_text(encoding="utf-8")
    for path in TOOLS:
        if path.startswith(("analysis_tools/", "misc/", "model_converters/", "deployment/")):
            assert f"`{mmdet_tools.short_name(path, TOOLS)}`" in text, path
