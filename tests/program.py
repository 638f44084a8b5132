"""What tests of the program share."""

from __future__ import annotations

import pytest

from gritvq.cli import main


def wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says about wrong input; one message, exit code 2."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else -1
    said = capsys.readouterr().err
    assert code == 2 and "error: " in said and "Traceback" not in said
    return said
