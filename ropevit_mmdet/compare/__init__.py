"""Compare backbones under one detection protocol: which is the best start, and at what cost."""
