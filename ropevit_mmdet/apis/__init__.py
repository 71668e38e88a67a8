"""What the commands call, usable from Python: detector, adapt, predict, browse, features ..."""

from ropevit_mmdet.apis.adaptation import adapt
from ropevit_mmdet.apis.browse import PipelineOutput
from ropevit_mmdet.apis.detector import Detector, choose_device
from ropevit_mmdet.apis.features import FeatureSource, load_features
from ropevit_mmdet.apis.predict import predict_files

__all__ = [
    "Detector",
    "FeatureSource",
    "PipelineOutput",
    "adapt",
    "choose_device",
    "load_features",
    "predict_files",
]
