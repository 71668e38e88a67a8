"""Detectors as files that run without this package: ONNX, and torch.export's .pt2."""
