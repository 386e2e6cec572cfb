"""The bridge under systemd: ready, watchdog, reload with SIGHUP, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, observing, run, start_bridge
from vicibridge.ops.systemd import Systemd

from vicifast.testing import FakeCharon

ROOT = Path(__file__).parents[2]
LOG = {"group": "IKE", "level": "1", "thread": "3", "msg": "hello"}


@pytest.fixture(autouse=True)
def _http(_no_http: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "127.0.0.1:0")


@asynccontextmanager
async def systemd(path: Path | str) -> AsyncIterator[Callable[[str], Any]]:
    """Listen as systemd does; yields a function that waits for a message that contains a text."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.setblocking(False)
        ear.bind(str(path).replace("@", "\0"))
        heard: list[str] = []

        async def hear(text: str) -> str:
            while not any(text in message for message in heard):
                heard.append((await asyncio.get_running_loop().sock_recv(ear, 4096)).decode())
            found = next(message for message in heard if text in message)
            heard.remove(found)
            return found

        yield hear


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stderr
    while True:
        line = (await asyncio.wait_for(process.stderr.readline(), 15)).decode()
        assert line, f"the end came before {text!r}"
        if text in line:
            return line


def test_process_under_systemd(nats_server: NatsServer, tmp_path: Path) -> None:
    """Ready, watchdog, reload, stop; SIGHUP applies the live settings without losing an event."""

    async def test() -> None:
        await nats_server.up()
        config = tmp_path / "bridge.toml"

        async def emit(charon: FakeCharon, count: int) -> None:
            for _ in range(count):
                charon.emit("log", LOG)
                await asyncio.sleep(0)

        async with (
            FakeCharon() as charon,
            observing(nats_server.url) as observer,
            systemd(tmp_path / "notify") as hear,
        ):
            text = (
                f'[nats]\nservers = ["{nats_server.url}"]\npassword = "hunter2"\nuser = "u"\n'
                f'[[gateway]]\nnode = "gw1"\nvici = "{charon.address}"\n'
            )
            config.write_text(text)
            bridge = await start_bridge(config, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
            try:
                await hear("READY=1")
                await hear("WATCHDOG=1")
                await hear("STATUS=NATS connected, charon up at 1 of 1")
                charon.on("terminate", {"success": "yes"})
                [refused] = await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "x"}')
                assert refused.headers and refused.headers["Nats-Service-Error-Code"] == "403"

                emitting = asyncio.create_task(emit(charon, 2000))
                config.write_text(text + '[commands]\nallow = ["@operate"]\n[log]\nlinger_ms = 1\ncodec = "json"\n')
                bridge.send_signal(signal.SIGHUP)
                assert "MONOTONIC_USEC=" in await hear("RELOADING=1")
                await hear("READY=1")
                assert "applied: log.linger_ms, commands.allow" in await line_with(bridge, "configuration")
                assert "needs a restart: log.codec" in await line_with(bridge, "configuration")
                [done] = await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "x"}')
                assert done.headers and done.headers["Status"] == "200"
                await emitting
                lines = await observer.sees(".log.", 2000)
                assert [envelope["seq"] for _, envelope in lines] == list(range(1, 2001))

                config.write_text("[nats\nhunter2")
                bridge.send_signal(signal.SIGHUP)
                assert "not applied" in (problem := await line_with(bridge, "configuration"))
                assert "invalid TOML" in problem and "hunter2" not in problem
                [done] = await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "x"}')
                assert done.headers and done.headers["Status"] == "200"

                bridge.send_signal(signal.SIGTERM)
                await hear("STOPPING=1")
                assert await asyncio.wait_for(bridge.wait(), 10) == 0
            finally:
                if bridge.returncode is None:
                    bridge.kill()
                    await bridge.wait()

    run(test())


def test_watchdog_and_health_stop_with_the_event_loop(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        config = tmp_path / "bridge.toml"
        config.write_text(f'[nats]\nservers = ["{nats_server.url}"]\n[[gateway]]\nnode = "gw1"\nvici = "/nowhere"\n')
        address = "@vicibridge-test-" + os.urandom(8).hex()
        async with systemd(address) as hear:
            bridge = await start_bridge(config, NOTIFY_SOCKET=address, WATCHDOG_USEC="200000")
            try:
                await hear("WATCHDOG=1")
                bridge.send_signal(signal.SIGSTOP)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.6):
                        while True:
                            await hear("WATCHDOG=1")
            finally:
                bridge.kill()
                await bridge.wait()

    run(test())


def test_no_notifications_without_systemd(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(variable, raising=False)
    assert Systemd().watchdog is None
    Systemd().ready()
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    Systemd().ready()
    assert "cannot notify systemd" in caplog.text
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert Systemd().watchdog == 3
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Systemd().watchdog is None
