"""Programs that read the events of a fleet from NATS: `Fleet.subscribe`, compared with nats-py's iterator and msgpack.

Only the CPU of the subscriber is measured. The messages are those that a bridge writes: an envelope in each of class
state, as many as fit of class log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from vicifast import Batcher, EnvelopeWriter, Framer, Raw, Transcoder
from vicifast._wire import EVENT

from .bridge import nats_server, process
from .corpus import recorded
from .measure import Settings, Table, interleave
from .subscriber import CONTESTANTS, FILTERS, STREAM

_PAUSE = 0.01  # seconds between two writes
_READ = 500  # lines of the log that the bridge reads at once


class Way(NamedTuple):
    """How a subscriber reads: `name` as in `subscriber.FILTERS`; `rate` in events per second, 0 if stored before."""

    name: str
    title: str
    rate: int
    count: int


WAYS = [
    Way("state", "class state, live", 20_000, 100_000),
    Way("log", "class log, live", 200_000, 1_000_000),
    Way("kept", "class state, from JetStream", 0, 60_000),
    Way("durable", "class state, durable consumer", 0, 60_000),
]


class Write(NamedTuple):
    """Messages to send at once: `events` in `data`, in the protocol of NATS clients."""

    data: bytes
    events: int


def tables(settings: Settings) -> Iterator[Table]:
    """CPU of the subscriber and wall time, for each way to read."""
    for way in WAYS:
        table = Table(f"subscribe-{way.name}", f"events from NATS, {way.title}", "µs per event, of the subscriber")
        settings.report(table.title)
        with tempfile.TemporaryDirectory() as directory, nats_server(Path(directory)) as url:
            _measure(table, settings, way, url)
        yield table


def _measure(table: Table, settings: Settings, way: Way, url: str) -> None:
    if not way.rate:
        asyncio.run(_add_stream(url))
    count = way.count // 10 if settings.quick else way.count
    writes = list(_log(count) if way.name == "log" else _state(count, max(way.rate, 20_000)))
    count = sum(write.events for write in writes)
    if not way.rate:
        _send(url, writes)
        asyncio.run(_until_stored(url, count))
    results = interleave(
        1 if settings.quick else 3, {name: _run(name, way, url, count, writes) for name in CONTESTANTS}
    )
    for clock in ("CPU", "wall"):
        table.add(clock, {name: [run[clock] for run in of_one] for name, of_one in results.items()}, 1e6)
    table.notes.append(f"{count:,} events{f', {way.rate:,} a second' if way.rate else ''}")


def _run(name: str, way: Way, url: str, count: int, writes: list[Write]) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        if way.name == "durable":
            asyncio.run(_delete_consumer(url))
        with process(sys.executable, ["subscriber", name, url, way.name, str(count)]) as subscriber:
            if way.rate:
                _send(url, writes)
            answer: dict[str, float] = json.loads(subscriber.stdout.readline() or "null")
            if answer is None:
                raise RuntimeError(f"{name} did not read all events")
            return answer

    return run


def _send(url: str, writes: list[Write]) -> None:
    """Publish, a write per hundredth of a second, and wait until the server has processed it."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as server:
        lines = server.makefile("rb")
        lines.readline()
        server.sendall(b'CONNECT {"verbose":false,"headers":true,"lang":"benchmark"}\r\n')
        due = time.monotonic()
        for write in writes:
            server.sendall(write.data)
            due = max(due + _PAUSE, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))
        server.sendall(b"PING\r\n")
        while (line := lines.readline()) != b"PONG\r\n":
            if line.startswith(b"PING"):
                server.sendall(b"PONG\r\n")
            elif not line:
                raise RuntimeError("the server closed the connection")


def _state(count: int, rate: int) -> Iterator[Write]:
    messages = recorded("events", "ike-updown")
    transcoder = Transcoder("msgpack", envelope=EnvelopeWriter("msgpack", "gw1", "b1"), event="ike-updown")
    at_once, made = int(rate * _PAUSE), bytearray()
    for number, message in enumerate(itertools.islice(itertools.cycle(messages), count), 1):
        headers = b"NATS/1.0\r\nNats-Msg-Id: gw1.b1.%d\r\n\r\n" % number
        payload = transcoder.transcode(message)
        made += b"HPUB vici.gw1.event.ike-updown.site-1.up %d %d\r\n" % (len(headers), len(headers) + len(payload))
        made += headers + payload + b"\r\n"
        if number % at_once == 0 or number == count:
            yield Write(bytes(made), (number - 1) % at_once + 1)
            made.clear()


def _log(count: int) -> Iterator[Write]:
    def subject(group: bytes, level: bytes) -> str:
        return f"vici.gw1.log.{group.decode()}.{level.decode()}"

    messages = itertools.cycle(recorded("events", "log"))
    batcher = Batcher(EnvelopeWriter("msgpack", "gw1", "b1"), "log", ("group", "level"), subject)
    framer = Framer(Raw(), {"log": batcher})
    for _ in range(count // (4 * _READ)):
        made, events = bytearray(), 0
        for _ in range(4):
            for message in itertools.islice(messages, _READ):
                body = bytes([EVENT, 3]) + b"log" + message
                framer.feed(len(body).to_bytes(4, "big") + body)
            framer.packets()
            for name, payload, packed, *_ in batcher.take():
                made += b"PUB %s %d\r\n%s\r\n" % (name.encode(), len(payload), payload)
                events += packed
        yield Write(bytes(made), events)


async def _add_stream(url: str) -> None:
    import nats

    client = await nats.connect(url)
    await client.jetstream().add_stream(name=STREAM, subjects=[FILTERS["kept"]])
    await client.close()


async def _until_stored(url: str, count: int) -> None:
    import nats

    client = await nats.connect(url)
    while (await client.jetstream().stream_info(STREAM)).state.messages < count:
        await asyncio.sleep(_PAUSE)
    await client.close()


async def _delete_consumer(url: str) -> None:
    import nats
    from nats.js.errors import NotFoundError

    client = await nats.connect(url)
    try:
        await client.jetstream().delete_consumer(STREAM, "benchmark")
    except NotFoundError:
        pass
    await client.close()
