"""Runs `ropevit` commands in the process of the tests."""

import os
from unittest import mock

import pytest

from ropevit_cli.main import main


def ropevit(*argv: object) -> int:
    """Runs `ropevit *argv` with the environment variables restored; returns the exit status."""
    with mock.patch.dict(os.environ):
        return main([str(arg) for arg in argv])


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs `ropevit *argv`, which must print one line and exit with status 2; returns the line."""
    with pytest.raises(SystemExit) as stop:
        ropevit(*argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
