"""charon is not harmed: its memory during a NATS outage, and its log when a bridge ends.

`test_commands_on_charon` tests that blocking commands never exceed their share of its threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from harness import bridge_process, run, start_bridge, until
from lab import Lab

from vicifast.aio import AsyncSession

pytestmark = [pytest.mark.faults, pytest.mark.lab(nats=True)]

MB = 1e6
CONN = {"version": 2, "remote_addrs": ["10.99.0.77"], "local": {"auth": "psk"}, "remote": {"auth": "psk"}}


class Listener:
    """Another listener of charon's log: counts the lines, and the lines about undeliverable events."""

    def __init__(self) -> None:
        self.lines = 0
        self.undeliverable = 0
        self.last = 0  # the last line that was undeliverable

    @asynccontextmanager
    async def listening(self, address: str) -> AsyncIterator[Listener]:
        async with AsyncSession(address) as session:
            listener = session.listen("log")
            await listener.ready()
            task = asyncio.create_task(self._listen(listener))
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _listen(self, listener: object) -> None:
        async for _, message in listener:  # type: ignore[attr-defined]
            self.lines += 1
            if "vici connection" in message["msg"] and "unknown" in message["msg"]:
                self.undeliverable += 1
                self.last = self.lines


@asynccontextmanager
async def flood(address: str, sessions: int = 4) -> AsyncIterator[None]:
    """Make charon log as fast as it can: each `load-conn` causes a line or two."""
    async with AsyncExitStack() as stack:

        async def load(session: AsyncSession, number: int) -> None:
            while True:
                await session.call("load-conn", {f"flood-{number}": CONN})

        tasks = []
        for number in range(sessions):
            session = await stack.enter_async_context(AsyncSession(address))
            tasks.append(asyncio.create_task(load(session, number)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def used(address: str) -> float:
    """Return the bytes that charon has allocated with malloc."""
    async with AsyncSession(address) as session:
        memory = (await session.call("stats"))["mallinfo"]
    assert isinstance(memory, dict)
    return float(str(memory["used"])) + float(str(memory["mmap"]))


async def grown(address: str, lines: int) -> float:
    """Return the growth of charon in bytes over a number of lines, all of which must arrive."""
    before = await used(address)
    listener = Listener()
    async with listener.listening(address):
        async with flood(address):
            await until(lambda: listener.lines >= lines, 60)
        after = await used(address)
        while (now := await used(address)) < after:  # lines in transit to the listeners
            after = now
            await asyncio.sleep(0.1)
        return after - before


def config(lab: Lab) -> Path:
    path = lab.directory / "bridge.toml"
    path.write_text(
        f'[nats]\nservers = ["{lab.nats.url}"]\n[mirror]\nenabled = false\n[spool]\npath = "{lab.directory}/spool"\n'
        f'[log]\nmax_bytes = 1048576\n[[gateway]]\nnode = "left"\nvici = "{lab.left.address}"\n'
    )
    return path


def test_memory_of_charon_does_not_grow_during_a_nats_outage(lab: Lab) -> None:
    """In contrast to a client that registers for the log and does not read it."""

    async def test() -> None:
        address = lab.left.address
        lab.nats.kill()
        async with bridge_process(config(lab)) as log:
            await until(lambda: "charon is up" in log.read_text())
            await grown(address, 2000)
            bridge = await grown(address, 15_000)
            lab.nats.start()
            await until(lambda: "NATS: connected" in log.read_text())
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix://"), limit=1024)
        writer.write(b"\0\0\0\x05\x03\x03log")
        await reader.readexactly(5)
        idler = await grown(address, 15_000)
        writer.close()
        print(f"{bridge / MB:.1f} MB with the bridge, {idler / MB:.1f} MB with one who does not read")
        assert bridge < MB < 2 * MB < idler

    run(test(), 150)


@pytest.mark.parametrize("kill", [False, True])
def test_stopping_the_bridge_causes_no_burst_of_lines(lab: Lab, kill: bool) -> None:
    """Lines about events for a closed connection; after SIGKILL there is a burst, which ends without intervention."""

    path = config(lab)
    log = path.with_suffix(".log")
    listener = Listener()

    async def more(lines: int) -> None:
        before = listener.lines
        await until(lambda: listener.lines > max(before, listener.last) + lines, 60)

    async def end_one() -> None:
        with log.open("wb") as stderr:
            bridge = await start_bridge(path, stderr=stderr)
        await until(lambda: "charon is up" in log.read_text())
        await more(500)
        bridge.kill() if kill else bridge.terminate()
        await asyncio.wait_for(bridge.wait(), 20)
        await more(500)

    async def test() -> None:
        async with listener.listening(lab.left.address), flood(lab.left.address):
            for _ in range(5):
                await end_one()
            undeliverable = listener.undeliverable  # at the end of the flood some replies are undeliverable, too
        print(f"{undeliverable} of {listener.lines} lines are about connections that have gone")
        assert kill or not undeliverable

    run(test(), 150)
