"""What a config says about its run: the first issue in one line, before anything is written."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
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
        ({"default_hooks.checkpoint.intervall": 4}, "intervall: CheckpointHook has no argument"),
        ({"optim_wrapper.optimizer.type": "SDG"}, "optimizer.type: nothing is regist.* 'SDG'"),
        ({"train_cfg.type": "IterBasedLoop"}, "train_cfg.type: nothing is registered as 'IterB"),
        ({"default_hooks.checkpoint.save_best": "bbox_mAP"}, "save_best: .* set 'coco/bbox_mAP'"),
        ({"custom_hooks": [dict(type="EarlyStoppingHook", monitor="bbox_mAP")]}, "0.monitor: val"),
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
    tiny.custom_hooks.append(dict(type="MyHook", monitor="lr"))
    tiny.default_hooks.checkpoint.update(save_best=["auto", "coco/dark_precision"], priority=1)
    tiny.param_scheduler = [
        dict(type="ReduceOnPlateauLR", monitor="coco/bbox_mAP", rule="greater"),
        dict(type="StepLR", step_size=1, convert_to_iter_based=True),
    ]
    tiny.train_dataloader.batch_sampler = dict(type="AspectRatioBatchSampler")
    assert check_config(tiny, TRAIN) == check_config(tiny, ("test",)) == []
    tiny.default_hooks.checkpoint.by_epoch = True
    tiny.model.test_cfg.score_th = 0.3
    typo, warning = check_config(tiny, TRAIN)
    assert "saves only at the end" in warning
    assert typo.startswith("model.test_cfg.score_th and score_thr are both set")
    del tiny.model.test_cfg.score_th
    tiny.default_hooks.checkpoint = CheckpointHook(by_epoch=True)
    tiny.param_scheduler = dict(optimizer=tiny.param_scheduler)
    assert check_config(tiny, TRAIN) == []
    tiny.train_cfg = tiny.optim_wrapper = None
    assert check_config(tiny, ("test",)) == []
