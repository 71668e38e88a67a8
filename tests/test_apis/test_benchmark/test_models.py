"""What can be measured: weights, detections, data, and detectors of other libraries."""

import math
from functools import partial

import pytest
import torch

from benchmarks import peers
from ropevit_mmdet.apis.benchmark.measure import Bench
from tests.tiny_coco import write_tiny

COMMON = {"backbone", "neck", "decoding and NMS", "other"}
TWO_STAGE = COMMON | {"RPN", "RoI pooling", "box head"}
PEERS = {  # the parts that count operations in a prediction
    "birder::vitdet/rope_vit_t14": TWO_STAGE,
    "torchvision::maskrcnn_resnet50_fpn_v2": TWO_STAGE | {"preprocessing", "mask head"},
    "torchvision::retinanet_resnet50_fpn_v2": COMMON | {"preprocessing", "dense head"},
}


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
@pytest.mark.parametrize("peer", PEERS)
def test_peers(peer, mode):
    """With fewer proposals than by default."""
    if peer.startswith("birder"):
        pytest.importorskip("birder")
    library, _, name = peer.partition("::")
    source = partial(peers.detector, library=library, name=name)
    bench = Bench(source, 112, mode, detections=5)
    model = bench.work.model
    if "RPN" in PEERS[peer]:
        model.rpn._post_nms_top_n = dict(training=20, testing=10)
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
    if not bench.training:
        model.eval()
        with torch.no_grad():
            found = bench.work.predict(bench.work.batch())
        (found,) = found[0] if peer.startswith("birder") else found
        assert len(found["boxes"]) == 5
    operations = bench.flops()
    expected = PEERS[peer] | ({"loss", "backward", "optimizer"} if bench.training else set())
    assert operations.keys() - {"mask pasting"} == expected and not operations["other"]
    head = {"dense head", "box head"} & PEERS[peer]
    assert operations[head.pop()] > 0 < operations["backbone"]
