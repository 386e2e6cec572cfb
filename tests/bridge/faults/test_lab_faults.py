"""Faults of real charons while SAs come and go; separate listeners at the same charon record the expected events."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Observer, observing, run, service, settings, stored, until, up
from lab import Lab, LabError, sas
from nats.aio.msg import Msg
from test_mirror_on_charon import difference
from test_on_charon import (
    STATE,
    Heard,
    Seen,
    assert_log,
    assert_same,
    churn,
    expected,
    heard,
    kept,
    of,
    per_sa,
    published,
    unseen,
    until_kept,
    watch,
)
from test_service_commands import code
from traffic import settled, verify_numbers
from vicibridge.client import unpack
from vicibridge.service import Service

from vicifast.aio import AsyncSession
from vicifast.errors import ViciError

pytestmark = [pytest.mark.faults, pytest.mark.lab(nats=True)]

COUNT = 20
LISTS = ["@read"]


@dataclass
class Scene:
    """The charon `left`, its events, a bridge, and an observer on the bus."""

    lab: Lab
    bridge: Service
    observer: Observer
    log: Seen  # the envelopes that the bridge has published
    events: Heard
    lines: Heard

    async def verify(self, early: int, since: int = 0) -> None:
        """Check that every event so far has arrived, except the first `early` lines and events before `since`."""
        await self.events.complete()
        await self.lines.complete()
        late = len(self.lines)
        await until(lambda: not unseen(self.lines, early, late, self.log), 60)
        await settled(self.bridge)
        seen = await until_kept(self.lab.nats.url, lambda seen: len(seen[since:]) >= len(self.events))
        assert_same("left", self.events, of("left", seen[since:], "event."))
        assert_log(self.lines, early, late, self.log)
        await verify_stream(self.lab)


async def verify_stream(lab: Lab) -> None:
    assert not verify_numbers(envelope for message in await stored(lab.nats.url) for envelope in unpack(message))


@asynccontextmanager
async def scene(lab: Lab) -> AsyncIterator[Scene]:
    address, url = lab.left.address, lab.nats.url
    config = settings(
        url, address, node="left", mirror={"enabled": True, "interval": 0.5}, commands={"allow": LISTS, "timeout": 1}
    )
    async with observing(url, "nothing") as observer, heard(address, *STATE) as events, heard(address, "log") as lines:
        log = await watch(observer.client, "vici.left.log.>")
        async with service(config) as bridge:
            await up(bridge)
            yield Scene(lab, bridge, observer, log, events, lines)


async def mirror_is_right(at: Scene) -> None:
    async with asyncio.timeout(60):
        while wrong := await difference(at.observer.client, at.lab.left):
            print(wrong)
            await asyncio.sleep(0.1)


async def list_sas(at: Scene) -> Msg:
    [reply] = await at.observer.ask("vici.left.cmd.list-sas", b"{}", {"Vici-Collect": "true"})
    return reply


def test_charon_hangs(lab: Lab) -> None:
    """SIGSTOP and SIGCONT: nothing is lost, requests still get replies, and the mirror is correct afterwards."""

    async def test() -> None:
        async with scene(lab) as at:
            early = len(at.lines)
            names = await sas.load(lab, COUNT)
            await sas.initiate(lab, names)
            async with churn(lab, names):
                for _ in range(3):
                    before = len(at.events)
                    await until(lambda before=before: len(at.events) > before + COUNT, 60)
                    assert lab.left.pid
                    os.kill(lab.left.pid, signal.SIGSTOP)
                    assert code(await list_sas(at)) in ("503", "504")  # the backlog may be full
                    os.kill(lab.left.pid, signal.SIGCONT)
            assert at.bridge.gateways[0].reader.connects == 1
            assert code(await list_sas(at)) == "200"
            await at.verify(early)
            await mirror_is_right(at)

    run(test(), 150)


def swanctl_conf(names: Sequence[str]) -> str:
    ends = "remote_addrs = 10.99.0.2\nlocal {\nauth = psk\n}\nremote {\nauth = psk\n}"
    conns = [f"{name} {{\n{ends}\nchildren {{\n{name}-lan {{\n}}\n}}\n}}" for name in names]
    return "\n".join(["connections {", *conns, "}", ""])


async def reload(lab: Lab, config: Path) -> None:
    """Reload everything that an administrator reloads after a change of the configuration."""
    argv = ["swanctl", "--load-all", "--noprompt", "--file", str(config), "--uri", lab.left.address]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    async with AsyncSession(lab.left.address, timeout=60) as session:
        await session.call("reload-settings")
    assert lab.left.pid
    os.kill(lab.left.pid, signal.SIGHUP)


def test_charon_is_reloaded_during_lists(lab: Lab) -> None:
    """While some SAs are rekeyed, connections come and go, and SAs are listed continuously, each list has all others.

    A list may miss an SA that is being rekeyed: charon may pass the place of the new one before that of the old one.
    """
    lists = 0
    reloading = True  # concurrent tasks end after their round: nats-py may swallow a cancellation

    async def listing(at: Scene, names: set[str]) -> None:
        nonlocal lists
        while reloading:
            reply = await list_sas(at)
            assert code(reply) == "200"
            assert not {name for name in names if name.encode() not in reply.data}
            lists += 1

    async def rekeying(names: Sequence[str]) -> None:
        while reloading:
            await sas.rekey_ike(lab, names)
            await sas.rekey_child(lab, names)

    async def test() -> None:
        nonlocal reloading
        async with scene(lab) as at:
            early = len(at.lines)
            names = await sas.up(lab, COUNT)
            work = [asyncio.create_task(listing(at, set(names[3:]))), asyncio.create_task(rekeying(names[:3]))]
            for number in range(10):
                config = lab.directory / "swanctl.conf"
                config.write_text(swanctl_conf([*names, f"late-{number}"]))
                before = lists
                await reload(lab, config)
                await until(lambda before=before: lists > before + 1 or any(task.done() for task in work), 60)
            reloading = False
            await asyncio.gather(*work)
            assert at.bridge.gateways[0].reader.connects == 1
            await at.verify(early)
            await mirror_is_right(at)

    run(test(), 150)


def lives(seen: Seen) -> list[Seen]:
    """Split the envelopes where charon was disconnected."""
    divided: list[Seen] = [[]]
    for subject, envelope in seen:
        if envelope["event"] == "gap":
            assert envelope["data"]["cause"] == "charon was gone"
            divided.append([])
        else:
            divided[-1].append((subject, envelope))
    return divided


def begins_alike(one: dict[str, list], other: dict[str, list]) -> bool:
    """Whether for each SA the events of one are a prefix of those of the other, or vice versa."""
    return all(
        one.get(name, [])[: len(other.get(name, []))] == other.get(name, [])[: len(one.get(name, []))]
        for name in one.keys() | other.keys()
    )


async def stop(lab: Lab) -> None:
    await asyncio.to_thread(lab.left.stop)


async def kill(lab: Lab) -> None:
    lab.left.kill()


@pytest.mark.parametrize("end", [kill, stop])
def test_charon_restarts(lab: Lab, end: Callable[[Lab], object]) -> None:
    """Three times, each with a new socket; events are missing only around the disconnects, which are reported."""
    heard_of: list[Heard] = []

    async def life(bridge: Service, number: int) -> None:
        await until(lambda: bridge.gateways[0].reader.connects == number and bridge.gateways[0].reader.up, 60)
        async with heard(lab.left.address, *STATE) as events:
            heard_of.append(events)
            names = await sas.up(lab, COUNT)
            with suppress(ViciError, OSError, LabError):
                async with churn(lab, names):
                    await until(lambda: len(events) > 3 * COUNT, 60)
                    await end(lab)
            await asyncio.wait([events.ended])
        await until(lambda: not bridge.gateways[0].reader.up, 60)

    async def test() -> None:
        url = lab.nats.url
        async with service(settings(url, lab.left.address, node="left")) as bridge:
            for number in (1, 2, 3):
                await life(bridge, number)
                lab.left.start()
            await until(lambda: bridge.gateways[0].reader.connects == 4)
            await settled(bridge)
        divided = lives(await kept(url))
        assert len(divided) == 4 and not of("left", divided[3], "event.")
        for events, seen in zip(heard_of, divided, strict=False):
            there, wanted = published(of("left", seen, "event.")), expected("left", events)
            assert begins_alike(per_sa(there), per_sa(wanted))
            print(f"{len(there)} events arrived, {len(wanted)} had been heard")
        await verify_stream(lab)

    run(test(), 150)
