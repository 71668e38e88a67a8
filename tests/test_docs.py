"""Every command in the README and in docs/ is run: here on a tiny detector, or by a test that is
named. Every link leads somewhere."""

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import mmdet
import numpy as np
import pytest
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from tests import oracle
from tests.processes import ROOT
from tests.test_layout import FLOORS
from tests.tiny_coco import write_tiny

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Beginnings of commands that are run elsewhere: by which test, and a word of it that says so.
ELSEWHERE = {
    "make ": ("test_bootstrap.py", "def test_"),
    "pip install": ("test_bootstrap.py", "pip"),
    "bash tools/dist_": ("test_distributed.py", "torchrun"),
    "NNODES=2": ("test_distributed.py", "torchrun"),
    "torchrun": ("test_mmdet_tool.py", "mmdet_tool"),
    "pytest": ("conftest.py", ""),
    "python -m tests.": ("test_layout.py", ""),
    "python tools/benchmark.py": ("test_benchmark.py", "benchmark"),
    "python tools/doctor.py": ("test_doctor.py", "--install-ops"),
    "python tools/mmdet_tool.py": ("test_mmdet_tool.py", "get_flops"),
    "python tools/make_shapes.py": ("test_shapes.py", "generate("),
    "python tools/compare_backbones.py": ("test_compare.py", "TOOL"),
    "python tools/prove_recipes.py": ("test_prove_recipes.py", "tool.main"),
}
STAND_IN = """
_base_ = "./tiny.py"
model = dict(
    data_preprocessor=dict(mean=[132.3705, 135.303, 124.3635], std=[59.058, 58.752, 65.994]),
    backbone=dict(_delete_=True, type="RoPEViT", arch="rope_vit_t14", out_indices=1,
                  init_cfg=dict(type="Pretrained", checkpoint={checkpoint!r})),
    neck=dict(_delete_=True, type="SimpleFeaturePyramid", in_channels=192, out_channels=16,
              scale_factors=(1, 0.5), num_outs=2),
    bbox_head=dict(anchor_generator=dict(strides=[14, 28])),
    test_cfg=dict(score_thr=0.0),
)
default_hooks = dict(logger=dict(type="LoggerHook", interval=1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, a config, a checkpoint of birder and one of a detector, under the docs' names."""
    pytest.importorskip("birder")
    folder = tmp_path_factory.mktemp("docs")
    write_tiny(folder)
    net = oracle.birder_net("rope_vit_t14", None)
    checkpoint = oracle.write_checkpoint(net, folder, "net")
    (folder / "stand_in.py").write_text(STAND_IN.format(checkpoint=str(checkpoint)))
    tool("train").main([str(folder / "stand_in.py"), "--work-dir", str(folder / "run")])
    (folder / "more").mkdir()
    for copy in ("photo.png", "more/one.png"):
        shutil.copy(folder / "data" / "pictures" / "1.png", folder / copy)
    clip = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
    clip.write(np.zeros((48, 64, 3), np.uint8))
    clip.release()
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command in commands(page):
        if not any(command.startswith(beginning) for beginning in ELSEWHERE):
            words = shlex.split(command)
            assert words[0] == "python", f"{page.name}: nothing runs {command!r}"
            argv = stand_ins(words[2:], folder)
            monkeypatch.setattr(sys, "argv", [words[1], *argv])
            tool(Path(words[1]).stem).main()
            capsys.readouterr()


def test_what_is_run_elsewhere_is_run_there():
    for command, (file, word) in ELSEWHERE.items():
        assert word in (ROOT / "tests" / file).read_text(), command


@pytest.mark.parametrize("neck", [{}, {"model.neck.out_strides": (4, 8, 16, 32, 64)}], ids=str)
def test_the_readme_config_passes_its_own_checks(neck, folder):
    """Over mmdet's Mask R-CNN; with ``out_strides`` its heads stay as they are."""
    snippet = next(code for code in blocks(ROOT / "README.md", "python") if "_delete_" in code)
    if neck:
        snippet = snippet[: snippet.index("    rpn_head=")] + ")"
    base = Path(mmdet.__file__).parent / ".mim/configs/_base_/models/mask-rcnn_r50_fpn.py"
    file = folder / "own.py"
    file.write_text(f"_base_ = {str(base)!r}\n{snippet}")
    config = Config.fromfile(file)
    config.merge_from_dict(neck)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    model.backbone.init_cfg["checkpoint"] = str(next(folder.glob("net*.pt")))  # its colours
    (hook,) = config.custom_hooks
    HOOKS.build(hook).before_run(SimpleNamespace(model=model))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_configs_are_there(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    files = re.findall(r"(?:configs|tools|tests)/[\w/-]+\.(?:py|sh)\b", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [file for file in files if not (ROOT / file).exists()]
    assert not missing, f"{page.name} names {missing}"


def test_rooms_stand_in_the_order_of_their_imports():
    rows = re.findall(r"(?m)^\| (`[^|]+`) \|", (ROOT / "docs" / "architecture.md").read_text())
    rooms = [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in rows]
    assert rooms[::-1] == FLOORS


def commands(page: Path) -> list[str]:
    """The commands of a page: lines of its shell blocks, fenced or indented."""
    shell = blocks(page, "(?:bash|sh)")
    shell += re.findall(r"(?m)^    ((?:python|pip|make|bash) .*)$", page.read_text())
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s#.*", "", line).strip() for line in lines) if line]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def stand_ins(words: list[str], folder: Path) -> list[str]:
    """A command's arguments with the docs' names replaced by what is there, for a CPU."""
    known = {
        r"CONFIG|configs/.*": "stand_in.py",
        r"CHECKPOINT|work_dirs/.*\.pth": "run/iter_2.pth",
        r"path/to/checkpoint.pt|birder://.*": str(next(folder.glob("net*.pt"))),
        r"work_dirs/\w+": "run",
        r"PICTURES|photos/|holiday/|data/shapes/test": "data/pictures",
        r"picture.jpg|photo.jpg": "photo.png",
        r"data/shapes/test/00000(\d.png)": r"data/pictures/\1",
        r"data/shapes/annotations/.*": "data/annotations.json",
    }
    found = []
    for word in words:
        option, equals, value = word.rpartition("=")
        for pattern, stand_in in known.items():
            if re.fullmatch(pattern, value):
                value = re.sub(pattern, stand_in, value)
                break
        found.append(option + equals + value)
    return [word for word in found if word != "--amp"]  # needs a GPU


def tool(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
