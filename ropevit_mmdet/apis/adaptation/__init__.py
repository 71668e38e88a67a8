"""Puts a RoPEViT and its pyramid into any detector config of mmdet, and checks the result."""

from ropevit_mmdet.apis.adaptation.check import check_training
from ropevit_mmdet.apis.adaptation.config_file import read_config
from ropevit_mmdet.apis.adaptation.conversion import adapt

__all__ = ["adapt", "check_training", "read_config"]
