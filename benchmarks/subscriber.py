"""One subscriber of the benchmark: `python -m benchmarks.subscriber NAME URL WAY COUNT`.

It prints a line when it has subscribed, and its resource usage as JSON when it has read COUNT events. The clock runs
from the first event to the last.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from .measure import Clock

STREAM = "VICI"
FILTERS = {"state": "vici.*.event.>", "log": "vici.*.log.>", "kept": "vici.*.event.>", "durable": "vici.*.event.>"}


def _ready() -> None:
    print("ready", flush=True)


async def _fleet(url: str, way: str, count: int, *, batches: bool, data: bool) -> Clock:
    from vicibridge.client import Fleet

    options: dict[str, Any] = {
        "state": {},
        "log": {"events": ["log"]},
        "kept": {"start": "first"},
        "durable": {"durable": "benchmark"},
    }[way]
    async with Fleet(url) as fleet, fleet.subscribe(**options, limit=1 << 30) as events:
        _ready()
        total = seen = 0
        await anext(events)
        with Clock() as clock:
            seen = 1
            while seen < count:
                for envelope in await events.batch() if batches else [await anext(events)]:
                    seen += 1
                    total += envelope.seq
                    if data:
                        total += len(envelope.data)
        await events.ack()
    return clock


async def _naive(url: str, way: str, count: int, *, data: bool) -> Clock:
    """nats-py's iterator, and msgpack for the envelopes in each message."""
    import msgpack
    import nats

    client = await nats.connect(url)
    subscription: Any
    if way == "kept":
        jetstream = client.jetstream()
        subscription = await jetstream.subscribe(
            FILTERS[way], stream=STREAM, ordered_consumer=True, pending_msgs_limit=0, pending_bytes_limit=0
        )
    elif way == "durable":
        subscription = await client.jetstream().subscribe(
            FILTERS[way], stream=STREAM, durable="benchmark", pending_msgs_limit=0, pending_bytes_limit=0
        )
    else:
        subscription = await client.subscribe(FILTERS[way], pending_msgs_limit=0, pending_bytes_limit=0)
    await client.flush()
    _ready()
    total = seen = 0
    clock = Clock()
    async for message in subscription.messages:
        if way == "log":
            unpacker = msgpack.Unpacker()
            unpacker.feed(message.data)
            envelopes = list(unpacker)
        else:
            envelopes = [msgpack.unpackb(message.data)]
        if not seen:
            clock.__enter__()
        for envelope in envelopes:
            seen += 1
            total += envelope["seq"]
            if data:
                total += len(envelope["data"])
        if way == "durable":
            await message.ack()
        if seen >= count:
            break
    clock.__exit__()
    await client.close()
    return clock


CONTESTANTS = {
    "vicibridge, batch": lambda url, way, count: _fleet(url, way, count, batches=True, data=False),
    "vicibridge, iterator": lambda url, way, count: _fleet(url, way, count, batches=False, data=False),
    "vicibridge, batch, data read": lambda url, way, count: _fleet(url, way, count, batches=True, data=True),
    "nats-py, msgpack": lambda url, way, count: _naive(url, way, count, data=False),
    "nats-py, msgpack, data read": lambda url, way, count: _naive(url, way, count, data=True),
}


def main() -> None:
    name, url, way, given = sys.argv[1:]
    clock = asyncio.run(CONTESTANTS[name](url, way, int(given)))
    print(json.dumps({"CPU": clock.cpu / int(given), "wall": clock.wall / int(given)}))


if __name__ == "__main__":
    main()
