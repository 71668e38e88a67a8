"""Two processes over gloo end with the weights of one process on the same global batches."""

import pytest
import torch
from mmdet.apis import init_detector

from ropevit_mmdet.engine.config import build_detector, load_config
from tests.fault_injection import forked, train_group
from tests.tiny_coco import write_tiny

# FCOS divides its losses by the positives of all processes: how a batch is distributed does not
# change them. Its scalar factors per level, which FSDP cannot shard, are replaced. SGD, because
# AdamW takes full steps from the rounding of gradients that are zero.
CONFIG = """
_base_ = './tiny.py'
custom_imports = dict(imports=['ropevit_mmdet', 'tests.unscaled_fcos'], allow_failed_imports=False)
model = dict(
    type='FCOS',
    backbone=dict(_delete_=True, type='RoPEViT', pretrain_img_size=64, window_size=2,
                  global_attn_indices=(1,),
                  arch=dict(patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=16, in_stride=16,
              out_channels=16, scale_factors=(1, 0.5), num_outs=2),
    bbox_head=dict(_delete_=True, type='UnscaledFCOSHead', num_classes=2, in_channels=16,
                   feat_channels=16, stacked_convs=1, strides=[16, 32], conv_bias=True,
                   regress_ranges=((-1, 24), (24, 1e8)),
                   norm_cfg=dict(type='LayerNorm2d', eps=1e-6)),
    train_cfg=None,
)
train_dataloader = dict(batch_size={batch_size}, sampler=dict(shuffle=True))
train_cfg = dict(max_iters={iterations})
optim_wrapper = dict(constructor='RoPEViTLayerDecay', paramwise_cfg=dict(layer_decay_rate=0.8),
                     clip_grad=dict(max_norm=0.5),
                     optimizer=dict(type='SGD', lr=0.005, momentum=0.9, weight_decay=1e-3))
load_from = {start!r}  # FlexibleRunner initializes other weights than Runner
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook', interval=10))
custom_hooks = [dict(type='LossFile')]
{more}
"""
FSDP = """
runner_type = 'FlexibleRunner'
strategy = dict(type='BlockFSDPStrategy')
env_cfg = dict(dist_cfg=dict(backend='gloo'))
"""


def train(directory, name, *, processes=None, iterations=20, more="", arguments=()):
    """Trains, `processes=None`: without a group; returns all losses and the last checkpoint."""
    config, start, work_dir = (directory / one for one in (f"{name}.py", "start.pth", name))
    settings = dict(batch_size=4 // (processes or 1), iterations=iterations, more=more)
    config.write_text(CONFIG.format(start=str(start), **settings))
    if not start.exists():
        torch.save(dict(state_dict=build_detector(load_config(config)).state_dict()), start)
    if processes is None:
        done = forked([str(config), str(work_dir), *arguments], directory, [{}])
    else:
        done = train_group(config, work_dir, *arguments, size=processes)
    for process in done:
        assert process.returncode == 0, process.stderr[-3000:]
    losses = [float(line) for line in (work_dir / "losses.txt").read_text().splitlines()]
    return losses, torch.load(work_dir / f"iter_{iterations}.pth", weights_only=True)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A directory with a run of one process in it, its losses and its checkpoint."""
    directory = tmp_path_factory.mktemp("distributed")
    write_tiny(directory, num_images=12)
    losses, checkpoint = train(directory, "single")
    assert len(losses) == 20 and losses[-1] < 0.95 * losses[0]
    return directory, losses, checkpoint


def assert_same(actual, expected):
    torch.testing.assert_close(actual[0], expected[0], atol=0, rtol=1e-5)
    torch.testing.assert_close(
        actual[1]["state_dict"], expected[1]["state_dict"], atol=1e-5, rtol=0
    )


def test_ddp_equals_one_process(single):
    directory, *expected = single
    assert_same(train(directory, "ddp", processes=2), expected)


def test_fsdp_equals_one_process_resumes_and_loads_into_a_plain_model(single):
    """The first part validates: the checkpoint is written again after the best one."""
    directory, *expected = single
    more = FSDP + "train_cfg.update(val_interval=10)\n"
    more += "default_hooks['checkpoint']['save_best'] = 'auto'\n"
    _, saved = train(directory, "fsdp", processes=2, iterations=10, more=more)
    assert saved["meta"]["iter"] == 10 and "best_score" in saved["message_hub"]["runtime_info"]
    resumed = train(directory, "fsdp", processes=2, more=FSDP, arguments=("--resume",))
    assert_same(resumed, expected)

    plain = (directory / "single.py").read_text().replace("UnscaledFCOSHead", "FCOSHead")
    plain = plain.replace(", 'tests.unscaled_fcos'", "").replace("custom_hooks", "unused_hooks")
    (directory / "plain.py").write_text(plain)
    checkpoint = str(directory / "fsdp" / "iter_20.pth")
    model = init_detector(str(directory / "plain.py"), checkpoint, device="cpu")
    weights = {key: v for key, v in model.state_dict().items() if ".scales." not in key}
    torch.testing.assert_close(weights, dict(resumed[1]["state_dict"]), rtol=0, atol=0)


def test_fsdp_resumes_with_a_frozen_backbone(single):
    """Parameters have the names of a plain one; gradients are clipped although the shard of the
    first process is frozen; features are not cached, as no process has all weights."""
    directory, *_, checkpoint = single
    more = "del model['backbone']['_delete_']\nfrozen = model['backbone']\n"
    more += "model['backbone'] = dict(type='FrozenBackbone', backbone=frozen, cache_dir='maps')\n"
    more += "model['backbone']['_delete_'] = True\n"
    expected = train(directory, "frozen", iterations=4, more=more)
    settings = dict(processes=2, more=more + FSDP)
    train(directory, "fsdp_frozen", iterations=2, **settings)
    resumed = train(directory, "fsdp_frozen", iterations=4, arguments=("--resume",), **settings)
    assert_same(resumed, expected)
    assert list(resumed[1]["state_dict"]) == list(checkpoint["state_dict"])
    start = torch.load(directory / "start.pth")["state_dict"]
    for name, value in resumed[1]["state_dict"].items():
        assert torch.equal(value, start[name]) == name.startswith("backbone."), name
