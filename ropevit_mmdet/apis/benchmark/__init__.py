"""Benchmark of detectors, whole and by part, and of backbones; the plan of a training run."""
