"""Export to ONNX and torch.export, and publishing of checkpoints."""

from ropevit_mmdet.deploy.export import FORMATS, Request, check_request, export_model
from ropevit_mmdet.deploy.publish import Published, publish_checkpoint, publish_model

__all__ = [
    "FORMATS",
    "Published",
    "Request",
    "check_request",
    "export_model",
    "publish_checkpoint",
    "publish_model",
]
