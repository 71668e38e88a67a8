"""Variables of a base that a child config sets: with an effect, or not."""

import pytest

from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError

BASE = """
from torch.optim import SGD
iters = 5
steps = [dict(type='A'), dict(type='B')]
root = 'data/'
other = 3
common = dict(pipeline=steps, data_root=root)
model = dict(type='M', depth=other)
train_cfg = dict(max_iters=iters)
train_dataloader = dict(batch_size=2, dataset=dict(test_mode=False, **common))
val_evaluator = dict(ann_file=root + 'val.json')
optim_wrapper = dict(optimizer=dict(type=SGD))
"""
TEXT = "_base_ = './middle.py'\n"
LAZY = "from mmengine.config import read_base\nwith read_base():\n    from .middle import *\n"


def write(directory, lazy, child):
    base = BASE if lazy else BASE.replace("from torch.optim import SGD", "").replace("SGD", "'SGD'")
    (directory / "base.py").write_text(base)
    for name, text in (("middle", ""), ("child", child)):
        text = (LAZY if lazy else TEXT) + text
        (directory / f"{name}.py").write_text(
            text.replace("middle", "base") if name == "middle" else text
        )
    return directory / "child.py"


@pytest.mark.parametrize("lazy", [False, True], ids=["text", "python"])
@pytest.mark.parametrize(
    ("child", "setting"),
    [
        ("iters = 7", "train_cfg.max_iters"),
        ("steps = [dict(type='C')]", "train_dataloader.dataset.pipeline"),
        ("root = 'mine/'", "train_dataloader.dataset.data_root"),
        ("common = dict(data_root='x')", "train_dataloader.dataset"),
        ("iters = 7\ntrain_dataloader = dict(batch_size=3)", "train_cfg.max_iters"),
        ("steps = [dict(type='C')]\ntrain_dataloader = dict(batch_size=3)", "dataset.pipeline"),
    ],
)
def test_a_variable_without_effect(child, setting, lazy, tmp_path):
    if lazy:
        child = child.replace(" = dict(batch_size=3)", ".update(batch_size=3)")
    with pytest.raises(UserError, match=rf"child.py has no effect: .* set .*{setting}"):
        load_config(write(tmp_path, lazy, child))


@pytest.mark.parametrize(
    ("lazy", "child"),
    [
        (False, "iters = 7\ntrain_cfg = dict(max_iters=iters)"),
        (False, "iters = 7\ntrain_cfg = dict(max_iters=7)"),
        (False, "iters = 5"),
        (False, "unknown = 7"),
        (False, "root = 'mine/'\nval_evaluator = dict(ann_file=root + 'val.json')"),
        (False, "steps = _base_.steps\nsteps[0].type = 'D'\n"
                "train_dataloader = dict(dataset=dict(pipeline=steps))"),
        (True, "iters = 7\ntrain_cfg.update(max_iters=iters)"),
        (True, "steps = [dict(type='C')]\ntrain_dataloader.dataset.pipeline = steps"),
    ],
)  # fmt: skip
def test_a_variable_with_effect(lazy, child, tmp_path):
    load_config(write(tmp_path, lazy, child))


def test_a_base_whose_name_has_variables_of_mmengine(tmp_path):
    write(tmp_path, False, "").write_text("_base_ = '{{ fileDirname }}/base.py'\niters = 7\n")
    assert load_config(tmp_path / "child.py").train_cfg.max_iters == 5


def test_bases_of_mmdet(tmp_path):
    (tmp_path / "mine.py").write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\ndata_root = 'mine/'\n"
    )
    with pytest.raises(UserError, match="data_root of .*mine.py has no effect: .*_dataloader"):
        load_config(tmp_path / "mine.py")
