"""The demo: its summary and its table."""

import importlib.util

from tests.processes import ROOT

_spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
demo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(demo)


def test_table_and_summary():
    metrics = {"bbox/bbox_mAP": 0.51, "bbox/bbox_mAP_50": 0.7, "bbox/bbox_mAP_75": 0.6}
    metrics |= {"segm/segm_mAP": 0.52, "segm/segm_mAP_50": 0.8, "segm/segm_mAP_75": 0.61}
    metrics |= {"bbox/ring_precision": 0.4, "segm/ring_precision": 0.3}
    summary = demo.summarize(metrics, ["ring"]) | {"test_images": 300}
    assert summary["per_class"] == {"ring": {"bbox_mAP": 0.4, "segm_mAP": 0.3}}
    lines = demo.table(summary).splitlines()
    assert lines[1].split() == "all classes 0.510 0.700 0.600 0.520 0.800 0.610".split()
    assert lines[2].split() == "ring 0.400 0.300".split()
