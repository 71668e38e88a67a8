"""What a config says about its run: the first issue in one line, before anything is written."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import MultiStepLR
from mmengine.runner import EpochBasedTrainLoop

from ropevit_mmdet.engine.config_checks import check_config
from ropevit_mmdet.errors import UserError
from tests.tiny_coco import write_tiny

TRAIN = ("train", "val")


@pytest.fixture
def tiny(tmp_path):
    return Config.fromfile(write_tiny(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_cfg.max_iter": 4}, "train_cfg.max_iter: IterBasedTrainLoop .* 'max_iters'"),
        ({"optim_wrapper.optimizer.lrr": 1}, "optimizer.lrr: SGD has no argument .* mean 'lr'"),
        ({"optim_wrapper.optimizer.type": "SDG"}, "registered as 'SDG'; did you mean 'SGD'"),
        ({"optim_wrapper.acumulative_counts": 2}, "optim_wrapper.acumulative_counts: OptimWrapper"),
        ({"param_scheduler": [dict(type=MultiStepLR, milestone=[1])]}, "'milestones'"),
        ({"default_hooks.checkpoint.intervall": 4}, "CheckpointHook has no .* mean 'interval'"),
        ({"default_hooks.checkpoint.type": "CheckpointHok"}, "hooks.checkpoint.type: nothing"),
        ({"train_dataloader.num_worker": 1}, "train_dataloader.num_worker: .* 'num_workers'"),
        ({"train_dataloader.dataset.datta_root": "x"}, "CocoDataset has .* mean 'data_root'"),
        ({"train_dataloader.dataset.pipeline.1.scales": 1}, "pipeline.1.scales: .* mean 'scale'"),
        ({"val_dataloader.sampler.shufle": True}, "sampler.shufle: DefaultSampler .* 'shuffle'"),
        ({"val_evaluator.clas_wise": True}, "val_evaluator.clas_wise: CocoMetric .* 'classwise'"),
        ({"val_evaluator": dict(metrics=[dict(type="CocoMetric", metrics=1)])}, "0.metrics: CocoM"),
        ({"visualizer.vis_backends": [dict(type="LocalBackend")]}, "vis_backends.0.type: no.*Loc"),
        ({"randomness.sed": 1}, "randomness.sed: .* mean 'seed'"),
        ({"val_cfg": None}, "the config has no val_cfg"),
        ({"optim_wrapper": None}, "the config has no optim_wrapper"),
        ({"train_dataloader.persistent_workers": True}, "persistent_workers=True needs num"),
        ({"val_dataloader.prefetch_factor": 2}, "val_dataloader.prefetch_factor=2 needs num_work"),
        ({"train_cfg": dict(type="EpochBasedTrainLoop", max_epochs=2)}, "Sampler never ends"),
        ({"train_cfg": dict(type=EpochBasedTrainLoop, max_epochs=2)}, "Sampler never ends"),
        ({"train_cfg": dict(by_epoch=True, max_epochs=2)}, "Sampler never ends"),
        ({"val_dataloader.sampler": dict(type="mmengine.InfiniteSampler")}, "never ends"),
        ({"param_scheduler": dict(type="StepLR", step_size=1)}, "StepLR counts epochs"),
        (
            {"param_scheduler": [dict(type="CosineAnnealingLR", begin=9, end=5)]},
            "param_scheduler.0: begin=9 is not before end=5",
        ),
    ],
)  # fmt: skip
def test_an_issue_in_one_line(changes, message, tiny):
    for key, value in changes.items():
        place, _, name = key.rpartition(".")
        settings = tiny
        for part in filter(None, place.split(".")):
            settings = settings[int(part) if part.isdigit() else part]
        settings[name] = value
    with pytest.raises(UserError, match=message):
        check_config(tiny, TRAIN)


def test_settings_that_are_right(tiny):
    tiny.custom_hooks = [dict(type=EMAHook, momentum=0.1, priority=49), EMAHook()]
    tiny.param_scheduler = [
        dict(type="ReduceOnPlateauLR", monitor="coco/bbox_mAP", rule="greater"),
        dict(type="StepLR", step_size=1, convert_to_iter_based=True),
    ]
    tiny.optim_wrapper.update(constructor="RoPEViTLayerDecay", paramwise_cfg=dict(any=1))
    steps = tiny.train_dataloader.dataset.pipeline
    steps.insert(1, dict(type="Albu", transforms=[dict(type="Blur", blur_limit=3)]))
    steps.insert(1, dict(type="RandomChoice", transforms=[[dict(type="RandomFlip", prob=0.5)]]))
    tiny.train_dataloader.batch_sampler = dict(type="AspectRatioBatchSampler")
    assert check_config(tiny, TRAIN) == check_config(tiny, ("test",)) == []
    tiny.default_hooks.checkpoint.by_epoch = True
    (warning,) = check_config(tiny, TRAIN)
    assert "saves only at the end" in warning
    tiny.default_hooks.checkpoint = CheckpointHook(by_epoch=True)
    tiny.param_scheduler = dict(optimizer=tiny.param_scheduler)
    assert check_config(tiny, TRAIN) == []
    tiny.train_cfg = tiny.optim_wrapper = None
    assert check_config(tiny, ("test",)) == []
