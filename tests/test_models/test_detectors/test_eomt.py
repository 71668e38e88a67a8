"""EoMT as a detector: predictions, frozen parts, and as one graph."""

import pytest
import torch
from mmdet.registry import MODELS

from ropevit_mmdet.errors import UserError
from tests.oracle import relative_error
from tests.test_models.test_dense_heads.test_eomt_head import (
    CLASSES,
    QUERIES,
    build,
    samples,
    small_config,
)


@pytest.mark.parametrize("stuff", [0, 2])
def test_predictions_have_the_original_size(stuff):
    model = build(stuff=stuff).eval()
    images, sides = torch.randn(2, 3, 70, 84), [(70, 60), (56, 84)]
    with torch.no_grad():
        results = model.predict(images, samples(images, sides))
    for result, (height, width) in zip(results, sides):
        instances = result.pred_instances
        assert instances.masks.shape[1:] == (2 * height, 2 * width)
        assert len(instances) <= QUERIES and (instances.labels < CLASSES).all()
        for box, mask in zip(instances.bboxes, instances.masks):
            if mask.any():
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert box.tolist() == expected
        assert ("pred_panoptic_seg" in result) == (stuff > 0)
        if stuff:
            assert result.pred_panoptic_seg.sem_seg.shape == (1, 2 * height, 2 * width)


@pytest.mark.parametrize("stages", [0, 2, 4])
def test_frozen_stages(stages):
    """Also of blocks that the queries pass: their gradient goes through frozen blocks."""
    model = build(frozen_stages=stages, with_cp=True).train()
    images = torch.randn(2, 3, 56, 56)
    sum(model.loss(images, samples(images, [(56, 56)] * 2)).values()).backward()
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen and not [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert not [n for n in frozen if model.get_parameter(n).grad is not None]
    assert not [n for n in frozen if n.startswith("panoptic_head")]
    expected = [i < stages for i in range(4)]
    assert [f"backbone.blocks.{i}.attn.qkv.weight" in frozen for i in range(4)] == expected


def test_frozen_backbone_is_refused():
    config = small_config()
    config.backbone = dict(type="FrozenBackbone", backbone=config.backbone)
    message = r"^backbone must be RoPEViT \(with frozen_stages\), got 'FrozenBackbone'$"
    with pytest.raises(UserError, match=message):
        MODELS.build(config)


def test_neck_is_refused():
    config = small_config()
    config.neck = dict(type="SimpleFeaturePyramid", in_channels=32)
    with pytest.raises(UserError, match="^neck must be None: EoMT reads tokens, got "):
        MODELS.build(config)


SMALLER = dict(arch=dict(num_layers=2), head=dict(num_blocks=1))  # a graph takes time per block
WINDOWS = dict(window_size=2, global_attn_indices=())


@pytest.mark.parametrize(("training", "windows"), [(False, {}), (True, WINDOWS)])
def test_compiles_as_one_graph(training, windows):
    model = build(**SMALLER, **windows).train(training)
    images = torch.randn(2, 3, 70, 56)
    compiled = torch.compile(model._forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for one, other in zip(compiled(images), model._forward(images), strict=True):
            assert len(one) == (2 if training else 1)
            for a, b in zip(one, other, strict=True):
                assert relative_error(a, b) <= 1e-5
