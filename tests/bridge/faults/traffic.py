"""Traffic during a fault, and the account of it at a subscriber afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import nats
from harness import processed, service, settings, stored, until
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from vicibridge.client import Completeness, Envelope, MissingEvents, unpack
from vicibridge.service import Service

from vicifast.commands import EVENTS
from vicifast.testing import FakeCharon


class Traffic:
    """A charon that sends numbered events and lines continuously."""

    def __init__(self, charon: FakeCharon, lines: int = 5) -> None:
        self.charon = charon
        self.lines = lines  # with each event
        self.sent = 0
        self.logged = 0
        self.breaks: list[int] = []

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._flow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def emit(self, **more: object) -> None:
        self.sent += 1
        self.charon.emit("ike-updown", {"gw": {"uniqueid": str(self.sent), **more}})

    def breaks_here(self) -> None:
        """Record that events around this one may be lost with the connection to charon."""
        self.breaks.append(self.sent)

    async def _flow(self) -> None:
        while True:
            for _ in range(5):
                self.emit()
                for _ in range(self.lines):
                    self.logged += 1
                    self.charon.emit("log", {"group": "IKE", "level": "1", "msg": f"{self.logged:0200}"})
            await asyncio.sleep(0.01)


async def heard(charon: FakeCharon) -> None:
    """Wait until a bridge has registered everything; it does so event by event."""
    for event in EVENTS.values():
        if event.standalone and event.name in charon.events:
            await charon.registered(event.name)


class Reader:
    """A subscriber that reads the log; lines that it misses while disconnected are not a loss of the bridge."""

    def __init__(self) -> None:
        self.of_connections = [Completeness()]
        self.lines: Counter[int] = Counter()  # by the numbers that charon gave them

    async def disconnected(self, subscription: Subscription) -> None:
        """Start a new account after the messages of the old connection: the client reconnects when this returns."""
        while subscription.pending_msgs and not subscription._conn.is_closed:
            await asyncio.sleep(0)
        self.of_connections.append(Completeness())

    async def take(self, message: Msg) -> None:
        for envelope in unpack(message) if ".cmd." not in message.subject else ():
            self.of_connections[-1].add(envelope)
            if envelope.event == "log":
                self.lines[int(envelope.data["msg"])] += 1

    async def check(self, bridge: Service, traffic: Traffic, *, all_heard: bool) -> None:
        """Check that every missing event is reported; over one connection every line arrived, or its loss is reported.

        `all_heard` is whether the bridge was connected to charon all the time. A line that arrives twice, as after an
        outage of NATS, counts once.
        """
        gaps = [gap for complete in self.of_connections for gap in complete.gaps()]
        assert not [gap for gap in gaps if gap.cause is None], gaps
        assert set(self.lines) <= set(range(1, traffic.logged + 1))
        if len(self.of_connections) > 1:
            return
        counts = bridge.gateways[0].log.counts
        await until(lambda: len(self.lines) == counts.published == counts.received - counts.dropped, 30)
        if bridge.bus.connects == 1:
            assert self.lines.total() == len(self.lines)
        if all_heard:
            assert counts.received == traffic.logged + counts.causes["malformed message from charon"]


async def _ignore(error: Exception) -> None:
    """The server is broken on purpose."""


@asynccontextmanager
async def reading(url: str, **options: Any) -> AsyncIterator[tuple[Reader, Subscription]]:
    reader = Reader()

    async def disconnected() -> None:
        await reader.disconnected(subscription)

    client = await nats.connect(
        url,
        reconnect_time_wait=0.05,
        max_reconnect_attempts=-1,
        disconnected_cb=disconnected,
        error_cb=_ignore,
        **options,
    )
    limits = {"pending_msgs_limit": 10**6, "pending_bytes_limit": 2**30}
    subscription = await client.subscribe("vici.>", cb=reader.take, **limits)
    try:
        await processed(client)
        yield reader, subscription
    finally:
        await client.close()


@dataclass
class Account:
    """The account of class state in the stream."""

    dropped: Counter[str]  # by reported cause
    absent: list[int]  # numbers of missing events
    gone: int  # the number of gaps "charon was gone"


async def account(url: str, sent: int, **options: Any) -> Account:
    """Compare the stream with the events sent: in order, none twice, every missing number reported."""
    envelopes = [envelope for message in await stored(url, **options) for envelope in unpack(message)]
    missing = verify_numbers(envelopes)
    numbers = [int(envelope.data["gw"]["uniqueid"]) for envelope in envelopes if envelope.event == "ike-updown"]
    assert numbers == sorted(set(numbers))
    gone = sum(envelope.event == "gap" and envelope.data["cause"] == "charon was gone" for envelope in envelopes)
    dropped: Counter[str] = Counter()
    for gap in missing:
        dropped[gap.cause or ""] += gap.last - gap.first + 1
    return Account(dropped, sorted(set(range(1, sent + 1)) - set(numbers)), gone)


def verify_numbers(envelopes: Iterable[Envelope], *, again: bool = False) -> list[MissingEvents]:
    """Return the missing events of class state; all are reported, none is out of order, or twice unless `again`."""
    complete = Completeness(from_start=True)
    for envelope in envelopes:
        complete.add(envelope)
    missing = [gap for gap in complete.gaps() if gap.kind == "state"]
    assert not [gap for gap in missing if gap.cause is None], missing
    assert not complete.disordered and (again or not complete.duplicates)
    return missing


async def verify_whole(url: str, sent: int, **options: Any) -> None:
    """Check that no event is missing."""
    assert await account(url, sent, **options) == Account(Counter(), [], 0)


async def verify_but_breaks(url: str, traffic: Traffic) -> Account:
    """Check that events are missing only around disconnects of charon, which are reported."""
    found = await account(url, traffic.sent)
    assert not found.dropped
    verify_absent(found, traffic)
    assert not found.absent or found.gone
    return found


def verify_absent(found: Account, traffic: Traffic) -> None:
    """Check that events are absent only around breaks."""
    for first, last in _runs(found.absent):
        assert any(first - 1 <= number <= last for number in traffic.breaks), (first, last, traffic.breaks)


def _runs(numbers: Collection[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


async def settled(bridge: Service, sent: int | None = None) -> None:
    """Wait until every event has arrived, or its loss is reported; then check the counts."""
    [gateway] = bridge.gateways
    if sent is not None:
        await until(lambda: gateway.reader.events["ike-updown", "down"] == sent, 30)
    await until(lambda: not gateway.backlog.waiting and not gateway.backlog.losses.unreported, 30)
    await until(lambda: not gateway.log.in_flight and not gateway.log._losses.unreported, 30)
    await until(lambda: not gateway.backlog.waiting, 30)  # gaps of the log reported meanwhile
    balanced(bridge)


def balanced(bridge: Service) -> None:
    for gateway in bridge.gateways:
        for pipeline, spooled in ((gateway.backlog, gateway.backlog.spooled), (gateway.log, 0)):
            counts = pipeline.counts
            assert counts.received == counts.published + counts.dropped + spooled + pipeline.in_flight


@dataclass
class Scene:
    """A charon, a bridge, traffic and a reader, for a fault."""

    bridge: Service
    charon: FakeCharon
    traffic: Traffic
    reader: Reader
    subscription: Subscription  # the reader's

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        async with self.traffic.flowing():
            await asyncio.sleep(0.3)
            yield
            balanced(self.bridge)
            await asyncio.sleep(0.3)

    async def heard(self) -> None:
        """Wait until the bridge has registered everything, and has the confirmations."""
        await heard(self.charon)
        await until(lambda: self.bridge.gateways[0].reader.up)

    async def settled(self, *, all_heard: bool = True) -> None:
        """Wait until every event is accounted for, and check the log."""
        await settled(self.bridge, self.traffic.sent if all_heard else None)
        async with asyncio.timeout(15):
            while not await _caught_up(self.subscription):
                await asyncio.sleep(0.05)
        await self.reader.check(self.bridge, self.traffic, all_heard=all_heard)


async def _caught_up(subscription: Subscription) -> bool:
    try:
        await processed(subscription._conn)
    except (NatsError, OSError, TimeoutError):
        return False  # it is reconnecting
    return not subscription.pending_msgs


@asynccontextmanager
async def scene(
    url: str,
    *,
    charon: FakeCharon | None = None,
    reader: str = "",
    reader_options: Mapping[str, Any] = MappingProxyType({}),
    **sections: Any,
) -> AsyncIterator[Scene]:
    """A charon with a bridge to the server at `url`.

    `reader` is the URL for the reader, if it differs, and `reader_options` its options for nats-py.
    """
    async with charon or FakeCharon() as charon, reading(reader or url, **reader_options) as (observer, subscription):
        async with service(settings(url, charon.address, **sections)) as bridge:
            at = Scene(bridge, charon, Traffic(charon), observer, subscription)
            await at.heard()
            await until(lambda: bridge.bus.connected)
            yield at
