"""Writes homes.npz, maps of timm 1.0.31 and transformers 5.24: `python -m tests.data.make_homes`."""

from pathlib import Path

import numpy as np

from tests.home_files import ARCHS, golden_maps

if __name__ == "__main__":
    goldens = {key: value for case in ARCHS for key, value in golden_maps(case).items()}
    np.savez_compressed(Path(__file__).with_name("homes.npz"), **goldens)
