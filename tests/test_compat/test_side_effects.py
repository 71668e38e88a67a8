"""Importing the package and building a model change nothing beyond what `compat.prepare` lists."""

import json

import pytest

from ropevit_mmdet.compat import packaged_config
from tests.processes import run_python

IMPORT = """
import json, sys
calls = []
watched = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
sys.addaudithook(lambda event, args: calls.append(event) if event in watched else None)
import ropevit_mmdet
from ropevit_cli.main import build_parser
build_parser()
heavy = sorted(set(sys.argv[1:]) & set(sys.modules))

import mmcv.ops, torch
maps, rois = torch.rand(1, 3, 8, 8), torch.tensor([[0, 1.0, 1, 5, 5]])
pool = mmcv.ops.RoIAlign(3, 1.0)
traced = torch.equal(torch.jit.trace(pool, (maps, rois))(maps, rois), pool(maps, rois))
print(json.dumps(dict(calls=calls, heavy=heavy, traced=traced)))
"""
BUILD = """
import json, os, sys
import cv2, matplotlib, sklearn, torch, torchvision  # sklearn sets variables; mmdet imports it
import mmengine.runner.checkpoint, mmengine.runner.runner
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.logging.logger import MMFormatter
from mmengine.visualization import Visualizer
from torch import nn

OWNERS = {
    "MMFormatter.format": MMFormatter, "Visualizer.add_config": Visualizer,
    "LocalBackend.put": LocalBackend, "runner.save_checkpoint": mmengine.runner.runner,
    "checkpoint.save_checkpoint": mmengine.runner.checkpoint, "Module.__call__": nn.Module,
    "init.kaiming_uniform_": nn.init, "torch.save": torch,
}

def snapshot():
    state = {name: getattr(owner, name.split(".")[1]) for name, owner in OWNERS.items()}
    state |= {f"environ {name}": value for name, value in os.environ.items()}
    state["torch"] = (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed())
    return state

def changes():
    after = snapshot()
    return sorted(name for name in before.keys() | after if before.get(name) != after.get(name))

before = snapshot()
import ropevit_mmdet
found = {"import": changes()}
# mmdet.models cannot be imported before: it needs mmcv.ops.
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

config = Config.fromfile(sys.argv[1])
init_default_scope("mmdet")
MODELS.build(config.model)
found["build"] = changes()
heads = (BaseDenseHead, BBoxHead, BaseRoIExtractor)
found["heads"] = [head.__name__ for head in heads if head.__call__ is not nn.Module.__call__]
print(json.dumps(found))
"""
# What only a model, a figure or an export needs is imported by it: half of the start-up.
# mmdet.models, which EoMT derives from, imports sklearn.
HEAVY = "torchvision torch._dynamo torch.utils.tensorboard mmdet.apis pandas".split()
HEAVY += "onnx onnxruntime huggingface_hub birder timm transformers peft".split()


def last_line(program, *argv):
    done = run_python("-c", program, *argv)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def imported():
    return last_line(IMPORT, *HEAVY)


@pytest.mark.parametrize(("what", "expected"), [("calls", []), ("heavy", []), ("traced", True)])
def test_import_calls_no_network_loads_nothing_heavy_and_can_be_traced(what, expected, imported):
    """The first use of an op may be under `torch.jit.trace`, where importing torchvision fails."""
    assert imported[what] == expected


def test_no_method_function_or_variable_of_others_changes():
    changes = last_line(BUILD, packaged_config("shapes_maskrcnn"))
    assert changes == {"import": [], "build": [], "heads": []}
