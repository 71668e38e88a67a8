"""What the commands call, usable from Python: predict, browse, features, compare, benchmark."""

from ropevit_mmdet.apis.browse import PipelineOutput, RenderedImage
from ropevit_mmdet.apis.features import FeatureSource, from_checkpoint, from_detector
from ropevit_mmdet.apis.ground_truth import GroundTruth
from ropevit_mmdet.apis.predict import Detector, choose_device, predict_files

__all__ = [
    "Detector",
    "FeatureSource",
    "GroundTruth",
    "PipelineOutput",
    "RenderedImage",
    "choose_device",
    "from_checkpoint",
    "from_detector",
    "predict_files",
]
