"""The spool: unacknowledged events survive the bridge, and problems with the disk are reported."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from harness import NatsServer, background, run, settings, stored, until
from vicibridge.bus.streams import StateStream
from vicibridge.bus.supervisor import ConnectionSupervisor
from vicibridge.events.backlog import KILLED, MEMORY_FULL, Backlog
from vicibridge.events.losses import Loss
from vicibridge.events.spool import DAMAGED, FULL, OLD, Note, Spool, SpooledEvent
from vicibridge.events.state_publisher import StatePublisher
from vicibridge.service import Service

STREAM = StateStream("VICI", ["vici.*.event.>", "vici.*.bridge.>"], 0)
MIB = 1024 * 1024
GIB = 1024 * MIB


class Boot:
    """One run of the bridge, limited to the state class."""

    def __init__(self, path: Path, name: str, max_bytes: int = 64 * MIB, spool: int = GIB, max_age: float = 0) -> None:
        self.name = name
        self.losses: list[Loss] = []
        self.seq = 0
        self.spool = Spool(path, spool, max_age)
        self.backlog = Backlog("gw1", name, max_bytes, self.losses.append, self.spool)

    async def open(self) -> Note | None:
        self.keeper = asyncio.create_task(self.backlog.run())
        return await self.backlog.open()

    def put(self, count: int, size: int = 1) -> None:
        for _ in range(count):
            self.seq += 1
            self.backlog.put([(self.seq, "vici.gw1.event.x", f"{self.name} {self.seq}".encode().ljust(size))])
            self.check()

    def check(self) -> None:
        counts, backlog = self.backlog.counts, self.backlog
        assert counts.received == counts.published + counts.dropped + backlog.spooled + backlog.in_flight
        assert backlog._bytes >= 0

    async def saved(self) -> None:
        await until(lambda: not self.backlog.in_flight)
        self.check()

    async def killed(self) -> None:
        """Leave only the file, without its lock, as after `kill -9`."""
        self.keeper.cancel()
        await asyncio.gather(self.keeper, return_exceptions=True)
        work = self.backlog._last_work
        await until(lambda: (work is None or work.done()) and self.spool._database is None)


@asynccontextmanager
async def publishing(boot: Boot, url: str) -> AsyncIterator[None]:
    bus = ConnectionSupervisor(settings(url).nats)
    pipeline = StatePublisher(bus, STREAM, boot.backlog, delay=0.1)
    async with background(bus.run(), pipeline.run()):
        yield


async def payloads(url: str) -> list[str]:
    return [message.data.decode().rstrip() for message in await stored(url)]


def numbered(boot: str, count: int, first: int = 1) -> list[str]:
    return [f"{boot} {seq}" for seq in range(first, count + 1)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicibridge.events.backlog._RETRY", 0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "gw1.spool"


def test_unacknowledged_events_survive_a_kill(nats_server: NatsServer, path: Path) -> None:
    async def test() -> None:
        for name in ("a", "b"):  # the second is also killed before NATS starts
            boot = Boot(path, name)
            before = await boot.open()
            assert before == (None if name == "a" else Note("a", 3000, False, []))
            boot.put(3000)
            await boot.saved()
            await boot.killed()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700

        last = Boot(path, "c")
        before = await last.open()
        assert before and (before.boot, before.seq, before.clean) == ("b", 3000, False)
        assert last.backlog.spooled == last.backlog.counts.received == 6000
        last.put(500)
        await nats_server.up()
        async with publishing(last, nats_server.url):
            await last.backlog.flush()
            last.put(500)
            await last.backlog.flush()
            await until(lambda: len(last.losses) == 2)
        last.check()
        assert last.losses == [Loss(KILLED, None, 3001, None, "a"), Loss(KILLED, None, 3001, None, "b")]
        messages = await stored(nats_server.url)
        assert [m.data.decode() for m in messages] == numbered("a", 3000) + numbered("b", 3000) + numbered("c", 1000)
        assert [(m.headers or {})["Nats-Msg-Id"] for m in (messages[0], messages[-1])] == ["gw1.a.1", "gw1.c.1000"]
        await last.backlog.close()

        end = Boot(path, "d")
        assert await end.open() == Note("c", 1000, True, [])
        assert end.backlog.spooled == 0
        await end.backlog.close()
        assert path.stat().st_size < 100_000

    run(test())


def test_events_acknowledged_soon_are_not_written_to_disk(
    nats_server: NatsServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserted: list[int] = []
    insert = Spool._insert

    def counted(self: Spool, database: sqlite3.Connection, batch: list[SpooledEvent]) -> object:
        inserted.append(len(batch))
        return insert(self, database, batch)

    monkeypatch.setattr(Spool, "_insert", counted)

    async def test() -> None:
        await nats_server.up()
        boot = Boot(path, "a")
        await boot.open()
        async with publishing(boot, nats_server.url):
            boot.put(1)
            await boot.backlog.flush()
            inserted.clear()  # the stream was created first
            for _ in range(20):
                boot.put(5)
                await boot.backlog.flush()
            await until(lambda: boot.backlog._note and boot.backlog._note.seq == 101)
            assert sum(inserted) < 20
        await boot.killed()
        again = Boot(path, "b")
        assert await again.open() == Note("a", 101, False, [])
        await again.backlog.close()

    run(test())


def test_more_than_memory_holds(nats_server: NatsServer, path: Path) -> None:
    async def test() -> None:
        boot = Boot(path, "a", max_bytes=MIB)
        await boot.open()
        for _ in range(20):
            boot.put(200, size=1000)
            await boot.saved()
            assert boot.backlog._bytes <= MIB
        await nats_server.up()
        async with publishing(boot, nats_server.url):
            while boot.backlog.spooled:
                if boot.backlog._bytes < MIB * 3 // 4:  # a disk that is too slow for the events loses some
                    boot.put(3, size=1000)
                await asyncio.sleep(0.001)
                assert boot.backlog._bytes <= MIB
            await boot.backlog.flush()
        assert await payloads(nats_server.url) == numbered("a", boot.seq)
        assert boot.losses == [] and not boot.backlog._behind
        await boot.backlog.close()

    run(test())


@pytest.mark.parametrize("size", [1, 1000])
def test_reading_back_leaves_memory_for_new_events(nats_server: NatsServer, path: Path, size: int) -> None:
    """Events in memory only must not be dropped in favour of events that are also on disk."""

    async def test() -> None:
        boot = Boot(path, "a", max_bytes=MIB)
        await boot.open()
        for _ in range(10):
            boot.put(MIB // 4 // (size + 200), size)
            await boot.saved()
        await boot.killed()
        again = Boot(path, "b", max_bytes=MIB)
        await again.open()
        await until(lambda: again.backlog._queue and not again.backlog._wants_refill)
        again.put(MIB * 7 // 16 // (size + 200), size)
        assert again.backlog.counts.dropped == 0
        await nats_server.up()
        async with publishing(again, nats_server.url):
            await again.backlog.flush()
        assert await payloads(nats_server.url) == numbered("a", boot.seq) + numbered("b", again.seq)
        await again.backlog.close()

    run(test())


def test_server_restarts_while_the_spool_is_read(nats_server: NatsServer, path: Path) -> None:
    async def test() -> None:
        boot = Boot(path, "a", max_bytes=2 * MIB)
        await boot.open()
        boot.put(2000, size=100)
        await boot.saved()
        async with publishing(boot, nats_server.url):
            for _ in range(3):
                await nats_server.up()
                published = boot.backlog.counts.published
                await until(lambda before=published: boot.backlog.counts.published > before + 300)
                nats_server.kill()
                boot.put(2000, size=100)
                boot.check()
                await boot.saved()
            await nats_server.up()
            await boot.backlog.flush()
        assert await payloads(nats_server.url) == numbered("a", 8000)
        await boot.backlog.close()

    run(test())


def test_full_spool_drops_the_oldest_and_reports_them_even_after_a_kill(nats_server: NatsServer, path: Path) -> None:
    async def test() -> None:
        boot = Boot(path, "a", max_bytes=MIB, spool=2 * MIB)
        await boot.open()
        for _ in range(25):
            boot.put(200, size=1000)
            await boot.saved()
        await until(lambda: boot.backlog.counts.dropped)
        assert sum(file.stat().st_size for file in path.parent.iterdir()) < 8 * MIB
        await boot.saved()
        dropped = boot.backlog.counts.dropped
        assert 2500 < dropped < 4000 and len(boot.backlog._queue) < 2000
        await boot.killed()

        boot = Boot(path, "b", max_bytes=MIB, spool=2 * MIB)
        await boot.open()
        await nats_server.up()
        async with publishing(boot, nats_server.url):
            await boot.backlog.flush()
            await until(lambda: len(boot.losses) == 2)
        assert boot.losses == [Loss(FULL, dropped, 1, dropped, "a"), Loss(KILLED, None, 5001, None, "a")]
        assert await payloads(nats_server.url) == numbered("a", 5000, dropped + 1)
        await boot.backlog.close()

    run(test())


def test_old_events_are_dropped(nats_server: NatsServer, path: Path) -> None:
    async def test() -> None:
        boot = Boot(path, "a")
        await boot.open()
        boot.put(10)
        await boot.saved()
        await boot.killed()
        await asyncio.sleep(0.2)
        boot = Boot(path, "b", max_age=0.1)
        await boot.open()
        await until(lambda: boot.backlog.counts.dropped == 10)
        boot.check()
        assert boot.backlog.losses.unreported[-1] == Loss(OLD, 10, 1, 10, "a")
        await boot.backlog.close()

    run(test())


@pytest.mark.parametrize("step", [-(10**9), 10**9])
def test_clock_change_drops_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    async def test() -> None:
        for name in ("a", "b"):
            boot = Boot(path, name, max_age=1000)
            await boot.open()
            boot.put(10)
            await boot.saved()
            if name == "a":
                await boot.killed()
        real = time.time
        for now in (lambda: real() + step, real):
            monkeypatch.setattr(time, "time", now)
            boot.put(10)
            await boot.saved()
            boot.check()
            # Only the clock shows the age of events of the previous run.
            assert boot.backlog.counts.dropped == (10 if step > 0 else 0)
        await boot.backlog.close()

    run(test())


def tear(path: Path) -> None:
    """Truncate the file that was written last, as power loss does."""
    wal = path.with_name(path.name + "-wal")
    os.truncate(wal, wal.stat().st_size - 1000)


def overwrite(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def spoil_pages(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size - size // 2))


async def killed_with(path: Path, count: int) -> None:
    boot = Boot(path, "a")
    await boot.open()
    for _ in range(count // 100):
        boot.put(100, size=500)
        await boot.saved()
    await boot.killed()


@pytest.mark.parametrize("spoil", [overwrite, spoil_pages])
def test_damaged_file_is_moved_aside_and_reported(
    nats_server: NatsServer, path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    async def test() -> None:
        await killed_with(path, 2000)
        spoil(path)
        boot = Boot(path, "b")
        await boot.open()
        boot.put(100)
        await nats_server.up()
        async with publishing(boot, nats_server.url):
            await boot.backlog.flush()
            await until(lambda: DAMAGED in [loss.cause for loss in boot.losses])
            boot.check()
        arrived = await payloads(nats_server.url)
        assert arrived[-100:] == numbered("b", 100)
        assert arrived[:-100] == numbered("a", len(arrived) - 100)  # readable events arrive first
        assert boot.backlog.spool_trouble == ""
        await boot.backlog.close()

    run(test())
    assert "moved to" in caplog.text
    assert [file.name for file in path.parent.iterdir() if "damaged" in file.name]


def test_only_the_last_damaged_file_is_kept(path: Path) -> None:
    async def test() -> None:
        for text in ("first", "second"):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_text(text * 1000)
            boot = Boot(path, text)
            await boot.open()
            await boot.backlog.close()
        [kept] = path.parent.glob("*damaged*")
        assert kept.read_text().startswith("second")

    run(test())


def test_damaged_row_is_reported_and_the_others_arrive(nats_server: NatsServer, path: Path) -> None:
    async def test() -> None:
        await killed_with(path, 500)
        with sqlite3.connect(path) as database:
            database.execute("UPDATE batch SET data = zeroblob(10) WHERE first = 101")
        database.close()
        boot = Boot(path, "b")
        await boot.open()
        await nats_server.up()
        async with publishing(boot, nats_server.url):
            await boot.backlog.flush()
            await until(lambda: Loss(DAMAGED, 100, 101, 200, "a") in boot.losses)
            boot.check()
        assert await payloads(nats_server.url) == numbered("a", 100) + numbered("a", 500, 201)
        await boot.backlog.close()

    run(test())


def test_truncated_file_loses_only_its_end(nats_server: NatsServer, path: Path) -> None:
    """A killed process leaves the files as they are at that moment, so copies of them are tested."""

    async def test() -> None:
        boot = Boot(path, "a")
        await boot.open()
        for _ in range(5):
            boot.put(100, size=500)
            await boot.saved()
        copy = path.parent / "copy" / path.name
        copy.parent.mkdir(mode=0o700)
        for file in path.parent.glob("gw1.spool*"):
            (copy.parent / file.name).write_bytes(file.read_bytes())
        await boot.backlog.close()
        tear(copy)
        boot = Boot(copy, "b")
        before = await boot.open()
        assert before and before.seq == 400 and boot.backlog.spooled == 400
        await boot.backlog.close()

    run(test())


def test_two_bridges_on_one_spool(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        first, second = Boot(path, "a"), Boot(path, "b")
        await first.open()
        first.put(10)
        await first.saved()
        assert await second.open() is None
        assert second.backlog.spool_trouble == f"{path}: another bridge uses this file"
        second.put(5)
        await first.backlog.close()
        await until(lambda: second.backlog.spooled == 15)
        second.check()
        assert second.backlog.spool_trouble == ""
        await second.backlog.close()

    run(test())
    assert caplog.text.count("another bridge uses this file; events are kept in memory only") == 1


def test_bug_in_the_spool_stops_the_service(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the events on disk would wait indefinitely and unnoticed."""

    def store(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Spool, "store", store)

    async def test() -> None:
        await nats_server.up()
        bridge = Service(settings(nats_server.url))
        with pytest.raises(RuntimeError, match="a bug"):
            await bridge.run(asyncio.Event())

    run(test())


def test_spool_locked_by_another_process_is_closed_at_the_end(path: Path) -> None:
    async def test() -> None:
        first, second = Boot(path, "a"), Boot(path, "b")
        await first.open()
        assert await second.open() is None
        await second.backlog.close()
        assert second.backlog._spool and second.backlog._spool._database is None
        await first.backlog.close()

    run(test())


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@needs_root
def test_full_disk(nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vicibridge.events.backlog")

    async def test() -> None:
        boot = Boot(tmp_path / "disk" / "gw1.spool", "a", max_bytes=2 * MIB)
        await boot.open()
        ballast = tmp_path / "disk" / "ballast"
        while not boot.backlog.spool_trouble:
            boot.put(200, size=1000)
            await asyncio.sleep(0.06)
        assert "the disk is full" in boot.backlog.spool_trouble
        boot.put(4000, size=1000)
        boot.check()
        assert boot.backlog.counts.causes[MEMORY_FULL] > 1000
        before = boot.backlog.counts.published
        await nats_server.up()
        async with publishing(boot, nats_server.url):
            await until(lambda: boot.backlog.counts.published > before + 2000)
            ballast.unlink(missing_ok=True)
            await boot.backlog.flush()
            boot.put(10)
            await boot.backlog.flush()
            await until(lambda: not boot.backlog.spool_trouble and boot.losses)
        boot.check()
        arrived = await payloads(nats_server.url)
        [loss] = boot.losses
        assert loss.first_seq and loss.last_seq and loss.count == boot.seq - len(arrived)
        missing = set(numbered("a", boot.seq)) - set(arrived)
        assert missing == set(numbered("a", loss.last_seq, loss.first_seq))
        assert arrived == [payload for payload in numbered("a", boot.seq) if payload not in missing]
        await boot.backlog.close()

    with mounted(tmp_path / "disk", "size=16m,mode=0700"):
        (tmp_path / "disk" / "ballast").write_bytes(bytes(13 * MIB))
        run(test())
    assert 1 <= caplog.text.count("the disk is full; events are kept in memory only") <= 3
    assert "gw1: spool: in use again" in caplog.text


@needs_root
def test_read_only_disk(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        await nats_server.up()
        boot = Boot(tmp_path / "disk" / "gw1.spool", "a")
        assert await boot.open() is None
        assert "disk is not writable" in boot.backlog.spool_trouble
        async with publishing(boot, nats_server.url):
            boot.put(100)
            await boot.backlog.flush()
            boot.check()
        await boot.backlog.close()
        assert await payloads(nats_server.url) == numbered("a", 100)

    with mounted(tmp_path / "disk", "size=1m,ro,mode=0700"):
        run(test())


def test_directory_writable_by_others_is_rejected(path: Path) -> None:
    async def test() -> None:
        path.parent.mkdir()
        path.parent.chmod(0o777)
        boot = Boot(path, "a")
        assert await boot.open() is None
        assert "chmod go-w" in boot.backlog.spool_trouble
        boot.put(10)
        path.parent.chmod(0o700)
        await boot.saved()
        await boot.backlog.close()

    run(test())


def test_directory_that_cannot_be_created(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "file").touch()
        boot = Boot(tmp_path / "file" / "gw1.spool", "a")
        assert await boot.open() is None
        assert boot.backlog.spool_trouble
        await boot.backlog.close()

    run(test())
