"""A detector with random weights, shared by the tests of `apis`."""

import pytest
import torch

from ropevit_mmdet.engine.config import build_detector, load_config
from tests.tiny_coco import write_tiny


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Its config and its checkpoint, which has class names and the config as a run saves them."""
    directory = tmp_path_factory.mktemp("detector")
    path = write_tiny(directory)
    torch.manual_seed(0)
    config = load_config(path)
    model = build_detector(config)
    model.init_weights()
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight)  # scores that differ
    meta = {"dataset_meta": {"classes": ("dark", "light")}, "cfg": config.pretty_text}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, directory / "tiny.pth")
    return path, directory / "tiny.pth"
