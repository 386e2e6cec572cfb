"""The bridge's own log: its formats, repeated lines, and an unread pipe."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from harness import run, settings, start_bridge
from vicibridge.ops import logsetup

from vicifast.testing import FakeCharon


def logged(capfd: pytest.CaptureFixture[str], level: str, form: str, *calls: Callable[[], None]) -> list[str]:
    before = logging.root.level, logging.root.handlers
    try:
        logging.root.handlers = []
        logsetup.set_up(settings("nats://h", logging={"level": level, "format": form}).logging)
        for call in calls:
            call()
    finally:
        for handler in logging.root.handlers:
            handler.close()
        logging.root.level, logging.root.handlers = before
    return capfd.readouterr().err.splitlines()


def broken() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("x").exception("it %s", "broke")


def test_log_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    line, error = logged(
        capfd,
        "info",
        "json",
        lambda: logging.getLogger("vicibridge.bus.supervisor").info('a "%s"\nline', "quoted"),
        broken,
    )
    parsed = json.loads(line)
    assert {**parsed, "time": ""} == {
        "time": "",
        "level": "info",
        "logger": "vicibridge.bus.supervisor",
        "message": 'a "quoted"\nline',
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", parsed["time"])
    assert json.loads(error)["exception"].endswith("ValueError: no\nway")


def test_log_for_the_journal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    lines = logged(capfd, "warning", "text", lambda: logging.getLogger("x").info("not shown"), broken)
    assert lines[0] == "<3>it broke" and all(line.startswith("<3>") for line in lines)


def test_log_limits_repeated_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(logsetup.time, "monotonic", lambda: clock[0])

    def flood() -> None:
        for number in range(1000):
            logging.getLogger("x").warning("event %d is odd", number)
        logging.getLogger("x").warning("something else")
        clock[0] = 11.0
        logging.getLogger("x").warning("event %d is odd", 1000)

    lines = logged(capfd, "info", "text", flood)
    assert len(lines) == 32
    assert lines[30].endswith("something else")
    assert lines[31].endswith("event 1000 is odd (970 similar lines suppressed before)")


def test_unread_log_blocks_nothing(tmp_path: Path) -> None:
    """charon buffers unread events, so the bridge keeps reading while its own log is blocked."""
    config = tmp_path / "bridge.toml"

    async def test() -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        async with FakeCharon() as charon:
            config.write_text(
                f'[nats]\nservers = ["nats://127.0.0.1:1"]\n[[gateway]]\nnode = "gw1"\nvici = "{charon.address}"\n'
            )
            bridge = await start_bridge(config, stderr=writing, VICIBRIDGE_SPOOL__PATH=str(tmp_path))
            try:
                await charon.registered("log")
                bridge.terminate()
                assert await asyncio.wait_for(bridge.wait(), 15) == 0
            finally:
                if bridge.returncode is None:
                    bridge.kill()
                    await bridge.wait()
                os.close(reading)
                os.close(writing)

    run(test())
