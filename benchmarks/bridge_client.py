"""One bridge of the benchmark: `python -m benchmarks.bridge_client NAME PATH URL EVENT COUNT DIRECTORY`.

It prints a line when it is ready for the flood, and its resource usage as JSON when the last event has reached NATS.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .measure import Clock

_TICK = 0.01  # polling interval of a counter, in seconds


async def _vicibridge(path: str, url: str, event: str, count: int, directory: str, codec: str) -> Clock:
    from vicibridge.config.model import Config
    from vicibridge.service import Service

    section = "log" if event == "log" else "events"
    sections: dict[str, Any] = {section: {"codec": codec}, "mirror": {"enabled": False}, "http": {"listen": ""}}
    config = Config(
        nats={"servers": [url]},  # type: ignore[arg-type]
        gateway=[{"node": "gw1", "vici": path}],  # type: ignore[list-item]
        spool={"path": Path(directory)},  # type: ignore[arg-type]
        **sections,
    )
    service = Service(config)
    stop = asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    [gateway] = service.gateways
    pipeline = gateway.log if event == "log" else gateway.backlog
    await _until(lambda: gateway.reader.up and service.bus.connected and not gateway.backlog.waiting)
    before = pipeline.counts.published
    with _Ready() as clock:
        await _until(lambda: pipeline.counts.published - before >= count or pipeline.counts.dropped)
    if pipeline.counts.dropped:
        raise SystemExit(f"{pipeline.counts.dropped} events were dropped")
    stop.set()
    await running
    return clock


async def _read(path: str, event: str, count: int, *, code: bool) -> Clock:
    """The share of reading, and of reading and coding."""
    from vicifast import Batcher, EnvelopeWriter
    from vicifast.aio import AsyncSession

    batcher = Batcher(
        EnvelopeWriter("msgpack", "gw1", "b"), event, ("group", "level"), lambda *_: "t" if code else None
    )
    async with AsyncSession(path, readers={event: batcher}) as session:
        async with session.listen(event) as listener:
            with _Ready() as clock:
                seen = 0
                while seen + batcher.left_out < count:
                    if not code:
                        await asyncio.sleep(_TICK)
                        continue
                    await listener.batch()
                    seen += sum(batch[2] for batch in batcher.take())
    return clock


async def _naive(path: str, url: str, event: str, count: int) -> Clock:
    """A simple bridge: python vici, msgpack, and a publish for each event, acknowledged for the state class."""
    import msgpack
    import nats
    import vici  # type: ignore[import-untyped]

    client = await nats.connect(url)
    jetstream = client.jetstream()  # our bridge has made the stream
    boot = time.time_ns()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        events = vici.Session(sock).listen([event], timeout=0.5)
        next(events)  # registers, and ends this wait without an event
        with _Ready() as clock:
            seen = 0
            for label, message in events:
                if label is None:
                    continue
                seen += 1
                if event == "log":
                    text = {key: value.decode() for key, value in message.items()}
                    await client.publish(f"vici.gw1.log.{text['group']}.{text['level']}", msgpack.packb(text))
                else:
                    name = next(name for name in message if name != "up")
                    headers = {"Nats-Msg-Id": f"gw1.{boot}.{seen}"}
                    subject = f"vici.gw1.event.{event}.{name}.{'up' if 'up' in message else 'down'}"
                    await jetstream.publish_async(subject, msgpack.packb(message), headers=headers)
                await asyncio.sleep(0)
                if seen == count:
                    break
            await (client.flush() if event == "log" else jetstream.publish_async_completed())
        events.close()
    await client.close()
    return clock


class _Ready(Clock):
    def __enter__(self) -> _Ready:
        print("ready", flush=True)
        super().__enter__()
        return self


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(_TICK)


def main() -> None:
    name, path, url, event, given, directory = sys.argv[1:]
    count = int(given)
    clients: dict[str, Callable[[], Awaitable[Clock]]] = {
        "vicibridge, msgpack": lambda: _vicibridge(path, url, event, count, directory, "msgpack"),
        "vicibridge, json": lambda: _vicibridge(path, url, event, count, directory, "json"),
        "vicifast, reading alone": lambda: _read(path, event, count, code=False),
        "vicifast, reading and coding": lambda: _read(path, event, count, code=True),
        "python vici, msgpack, nats-py": lambda: _naive(path, url, event, count),
    }

    async def run() -> Clock:
        return await clients[name]()

    clock = asyncio.run(run())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"CPU": clock.cpu, "wall": clock.wall, "peak": peak / 1024}))


if __name__ == "__main__":
    main()
