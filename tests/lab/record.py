"""Makes the recordings in tests/data: `python -m tests.lab.record`, as root. Its README describes them.

On strongSwan 6.0.3 and newer it records the features that 5.9.8 lacks, in a directory of the daemon's version.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from vicifast.aio import AsyncSession
from vicifast.commands import EVENTS
from vicifast.errors import CommandError, UnknownCommand, UnknownEvent
from vicifast.recording import RecordingWriter, tee

from . import Lab, alerts, certificates, sas, version
from .daemons import Charon

DATA = Path(__file__).parent.parent / "data"
MANY = 300
SOME = 20
FEW = 5
PAIR = 2
ALERTS = (6, 0, 3)  # the first strongSwan that has them

Work = Callable[[AsyncSession], Awaitable[None]]


def main() -> None:
    """Remake all recordings of this generation of strongSwan."""
    if version() < ALERTS:
        for count, work in ((MANY, _many), (SOME, _some), (FEW, _few)):
            with Lab() as lab:
                asyncio.run(work(lab, count))
    else:
        _directory().mkdir(exist_ok=True)
        with Lab() as lab:
            asyncio.run(_hybrid(lab))
        with Lab(settings=alerts.SETTINGS) as lab:
            asyncio.run(_alerts(lab))
    for path in sorted(_directory().glob("*.recording")):
        print(f"{path.name:24} {path.stat().st_size:7}")


def _directory() -> Path:
    return DATA if version() < ALERTS else DATA / ".".join(map(str, version()))


async def _many(lab: Lab, count: int) -> None:
    names = await sas.up(lab, count)
    await sas.send(lab, names)
    await _record("list-sas", lab.right, _streamed("list-sas"))


async def _some(lab: Lab, count: int) -> None:
    names = await sas.up(lab, count)
    await sas.rekey_child(lab, names[: count // 2])
    await sas.terminate(lab, names[-3:])
    await certificates.load(lab.right, lab.directory)
    await _record("list-conns", lab.right, _streamed("list-conns"))
    await _record("list-certs", lab.right, _streamed("list-certs"))
    await _record("get-counters", lab.right, _called("get-counters", {"all": True}, {}))
    await _record("get-pools", lab.right, _called("get-pools", {"leases": True}))
    await _record("stats", lab.right, _called("stats", {}))
    await _record("errors", lab.right, _errors)


async def _few(lab: Lab, count: int) -> None:
    names = await sas.load(lab, count)

    async def life(session: AsyncSession) -> None:
        listener = session.listen(*(event.name for event in EVENTS.values() if event.standalone))
        with suppress(UnknownEvent):  # alert
            await listener.ready()
        await sas.initiate(lab, names, concurrency=1)
        await sas.send(lab, names)
        await sas.rekey_child(lab, names)
        await sas.rekey_ike(lab, names)
        await sas.update(lab, names)
        await sas.terminate(lab, names)

    await _record("events", lab.right, life)


async def _hybrid(lab: Lab) -> None:
    names = await sas.load(lab, PAIR, hybrid=True)

    async def life(session: AsyncSession) -> None:
        listener = session.listen(
            *(event.name for event in EVENTS.values() if event.standalone and event.name != "log")
        )
        await listener.ready()
        await sas.initiate(lab, names, concurrency=1)
        await sas.rekey_child(lab, names)
        await sas.rekey_ike(lab, names)
        await _record("list-sas", lab.right, _streamed("list-sas"))
        await sas.terminate(lab, names)

    await _record("events", lab.right, life)
    async with AsyncSession(lab.right.address) as session:
        await session.call("load-pool", {"small": {"addrs": "10.4.0.0/30"}})
        await session.call("load-conn", {"default": {"children": {"net": {}, "ah": {"ah_proposals": ["sha256-esn"]}}}})
        await session.call("load-conn", {"old": {"version": 1, "children": {}}})
    await _record("list-conns", lab.right, _streamed("list-conns"))
    await _record("get-pools", lab.right, _called("get-pools", {}))


async def _alerts(lab: Lab) -> None:
    async def left(session: AsyncSession) -> None:
        listener = session.listen("alert")
        await listener.ready()
        await _record("alerts-right", lab.right, right)

    async def right(session: AsyncSession) -> None:
        listener = session.listen("alert")
        await listener.ready()
        await alerts.raise_all(lab)

    await _record("alerts-left", lab.left, left)


async def _errors(session: AsyncSession) -> None:
    with suppress(UnknownCommand):
        await session.call("no-such-command")
    with suppress(CommandError):
        await session.call("unload-conn", {"name": "no-such-connection"})
    with suppress(CommandError):
        await session.call("load-conn", {"site-001": {"no-such-option": True}})
    with suppress(UnknownEvent):
        await session.listen("no-such-event").ready()


def _called(command: str, *messages: dict[str, object]) -> Work:
    async def work(session: AsyncSession) -> None:
        for message in messages:
            await session.call(command, message)

    return work


def _streamed(command: str) -> Work:
    async def work(session: AsyncSession) -> None:
        async for _ in session.stream(command):
            pass

    return work


async def _record(name: str, charon: Charon, work: Work) -> None:
    """Record one connection to `charon`, which `work` uses, as `name`.recording."""
    async with AsyncSession(charon.address) as session:
        answer = await session.call("version")
    daemon = " ".join(str(answer[key]) for key in ("daemon", "version"))
    metadata = {"made": "python -m tests.lab.record", "daemon": daemon}
    ours, theirs = socket.socketpair()
    server = socket.socket(socket.AF_UNIX)
    server.connect(charon.address.removeprefix("unix://"))
    with RecordingWriter(_directory() / f"{name}.recording", metadata) as writer:
        carrying = asyncio.create_task(tee(theirs, server, writer))
        async with AsyncSession(ours) as session:
            await work(session)
        await carrying


if __name__ == "__main__":
    main()
