"""Detectors of torchvision and birder behind MMDetection's interface: same batches, same loop."""

from typing import Any

import torch
import torchvision
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.transforms.functional import resize

from ropevit_mmdet.engine.config import load_config


@MODELS.register_module()
class PeerDetector(BaseDetector):
    """Trains and predicts with a detector of `library`; images arrive normalized.

    Args:
        library: `torchvision` or `birder`.
        name: the detector's name there. torchvision's Mask R-CNN is Faster R-CNN without masks;
            birder's detectors get the tiny RoPE ViT of `configs/shapes_transfer.py`.
        num_classes: without background.
        size: the longer side of an image, in pixels.
        anchor: for torchvision, `center` of the sizes in pixels and `ratio`, height / width.
    """

    def __init__(
        self,
        library: str,
        name: str,
        num_classes: int,
        size: int,
        anchor: dict[str, float],
        has_masks: bool,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.as_list = library == "torchvision"
        if self.as_list:
            name = name if has_masks else name.replace("maskrcnn", "fasterrcnn")
            self.net = _torchvision(name, num_classes, anchor)
        else:
            self.net = _birder(name, num_classes, size)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        targets = []
        for sample in batch_data_samples:
            objects = sample.gt_instances
            boxes = getattr(objects.bboxes, "tensor", objects.bboxes)
            target = dict(boxes=boxes, labels=objects.labels + 1)  # 0 is the background
            if "masks" in objects:
                height, width = sample.img_shape
                masks = objects.masks.to_tensor(torch.uint8, boxes.device)
                target["masks"] = masks[:, :height, :width]
            targets.append(target)
        losses = self._run(batch_inputs, batch_data_samples, targets)
        losses = losses if self.as_list else losses[1]
        return {key if "loss" in key else f"loss_{key}": value for key, value in losses.items()}

    def predict(self, batch_inputs: Tensor, batch_data_samples: list, rescale: bool = True) -> list:
        results = self._run(batch_inputs, batch_data_samples, None)
        found = []
        for sample, result in zip(
            batch_data_samples, results if self.as_list else results[0], strict=True
        ):
            boxes = result["boxes"]
            if rescale:
                boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
            one = InstanceData(bboxes=boxes, scores=result["scores"], labels=result["labels"] - 1)
            if "masks" in result:
                shape = list(sample.ori_shape if rescale else sample.img_shape)
                one.masks = resize(result["masks"], shape)[:, 0] > 0.5
            found.append(one)
        return self.add_pred_to_datasample(batch_data_samples, found)

    def _run(self, images: Tensor, samples: list, targets: list | None) -> Any:
        shapes = [tuple(sample.img_shape) for sample in samples]
        if not self.as_list:
            return self.net(images, targets, image_sizes=shapes)
        cropped = [image[:, :h, :w] for image, (h, w) in zip(images, shapes, strict=True)]
        return self.net(cropped, targets)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: list) -> Any:
        return self._run(batch_inputs, batch_data_samples, None)

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        raise NotImplementedError("the peers keep their feature maps to themselves")


def _torchvision(name: str, num_classes: int, anchor: dict[str, float]) -> nn.Module:
    """With the anchor sizes of our configs; it gets neither sizes nor statistics to change."""
    smallest = anchor["center"] / 2**1.25
    sizes = tuple((smallest * 2**level, smallest * 2 ** (level + 0.5)) for level in range(5))
    anchors = AnchorGenerator(sizes, ((anchor["ratio"],),) * len(sizes))
    key = "anchor_generator" if name.startswith("retinanet") else "rpn_anchor_generator"
    options = dict(image_mean=[0.0] * 3, image_std=[1.0] * 3, _skip_resize=True)
    return torchvision.models.get_model(
        name,
        weights=None,
        weights_backbone=None,
        num_classes=num_classes + 1,
        **{key: anchors},
        **options,
    )


def _birder(name: str, num_classes: int, size: int) -> nn.Module:
    import birder.net.detection  # noqa: F401  (registers)
    from birder.model_registry import registry

    arch = load_config("configs/shapes_transfer.py").model.backbone.arch.to_dict()
    del arch["pt_grid_size"]
    net = registry.net_factory("rope_vit_reg4_b14", 0, config=arch, size=(size, size))
    return registry.detection_net_factory(name, num_classes, net, size=(size, size))
