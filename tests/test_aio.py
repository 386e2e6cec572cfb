"""AsyncSession against a scripted daemon: order, timeouts, cancellation, faults and closing."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from pathlib import Path

import pytest

from vicifast import (
    AsyncSession,
    CommandError,
    ConnectionClosed,
    DecodeError,
    EncodeError,
    Message,
    ProtocolError,
    Raw,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
    encode,
)
from vicifast import _wire as wire
from vicifast.testing import FakeCharon

SAS = [("list-sa", {f"site-{i}": {"uniqueid": i}}) for i in range(50)]


def run(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @wraps(test)
    def in_loop(*args: object, **kwargs: object) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return in_loop


@asynccontextmanager
async def session_and_charon(**options: object) -> AsyncIterator[tuple[AsyncSession, FakeCharon]]:
    async with FakeCharon() as charon:
        charon.on("version", {"daemon": "charon"})
        charon.on("list-sas", {}, stream=SAS)
        async with AsyncSession(charon.address, **options) as session:  # type: ignore[arg-type]
            yield session, charon


@run
async def test_call() -> None:
    async with session_and_charon() as (session, charon):
        assert await session.call("version") == {"daemon": "charon"}
        charon.on("unload-conn", {"success": "yes"})
        assert await session.call("unload-conn", {"name": "gw"}) == {"success": "yes"}
        assert charon.requests == [("version", {}), ("unload-conn", {"name": "gw"})]


@run
async def test_errors_leave_the_session_usable() -> None:
    async with session_and_charon() as (session, charon):
        charon.on("terminate", {"success": "no", "errmsg": "no matching SAs"})
        with pytest.raises(CommandError, match="terminate: no matching SAs"):
            await session.call("terminate", {"ike": "x"})
        with pytest.raises(UnknownCommand, match="nonsense"):
            await session.call("nonsense")
        with pytest.raises(EncodeError):
            await session.call("terminate", {"ike": None})
        assert (await session.call("version"))["daemon"] == "charon"


@run
async def test_stream() -> None:
    async with session_and_charon() as (session, _):
        stream = session.stream("list-sas")
        assert [sa async for sa in stream] == [{f"site-{i}": {"uniqueid": str(i)}} for i in range(50)]
        assert stream.response == {}
        assert [sa async for sa in stream] == []


@run
async def test_stream_is_sent_at_once() -> None:
    async with session_and_charon() as (session, charon):
        stream = session.stream("list-sas")
        await charon.requested("list-sas")
        assert len([sa async for sa in stream]) == 50


@run
async def test_stream_of_an_unknown_event() -> None:
    async with session_and_charon() as (session, _):
        with pytest.raises(ValueError, match="version streams no event"):
            session.stream("version")
        with pytest.raises(UnknownEvent, match="list-nothing"):
            _ = [sa async for sa in session.stream("list-sas", event="list-nothing")]
        assert await session.call("version")


@run
async def test_failed_stream_gives_its_messages_first() -> None:
    async with session_and_charon() as (session, charon):
        log = [("control-log", {"msg": str(i)}) for i in range(3)]
        charon.on("initiate", {"success": "no", "errmsg": "not established"}, stream=log)
        seen = []
        with pytest.raises(CommandError, match="not established"):
            async for message in session.stream("initiate", {"child": "net"}):
                seen.append(message["msg"])
        assert seen == ["0", "1", "2"]


@run
async def test_leaving_a_stream() -> None:
    async with session_and_charon() as (session, _):
        async for _sa in session.stream("list-sas"):
            break
        assert await session.call("version")
        with pytest.raises(ZeroDivisionError):
            async for _sa in session.stream("list-sas"):
                1 / 0  # noqa: B018
        gc.collect()
        async with session.stream("list-sas") as stream:
            assert await anext(aiter(stream))
        assert [sa async for sa in stream] == []
        assert await session.call("version")


@run
async def test_concurrent_calls_are_told_apart() -> None:
    async with session_and_charon() as (session, charon):
        charon.on("get-shared", lambda message: {"echo": message["n"]})
        calls = [session.call("get-shared", {"n": n}) for n in range(50)]
        streams = [session.stream("list-sas") for _ in range(5)]
        replies = await asyncio.gather(*calls)
        assert [reply["echo"] for reply in replies] == [str(n) for n in range(50)]
        for stream in streams:
            assert len([sa async for sa in stream]) == 50


@pytest.mark.parametrize("chunk", [1, 3, 1000, None])
@run
async def test_any_size_of_read(chunk: int | None) -> None:
    async with session_and_charon() as (session, charon):
        charon.chunk = chunk
        assert len([sa async for sa in session.stream("list-sas")]) == 50
        assert await session.call("version") == {"daemon": "charon"}


@run
async def test_large_messages() -> None:
    async with session_and_charon() as (session, charon):
        big = {f"k{i}": "x" * 65000 for i in range(8)}
        charon.on("stats", big)
        for _ in range(20):
            assert await session.call("stats") == big


@run
async def test_listen() -> None:
    async with session_and_charon() as (session, charon), session.listen("log", "ike-updown") as listener:
        charon.emit("log", {"msg": "1"})
        charon.emit("ike-updown", {"up": "yes", "gw": {}})
        charon.emit("log", {"msg": "2"})
        events = [await anext(listener) for _ in range(3)]
        assert events == [("log", {"msg": "1"}), ("ike-updown", {"up": "yes", "gw": {}}), ("log", {"msg": "2"})]
        assert await session.call("version")


@run
async def test_listener_ends_when_nothing_comes() -> None:
    async with session_and_charon() as (session, charon):
        listener = session.listen("log", timeout=0.05)
        await listener.ready()
        charon.emit("log", {"msg": "1"})
        assert [event async for event in listener] == [("log", {"msg": "1"})]
        assert await listener.batch() == []
        charon.emit("log", {"msg": "2"})
        assert [event async for event in listener] == [("log", {"msg": "2"})]


@run
async def test_batch() -> None:
    async with session_and_charon(readers={"log": Raw()}) as (session, charon), session.listen("log") as listener:
        for i in range(100):
            charon.emit("log", {"msg": i})
        taken: list[tuple[str, object]] = []
        while len(taken) < 100:
            taken += await listener.batch()
        assert taken == [("log", encode({"msg": i})) for i in range(100)]


@run
async def test_old_daemon_without_alert() -> None:
    async with FakeCharon(events={"log"}) as charon, AsyncSession(charon.address) as session:
        listener = session.listen("alert", "log")
        with pytest.raises(UnknownEvent, match="alert"):
            await listener.ready()
        assert listener.unknown == ("alert",)
        charon.emit("log", {"msg": "1"})
        assert await anext(listener) == ("log", {"msg": "1"})


@run
async def test_leaving_a_listener_unregisters() -> None:
    async with session_and_charon() as (session, charon):
        async with session.listen("log"):
            assert charon.registrations("log") == 1
        await session.call("version")
        assert charon.registrations("log") == 0


@run
async def test_malformed_messages_spoil_only_themselves() -> None:
    async with session_and_charon() as (session, charon), session.listen("log") as listener:
        charon.emit("log", b"\x09")
        charon.emit("log", {"msg": "1"})
        with pytest.raises(DecodeError):
            await anext(listener)
        assert await anext(listener) == ("log", {"msg": "1"})


@run
async def test_timeout_closes_the_connection() -> None:
    async with session_and_charon(timeout=0.05) as (session, charon):
        charon.mute("version")
        with pytest.raises(RequestTimeout, match="version.* longer than 512 KiB"):
            await session.call("version")
        assert session.closed
        with pytest.raises(ConnectionClosed, match="version: nothing came"):
            await session.call("version")
        await session.connect()
        charon.on("version", {"daemon": "charon"})
        assert await session.call("version") == {"daemon": "charon"}


@run
async def test_reply_that_never_comes_is_not_taken_from_the_next_call() -> None:
    async with session_and_charon() as (session, charon):
        charon.on("get-counters", {})
        charon.mute("get-counters")
        lost = asyncio.create_task(session.call("get-counters", timeout=0.1))
        await charon.requested("get-counters")
        waiting = [asyncio.create_task(session.call("version")) for _ in range(3)]
        with pytest.raises(RequestTimeout):
            await lost
        for call in waiting:
            with pytest.raises(ConnectionClosed, match="get-counters"):
                await call


@run
async def test_giving_up_a_call_that_waits_for_another() -> None:
    async with session_and_charon() as (session, charon):
        release = asyncio.Event()

        async def slow(message: object) -> dict[str, object]:
            await release.wait()
            return {"slow": True}

        charon.on("stats", slow)
        first = asyncio.create_task(session.call("stats"))
        await charon.requested("stats")
        with pytest.raises(RequestTimeout):
            await session.call("version", timeout=0.01)
        cancelled = asyncio.create_task(session.call("version"))
        await asyncio.sleep(0)
        cancelled.cancel()
        release.set()
        assert await first == {"slow": "yes"}
        assert await session.call("version") == {"daemon": "charon"}
        assert [name for name, _ in charon.requests] == ["stats", "version"]


@run
async def test_timeout_of_one_call() -> None:
    async with session_and_charon(timeout=None) as (session, charon):
        charon.delay = 0.05
        assert await session.call("version", timeout=5)
        charon.delay = 5
        with pytest.raises(RequestTimeout):
            await session.call("version", timeout=0.01)


@run
async def test_timeout_of_a_stream_is_between_messages() -> None:
    async with session_and_charon(timeout=0.1) as (session, charon):
        charon.delay = 5
        with pytest.raises(RequestTimeout, match="list-sas"):
            await anext(session.stream("list-sas"))


@run
async def test_stream_whose_reply_was_dropped() -> None:
    async with session_and_charon() as (session, charon):
        charon.mute("list-sas")
        seen = []
        with pytest.raises(ProtocolError, match="reply to list-sas; a reply longer than 512 KiB"):
            async for sa in session.stream("list-sas"):
                seen.append(sa)
        assert len(seen) == 50


@pytest.mark.parametrize("what", ["call", "stream"])
@run
async def test_cancelling_closes_the_connection(what: str) -> None:
    async with session_and_charon() as (session, charon):
        charon.delay = 5
        waiting = session.call("version") if what == "call" else anext(session.stream("list-sas"))
        task = asyncio.ensure_future(waiting)
        await charon.requested("version" if what == "call" else "list-sas")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ConnectionClosed, match="cancelled"):
            await session.call("version")


@run
async def test_cancelling_a_listener_closes_nothing() -> None:
    async with session_and_charon() as (session, charon), session.listen("log") as listener:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(listener), 0.01)
        charon.emit("log", {"msg": "1"})
        assert await anext(listener) == ("log", {"msg": "1"})


@run
async def test_daemon_dies_in_the_middle() -> None:
    async with session_and_charon() as (session, charon), session.listen("log") as listener:
        charon.emit("log", {"msg": "last"})
        charon.cut("list-sas", after=3)
        seen = []
        with pytest.raises(ConnectionClosed):
            async for sa in session.stream("list-sas"):
                seen.append(sa)
        assert len(seen) == 3
        assert await anext(listener) == ("log", {"msg": "last"})
        with pytest.raises(ConnectionClosed):
            await anext(listener)
        with pytest.raises(ConnectionClosed):
            await session.call("version")


@run
async def test_half_a_packet() -> None:
    async with session_and_charon() as (session, charon):
        charon.mute("version")
        call = asyncio.create_task(session.call("version"))
        await charon.requested("version")
        charon.send(b"\x00\x00\x00\x09\x01")
        await charon.drain()
        await asyncio.sleep(0)
        await charon.stop()
        with pytest.raises(ConnectionClosed):
            await call


@pytest.mark.parametrize("garbage", [bytes(4), b"\xff" * 8, b"\x00\x00\x00\x01\x05", b"HTTP/1.1 400"])
@run
async def test_a_peer_that_is_no_charon(garbage: bytes) -> None:
    async with session_and_charon() as (session, charon):
        charon.mute("version")
        call = asyncio.create_task(session.call("version"))
        await charon.requested("version")
        charon.send(garbage)
        with pytest.raises(ProtocolError):
            await call
        assert session.closed


@run
async def test_full_backlog_is_waited_out() -> None:
    async with FakeCharon(backlog=1) as charon:
        charon.on("version", {"daemon": "charon"})
        charon.pause_accepting()
        sessions = [AsyncSession(charon.address) for _ in range(40)]
        connecting = [asyncio.create_task(session.connect()) for session in sessions]
        await asyncio.wait(connecting, timeout=0.05)
        assert not all(task.done() for task in connecting)
        charon.resume_accepting()
        await asyncio.gather(*connecting)
        for reply in await asyncio.gather(*(session.call("version") for session in sessions)):
            assert reply == {"daemon": "charon"}
        for session in sessions:
            await session.close()


@run
async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ConnectionClosed, match=r"unix://.*none\.vici: No such file"):
        await AsyncSession(tmp_path / "none.vici").connect()
    with pytest.raises(ConnectionClosed, match="not connected"):
        await AsyncSession(tmp_path / "none.vici").call("version")
    with pytest.raises(ValueError, match="no VICI address: 'http://x'"):
        AsyncSession("http://x")


@run
async def test_connecting_takes_no_longer_than_the_timeout() -> None:
    async with FakeCharon(backlog=0) as charon:
        charon.pause_accepting()
        taken = []
        for _ in range(3):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            taken.append(sock)
            with suppress(BlockingIOError):
                sock.connect(charon.address.removeprefix("unix://"))
        with pytest.raises(RequestTimeout, match="no connection to unix://"):
            await AsyncSession(charon.address, timeout=0.05).connect()
        for sock in taken:
            sock.close()


@run
async def test_tcp() -> None:
    async with FakeCharon("tcp://127.0.0.1:0") as charon:
        charon.on("version", {"daemon": "charon"})
        async with AsyncSession(charon.address) as session:
            assert await session.call("version") == {"daemon": "charon"}


@run
async def test_connected_socket() -> None:
    async with FakeCharon() as charon:
        charon.on("version", {"daemon": "charon"})
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(charon.address.removeprefix("unix://"))
        async with AsyncSession(sock) as session:
            assert await session.call("version") == {"daemon": "charon"}
        assert sock.fileno() == -1


@run
async def test_closing_unregisters_first() -> None:
    async with FakeCharon() as charon:
        async with AsyncSession(charon.address) as session:
            listener = session.listen("log", "ike-updown")
            await listener.ready()
        await charon.connected(0)
        assert (wire.EVENT_UNREGISTER, "log") in charon.packets
        assert charon.abrupt_closes == 0
        with pytest.raises(ConnectionClosed):
            await anext(listener)


@run
async def test_closing_twice_and_with_open_calls() -> None:
    async with session_and_charon() as (session, charon):
        charon.delay = 0.01
        charon.mute("version")
        call = asyncio.create_task(session.call("version"))
        await charon.requested("version")
        await asyncio.gather(session.close(), session.close())
        with pytest.raises(ConnectionClosed, match="session was closed"):
            await call
        with pytest.raises(ConnectionClosed, match="not connected"):
            await session.call("version")


@run
async def test_bytes_values_and_binary_fields() -> None:
    async with FakeCharon() as charon:
        der = b"0\x82\x01\xff"
        charon.on("list-certs", {}, stream=[("list-cert", {"type": "X509", "data": der})])
        async with AsyncSession(charon.address) as session:
            assert [cert async for cert in session.stream("list-certs")] == [{"type": "X509", "data": der}]
        async with AsyncSession(charon.address, values=bytes) as session:
            assert [cert async for cert in session.stream("list-certs")] == [{"type": b"X509", "data": der}]


@run
async def test_messages_read_lazily() -> None:
    async with FakeCharon() as charon, AsyncSession(charon.address, values=Message) as session:
        charon.on("version", {"daemon": "charon"})
        charon.on("list-sas", {}, stream=SAS)
        charon.on("list-certs", {}, stream=[("list-cert", {"type": "X509", "data": b"0\xff"})])
        charon.on("terminate", {"success": "no", "errmsg": "no matching SAs"})
        assert (await session.call("version"))["daemon"] == "charon"
        seen = [sa.get(f"site-{i}", "uniqueid") for i, sa in enumerate([sa async for sa in session.stream("list-sas")])]
        assert seen == [str(i) for i in range(50)]
        assert (await anext(session.stream("list-certs")))["data"] == b"0\xff"
        with pytest.raises(CommandError, match="no matching SAs"):
            await session.call("terminate", {"ike": "x"})
