"""`make soak`: mixed traffic for as long as told while everything around the bridge breaks, and an account at the end.

A scripted charon sends lines of log and numbered events; a bridge in a process of its own carries them to a real NATS
server; a subscriber holds what comes against what was sent. Every few seconds something breaks, at random. In the
second half the bridge itself is left alone, so that its memory and its descriptors can be seen to stay what they are.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from rich.console import Console
from rich.table import Table
from vicibridge.client import Completeness, Gap, unpack
from vicibridge.natsserver import NatsServer

from vicifast.testing import FakeCharon

_LINES, _EVENTS, _REQUESTS = 10_000, 100, 10  # in a second
_TICK = 0.01
_JOINING = 2000  # lines
_LOST_WITH_BRIDGE = ("the bridge was killed", "the bridge stopped")
_CONFIG = """\
[nats]
servers = ["{url}"]
probe_interval = 1
probe_timeout = 2
[log]
max_bytes = 8388608
[spool]
path = "{directory}/spool"
[http]
listen = ""
[mirror]
interval = 30
[[gateway]]
node = "gw1"
vici = "{address}"
"""


@dataclass
class Fault:
    """What was broken, and when, in seconds since the start."""

    kind: str
    begin: float
    end: float


@dataclass
class Notes:
    """All that is seen during the run; times are seconds since the start."""

    began: float = field(default_factory=time.time)
    faults: list[Fault] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)  # by class; what had a listener
    unheard: Counter[str] = field(default_factory=Counter)  # what had none
    emitted: array[float] = field(default_factory=lambda: array("d"))  # when, by number; 0 without a listener
    lags: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"state": [], "log": []})
    arrived: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    process: list[tuple[float, int, float, int]] = field(default_factory=list)  # time, pid, MB, descriptors

    def now(self) -> float:
        return time.time() - self.began

    @asynccontextmanager
    async def fault(self, kind: str) -> AsyncIterator[None]:
        fault = Fault(kind, self.now(), float("inf"))
        self.faults.append(fault)
        try:
            yield
        finally:
            fault.end = self.now()


class Bridge:
    """`vicibridge run`, to be ended in order or killed."""

    def __init__(self, config: Path, log: Path) -> None:
        self._config = config
        self._log = log
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            argv = [sys.executable, "-m", "vicibridge", "run", "--config", str(self._config)]
            self.process = await asyncio.create_subprocess_exec(*argv, stderr=log)

    async def end(self, *, kill: bool) -> None:
        assert self.process
        process, self.process = self.process, None
        process.kill() if kill else process.terminate()
        status = await process.wait()
        if not kill and status:
            raise RuntimeError(f"the bridge ended with {status}:\n{self._log.read_text()[-2000:]}")


class Connection:
    """What came over one connection of the subscriber."""

    def __init__(self) -> None:
        self.complete = Completeness()
        self.first: dict[str, int] = {}  # number of a line, by the start of the bridge


class Subscriber:
    """Somebody on the bus who counts; what a connection of its own missed by ending is not the bridge's loss."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.connections = [Connection()]
        self.client: Client | None = None

    async def connect(self, url: str) -> None:
        async def again() -> None:
            self.connections.append(Connection())

        async def ignore(error: Exception) -> None:
            """The server is broken on purpose."""

        self.client = await nats.connect(
            url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, reconnected_cb=again, error_cb=ignore
        )
        await self.client.subscribe(
            "vici.>", cb=self._note, pending_msgs_limit=10**7, pending_bytes_limit=512 * 1024 * 1024
        )

    async def _note(self, message: Msg) -> None:
        kind = {"event": "state", "log": "log"}.get(message.subject.split(".")[2])
        envelopes = unpack(message) if kind or ".bridge." in message.subject else []
        connection = self.connections[-1]
        for envelope in envelopes:
            connection.complete.add(envelope)
        if kind == "log":
            connection.first.setdefault(envelopes[0].boot, envelopes[0].seq)
        if kind:
            self._notes.arrived[kind] += len(envelopes)
            now = time.time()
            data = envelopes[0].data
            self._notes.lags[kind].append((now - self._notes.began, now - float(data["sent"])))

    def gaps(self) -> list[Gap]:
        """Return what is missing of the log, but for the lines around those that a connection got first.

        The log is published by subject: what was on its way when somebody joins may be before and after the first.
        """
        firsts = [{key: first + _JOINING for key, first in connection.first.items()} for connection in self.connections]
        return [
            gap
            for connection, first in zip(self.connections, firsts, strict=True)
            for gap in connection.complete.gaps()
            if gap.kind == "log" and gap.first > first[gap.boot]
        ]

    def missing(self, *, told: bool) -> int:
        return sum(gap.last - gap.first + 1 for gap in self.gaps() if (gap.cause is not None) is told)


class Soak:
    """Everything that runs, and the faults that it may suffer."""

    def __init__(self, directory: Path, charon: FakeCharon, seed: int) -> None:
        self.dice = random.Random(seed)
        self.notes = Notes()
        self.charon = charon
        self.server = NatsServer(directory)
        self._address = charon.address
        config = directory / "bridge.toml"
        config.write_text(_CONFIG.format(url=self.server.url, directory=directory, address=charon.address))
        self.log = directory / "bridge.log"
        self.bridge = Bridge(config, self.log)
        self.subscriber = Subscriber(self.notes)

    async def traffic(self) -> None:
        """Lines at once as they are due, and state events in pairs: an SA comes up and goes."""
        notes, emit = self.notes, self.charon.emit
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            sent = f"{time.time():.6f}"
            for number in range(round(_LINES * _TICK)):
                line = {"group": ("IKE", "CFG", "KNL")[number % 3], "level": "1", "sent": sent, "msg": "x" * 120}
                notes.sent["log"] += self._heard("log", emit("log", line))
            for _ in range(round(_EVENTS * _TICK)):
                number = len(notes.emitted) + 1
                message = {"number": str(number), "sent": sent, "gw": {"uniqueid": str((number + 1) // 2)}}
                heard = self._heard("state", emit("ike-updown", {"up": "yes", **message} if number % 2 else message))
                notes.sent["state"] += heard
                notes.emitted.append(notes.now() if heard else 0.0)
            due = max(due + _TICK, loop.time() - 1)
            await asyncio.sleep(max(0.0, due - loop.time()))

    def _heard(self, kind: str, reached: int) -> int:
        self.notes.unheard[kind] += not reached
        return min(reached, 1)

    async def requests(self) -> None:
        """Somebody asks charon all the time; while something is broken there may be no answer, which is told."""
        assert self.subscriber.client
        while True:
            await asyncio.sleep(1 / _REQUESTS)
            try:
                reply = await self.subscriber.client.request("vici.gw1.cmd.version", b"{}", timeout=2)
                self.notes.answers[(reply.headers or {}).get("Nats-Service-Error-Code", "200")] += 1
            except nats.errors.NoRespondersError:
                self.notes.answers["nobody there"] += 1
            except (nats.errors.Error, OSError, TimeoutError):
                self.notes.answers["none"] += 1

    async def watch_process(self) -> None:
        while True:
            if self.bridge.process is not None:
                pid = self.bridge.process.pid
                with suppress(OSError):
                    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
                    self.notes.process.append((self.notes.now(), pid, resident / 1e6, descriptors))
            await asyncio.sleep(1)

    async def break_things(self, seconds: float) -> None:
        """One fault after the other until the time is over; in the second half none of the bridge's own."""
        others = [self.nats_killed, self.nats_stopped, self.nats_hangs, self.charon_gone, self.charon_cut, self.slow]
        bridge = [self.bridge_stopped, self.bridge_killed]
        end = time.time() + seconds
        while time.time() < end:
            await asyncio.sleep(self.dice.uniform(2, 10))
            in_first_half = time.time() < end - seconds / 2
            fault: Callable[[], Awaitable[None]] = self.dice.choice(others + bridge if in_first_half else others)
            async with self.notes.fault(fault.__name__.replace("_", " ")):
                await fault()

    async def nats_killed(self) -> None:
        self.server.kill()
        await asyncio.sleep(self.dice.uniform(0, 5))
        await asyncio.to_thread(self.server.start)

    async def nats_stopped(self) -> None:
        await asyncio.to_thread(self.server.stop)
        await asyncio.to_thread(self.server.start)

    async def nats_hangs(self) -> None:
        assert self.server.process
        self.server.process.send_signal(19)  # SIGSTOP
        await asyncio.sleep(self.dice.uniform(0.5, 8))
        self.server.process.send_signal(18)  # SIGCONT

    async def charon_gone(self) -> None:
        await self.charon.stop()
        await asyncio.sleep(self.dice.uniform(0, 3))
        await self.charon.start()

    async def charon_cut(self) -> None:
        self.charon.drop()

    async def slow(self) -> None:
        """A subscriber that takes a tenth of the traffic, until the server has enough of it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, limit=4096)
        writer.write(b'CONNECT {"verbose":false}\r\nSUB vici.> 1\r\n')
        end = time.time() + self.dice.uniform(2, 8)
        with suppress(OSError):
            while time.time() < end and await reader.read(4096):
                await asyncio.sleep(0.02)
        writer.transport.abort()

    async def bridge_stopped(self) -> None:
        await self.bridge.end(kill=False)
        await self.bridge.start()

    async def bridge_killed(self) -> None:
        await self.bridge.end(kill=True)
        await self.bridge.start()

    async def run(self, seconds: float) -> None:
        await asyncio.to_thread(self.server.start)
        await self.subscriber.connect(self.server.url)
        await self.bridge.start()
        await self.charon.registered("log")
        tasks = [asyncio.create_task(task) for task in (self.traffic(), self.requests(), self.watch_process())]
        try:
            breaking = asyncio.create_task(self.break_things(seconds))
            await asyncio.wait([breaking, *tasks], return_when=asyncio.FIRST_COMPLETED)
            await breaking if breaking.done() else [task.result() for task in tasks if task.done()]
            tasks.pop(0).cancel()
            await asyncio.sleep(10)  # what waits anywhere arrives
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.bridge.end(kill=False)

    async def state(self) -> tuple[Completeness, list[int]]:
        """Return what the stream says of class state: what is missing by `seq`, and the numbers that are there."""
        assert self.subscriber.client
        complete, numbers = Completeness(from_start=True), []
        jetstream = self.subscriber.client.jetstream()
        left = (await jetstream.stream_info("VICI")).state.messages
        subscription = await jetstream.pull_subscribe("", stream="VICI")
        while left > 0:
            messages = await subscription.fetch(min(left, 1000), timeout=10)
            left -= len(messages)
            for message in messages:
                await message.ack()
                for envelope in unpack(message):
                    complete.add(envelope)
                    if envelope.event == "ike-updown":
                        numbers.append(int(envelope.data["number"]))
        return complete, numbers


@dataclass
class Result:
    """What the account comes to."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def must(self, holds: bool, text: str) -> None:
        if not holds:
            self.problems.append(text)


async def account(soak: Soak) -> Result:
    """Hold what arrived against what was sent."""
    notes, result = soak.notes, Result()
    complete, numbers = await soak.state()
    missing = sorted({n for n, when in enumerate(notes.emitted, 1) if when} - set(numbers))
    unexplained = [n for n in missing if not explained(notes, notes.emitted[n - 1])]
    told = sum(gap.last - gap.first + 1 for gap in complete.gaps() if gap.cause not in (None, *_LOST_WITH_BRIDGE))
    untold = sum(gap.last - gap.first + 1 for gap in complete.gaps() if gap.cause is None)
    untold_lines = soak.subscriber.missing(told=False)
    rows = result.rows
    rows.append(("sent with a listener", f"{notes.sent['state']:,}", f"{notes.sent['log']:,}"))
    rows.append(("sent while there was none", f"{notes.unheard['state']:,}", f"{notes.unheard['log']:,}"))
    rows.append(("arrived", f"{len(numbers):,}", f"{notes.arrived['log']:,}"))
    told_lines = soak.subscriber.missing(told=True)
    rest = notes.sent["log"] - notes.arrived["log"] - told_lines - untold_lines
    rows.append(("dropped and told by number", f"{told:,}", f"{told_lines:,}"))
    rows.append(("lost as a connection or the bridge ended, told", f"{len(missing) - told:,}", f"{rest:,}"))
    rows.append(("lost and not told", f"{untold + len(unexplained):,}", f"{untold_lines:,}"))
    rows.append(("twice, out of order", f"{complete.duplicates:,}, {complete.disordered:,}", ""))
    for kind, name in ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (1.0, "the longest")):
        rows.append((f"lag, {name}", *(f"{percentile(notes.lags[c], kind):,.3f} s" for c in ("state", "log"))))
    result.must(untold == 0, f"state: {untold} events by seq are missing and nothing says so")
    result.must(not unexplained, f"state: {len(unexplained)} events never arrived, such as number {unexplained[:5]}")
    result.must(numbers == sorted(set(numbers)), "state: events arrived twice or out of order")
    result.must(untold_lines == 0, f"log: {untold_lines} lines by seq are missing and nothing says so")
    flat(soak, result)
    return result


def explained(notes: Notes, when: float) -> bool:
    """Whether an event was under way when charon's connection or the bridge ended, which is told as a span of time."""
    ends = ("charon gone", "charon cut", "bridge stopped", "bridge killed")
    return any(fault.kind in ends and fault.begin - 2 <= when <= fault.end + 1 for fault in notes.faults)


def percentile(lags: list[tuple[float, float]], part: float) -> float:
    values = sorted(lag for _, lag in lags)
    return values[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def flat(soak: Soak, result: Result) -> None:
    """Compare the last process's memory and descriptors: the last third of its life with the third before."""
    life = [sample for sample in soak.notes.process if sample[1] == soak.notes.process[-1][1]]
    third = len(life) // 3
    before, after = life[third : 2 * third], life[2 * third :]
    if not before:
        return
    for at, name, allowed in ((2, "MB resident", 1.1), (3, "descriptors", 1.1)):
        first, last = (sorted(s[at] for s in part)[len(part) // 2] for part in (before, after))
        spread = f"{min(s[at] for s in life):,.0f} to {max(s[at] for s in life):,.0f}"
        result.rows.append((f"bridge, {name}: middle and last third", f"{first:,.0f}, {last:,.0f}", f"all: {spread}"))
        result.must(last <= first * allowed + 2, f"{name}: {first:.0f} in the middle third, {last:.0f} in the last")


def draw(notes: Notes, path: Path) -> None:
    """Lag, memory and descriptors over time, with the faults behind them."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    lag, memory, descriptors = figure.subplots(3, 1, sharex=True)
    for kind, color in (("log", "#6b93c4"), ("state", "#e8702a")):
        points = notes.lags[kind][:: max(1, len(notes.lags[kind]) // 4_000)]
        lag.plot([t for t, _ in points], [max(v, 1e-4) for _, v in points], ".", ms=1, color=color, label=kind)
    lag.set_yscale("log")
    lag.set_ylabel("seconds from charon to a subscriber")
    lag.legend(markerscale=8)
    memory.plot([s[0] for s in notes.process], [s[2] for s in notes.process], color="#e8702a")
    memory.set_ylabel("bridge, MB resident")
    descriptors.plot([s[0] for s in notes.process], [s[3] for s in notes.process], color="#e8702a")
    descriptors.set_ylabel("bridge, descriptors")
    descriptors.set_xlabel("seconds")
    colors = {kind: f"C{n}" for n, kind in enumerate(sorted({fault.kind for fault in notes.faults}))}
    for fault in notes.faults:
        for axes in (lag, memory, descriptors):
            axes.axvspan(fault.begin, max(fault.end, fault.begin + 0.5), alpha=0.25, color=colors[fault.kind], lw=0)
    for kind, color in colors.items():
        descriptors.fill_between([], [], color=color, alpha=0.25, label=kind)
    descriptors.legend(ncols=4, loc="upper left", fontsize=8)
    figure.savefig(path)


def report(soak: Soak, result: Result, console: Console) -> None:
    table = Table(title=f"{soak.notes.now():,.0f} seconds, {len(soak.notes.faults)} faults")
    for column in ("", "state", "log"):
        table.add_column(column, justify="right" if column else "left")
    for row in result.rows:
        table.add_row(*row)
    console.print(table)
    faults = Counter(fault.kind for fault in soak.notes.faults)
    console.print("faults: " + ", ".join(f"{kind} ({count})" for kind, count in faults.most_common()))
    answers = ", ".join(f"{answer} ({count:,})" for answer, count in soak.notes.answers.most_common())
    console.print(f"requests, by the code of the answer: {answers}")


async def main(seconds: float, seed: int, plot: Path) -> int:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="vicifast-soak-") as directory:
        async with FakeCharon() as charon:
            for command in ("list-sas", "list-conns", "stats"):
                charon.on(command, {})
            charon.on("version", {"daemon": "charon", "version": "6.0.4"})
            soak = Soak(Path(directory), charon, seed)
            try:
                await soak.run(seconds)
                result = await account(soak)
            finally:
                if soak.bridge.process is not None:
                    soak.bridge.process.kill()
                soak.server.kill()
    report(soak, result, console)
    draw(soak.notes, plot)
    console.print(f"plot: {plot}")
    for gap in soak.subscriber.gaps() if result.problems else []:
        console.print(f"{gap}, from {gap.first}")
    for problem in result.problems:
        console.print(f"[red]{problem}")
    return 1 if result.problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--plot", type=Path, default=Path("soak.svg"))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    sys.exit(asyncio.run(main(options.seconds, options.seed, options.plot)))
