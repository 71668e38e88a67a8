"""Detectors on directories of photos, at equal time: docs/first_hour.md has the results."""
