"""Faults of the bridge or its host while events flow."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from pathlib import Path

import pytest
from harness import NatsServer, run, service, settings, start_bridge, stored, until
from test_spool import mounted, needs_root
from traffic import Traffic, account, heard, scene, verify_absent, verify_whole

from vicifast.testing import FakeCharon

pytestmark = pytest.mark.faults


# A bridge on a disk that takes 0.1 s to read a mebibyte.
SLOW = """
import time
from vicibridge.cli import cli
from vicibridge.events.spool import Spool

read = Spool.read
Spool.read = lambda *arguments: (time.sleep(0.1), read(*arguments))[1]
cli()
"""


async def start(config: Path, *program: str) -> asyncio.subprocess.Process:
    return await start_bridge(config, *program, stderr=asyncio.subprocess.DEVNULL)


def test_bridge_killed_at_random_moments(nats_server: NatsServer, tmp_path: Path) -> None:
    """With the server up, down, and returning; losses are reported for the run that lost them."""
    dice = random.Random(6)
    config = tmp_path / "bridge.toml"

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            config.write_text(
                f'[nats]\nservers = ["{nats_server.url}"]\nprobe_interval = 0.3\n[mirror]\nenabled = false\n'
                f'[[gateway]]\nnode = "gw1"\nvici = "{charon.address}"\n'
            )
            traffic = Traffic(charon)
            traffic.breaks_here()  # no client is registered yet
            async with traffic.flowing():
                for turn in range(8):
                    bridge = await start(config)
                    await heard(charon)
                    await asyncio.sleep(dice.uniform(0.05, 0.8))
                    if turn % 3 == 1:
                        nats_server.kill()
                        await asyncio.sleep(dice.uniform(0.05, 0.5))
                    bridge.kill()
                    traffic.breaks_here()
                    await bridge.wait()
                    await charon.connected(0)
                    if turn % 3 == 2:
                        await nats_server.up()
            if nats_server.process is None:
                await nats_server.up()
            bridge = await start(config)
            await heard(charon)
            bridge.terminate()
            assert await asyncio.wait_for(bridge.wait(), 20) == 0
        found = await account(nats_server.url, traffic.sent)
        assert set(found.dropped) <= {"the bridge was killed"}
        verify_absent(found, traffic)

    run(test(), 90)


def test_bridge_killed_while_the_spool_is_read_back(nats_server: NatsServer, tmp_path: Path) -> None:
    """New events meanwhile go to disk as quickly as usual."""
    config = tmp_path / "bridge.toml"

    async def test() -> None:
        async with FakeCharon() as charon:
            traffic = Traffic(charon, lines=0)
            spool = {"path": tmp_path / "spool"}
            async with service(settings(nats_server.url, charon.address, spool=spool)) as bridge:
                await heard(charon)
                for _ in range(40):
                    for _ in range(100):
                        traffic.emit(pad="x" * 10_000)
                    await until(lambda: bridge.gateways[0].reader.events["ike-updown", "down"] == traffic.sent)
            traffic.breaks_here()
            waiting = traffic.sent
            config.write_text(
                f'[nats]\nservers = ["{nats_server.url}"]\n[mirror]\nenabled = false\n'
                f'[spool]\npath = "{tmp_path}/spool"\n[[gateway]]\nnode = "gw1"\nvici = "{charon.address}"\n'
            )
            await nats_server.up()
            killed = await start(config, "-c", SLOW)
            await heard(charon)
            async with traffic.flowing():
                await asyncio.sleep(1)
                saved = traffic.sent
                await asyncio.sleep(0.5)
                killed.kill()
                traffic.breaks_here()
            await killed.wait()
            assert 0 < len(await stored(nats_server.url)) < waiting  # it was killed while reading
            await charon.connected(0)
            last = await start(config)
            await heard(charon)
            last.terminate()
            assert await asyncio.wait_for(last.wait(), 20) == 0
        found = await account(nats_server.url, traffic.sent)
        assert not found.dropped
        assert all(number > saved > waiting for number in found.absent)

    run(test(), 60)


@needs_root
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_disk_of_the_spool_fails(nats_server: NatsServer, tmp_path: Path, kind: str) -> None:
    """While the server is down and returns, events are sent from memory; once the full disk has space, from disk."""
    disk = tmp_path / "disk"

    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url, spool={"path": disk}) as at:
            backlog = at.bridge.gateways[0].backlog
            async with at.flowing():
                nats_server.kill()
                await until(lambda: backlog.spool_trouble)
                await asyncio.sleep(1)
                assert backlog.in_flight
                await nats_server.up()
                await until(lambda: not at.bridge.gateways[0].backlog.waiting, 60)
                if kind == "full":
                    (disk / "ballast").unlink()
                    await until(lambda: not backlog.spool_trouble)
            await at.settled()
            assert not at.bridge.gateways[0].backlog.counts.dropped
        await verify_whole(nats_server.url, at.traffic.sent)

    with mounted(disk, "size=4m,mode=0700"):
        if kind == "full":
            (disk / "ballast").write_bytes(bytes(4 * 2**20 - 2**17))
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        run(test(), 120)


def test_clock_stepped(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and back by hours while events flow, and back by an hour between two starts."""
    real, step = time.time_ns, 0
    monkeypatch.setattr(time, "time_ns", lambda: real() + step)

    async def test() -> None:
        nonlocal step
        await nats_server.up()
        async with scene(nats_server.url) as at:
            async with at.flowing():
                for hours in (1, -3, 24, 0):
                    step = hours * 3600 * 10**9
                    await asyncio.sleep(0.2)
            await at.settled()
        step = -3600 * 10**9
        async with scene(nats_server.url) as later:
            later.traffic.sent = at.traffic.sent
            async with later.flowing():
                pass
            await later.settled(all_heard=False)
        await verify_whole(nats_server.url, later.traffic.sent)

    run(test(), 90)
