"""Datasets that come with the package: made on the spot, nothing to download."""
