"""Collect what is wrong with a dataset: kinds of finding, and where each was found."""

from collections.abc import Mapping
from typing import Any, NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class Kind(NamedTuple):
    """A kind of finding. Errors stop a run, warnings are dealt with as they say, notes are fine."""

    severity: str
    meaning: str


class Findings:
    """Where each kind of finding was found, in the order in which kinds were met."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds = kinds
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, place: str) -> None:
        assert kind in self.kinds, kind
        self.places.setdefault(kind, []).append(place)

    def update(self, other: "Findings") -> None:
        """Take over what another collection found."""
        self.kinds = {**self.kinds, **other.kinds}
        for kind, places in other.places.items():
            self.places.setdefault(kind, []).extend(places)

    def of(self, severity: str) -> list[str]:
        """The kinds of one severity that were found."""
        return [kind for kind in self.places if self.kinds[kind].severity == severity]

    def summary(self, severity: str, at_most: int = 2) -> str:
        """The kinds of one severity in one line, each with its number and some places."""
        parts = []
        for kind in self.of(severity):
            places = self.places[kind]
            more = ", ..." if len(places) > at_most else ""
            said = "; ".join(places[:at_most])
            parts.append(f"{self.kinds[kind].meaning} ({len(places)}: {said}{more})")
        return "; ".join(parts)


def short(value: Any, length: int = 60) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
