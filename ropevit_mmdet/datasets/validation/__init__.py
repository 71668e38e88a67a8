"""Validation of datasets in COCO's format: the table of checks, and a report."""
