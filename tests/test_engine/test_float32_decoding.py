"""Under autocast to half precision, boxes are decoded and RoIs extracted in float32."""

import pytest
import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils._pytree import tree_leaves

from ropevit_mmdet.engine import float32_decoding
from tests.test_configs import CONFIGS, load
from tests.tiny_coco import write_tiny

NAMES = ["maskrcnn", "cascade-maskrcnn", "retinanet", "fcos", "atss"]


def detector(name):
    model = MODELS.build(load(CONFIGS / f"ropevit_{name}.py").model).eval()
    float32_decoding(model)
    return model


def wide_image(model):
    """An image of 112 x 1120 pixels: at the right edge bfloat16 has steps of 4 and 8 pixels."""
    image = torch.randint(0, 256, (3, 112, 1120), dtype=torch.uint8)
    shape = dict(img_shape=(112, 1120), ori_shape=(112, 1120), scale_factor=(1.0, 1.0))
    return model.data_preprocessor(
        dict(inputs=[image], data_samples=[DetDataSample(metainfo=dict(shape, img_id=0))])
    )


@pytest.mark.parametrize(
    ("name", "half"), [("cascade-maskrcnn", torch.bfloat16), ("fcos", torch.float16)], ids=str
)
def test_outputs_of_heads_and_inputs_of_roi_extractors_are_float32(name, half):
    model, seen = detector(name), []

    def note(module, args, outputs=None):
        values = args if isinstance(module, SingleRoIExtractor) else outputs
        seen.extend((type(module), value.dtype) for value in tree_leaves(values))

    for module in model.modules():
        if isinstance(module, SingleRoIExtractor):
            module.register_forward_pre_hook(note)
        elif isinstance(module, (BaseDenseHead, BBoxHead)):
            module.register_forward_hook(note)
    with torch.no_grad(), torch.autocast("cpu", half):
        model(**wide_image(model), mode="predict")
    assert {dtype for _, dtype in seen} == {torch.float32}
    assert (SingleRoIExtractor in dict(seen)) == hasattr(model, "roi_head")


@pytest.mark.parametrize("name", NAMES)
def test_boxes_equal_those_decoded_in_float64(name):
    assert_boxes_equal_float64(detector(name), torch.bfloat16)


def assert_boxes_equal_float64(model, half):
    """The same outputs decoded in float64, outside autocast: within a hundredth of a pixel."""
    data = wide_image(model)
    head = model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head
    metas = [sample.metainfo for sample in data["data_samples"]]
    decode = dict(batch_img_metas=metas, with_nms=False)
    with torch.no_grad():
        with torch.autocast(data["inputs"].device.type, half):
            outs = head(model.extract_feat(data["inputs"]))
            (result,) = head.predict_by_feat(*outs, **decode)
        double = [[level.double() for level in levels] for levels in outs]
        (expected,) = head.predict_by_feat(*double, **decode)
    assert result.bboxes.dtype == torch.float32
    assert result.bboxes[:, 0].max() > 1000
    torch.testing.assert_close(result.bboxes.double(), expected.bboxes, atol=0.01, rtol=0)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("run", ["train", "val", "test"])
def test_a_run_with_the_checks_decodes_in_float32(run, tmp_path):
    config = Config.fromfile(write_tiny(tmp_path))
    config.custom_hooks = [dict(type="RoPEViTChecks")]
    config.train_cfg.val_interval = 1  # a validation within training
    config.work_dir = str(tmp_path / "run")
    runner = Runner.from_cfg(config)
    seen = []
    forward = runner.model.bbox_head.forward
    runner.model.bbox_head.forward = lambda x: seen.append(hooks_of(runner.model)) or forward(x)
    getattr(runner, run)()
    assert min(seen) == 1 and hooks_of(runner.model) == 0
