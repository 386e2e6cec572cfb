"""The demonstration: what it says when it cannot begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from vicibridge.cli import cli


def test_a_directory_without_recordings(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="the demo needs rich")
    result = CliRunner().invoke(cli, ["demo", "--recordings", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == f"Error: no *.recording files in {tmp_path}\n"
