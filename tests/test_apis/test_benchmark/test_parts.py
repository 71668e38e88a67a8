"""Parts of a step: what they cost adds up to the whole, and each counts for itself only."""

import pytest
import torch
from mmdet.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import PEERS
from ropevit_mmdet.apis.benchmark.measure import Bench
from ropevit_mmdet.apis.benchmark.parts import PartMeter

TWO_STAGE = {"preprocessing", "backbone", "neck", "RPN", "RoI pooling", "box head", "mask head"}
TRAINING = {"loss", "backward", "optimizer"}
PARTS = {
    ("shapes_maskrcnn", "forward"): TWO_STAGE | {"decoding and NMS", "mask pasting"},
    ("shapes_maskrcnn", "training"): TWO_STAGE | TRAINING | {"decoding and NMS"},
    ("shapes_retinanet", "training"): {"preprocessing", "backbone", "neck", "dense head"}
    | TRAINING,
    ("shapes_eomt", "forward"): {"preprocessing", "backbone", "dense head", "decoding and NMS"}
    | {"mask pasting"},
}


def test_a_part_counts_without_the_parts_that_it_calls():
    now = [0.0]

    def spend(seconds):
        now[0] += seconds

    meter = PartMeter()
    inner = meter.wrap("inner", lambda: spend(5))

    def call():
        spend(1)
        inner()
        spend(2)

    outer = meter.wrap("outer", call)
    step = [lambda: (spend(10), outer(), inner(), spend(20)), lambda: 1 / 0]
    assert meter.measure(lambda: now[0], step[0]) == {"other": 30, "outer": 3, "inner": 10}
    with pytest.raises(ZeroDivisionError):
        meter.measure(lambda: now[0], step[1])
    outer()  # does not count
    assert meter.measure(lambda: now[0], inner) == {"other": 0, "inner": 5}


@pytest.mark.parametrize(("config", "mode"), PARTS, ids=str)
def test_parts_add_up_to_the_step(config, mode):
    bench = Bench(config, 112, mode)
    bench.run()
    shares = []
    for _ in range(2):
        whole, parts = bench.seconds()
        assert sum(parts.values()) == pytest.approx(whole)
        shares.append(parts["other"] / whole)
    assert parts.keys() == PARTS[config, mode] | {"other"}
    assert min(shares) < 0.1
    operations = bench.flops()
    assert sum(operations.values()) > 1e8 and not operations["other"]


def test_operations_include_fused_attention_and_windows():
    """2 blocks of 1 + 54 tokens, C = 192, windows of 4 x 4 patches in the first block."""
    arch = dict(patch_size=14, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768)
    settings = dict(arch=arch, window_size=4, global_attn_indices=(1,))
    model = MODELS.build(dict(type="RoPEViT", **settings)).eval()
    special = model.arch.num_special_tokens
    windows = [16, 8, 16, 8, 4, 2]  # patches: a grid of 9 x 6, ragged at both edges
    expected = 2 * 54 * 3 * 14 * 14 * 192  # patch embedding
    for tokens in [special + patches for patches in windows] + [special + 54]:
        expected += 2 * tokens * (4 * 192**2 + 2 * 192 * 768)  # linear layers
        expected += 2 * 2 * tokens**2 * 192  # q times k, weights times v
    images = torch.zeros(1, 3, 126, 84)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context(), FlopCounterMode(display=False) as counter:
            model(images)
        assert counter.get_total_flops() == expected


def test_networks_are_compiled_and_what_they_contain_is_not(monkeypatch):
    """Decoding, losses and pooling stay eager; no clock runs within a compiled network."""
    compiled = []

    def compile_(function):
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    work = Bench("shapes_maskrcnn", 112, compiled=True).work
    names = dict(work.model.named_modules())
    networks = "backbone neck rpn_head roi_head.bbox_head roi_head.mask_head".split()
    assert [call.__self__ for call in compiled] == [names[name] for name in networks]
    compiled.clear()
    work = Bench(PEERS["torchvision::retinanet_resnet50_fpn_v2"], 64, compiled=True).work
    assert [call.__self__ for call in compiled] == [work.model.backbone, work.model.head]
    assert work.model.backbone.fpn._compiled_call_impl is None


def test_operations_of_a_dense_head_by_hand():
    """Two convolutions for classes and for boxes, then 2 anchors of 5 classes or 4 distances."""
    cells = 16**2 + 8**2 + 4**2  # of strides 7, 14 and 28 at 112 pixels
    expected = 2 * 9 * 64 * cells * (4 * 64 + 2 * 5 + 2 * 4)
    forward = Bench("shapes_retinanet", 112).flops()
    assert forward["dense head"] == expected
    training = Bench("shapes_retinanet", 112, "training", batch=2).flops()
    assert training["dense head"] == 2 * expected
    networks = 2 * sum(forward.values())
    assert 2 * networks < training["backward"] < 2.5 * networks  # attention recomputes its weights
