"""Under autocast to bfloat16 boxes are decoded, and regions cut out, in float32."""

import pytest
import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample

from tests.test_configs import CONFIGS, load

NAMES = ["maskrcnn", "cascade-maskrcnn", "retinanet", "fcos", "atss"]
CASES = [(name, torch.bfloat16) for name in NAMES] + [("fcos", torch.float16)]  # slow on a CPU


def detector(name):
    config = load(CONFIGS / f"ropevit_{name}.py")
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


def wide_image(model):
    """An image of 112 x 1120 pixels: far to the right bfloat16 counts in steps of 4 and 8."""
    image = torch.randint(0, 256, (3, 112, 1120), dtype=torch.uint8)
    shape = dict(img_shape=(112, 1120), ori_shape=(112, 1120), scale_factor=(1.0, 1.0))
    return model.data_preprocessor(
        dict(inputs=[image], data_samples=[DetDataSample(metainfo=dict(shape, img_id=0))])
    )


@pytest.mark.parametrize(("name", "half"), CASES, ids=str)
def test_decoding_and_regions_are_float32(name, half, monkeypatch):
    model = detector(name)
    data = wide_image(model)
    outputs, regions = [], []

    def watch(cls, method, seen):
        original = getattr(cls, method)

        def watched(self, *args, **kwargs):
            seen.append((*args, *kwargs.values()))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, method, watched)

    dense = model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head
    watch(type(dense), "predict_by_feat", outputs)
    watch(SingleRoIExtractor, "forward", regions)
    for head in BBoxHead.__subclasses__():
        if hasattr(head, "predict_by_feat"):
            watch(head, "predict_by_feat", outputs)
    with torch.no_grad(), torch.autocast("cpu", half):
        model(**data, mode="predict")

    for args in outputs:
        tensors = [t for arg in args if isinstance(arg, (list, tuple)) for t in arg]
        assert {t.dtype for t in tensors if isinstance(t, torch.Tensor)} == {torch.float32}
    for maps, rois in regions:
        assert {t.dtype for t in (*maps, rois)} == {torch.float32}
    assert regions or not hasattr(model, "roi_head")


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_those_that_the_outputs_mean(name):
    assert_boxes_are_meant(detector(name), torch.bfloat16)


def assert_boxes_are_meant(model, half):
    """The same outputs decoded in float64, away from autocast: within a hundredth of a pixel."""
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


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_regions_are_cut_out_in_float32_of_maps_of_any_neck(half):
    layer = dict(type="RoIAlign", output_size=7, sampling_ratio=0)
    extractor = SingleRoIExtractor(layer, out_channels=2, featmap_strides=[4])
    maps = torch.randn(1, 2, 80, 80).to(half)
    rois = torch.tensor([[0.0, 201.3, 187.7, 213.4, 199.9]])
    torch.testing.assert_close(extractor((maps,), rois), extractor((maps.float(),), rois))


def test_outside_autocast_nothing_is_widened():
    model = detector("fcos").double()
    with torch.no_grad():
        maps = model.extract_feat(torch.rand(1, 3, 112, 112, dtype=torch.float64))
    assert {level.dtype for level in maps} == {torch.float64}
    assert BaseDenseHead.__call__ is BBoxHead.__call__ is not torch.nn.Module.__call__
