"""Traffic through a bridge, and faults meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from vicibridge.bus.nats_server import NatsServer

from vicifast.testing import FakeCharon

from .bus import STREAMS, Observer
from .notes import EVENTS, LINES, TICK, Notes

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


class Bridge:
    """`vicibridge run`, which can be stopped or killed."""

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


class Soak:
    """All processes of a run, and their faults."""

    def __init__(self, directory: Path, charon: FakeCharon, seed: int) -> None:
        self.dice = random.Random(seed)
        self.notes = Notes()
        self.charon = charon
        self.server = NatsServer(directory)
        config = directory / "bridge.toml"
        config.write_text(_CONFIG.format(url=self.server.url, directory=directory, address=charon.address))
        self.log = directory / "bridge.log"
        self.bridge = Bridge(config, self.log)

    async def traffic(self) -> None:
        """Send log lines in bursts, and state events in pairs: an SA comes up and goes down."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            sent = f"{time.time():.6f}"
            for number in range(round(LINES * TICK)):
                self._send("log", "log", group=("IKE", "CFG", "KNL")[number % 3], level="1", sent=sent, msg="x" * 120)
            for _ in range(round(EVENTS * TICK)):
                up, uniqueid = self.notes.ledgers["state"].next() % 2, (self.notes.ledgers["state"].next() + 1) // 2
                more = {"up": "yes"} if up else {}
                self._send("state", "ike-updown", **more, sent=sent, gw={"uniqueid": str(uniqueid)})
            due = max(due + TICK, loop.time() - 1)
            await asyncio.sleep(max(0.0, due - loop.time()))

    def _send(self, kind: str, event: str, **message: object) -> None:
        ledger = self.notes.ledgers[kind]
        reached = self.charon.emit(event, {"number": str(ledger.next()), **message})
        ledger.sent(self.notes.now(), reached > 0)

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
        """Cause faults, one at a time, until the time is over; in the second half none that ends the bridge."""
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
        """A subscriber that reads a tenth of the traffic, until the server disconnects it."""
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
        observer = Observer(self.notes)
        await observer.connect(self.server.url)
        await self.bridge.start()
        await self.charon.registered("log")
        reading = [asyncio.create_task(observer.read(stream)) for stream in STREAMS]
        traffic = asyncio.create_task(self.traffic())
        watching = asyncio.create_task(self.watch_process())
        others = [traffic, asyncio.create_task(observer.ask()), watching, *reading]
        try:
            breaking = asyncio.create_task(self.break_things(seconds))
            await asyncio.wait([breaking, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in (breaking, *others):
                if task.done():
                    task.result()
            traffic.cancel()
            await asyncio.sleep(10)  # pending messages arrive
            watching.cancel()
            await self.bridge.end(kill=False)
            await observer.read_all()
        finally:
            while left := [task for task in others if not task.done()]:
                for task in left:  # more than once, as asyncio's wait_for before Python 3.12 can lose a cancellation
                    task.cancel()
                await asyncio.wait(left, timeout=1)
