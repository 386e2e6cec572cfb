"""The demo: shows a gateway's events on NATS and a command over NATS, and checks that everything arrived.

It starts a nats-server on loopback, the bridge as a process, and a subscriber that knows only NATS.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from rich.console import Console
from rich.table import Table

from vicifast import _wire
from vicifast.commands import EVENTS
from vicifast.recording import Recording
from vicifast.testing import FakeCharon

from .bus.nats_server import NatsServer
from .client import Completeness, Envelope, unpack
from .console.tail import text_of
from .contract.names import COUNT_HEADER, DENIED, ERROR_CODE_HEADER, STATUS_HEADER

NODE = "gw1"
FLOOD = 50_000  # log events in one burst
_SHOWN = {"log": 4, "resync": 2}  # at most this many of each are shown
_SHOWN_SAS = 3
_QUIET = 0.4  # seconds without a message that end the wait
_TIMEOUT = 20.0

Drive = Callable[[Callable[[str], None]], Awaitable[None]]


class DemoError(Exception):
    """An event was lost, a reply was wrong, or the bridge failed."""


class Subscriber:
    """Shows envelopes as they arrive, counts them by event, and checks their sequence numbers."""

    def __init__(self, console: Console) -> None:
        self.events: Counter[str] = Counter()
        self.subjects: dict[str, set[str]] = {}
        self.messages: Counter[str] = Counter()
        self._gap_events: list[str] = []
        self.up = asyncio.Event()
        self._console = console
        self._check = Completeness(from_start=True)
        self._per_second: dict[str, Counter[int]] = {}
        self._last_message = 0.0

    async def take(self, message: Msg) -> None:
        self._last_message = time.monotonic()
        envelopes = unpack(message)
        self.messages[envelopes[0].kind] += 1
        for envelope in envelopes:
            self._count(envelope)
            self._show(envelope)

    async def settled(self) -> None:
        """Wait until no message has arrived for a moment."""
        self._last_message = time.monotonic()
        while (left := self._last_message + _QUIET - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def gaps(self) -> list[str]:
        """Return missing and duplicate events: `seq` counts every event of a class on all subjects."""
        found = [*self._gap_events, *map(str, self._check.gaps())]
        if self._check.duplicates:
            found.append(f"{self._check.duplicates} arrived twice")
        if self._check.disordered:
            found.append("events of class state arrived out of order")
        return found

    def busiest(self, event: str) -> int:
        """Return the highest number of events in one second."""
        return max(self._per_second[event].values())

    def _count(self, envelope: Envelope) -> None:
        event, data = envelope.event, envelope.data
        self._check.add(envelope)
        self.events[event] += 1
        self.subjects.setdefault(event, set()).add(envelope.subject)
        self._per_second.setdefault(event, Counter())[int(self._last_message)] += 1
        if event == "gap":
            self._gap_events.append(f"gap {data}")
        if event == "status" and data["charon"] == "up":
            self.up.set()

    def _show(self, envelope: Envelope) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(envelope.time / 1e9))
        thousandths = envelope.time // 1_000_000 % 1000
        left = _SHOWN.get(envelope.event, self.events[envelope.event]) - self.events[envelope.event]
        if left < 0:
            return
        text = _summary(envelope) + (" ..." if envelope.event in _SHOWN and not left else "")
        style = "dim" if envelope.event in _SHOWN else "none"
        self._console.print(f"[dim]{clock}.{thousandths:03}[/] [cyan]{envelope.subject}[/]  ", end="")
        self._console.print(text, style=style, markup=False, soft_wrap=True)


def _summary(envelope: Envelope) -> str:
    event, data = envelope.event, envelope.data
    if event == "log":
        return str(data["msg"])
    if event == "status":
        return f"bridge {data['bridge']}, charon {data['charon']}"
    if event == "resync":
        return f"{data['key']} {data['kind']} in {data['bucket']}"
    if event == "audit":
        return f"{data['command']}: {data['code']} {data['text']}".rstrip()
    return " ".join(text_of(envelope)).removeprefix(f"{event} ")


async def run_demo(console: Console, address: str, drive: Drive, expected: Mapping[str, int] | None = None) -> None:
    """Run the bridge on the charon at `address` and show its events; raises DemoError if any was lost.

    `drive` causes the daemon's events and gets a function that prints a heading; `expected` counts them by name.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vicibridge-demo-")))
        server = NatsServer(directory)
        stack.callback(server.kill)
        server.start()
        config = directory / "bridge.toml"
        config.write_text(
            f'[nats]\nservers = ["{server.url}"]\n\n[[gateway]]\nnode = "{NODE}"\nvici = "{address}"\n\n'
            f'[spool]\npath = "{directory / "spool"}"\n\n[http]\nlisten = ""\n'
        )
        console.print(f"nats-server at {server.url}, charon at {address}", soft_wrap=True)
        client = await nats.connect(server.url)
        try:
            await _show_all(console, client, config, drive, expected)
        finally:
            await client.close()


async def _show_all(
    console: Console, client: Client, config: Path, drive: Drive, expected: Mapping[str, int] | None
) -> None:
    subscriber = Subscriber(console)
    await client.subscribe(f"vici.{NODE}.>", cb=_unless_command(subscriber), pending_bytes_limit=2**30)
    await client.flush()
    console.print("$ vicibridge run --config bridge.toml")
    console.print("$ nats sub 'vici.>'\n")
    bridge = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vicibridge", "run", "--config", str(config), "--log-level", "warning"
    )
    try:
        await asyncio.wait_for(subscriber.up.wait(), _TIMEOUT)
        await drive(lambda text: console.print(f"\n[bold]{text}[/]"))
        await subscriber.settled()
        console.print("\n[bold]Commands over NATS[/]")
        await _list_sas(console, client)
        await _refused(console, client)
    finally:
        if bridge.returncode is None:
            bridge.terminate()
        status = await asyncio.wait_for(bridge.wait(), _TIMEOUT)
    await subscriber.settled()
    console.print()
    gaps = subscriber.gaps()
    console.print(_closing(subscriber, gaps))
    _judge(subscriber, gaps, expected, status)
    console.print("[green]Everything arrived once and in order; the bridge stopped cleanly.[/]")


def _unless_command(subscriber: Subscriber) -> Callable[[Msg], Awaitable[None]]:
    async def take(message: Msg) -> None:
        if ".cmd." not in message.subject:
            await subscriber.take(message)

    return take


async def _list_sas(console: Console, client: Client) -> None:
    console.print(f"$ nats req vici.{NODE}.cmd.list-sas '{{}}' --replies 0 --wait-for-empty")
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    began = time.perf_counter()
    await client.publish(f"vici.{NODE}.cmd.list-sas", b"\x80", reply=inbox)
    count = 0
    while (part := await answers.next_msg(timeout=_TIMEOUT)).data:
        count += 1
        if count <= _SHOWN_SAS:
            for name, sa in msgpack.unpackb(part.data, unicode_errors="surrogateescape").items():
                ends = f"{sa['local-host']} <-> {sa['remote-host']}"
                console.print(f"  {name}: {sa['state']}, {ends}, id {sa['uniqueid']}", markup=False)
    milliseconds = (time.perf_counter() - began) * 1000
    headers = part.headers or {}
    console.print(f"  ... {count} SAs in {milliseconds:.0f} ms, end marker: Status {headers.get('Status')}")
    if headers.get(STATUS_HEADER) != "200" or headers.get(COUNT_HEADER) != str(count) or not count:
        raise DemoError(f"list-sas ended with {headers} after {count} parts")


async def _refused(console: Console, client: Client) -> None:
    console.print(f'$ nats req vici.{NODE}.cmd.terminate \'{{"ike": "site-001"}}\'')
    answer = await client.request(f"vici.{NODE}.cmd.terminate", b'{"ike": "site-001"}', timeout=_TIMEOUT)
    headers = answer.headers or {}
    text = f"  {headers.get('Nats-Service-Error-Code')} {headers.get('Nats-Service-Error')}"
    console.print(text, style="yellow", markup=False, soft_wrap=True)
    if headers.get(ERROR_CODE_HEADER) != str(DENIED):
        raise DemoError("terminate was not refused")


def _closing(subscriber: Subscriber, gaps: Sequence[str]) -> Table:
    table = Table("event", "class", "subjects", "events", "busiest second", title="Received by the subscriber")
    for column in table.columns[2:]:
        column.justify = "right"
    for event, count in subscriber.events.most_common():
        kind = "log" if event == "log" else "state"
        subjects, busiest = len(subscriber.subjects[event]), subscriber.busiest(event)
        table.add_row(event, kind, str(subjects), f"{count:,}", f"{busiest:,}")
    table.add_section()
    for kind, messages in subscriber.messages.items():
        count = sum(n for event, n in subscriber.events.items() if (event == "log") == (kind == "log"))
        table.add_row(f"in {messages:,} messages", kind, "", f"{count:,}")
    table.add_row("gaps", "", "", str(len(gaps)))
    return table


def _judge(subscriber: Subscriber, gaps: Sequence[str], expected: Mapping[str, int] | None, status: int) -> None:
    if gaps:
        raise DemoError("; ".join(gaps))
    for event, count in (expected or {}).items():
        if subscriber.events[event] != count:
            raise DemoError(f"{event}: {subscriber.events[event]} events arrived, {count} were sent")
    if status:
        raise DemoError(f"the bridge ended with status {status}")


async def recorded_demo(console: Console, directory: Path) -> None:
    """Run the demo on recorded traffic of a real daemon, without root or strongSwan."""
    recordings = [Recording.load(path) for path in sorted(directory.glob("*.recording"))]
    if not recordings:
        raise DemoError(f"no *.recording files in {directory}")
    events = max(recordings, key=_standalone_count)
    if not _standalone_count(events):
        raise DemoError("none of the recordings has events")
    line = next(p.message for p in events.packets("server") if p.kind == _wire.EVENT and p.name == "log")
    assert line is not None
    expected = Counter(p.name for p in events.packets("server") if p.kind == _wire.EVENT and p.name is not None)
    expected["log"] += FLOOD
    async with FakeCharon.from_recordings(recordings) as charon:

        async def drive(heading: Callable[[str], None]) -> None:
            heading(
                f"Recorded traffic of {events.metadata.get('daemon', 'a daemon')}, replayed at a tenth of its speed"
            )
            await charon.replay(events, speed=0.1)
            heading(f"Its log, {FLOOD:,} lines at once")
            for number in range(FLOOD):
                charon.emit("log", line)
                if number % 200 == 0:
                    await charon.drain()

        await run_demo(console, charon.address, drive, expected)


def _standalone_count(recording: Recording) -> int:
    packets = recording.packets("server")
    return sum(p.kind == _wire.EVENT and EVENTS[p.name or ""].standalone for p in packets if p.name in EVENTS)
