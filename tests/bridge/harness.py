"""Helpers for tests of the bridge: a real nats-server, a subscriber that records messages, and the service."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import BucketNotFoundError
from vicibridge.bus import nats_server
from vicibridge.bus.supervisor import ConnectionSupervisor
from vicibridge.config.model import Config, GatewayConfig
from vicibridge.service import Service

import vicifast

T = TypeVar("T")


def run(test: Coroutine[Any, Any, T], timeout: float = 30.0) -> T:
    """Run one asyncio test with a time limit in seconds."""
    return asyncio.run(asyncio.wait_for(test, timeout))


async def until(condition: Callable[[], object], timeout: float = 15.0) -> None:
    """Poll until a condition is true."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


class NatsServer(nats_server.NatsServer):
    """A nats-server that starts without blocking the event loop, and that can be suspended."""

    async def up(self) -> None:
        """Start it; after `kill`, with the same port and store."""
        await asyncio.to_thread(self.start)

    def pause(self) -> None:
        """SIGSTOP: the kernel accepts connections, the server does not respond."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)


def envelopes(payload: bytes, headers: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the envelopes in a message of any codec."""
    if headers and "Vici-Event" in headers:
        numbers = {key: int(headers[f"Vici-{key.title()}"]) for key in ("seq", "time")}
        own = {key: headers[f"Vici-{key.title()}"] for key in ("node", "boot", "event")}
        return [{"v": 1, **own, **numbers, "data": vicifast.decode(payload)}]
    if payload[:1] == b"{":
        return [json.loads(line) for line in payload.splitlines()]
    return list(msgpack.Unpacker(io.BytesIO(payload)))


class Observer:
    """A client that records every message, in order."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.messages: list[Msg] = []
        self._served: set[str] = set()

    async def watch(self, subject: str) -> None:
        async def note(message: Msg) -> None:
            self.messages.append(message)

        await self.client.subscribe(subject, cb=note)
        await processed(self.client)

    def seen(self, subject: str = "") -> list[tuple[str, dict[str, Any]]]:
        """Return (subject, envelope) of everything whose subject contains `subject`."""
        return [(m.subject, e) for m in self.messages if subject in m.subject for e in envelopes(m.data, m.headers)]

    async def sees(self, subject: str, count: int = 1, timeout: float = 15.0) -> list[tuple[str, dict[str, Any]]]:
        """Wait until there are at least `count` of them."""
        await until(lambda: len(self.seen(subject)) >= count, timeout)
        return self.seen(subject)

    async def ask(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, parts: int = 1
    ) -> list[Msg]:
        """Send a request and return the first `parts` messages that answer it."""
        await self._is_served(subject.rpartition(".")[0])
        inbox = self.client.new_inbox()
        answers = await self.client.subscribe(inbox)
        await self.client.publish(subject, payload, reply=inbox, headers=headers)
        return [await answers.next_msg(timeout=10) for _ in range(parts)]

    async def _is_served(self, commands: str) -> None:
        """Wait until a bridge serves commands; before that, NATS may report no responders."""
        if commands in self._served:
            return
        inbox = self.client.new_inbox()
        answers = await self.client.subscribe(inbox)
        async with asyncio.timeout(15):
            while commands not in self._served:
                await self.client.publish(f"{commands}.no-such-command", reply=inbox)
                with suppress(nats.errors.TimeoutError):
                    answer = await answers.next_msg(timeout=0.2)
                    if answer.headers and "Vici-Node" in answer.headers:
                        self._served.add(commands)
        await answers.unsubscribe()


@asynccontextmanager
async def observing(url: str, subject: str = "vici.>", **options: Any) -> AsyncIterator[Observer]:
    """Record the messages on `subject`; `options` are passed to nats-py, such as credentials."""
    client = await nats.connect(url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=_ignore, **options)
    try:
        observer = Observer(client)
        await observer.watch(subject)
        yield observer
    finally:
        await client.close()


async def _ignore(error: Exception) -> None:
    """The server is killed on purpose."""


async def processed(client: Client) -> None:
    """Wait until the server has processed everything sent before."""
    # nats-py writes the PING of flush() ahead of what is queued, such as a subscription; the second follows it.
    await client.flush()
    await client.flush()


async def stored(url: str, stream: str = "VICI", **options: Any) -> list[Msg]:
    """Return every message of a stream, in order; `options` are passed to nats-py."""
    client = await nats.connect(url, **options)
    try:
        jetstream = client.jetstream()
        state = (await jetstream.stream_info(stream)).state
        subscription = await jetstream.subscribe("", stream=stream, ordered_consumer=True)
        return [await subscription.next_msg(timeout=5) for _ in range(state.messages)]
    finally:
        await client.close()


async def bucket(client: Client, name: str, keys: str = ">") -> dict[str, Any]:
    """Return every value in a key-value bucket; empty if the bucket does not exist."""
    jetstream = client.jetstream()
    try:
        kv = await jetstream.key_value(name)
    except BucketNotFoundError:
        return {}
    # nats-py may report the end of the initial values before all have arrived, so they are counted.
    state = (await jetstream.stream_info(f"KV_{name}", subjects_filter=f"$KV.{name}.{keys}")).state
    watcher: Any = await kv.watch(keys)
    found: dict[str, Any] = {}
    seen: set[str] = set()
    while len(seen) < len(state.subjects or ()):
        entry = await watcher.updates()
        if entry is None:
            continue
        seen.add(entry.key)
        if entry.operation is None:
            found[entry.key] = json.loads(entry.value)
        else:
            found.pop(entry.key, None)
    await watcher.stop()
    return found


def settings(url: str, address: str = "/nowhere/charon.vici", node: str = "gw1", **sections: Any) -> Config:
    """A configuration of one gateway, with a probe interval short enough for tests, and without the mirror."""
    bus = {"servers": [url], "probe_interval": 0.3, "probe_timeout": 1} | sections.pop("nats", {})
    return Config(
        nats=bus, gateway=[GatewayConfig(node=node, vici=address)], **{"mirror": {"enabled": False}} | sections
    )


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines in tasks, cancel them at the end, and raise the exception of one that failed."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [result for result in results if isinstance(result, Exception)]


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[ConnectionSupervisor]:
    """Run a bus without the rest of the bridge."""
    bus = ConnectionSupervisor(config.nats.settings())
    async with background(bus.run()):
        yield bus


@asynccontextmanager
async def service(config: Config) -> AsyncIterator[Service]:
    """Run the bridge in this process; stop it cleanly at the end."""
    bridge = Service(config)
    stop = asyncio.Event()
    running: Awaitable[None] = asyncio.create_task(bridge.run(stop))
    try:
        yield bridge
    finally:
        stop.set()
        await running


async def up(bridge: Service) -> None:
    """Wait until every charon is connected and its events are registered."""
    await until(lambda: all(gateway.reader.up for gateway in bridge.gateways))


async def start_bridge(
    config: Path, *program: str, stderr: int | IO[bytes] = asyncio.subprocess.PIPE, **environment: str
) -> asyncio.subprocess.Process:
    """Start `vicibridge run` as a process; `program` replaces `-m vicibridge`."""
    argv = [sys.executable, *(program or ("-m", "vicibridge")), "run", "--config", str(config)]
    return await asyncio.create_subprocess_exec(*argv, stderr=stderr, env={**os.environ, **environment})


@asynccontextmanager
async def bridge_process(config: Path) -> AsyncIterator[Path]:
    """Run `vicibridge run` with a configuration file and yield its log; it must end cleanly, without an error."""
    log = config.with_suffix(".log")
    with log.open("wb") as stderr:
        process = await start_bridge(config, stderr=stderr)
    try:
        yield log
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 15) == 0, log.read_text()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = log.read_text()
    assert "Traceback" not in text and " ERROR " not in text and "are lost" not in text, text
