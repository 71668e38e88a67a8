"""What can be measured: weights, detections, data, and detectors of other libraries."""

import math
from functools import partial

import pytest
import torch
from mmengine.logging import MMLogger, print_log

from benchmarks import peers
from ropevit_mmdet import RoPEViT
from ropevit_mmdet.apis.benchmark.measure import Bench
from tests.tiny_coco import write_tiny

TWO_STAGE = {
    "birder::vitdet/rope_vit_t14": set(),
    "torchvision::maskrcnn_resnet50_fpn_v2": {"preprocessing", "mask head", "mask pasting"},
}
ONE_STAGE = {"preprocessing", "backbone", "neck", "dense head", "decoding and NMS", "mask pasting"}


@pytest.mark.parametrize(("config", "masks"), [("shapes_maskrcnn", 1), ("shapes_retinanet", 0)])
def test_images_have_exactly_so_many_detections(config, masks):
    for count in (0, 7):
        work = Bench(config, 112, batch=2, detections=count).work
        work.model.eval()
        with torch.no_grad():
            samples = work.predict(work.batch())
        for sample in samples:
            found = sample.pred_instances
            assert len(found) == count and ("masks" in found) == masks
            if masks:
                assert found.masks.shape == (count, 112, 112)


def test_building_logs_no_parameters(capfd, monkeypatch):
    monkeypatch.setattr(MMLogger, "_instance_dict", {})  # others write to streams of other tests
    print_log("before", "current")
    level = MMLogger.get_current_instance().level
    assert Bench("shapes_retinanet", 112, "training").work
    print_log("after", "current")
    captured = capfd.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if "mmengine" in line]
    assert len(lines) == 2 and MMLogger.get_current_instance().level == level


def test_weights_are_as_initialised():
    """With the prior of the classifier no anchor passes the threshold, and detections are few."""
    work = Bench("shapes_retinanet", 112, detections=None).work
    bias = work.model.bbox_head.retina_cls.bias
    assert bias.detach().allclose(torch.full_like(bias, -math.log(0.99 / 0.01)))
    work.model.eval()
    with torch.no_grad():
        (sample,) = work.predict(work.batch())
    assert len(sample.pred_instances) == 0


def test_weights_of_a_checkpoint_and_images_of_the_data(tmp_path):
    config = str(write_tiny(tmp_path))
    torch.manual_seed(3)
    weights = Bench(config, 64).work.model.state_dict()
    weights = {name: torch.rand_like(value.float()) for name, value in weights.items()}
    torch.save(dict(meta={}, state_dict=weights), tmp_path / "weights.pth")
    bench = Bench(
        config, 0, "training", batch=3, data=True, checkpoint=str(tmp_path / "weights.pth")
    )
    assert bench.work.model.bbox_head.retina_cls.weight.equal(
        weights["bbox_head.retina_cls.weight"]
    )
    _, parts = bench.seconds()
    assert parts["data loading"] > 0 and len(bench.work.batch()["inputs"]) == 3
    _, parts = Bench(config, 0, data=True).seconds()
    assert parts["data loading"] > 0


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("peer", TWO_STAGE)
def test_two_stage_peers(peer, mode):
    """With fewer proposals than by default."""
    if peer.startswith("birder"):
        pytest.importorskip("birder")
    library, _, name = peer.partition("::")
    source = partial(peers.detector, library=library, name=name)
    bench = Bench(source, 112, mode, detections=5)
    model = bench.work.model
    model.rpn._post_nms_top_n = dict(training=20, testing=10)
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
    if not bench.training:
        model.eval()
        with torch.no_grad():
            found = bench.work.predict(bench.work.batch())
        (found,) = found[0] if peer.startswith("birder") else found
        assert len(found["boxes"]) == 5
    operations = bench.flops()
    expected = {"backbone", "neck", "RPN", "RoI pooling", "box head", "decoding and NMS"}
    expected |= {"loss", "backward", "optimizer"} if bench.training else set()
    assert operations.keys() - {"mask pasting"} == (expected | TWO_STAGE[peer] | {"other"}) - {
        "mask pasting"
    }
    assert not operations["other"] and operations["box head"] > 0 < operations["backbone"]


def test_one_stage_peer():
    bench = Bench(peers.PEERS["torchvision::retinanet_resnet50_fpn_v2"], 64, detections=5)
    operations = bench.flops()
    assert operations.keys() == ONE_STAGE | {"other"} and operations["dense head"] > 0


def test_backbones():
    small = dict(patch_size=14, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    build = partial(RoPEViT, small, window_size=4, global_attn_indices=(1,))
    variant = partial(peers.backbone, build=lambda side: build())
    forward = Bench(variant, 56).flops()
    training = Bench(variant, 56, "training").flops()
    assert forward.keys() == {"backbone", "other"}
    assert training["backbone"] == forward["backbone"] < training["backward"]
