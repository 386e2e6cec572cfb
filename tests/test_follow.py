"""Both followers against a scripted daemon, in the same tests: outages, gaps, snapshots, leaving and closing."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, sas
from onloop import SAS, Kit

from vicifast import AsyncFollower, EncodeError, Message
from vicifast import _wire as wire
from vicifast.follow import Down, Event, Gap, Snapshot, Up
from vicifast.follow.base import FIRST_DELAY, LONGEST_DELAY, BaseFollower
from vicifast.testing import FakeCharon

LISTED = [{f"site-{i}": {"uniqueid": str(i)}} for i in range(50)]


@contextmanager
def pair(kit: Kit, *events: str, **options: Any) -> Iterator[tuple[Any, Any]]:
    with kit.charon() as charon:
        charon.on("list-sas", {}, stream=SAS)
        charon.on("list-conns", {}, stream=[("list-conn", {"site": {}})])
        with kit.follower(charon.address, *events, **options) as follower:
            yield follower, charon


def test_events_follow_up(kit: Kit) -> None:
    with pair(kit, "log", "ike-updown", timeout=10) as (follower, charon):
        assert next(follower) == Up(unknown=())
        charon.emit("log", {"msg": "1"})
        charon.emit("ike-updown", {"up": "yes", "gw": {}})
        assert next(follower) == Event("log", {"msg": "1"})
        assert next(follower) == Event("ike-updown", {"up": "yes", "gw": {}})
        assert charon.requests == []


def test_all_but_the_log_without_names(kit: Kit) -> None:
    with pair(kit) as (follower, charon):
        next(follower)
        registered = [name for kind, name in charon.packets if kind == wire.EVENT_REGISTER]
        assert sorted(registered) == sorted(follower.events)
        assert {"ike-updown", "child-rekey", "alert"} < set(registered) and not {"log", "list-sa"} & set(registered)


def test_snapshots(kit: Kit) -> None:
    with pair(kit, "log", sas=True, conns=True) as (follower, charon):
        assert next(follower) == Up(())
        assert next(follower) == Snapshot(LISTED, [{"site": {}}])
        charon.emit("log", {"msg": "1"})
        assert next(follower) == Event("log", {"msg": "1"})
    with pair(kit, "log", conns=True, values=Message) as (follower, charon):
        next(follower)
        snapshot = next(follower)
        assert snapshot.sas == [] and [conn.to_dict() for conn in snapshot.conns] == [{"site": {}}]


def test_nothing_is_missed_while_a_snapshot_is_taken(kit: Kit) -> None:
    with kit.charon() as charon, kit.follower(charon.address, "log", sas=True) as follower:
        emit = charon.emit

        async def emit_meanwhile(message: object) -> dict[str, object]:
            await asyncio.to_thread(emit, "log", {"msg": "meanwhile"})
            return {}

        charon.on("list-sas", emit_meanwhile, stream=SAS)
        assert [next(follower) for _ in range(3)] == [
            Up(()),
            Snapshot(LISTED, []),
            Event("log", {"msg": "meanwhile"}),
        ]


def test_a_restart_is_a_gap(kit: Kit) -> None:
    with pair(kit, "log", sas=True) as (follower, charon):
        next(follower)
        next(follower)
        charon.emit("log", {"msg": "last"})
        charon.drain()
        before = time.time()
        charon.stop()
        assert next(follower) == Event("log", {"msg": "last"})
        down = next(follower)
        assert isinstance(down, Down) and "charon closed the connection" in down.reason
        charon.start()
        up, gap, snapshot = (next(follower) for _ in range(3))
        assert up == Up(()) and snapshot == Snapshot(LISTED, [])
        assert gap == Gap(down.since, gap.until, down.reason, None)
        assert before <= gap.since <= gap.until <= time.time()
        charon.emit("log", {"msg": "again"})
        assert next(follower) == Event("log", {"msg": "again"})


def test_no_daemon_at_first(kit: Kit, tmp_path: Path) -> None:
    address = str(tmp_path / "charon.vici")
    with kit.follower(address, "log", timeout=0.2) as follower:
        [down] = list(follower)
        assert (
            isinstance(down, Down) and down.reason == f"cannot connect to unix://{address}: No such file or directory"
        )
        assert list(follower) == []  # it is reported once
        with kit.charon(address):
            follower.timeout = 10
            assert next(follower) == Up(())
            assert next(follower)[0] == down.since


def test_old_charon_without_an_event_still_works(kit: Kit) -> None:
    with kit.charon(events={"log"}) as charon, kit.follower(charon.address, "alert", "log") as follower:
        assert next(follower) == Up(unknown=("alert",))
        charon.emit("log", {"msg": "1"})
        assert next(follower) == Event("log", {"msg": "1"})


def test_a_malformed_message_is_a_gap(kit: Kit) -> None:
    with pair(kit, "log", sas=True) as (follower, charon):
        next(follower)
        next(follower)
        begin = time.time()
        charon.emit("log", b"\x09")
        gap, snapshot = next(follower), next(follower)
        assert gap[2:] == ("a message of charon was malformed", 1) and gap.since <= begin <= gap.until
        assert snapshot == Snapshot(LISTED, [])
        charon.emit("log", {"msg": "1"})
        assert next(follower) == Event("log", {"msg": "1"})


def test_a_slow_program_gets_a_gap(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicifast.protocol.LISTENER_LIMIT", 10)
    with pair(kit, "log", timeout=0.2) as (follower, charon):
        next(follower)
        for i in range(50):
            charon.emit("log", {"msg": i})
        charon.drain()
        gap, *events = list(follower)
        assert isinstance(gap, Gap) and (gap.reason, gap.lost) == ("the program fell behind charon", 40)
        assert events == [Event("log", {"msg": str(i)}) for i in range(40, 50)]


def test_a_snapshot_that_fails_is_an_outage(kit: Kit) -> None:
    with pair(kit, "log", sas=True) as (follower, charon):
        charon.cut("list-sas", after=1)
        assert isinstance(next(follower), Down)
        charon.on("list-sas", {}, stream=SAS)
        assert [type(next(follower)) for _ in range(3)] == [Up, Gap, Snapshot]
        charon.cut("list-sas", after=1)
        charon.emit("log", b"\x09")
        assert [type(next(follower)) for _ in range(2)] == [Gap, Down]
        charon.on("list-sas", {})
        assert [type(next(follower)) for _ in range(2)] == [Up, Gap]
        assert next(follower) == Snapshot([], [])


def test_a_charon_that_does_not_answer(kit: Kit) -> None:
    with pair(kit, "log", sas=True, request_timeout=0.1) as (follower, charon):
        charon.mute("list-sas")
        assert "list-sas" in next(follower).reason
        charon.on("list-sas", {}, stream=SAS)
        assert next(follower) == Up(())


def test_iteration_ends_after_its_timeout(kit: Kit) -> None:
    with pair(kit, "log", timeout=0.05) as (follower, charon):
        assert list(follower) == [Up(())]
        assert list(follower) == []
        charon.emit("log", {"msg": "1"})
        assert list(follower) == [Event("log", {"msg": "1"})]
        charon.stop()
        assert [type(item) for item in follower] == [Down]
        charon.start()
        follower.timeout = 10
        assert isinstance(next(follower), Up)
        assert not follower.closed


def test_leaving_and_closing(kit: Kit) -> None:
    with kit.charon() as charon:
        with pytest.raises(ZeroDivisionError), kit.follower(charon.address, "log") as follower:
            for _ in follower:
                1 / 0  # noqa: B018
        charon.connected(0)
        assert charon.abrupt_closes == 0
        assert follower.closed and list(follower) == []
        follower.close()


def test_a_dropped_follower_unregisters(kit: Kit) -> None:
    with kit.charon() as charon:
        follower = kit.follower(charon.address, "log")
        next(follower)
        charon.registered("log")
        del follower
        gc.collect()
        charon.connected(0)
        assert charon.abrupt_closes == 0


def test_bad_arguments_raise_at_once(kit: Kit) -> None:
    with pytest.raises(ValueError, match="invalid VICI address: 'http://x'"):
        kit.follower("http://x", "log")
    with pytest.raises(EncodeError):
        kit.follower(None, "Zürich")


def test_delays_grow_up_to_a_limit_and_reset() -> None:
    follower: BaseFollower[Any] = BaseFollower(None, "log")
    error = OSError("gone")
    delays = []
    for _ in range(10):
        follower._went_down(error)  # type: ignore[arg-type]
        delays.append(follower._pause())
    assert FIRST_DELAY / 2 - 0.01 <= delays[0] <= FIRST_DELAY
    assert all(delay <= FIRST_DELAY * 2**number for number, delay in enumerate(delays))
    assert LONGEST_DELAY / 2 - 0.01 <= min(delays[-3:]) <= max(delays) <= LONGEST_DELAY
    assert [item.reason for item in follower._items if isinstance(item, Down)] == ["gone"]
    follower._came_up((), 1.0, {})
    follower._went_down(error)  # type: ignore[arg-type]
    assert follower._pause() > LONGEST_DELAY / 3  # the connection did not last
    follower._came_up((), 1.0, {})
    follower._up_since -= LONGEST_DELAY + 1
    follower._went_down(error)  # type: ignore[arg-type]
    assert follower._pause() <= FIRST_DELAY


@pytest.mark.parametrize("sas", [False, True])
def test_cancelling_loses_nothing(sas: bool) -> None:
    async def take(follower: Any, turns: int) -> Any:
        """The next item, asked for again and again and cancelled after some turns of the loop."""
        while True:
            task = asyncio.ensure_future(anext(follower))
            for _ in range(turns):
                await asyncio.sleep(0)
                if task.done():
                    return task.result()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                return task.result()

    async def scenario(turns: int) -> None:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=SAS)
            async with AsyncFollower(charon.address, "log", sas=sas) as follower:
                expected: list[Any] = [Up(()), *([Snapshot(LISTED, [])] if sas else [])]
                for item in expected:
                    assert await take(follower, turns) == item
                for i in range(20):
                    charon.emit("log", {"msg": i})
                    assert await take(follower, turns) == Event("log", {"msg": str(i)})
            assert len(charon.requests) == sas
            await charon.connected(0)

    for turns in (1, 2, 3, 5, 8):
        asyncio.run(asyncio.wait_for(scenario(turns), 20))


def test_closed_from_another_task() -> None:
    async def scenario(charon: FakeCharon, running: bool) -> None:
        follower = AsyncFollower(charon.address, "log", sas=True)
        items: list[Any] = []

        async def consume() -> None:
            async for item in follower:
                items.append(item)

        consuming = asyncio.create_task(consume())
        if running:
            await charon.registered("log")
            await charon.requested("list-sas")
        else:
            while not items:
                await asyncio.sleep(0.01)
        await follower.aclose()
        await asyncio.wait_for(consuming, 5)
        assert follower.closed

    async def scenarios() -> None:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=SAS)
            await scenario(charon, True)
            charon.mute("list-sas")
            await scenario(charon, True)
            await charon.stop()
            await scenario(charon, False)

    asyncio.run(asyncio.wait_for(scenarios(), 20))


@pytest.mark.lab
def test_a_killed_charon(kit: Kit) -> None:
    with Lab() as lab:
        [name] = asyncio.run(sas.up(lab, 1))
        with kit.follower(lab.left.address, "alert", "ike-updown", "child-updown", sas=True, conns=True) as follower:
            up, snapshot = next(follower), next(follower)
            assert up.unknown in ((), ("alert",))
            assert (
                [list(message) for message in snapshot.sas] == [list(message) for message in snapshot.conns] == [[name]]
            )
            lab.left.kill()
            while not isinstance(down := next(follower), Down):  # the last up may come after the reply to initiate
                assert isinstance(down, Event)
            lab.left.start()
            assert next(follower) == up
            gap = next(follower)
            assert (gap.since, gap.reason, gap.lost) == (down.since, down.reason, None)
            assert next(follower) == Snapshot([], [])
            asyncio.run(sas.up(lab, 1))
            while (item := next(follower)).name != "child-updown":
                assert item.name in ("alert", "ike-updown")
            assert item.message["up"] == "yes" and name in item.message
