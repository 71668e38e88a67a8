"""README and docs: every command runs, every option exists, every link leads to a file.

Commands that take long run in tests of their own.
"""

import argparse
import importlib
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

from ropevit_cli.main import build_parser, main
from tests import oracle
from tests.tiny_coco import write_tiny

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HOME = "https://github.com/ropevit-mmdet/ropevit_mmdet/blob/main/"
RAW = "https://raw.githubusercontent.com/ropevit-mmdet/ropevit_mmdet/main/"
# Beginnings of commands that run in tests of their own, or not at all.
SKIPPED = (
    *("make ", "pip install", "pre-commit", ". .venv", "bash tools/dist_", "NNODES=2", "pytest"),
    *("python -m tests.", "python -m benchmarks."),
    *(f"ropevit {name}" for name in "adapt convert doctor mmdet compare benchmark plan".split()),
    *("ropevit export", "ropevit evaluate"),
)
OWN_TESTS = ("first_hour", "labels")  # pages whose commands run as they are in a test of their own
RUN: list[list[str]] = []  # commands that ran for another page
SMALL = {"make-shapes": "--num-train 2 --num-val 1 --num-test 1 --size 112 --workers 1".split()}
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
def directory(tmp_path_factory, exported):
    """Images, a config, a checkpoint of birder and one of a detector, under the docs' names."""
    pytest.importorskip("birder")
    directory = tmp_path_factory.mktemp("docs")
    write_tiny(directory)
    checkpoint = oracle.write_checkpoint(oracle.birder_net("rope_vit_t14", None), directory, "net")
    (directory / "stand_in.py").write_text(STAND_IN.format(checkpoint=str(checkpoint)))
    main(["train", str(directory / "stand_in.py"), "--work-dir", str(directory / "run")])
    shutil.copy(exported.onnx, directory / "detector.onnx")
    (directory / "more").mkdir()
    for copy in ("photo.png", "more/one.png"):
        shutil.copy(directory / "data" / "images" / "1.png", directory / copy)
    code = cv2.VideoWriter_fourcc(*"mp4v")
    clip = cv2.VideoWriter(str(directory / "clip.mp4"), code, 5, (64, 48))
    clip.write(np.zeros((48, 64, 3), np.uint8))
    clip.release()
    return directory


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem not in OWN_TESTS], ids=lambda page: page.stem
)
def test_every_command_runs(page, directory, monkeypatch, capsys):
    monkeypatch.chdir(directory)
    for command in commands(page):
        words = shlex.split(command)
        argv = stand_ins(words[1:], directory)
        if command.startswith(SKIPPED) or argv in RUN:
            continue
        RUN.append(argv)
        if words[0] == "ropevit":
            assert not main(argv + SMALL.get(argv[0], [])), command
        else:
            assert words[0] == "python", f"{page.name}: nothing runs {command!r}"
            monkeypatch.setattr(sys, "argv", argv)
            load(ROOT / words[1]).main()
        capsys.readouterr()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_exists(page):
    """Of all commands, those within sentences included: options, extras, files, test names."""
    extras = set(re.findall(r"(?m)^(\w+) = \[", (ROOT / "pyproject.toml").read_text()))
    for command in [*commands(page), *inline_commands(page)]:
        words = shlex.split(command)
        if words[0] == "pytest":
            check_tests_exist(words)
        elif words[0] == "make":
            assert re.search(rf"(?m)^{words[1]}:", (ROOT / "Makefile").read_text()), command
        elif words[:2] == ["pip", "install"]:
            assert set(",".join(re.findall(r"\.\[(.*?)\]", command)).split(",")) - {""} <= extras
        elif words[0] == "ropevit":
            parse(words[1:])
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), command


def test_distributed_commands(tmp_path):
    """What the shell scripts would start."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    for command in [one for page in PAGES for one in commands(page) if "tools/dist_" in one]:
        environ = dict(os.environ, PYTHON=str(python))
        words = subprocess.check_output(
            command, shell=True, cwd=ROOT, env=environ, text=True
        ).split()
        assert words[:2] == ["-m", "torch.distributed.run"]
        options = dict(word[2:].split("=") for word in words if re.match("--n|--master", word))
        two = "NNODES=2" in command
        assert options["nproc_per_node"] == "8" and options["nnodes"] == ("2" if two else "1")
        assert options["master_addr"] == ("10.0.0.1" if two else "127.0.0.1")
        tool = next(i for i, word in enumerate(words) if word.endswith(".py"))
        parse([Path(words[tool]).stem, *words[tool + 1 :]])


@pytest.mark.parametrize("neck", [{}, {"model.neck.out_strides": (4, 8, 16, 32, 64)}], ids=str)
def test_the_readme_config_passes_its_own_checks(neck, directory):
    """On top of MMDetection's Mask R-CNN; with `out_strides` the heads stay as they are."""
    snippet = next(code for code in blocks(ROOT / "README.md", "python") if "_delete_" in code)
    if neck:
        snippet = snippet[: snippet.index("    rpn_head=")] + ")"
    base = Path(mmdet.__file__).parent / ".mim/configs/_base_/models/mask-rcnn_r50_fpn.py"
    (directory / "own.py").write_text(f"_base_ = {str(base)!r}\n{snippet}")
    config = Config.fromfile(directory / "own.py")
    config.merge_from_dict(neck)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    model.backbone.init_cfg["checkpoint"] = str(next(directory.glob("net*.pt")))
    hook = config.default_hooks["checks"]
    HOOKS.build(hook).before_run(SimpleNamespace(model=model))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_files_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [link.removeprefix(HOME).removeprefix(RAW) for link in links if link.startswith(HOME)]
    local += [link.removeprefix(RAW) for link in links if link.startswith(RAW)]
    missing = [link for link in local if not (ROOT / link).exists()]
    missing += [x for x in links if "://" not in x and not (page.parent / x).exists()]
    files = re.findall(r"(?:configs|tools|tests|examples|benchmarks)/[\w/-]+\.(?:py|sh)\b", text)
    missing += [file for file in files if "NAME" not in file and not (ROOT / file).exists()]
    assert not missing, f"{page.name} names {missing}"


def commands(page: Path) -> list[str]:
    """The commands of a page: lines of its shell blocks, fenced or indented."""
    shell = blocks(page, "(?:bash|sh)")
    pattern = r"(?m)^    ((?:[A-Z_]+=\S+ )*(?:python|pip|make|bash|ropevit) .*)$"
    shell += re.findall(pattern, without_blocks(page))
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s#.*", "", line).strip() for line in lines]
    return [re.sub(r"^(?:(?:ONEDNN|LRU)\S+ )+", "", line) for line in lines if line]


def inline_commands(page: Path) -> list[str]:
    """Commands in backticks within the text."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(page))]
    return [x for x in spans if re.match(r"(python -m|pytest|make|pip install|ropevit) \S", x)]


def parse(words: list[str]) -> None:
    """Parses a command of `ropevit`; words in capitals stand for a name."""
    if len(words) > 1 and words[0].replace("-", "").islower() and words[0] != "mmdet":
        try:
            build_parser().parse_args(words)
        except (SystemExit, argparse.ArgumentError) as error:
            if getattr(error, "code", 2):
                raise AssertionError(f"ropevit does not parse {words}") from error


def check_tests_exist(words: list[str]) -> None:
    """The files of a pytest command, and each word of its `-k` in the name of a test."""
    paths = [ROOT / word for word in words if word.startswith("tests/")]
    files = [f for path in paths for f in (path.rglob("*.py") if path.is_dir() else [path])]
    names = " ".join(re.findall(r"def (test_\w+)", "".join(file.read_text() for file in files)))
    expression = words[words.index("-k") + 1] if "-k" in words else ""
    for word in set(expression.split()) - {"or", "and", "not"}:
        assert word in names, f"{word} is in no test name of {paths}"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def stand_ins(words: list[str], directory: Path) -> list[str]:
    """Arguments of a command with the docs' names replaced by small files, for a CPU."""
    known = {
        r"CONFIG|my\.py|configs/.*|(?:ropevit|shapes)_\w+": "stand_in.py",
        r"CHECKPOINT|work_dirs/.*\.pth": "run/iter_2.pth",
        r"path/to/checkpoint.pt|birder://.*": str(next(directory.glob("net*.pt"))),
        r"work_dirs/\w+": "run",
        r"IMAGES|photos/|holiday/|data/shapes/test": "data/images",
        r"image.jpg|photo.jpg": "photo.png",
        r"data/shapes/test/00000(\d.png)": r"data/images/\1",
        r"data/shapes/annotations/.*|A.json": "data/annotations.json",
    }
    replaced = []
    for word in words:
        option, equals, value = word.rpartition("=")
        for pattern, stand_in in known.items():
            if re.fullmatch(pattern, value):
                value = re.sub(pattern, stand_in, value)
                break
        replaced.append(option + equals + value)
    return [word for word in replaced if word != "--amp"]  # needs a GPU


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
