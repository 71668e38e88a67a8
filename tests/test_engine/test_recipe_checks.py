"""Warnings of recipes with which a RoPE ViT trains badly."""

from copy import deepcopy
from unittest.mock import MagicMock

import pytest
from mmengine.config import Config
from mmengine.optim import ConstantLR
from torch import nn

from ropevit_mmdet.engine.hooks import RoPEViTChecks
from ropevit_mmdet.engine.recipe_checks import recipe_warnings
from tests.test_configs import CONFIGS

SHIPPED = sorted(CONFIGS.glob("*.py"))
WEIGHTS = dict(type="Pretrained", checkpoint="net.pt")
ADAMW, SGD = dict(type="AdamW", lr=1e-4), dict(type="SGD", lr=0.02)
WARM_UP = dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250)
FALL = dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=900)
STEPS = dict(type="MultiStepLR", by_epoch=True, end=12, milestones=[8, 11])
MODEL = dict(
    type="RetinaNet",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[127.5] * 3, std=[64.0] * 3),
    backbone=dict(type="RoPEViT", arch="rope_vit_t14", init_cfg=WEIGHTS),
)
DECAY = dict(constructor="RoPEViTLayerDecay", paramwise_cfg=dict(layer_decay_rate=0.7))
LOADER = dict(dataset=dict(dataset=dict(pipeline=[dict(type="mmcv.Normalize")])))


def recipe(**changes):
    """A good recipe, but for `changes` by dotted key with `__` for a dot."""
    wrapper = dict(type="OptimWrapper", optimizer=ADAMW, **DECAY)
    config = Config(
        deepcopy(dict(model=MODEL, optim_wrapper=wrapper, param_scheduler=[WARM_UP, FALL]))
    )
    for key, value in changes.items():
        *parents, last = key.split("__")
        part = config
        for name in parents:
            part = part[name]
        part[last] = value
    return config


def frozen(**backbone):
    inner = dict(MODEL["backbone"], **backbone)
    return dict(model__backbone=dict(type="FrozenBackbone", backbone=inner))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_silent(path):
    """Only that of a frozen probe speaks: run without `ropevit compare`, it has no weights."""
    warnings = recipe_warnings(Config.fromfile(path))
    assert len(warnings) == (path.stem == "shapes_frozen"), warnings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(optim_wrapper__optimizer=SGD), ["optimizer is SGD", "AdamW"]),
        (dict(optim_wrapper__optimizer=dict(SGD, type="torch.optim.SGD")), ["optimizer is SGD"]),
        (dict(optim_wrapper__optimizer__lr=2e-3), ["lr=0.002", "1e-4"]),
        (dict(param_scheduler=[FALL]), ["no warm-up", "LinearLR"]),
        (dict(param_scheduler=None), ["no warm-up"]),
        (dict(param_scheduler=[dict(WARM_UP, start_factor=1.0, end_factor=0.1)]), ["no warm-up"]),
        (dict(param_scheduler=[FALL, dict(WARM_UP, begin=500)]), ["no warm-up"]),
        (dict(optim_wrapper__constructor=None, optim_wrapper__paramwise_cfg=None), ["layer decay"]),
        (dict(optim_wrapper__paramwise_cfg__layer_decay_rate=1.0), ["layer decay", "0.7"]),
        (dict(model__backbone__init_cfg=None, model__backbone__frozen_stages=2), ["random"]),
        (frozen(init_cfg=None), ["model.backbone.backbone.init_cfg", "random"]),
        (dict(model__data_preprocessor=dict(type="DetDataPreprocessor")), ["mean=None"]),
        (
            dict(model__data_preprocessor__mean=[0.5] * 3, model__data_preprocessor__std=[0.2] * 3),
            ["mean=[0.5", "0..255"],
        ),
        (dict(train_cfg=dict(max_iters=90)), ["ends at 900, the run at train_cfg.max_iters=90"]),
        (dict(train_cfg=dict(max_iters=9000)), ["ends at 900", "milestones"]),
        (dict(train_cfg=dict(max_epochs=24), param_scheduler=[WARM_UP, STEPS]), ["ends at 12, "]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_known_mistakes_are_named_in_one_line(changes, named):
    (line,) = recipe_warnings(recipe(**changes))
    assert all(word in line for word in named) and "\n" not in line


@pytest.mark.parametrize(
    "changes",
    [
        dict(train_cfg=dict(max_iters=900)),
        dict(train_cfg=dict(max_epochs=12), param_scheduler=[WARM_UP, STEPS]),
        dict(train_cfg=dict(max_iters=9000), param_scheduler=[WARM_UP]),
        dict(model__backbone=dict(type="ResNet", depth=50), optim_wrapper__optimizer=SGD),
        dict(model__backbone__init_cfg=None, optim_wrapper__paramwise_cfg__layer_decay_rate=1.0),
        dict(model__backbone__init_cfg=None, optim_wrapper__optimizer__lr=1e-3),
        dict(param_scheduler=[FALL], optim_wrapper__clip_grad=dict(max_norm=0.1)),
        dict(param_scheduler=dict(type="OneCycleLR", eta_max=1e-4, total_steps=900)),
        dict(param_scheduler=[dict(type=ConstantLR, factor=0.1, end=100), FALL]),
        dict(
            optim_wrapper__constructor="DefaultOptimWrapperConstructor",
            optim_wrapper__paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}),
            optim_wrapper__optimizer__lr=2e-3,
        ),
        dict(optim_wrapper__constructor="LayerDecayOptimizerConstructor"),
        frozen() | dict(optim_wrapper__optimizer=SGD, param_scheduler=None),
        dict(load_from="detector.pth", **frozen(init_cfg=None)),
        dict(
            model__init_cfg=WEIGHTS,
            model__backbone__init_cfg=None,
            model__backbone__frozen_stages=12,
        ),
        dict(
            model__data_preprocessor=dict(type="DetDataPreprocessor"),
            train_dataloader=LOADER,
        ),
    ],
)
def test_legitimate_recipes_are_silent(changes):
    assert not recipe_warnings(recipe(**changes))


def test_a_training_logs_them_before_its_first_iteration():
    runner = MagicMock(model=nn.Identity(), cfg=recipe(optim_wrapper__optimizer=SGD))
    RoPEViTChecks().before_train(runner)
    (call,) = runner.logger.warning.call_args_list
    assert "optimizer is SGD" in call.args[0]
