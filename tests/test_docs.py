"""Every command in the README and in docs/ is run: here on a tiny detector, or by a test that is
named; those within a sentence are read by their tool. Every link leads somewhere."""

import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
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

from tests import oracle, parity_table
from tests.processes import ROOT
from tests.test_layout import FLOORS
from tests.tiny_coco import write_tiny

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTRAS = set(re.findall(r"(?m)^(\w+) = \[", (ROOT / "pyproject.toml").read_text()))
# Beginnings of commands that are run elsewhere: the test file, and the call in it.
ELSEWHERE = {
    "make ": ("test_bootstrap.py", 'bootstrap.main(["demo"'),
    "pip install": ("test_bootstrap.py", "environment.ensure("),
    "python -m tests.sizes_trial": ("test_sizes.py", "sizes_trial.main("),
    "python tools/benchmark.py": ("test_benchmark.py", 'ROOT / "tools" / "benchmark.py", *arg'),
    "python tools/doctor.py": ("test_doctor.py", 'run_python(TOOL, "--install-ops"'),
    "python tools/mmdet_tool.py": ("test_mmdet_tool.py", 'run_python("-c", FORKED, TOOL'),
    "python tools/compare_backbones.py": ("test_compare.py", "tool.main([*argv"),
    "python tools/prove_recipes.py": ("test_prove_recipes.py", "tool.main()"),
}
# Those that have a test of their own below.
BELOW = ("bash tools/dist_", "NNODES=2", "python -m tests.parity_table")
FEW = {"make_shapes": "--num-train 2 --num-val 1 --num-test 1 --size 112 --workers 1".split()}
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
def directory(tmp_path_factory):
    """Images, a config, a checkpoint of birder and one of a detector, under the docs' names."""
    pytest.importorskip("birder")
    directory = tmp_path_factory.mktemp("docs")
    write_tiny(directory)
    net = oracle.birder_net("rope_vit_t14", None)
    checkpoint = oracle.write_checkpoint(net, directory, "net")
    (directory / "stand_in.py").write_text(STAND_IN.format(checkpoint=str(checkpoint)))
    tool("train").main([str(directory / "stand_in.py"), "--work-dir", str(directory / "run")])
    (directory / "more").mkdir()
    for copy in ("photo.png", "more/one.png"):
        shutil.copy(directory / "data" / "images" / "1.png", directory / copy)
    clip = cv2.VideoWriter(
        str(directory / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48)
    )
    clip.write(np.zeros((48, 64, 3), np.uint8))
    clip.release()
    return directory


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(page, directory, monkeypatch, capsys):
    monkeypatch.chdir(directory)
    for command in commands(page):
        if not any(command.startswith(beginning) for beginning in (*ELSEWHERE, *BELOW)):
            words = shlex.split(command)
            assert words[0] == "python", f"{page.name}: nothing runs {command!r}"
            argv = stand_ins(words[2:], directory) + FEW.get(Path(words[1]).stem, [])
            monkeypatch.setattr(sys, "argv", [words[1], *argv])
            tool(Path(words[1]).stem).main()
            capsys.readouterr()


def test_what_is_run_elsewhere_is_run_there():
    for command, (file, call) in ELSEWHERE.items():
        assert call in (ROOT / "tests" / file).read_text(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_understood(page, monkeypatch):
    """What is run elsewhere, and what stands within a sentence: files, options, names of tests."""
    for command in [*commands(page), *inline_commands(page)]:
        words = shlex.split(command)
        if words[0] == "pytest":
            check_tests_are_there(words)
        elif words[0] == "make":
            assert f"$(BOOTSTRAP) {words[1]}" in (ROOT / "Makefile").read_text(), command
        elif words[:2] == ["pip", "install"]:
            extras = set(",".join(re.findall(r"\.\[(.*?)\]", command)).split(",")) - {""}
            assert extras <= EXTRAS, command
        elif words[0] == "python" and words[1] != "-m":
            check_options_are_there(words[1:], monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_for_several_processes(page, tmp_path, monkeypatch):
    """What the shell scripts of a page would start."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    for command in commands(page):
        if "tools/dist_" in command:
            env = dict(os.environ, PYTHON=str(python))
            done = subprocess.run(
                ["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True
            )
            options, words = launched(done.stdout.splitlines())
            check_options_are_there(words, monkeypatch)
            assert words[2:4] == ["--launcher", "pytorch"] and options["nproc_per_node"] == "8"
            two = "NNODES=2" in command
            assert options["nnodes"] == ("2" if two else "1")
            assert options["master_addr"] == ("10.0.0.1" if two else "127.0.0.1")
            assert options["node_rank"] == "0"


def test_the_table_of_parity_is_written(directory, tmp_path, monkeypatch):
    page = tmp_path / "parity.md"
    shutil.copy(parity_table.DOCS, page)
    monkeypatch.setattr(parity_table, "DOCS", page)
    monkeypatch.setattr(parity_table, "arch_names", lambda: ["rope_vit_s16"])
    monkeypatch.setattr(parity_table, "SWITCHES", {"one": {}})
    monkeypatch.setattr(parity_table, "kernels", lambda: "| kernel |\n")
    monkeypatch.setattr(sys, "argv", ["parity_table"])
    parity_table.main()
    text = page.read_text()
    assert "| `rope_vit_s16` | small |" in text and "| `rope_vit_s14` |" not in text
    assert "| one | small |" in text and "| kernel |" in text
    assert "| `rope_vit_reg4_b14` | full |" in text  # not measured without --full


@pytest.mark.parametrize("neck", [{}, {"model.neck.out_strides": (4, 8, 16, 32, 64)}], ids=str)
def test_the_readme_config_passes_its_own_checks(neck, directory):
    """Over mmdet's Mask R-CNN; with ``out_strides`` its heads stay as they are."""
    snippet = next(code for code in blocks(ROOT / "README.md", "python") if "_delete_" in code)
    if neck:
        snippet = snippet[: snippet.index("    rpn_head=")] + ")"
    base = Path(mmdet.__file__).parent / ".mim/configs/_base_/models/mask-rcnn_r50_fpn.py"
    file = directory / "own.py"
    file.write_text(f"_base_ = {str(base)!r}\n{snippet}")
    config = Config.fromfile(file)
    config.merge_from_dict(neck)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    model.backbone.init_cfg["checkpoint"] = str(next(directory.glob("net*.pt")))  # its colors
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


def test_what_works_of_mmdets_tools_is_run():
    rows = (ROOT / "docs" / "mmdet_tools.md").read_text().splitlines()
    run = (ROOT / "tests" / "test_mmdet_tool.py").read_text()
    names = [name for row in rows if "| works |" in row for name in row.split("|")[1].split(",")]
    assert len(names) > 5
    for name in names:
        assert f'["{name.strip(" `")}"' in run, f"no test runs {name}"


def test_rooms_stand_in_the_order_of_their_imports():
    rows = re.findall(r"(?m)^\| (`[^|]+`) \|", (ROOT / "docs" / "architecture.md").read_text())
    rooms = [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in rows]
    assert rooms[::-1] == FLOORS


def commands(page: Path) -> list[str]:
    """The commands of a page: lines of its shell blocks, fenced or indented."""
    shell = blocks(page, "(?:bash|sh)")
    shell += re.findall(r"(?m)^    ((?:python|pip|make|bash) .*)$", without_blocks(page))
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s#.*", "", line).strip() for line in lines) if line]


def inline_commands(page: Path) -> list[str]:
    """Commands within the text: in backticks, and with something to be done."""
    found = [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", without_blocks(page))]
    found = [re.sub(r"^(?=tools/\w+\.py )", "python ", one) for one in found]
    return [one for one in found if re.match(r"(python|pytest|make|pip install) \S", one)]


def check_tests_are_there(words: list[str]) -> None:
    """The files of a pytest command, each word of its -k in the name of a test there."""
    files = [word for word in words if word.startswith("tests/")]
    names = " ".join(re.findall(r"def (test_\w+)", "".join((ROOT / f).read_text() for f in files)))
    wanted = words[words.index("-k") + 1] if "-k" in words else ""
    for word in set(wanted.split()) - {"or", "and", "not"}:
        assert word in names, f"{word} is in no name of {files}"


def check_options_are_there(words: list[str], monkeypatch) -> None:
    """A tool takes these arguments; those of mmdet_tool.py and bootstrap.py are others' own."""
    module = tool(Path(words[0]).stem)
    if hasattr(module, "parse_args"):
        monkeypatch.setattr(sys, "argv", words)
        argv = [words[1:]] if inspect.signature(module.parse_args).parameters else []
        module.parse_args(*argv)


def launched(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of a launcher's command, and what it launches."""
    assert words[:2] == ["-m", "torch.distributed.run"]
    options = [word for word in words[2:] if word.startswith("--") and "=" in word]
    return dict(word[2:].split("=") for word in options), words[2 + len(options) :]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def stand_ins(words: list[str], directory: Path) -> list[str]:
    """A command's arguments with the docs' names replaced by what is there, for a CPU."""
    known = {
        r"CONFIG|configs/.*": "stand_in.py",
        r"CHECKPOINT|work_dirs/.*\.pth": "run/iter_2.pth",
        r"path/to/checkpoint.pt|birder://.*": str(next(directory.glob("net*.pt"))),
        r"work_dirs/\w+": "run",
        r"IMAGES|photos/|holiday/|data/shapes/test": "data/images",
        r"image.jpg|photo.jpg": "photo.png",
        r"data/shapes/test/00000(\d.png)": r"data/images/\1",
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
