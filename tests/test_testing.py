from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from vicifast import AsyncSession, _wire
from vicifast.commands import EVENTS
from vicifast.errors import (
    CommandError,
    ConnectionClosed,
    EncodeError,
    ProtocolError,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
)
from vicifast.recording import Recording, RecordingWriter
from vicifast.testing import FakeCharon

VERSION = {"daemon": "charon", "version": "6.0.6"}
SAS = [("list-sa", {f"gw{n}": {"uniqueid": str(n)}}) for n in range(5)]
UP = {"up": "yes", "gw": {"uniqueid": "1"}}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(limited())


class Wire:
    """A client that sends and reads raw bytes, to check the framing of packets."""

    def __init__(self, charon: FakeCharon) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(charon.address.removeprefix("unix://"))
        self.sock.setblocking(False)
        self.framer = _wire.Framer(_wire.Decoder())

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.sock.close()

    async def send(self, *packets: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(packets))

    async def read(self, size: int = 65536) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    async def packets(self, count: int) -> list[object]:
        """The kinds of the next packets, or (name, message) for events and the message for replies."""
        found: list[object] = []
        while len(found) < count:
            data = await self.read()
            assert data, f"closed after {found}"
            self.framer.feed(data)
            for kind, name, body in self.framer.packets():
                found.append((name, body) if name else kind if body is None else body)
        assert len(found) == count
        return found


def request(name: str, message: Mapping[str, object] | None = None) -> bytes:
    return _wire.packet(_wire.CMD_REQUEST, name, message)


def register(name: str) -> bytes:
    return _wire.packet(_wire.EVENT_REGISTER, name)


def unregister(name: str) -> bytes:
    return _wire.packet(_wire.EVENT_UNREGISTER, name)


def test_answers_commands_and_keeps_the_requests() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, AsyncSession(charon.address) as session:
            charon.on("version", VERSION)
            charon.on("get-keys", _wire.encode({"keys": ["a", "b"]}))
            charon.on("unload-conn", {"success": "no", "errmsg": "not found"})
            assert await session.call("version") == VERSION
            assert await session.call("get-keys") == {"keys": ["a", "b"]}
            with pytest.raises(CommandError, match="not found"):
                await session.call("unload-conn", {"name": "gw"})
            with pytest.raises(UnknownCommand):
                await session.call("stats")
            assert await session.call("version") == VERSION
            assert charon.requests == [
                ("version", {}),
                ("get-keys", {}),
                ("unload-conn", {"name": "gw"}),
                ("stats", {}),
                ("version", {}),
            ]
            assert await charon.requested("unload-conn") == {"name": "gw"}

    run(scenario)


def test_functions_answer_and_may_wait() -> None:
    async def later(message: Mapping[str, object]) -> Mapping[str, object]:
        await asyncio.sleep(0)
        return {"was": message["child"]}

    async def scenario() -> None:
        async with FakeCharon() as charon, AsyncSession(charon.address) as session:
            charon.on("install", lambda message: {"was": message["child"]})
            charon.on("initiate", later)
            assert await session.call("install", {"child": "a"}) == {"was": "a"}
            assert await session.call("initiate", {"child": "b"}) == {"was": "b"}

    run(scenario)


def test_failing_function_is_raised_at_exit() -> None:
    def fail(message: Mapping[str, object]) -> Mapping[str, object]:
        raise ZeroDivisionError("in the script")

    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError, match="in the script"):
            async with FakeCharon() as charon, AsyncSession(charon.address) as session:
                charon.on("version", fail)
                with pytest.raises(ConnectionClosed):
                    await session.call("version")

    run(scenario)


def test_bad_script_raises_at_once() -> None:
    charon = FakeCharon()
    with pytest.raises(EncodeError):
        charon.on("version", {"daemon": None})
    with pytest.raises(UnknownEvent):
        charon.emit("ike-upside-down", {})


def test_stream_reaches_registered_clients_only() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, AsyncSession(charon.address) as session:
            charon.on("list-sas", {}, stream=SAS)
            assert [message async for message in session.stream("list-sas")] == [body for _, body in SAS]
            async with Wire(charon) as wire:
                await wire.send(request("list-sas"))
                assert await wire.packets(1) == [{}]
                await wire.send(register("list-sa"), register("list-sa"), request("list-sas"))
                twice = [sa for sa in SAS for _ in range(2)]
                assert await wire.packets(13) == [_wire.EVENT_CONFIRM] * 2 + twice + [{}]

    run(scenario)


def test_registrations_are_counted() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, Wire(charon) as wire:
            assert charon.emit("log", {"msg": "a"}) == 0
            await wire.send(register("log"), register("log"), register("nonsense"))
            confirm, unknown = _wire.EVENT_CONFIRM, _wire.EVENT_UNKNOWN
            assert await wire.packets(3) == [confirm, confirm, unknown]
            await charon.registered("log", 2)
            assert charon.registrations("log") == 2
            assert charon.emit("log", _wire.encode({"msg": "b"})) == 2
            assert await wire.packets(2) == [("log", {"msg": "b"})] * 2
            await wire.send(*[unregister("log")] * 3)
            assert await wire.packets(3) == [confirm, confirm, unknown]
            assert charon.emit("log", {"msg": "c"}) == 0
            assert charon.packets[-1] == (_wire.EVENT_UNREGISTER, "log")

    run(scenario)


def test_old_daemon_has_no_alert() -> None:
    async def scenario() -> None:
        async with FakeCharon(events=set(EVENTS) - {"alert"}) as charon:
            async with AsyncSession(charon.address) as session:
                listener = session.listen("alert", "ike-updown")
                with pytest.raises(UnknownEvent, match="alert"):
                    await listener.ready()
                assert charon.emit("ike-updown", UP) == 1
                assert await listener.batch() == [("ike-updown", UP)]

    run(scenario)


def test_requests_wait_for_the_running_one_and_events_do_not() -> None:
    async def scenario() -> None:
        go = asyncio.Event()

        async def blocked(message: Mapping[str, object]) -> Mapping[str, object]:
            await go.wait()
            return {"success": "yes"}

        async with FakeCharon() as charon, Wire(charon) as wire:
            charon.on("initiate", blocked)
            charon.on("version", VERSION)
            await wire.send(register("log"), request("initiate"), request("version"), unregister("log"))
            await charon.requested("initiate")
            charon.emit("log", {"msg": "meanwhile"})
            assert await wire.packets(2) == [_wire.EVENT_CONFIRM, ("log", {"msg": "meanwhile"})]
            assert [name for name, _ in charon.requests] == ["initiate"]
            go.set()
            assert await wire.packets(3) == [{"success": "yes"}, VERSION, _wire.EVENT_CONFIRM]

    run(scenario)


def test_command_continues_after_its_client_disconnects() -> None:
    async def scenario() -> None:
        go, done = asyncio.Event(), asyncio.Event()

        async def blocked(message: Mapping[str, object]) -> Mapping[str, object]:
            await go.wait()
            done.set()
            return {"success": "yes"}

        async with FakeCharon() as charon:
            charon.on("initiate", blocked)
            async with Wire(charon) as wire:
                await wire.send(request("initiate"), request("initiate"))
                await charon.requested("initiate")
            await charon.connected(0)
            go.set()
            await done.wait()
        assert len(charon.requests) == 1

    run(scenario)


def test_malformed_packets_get_no_answer() -> None:
    async def scenario() -> None:
        bad = [b"", b"\x00", b"\x00\x09version", b"\x00\x01\xc3", b"\x09\x03log", b"\x05", b"\x01"]
        async with FakeCharon() as charon, Wire(charon) as wire:
            charon.on("version", VERSION)
            await wire.send(*(len(body).to_bytes(4) + body for body in bad), request("version"), request(""))
            assert await wire.packets(2) == [VERSION, _wire.CMD_UNKNOWN]
            await wire.send(b"\x00\x00\x00\x0b\x00\x07version\x03\x09")
            assert await wire.packets(1) == [{"success": "no", "errmsg": "parsing request failed"}]

    run(scenario)


def test_frame_over_512_kib_ends_the_connection() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, Wire(charon) as wire:
            charon.on("version", VERSION)
            await wire.send(request("version"))
            assert await wire.packets(1) == [VERSION]
            await wire.send(b"\x00\x08\x00\x01")
            assert await wire.read() == b""

    run(scenario)


def test_too_long_answers_and_muted_ones_never_come() -> None:
    async def scenario() -> None:
        big = _wire.encode({"list": ["x" * 60000] * 8}) + _wire.encode({"rest": ["x" * 60000]})
        async with FakeCharon() as charon, Wire(charon) as wire:
            charon.on("version", VERSION)
            charon.on("get-conns", big)
            charon.on("stats", VERSION)
            charon.mute("stats")
            await wire.send(register("log"), request("get-conns"), request("stats"), request("version"))
            assert await wire.packets(2) == [_wire.EVENT_CONFIRM, VERSION]
            assert charon.emit("log", big) == 0
            async with AsyncSession(charon.address, timeout=0.05) as session:
                with pytest.raises(RequestTimeout):
                    await session.call("stats")

    run(scenario)


def test_byte_by_byte() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, Wire(charon) as wire:
            charon.on("version", VERSION)
            charon.chunk = 1
            await wire.send(request("version"))
            expected = _wire.packet(_wire.CMD_RESPONSE, None, VERSION)
            pieces: list[bytes] = []
            while sum(map(len, pieces)) < len(expected):
                pieces.append(await wire.read())
            assert b"".join(pieces) == expected
            assert max(map(len, pieces)) <= 4  # one or two turns of the loop per read

    run(scenario)


def test_delay_applies_to_commands() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, AsyncSession(charon.address) as session:
            charon.on("version", VERSION)
            charon.delay = 0.05
            start = asyncio.get_running_loop().time()
            await session.call("version")
            assert asyncio.get_running_loop().time() - start >= 0.05

    run(scenario)


def test_cut_in_the_middle_of_a_stream() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=SAS)
            charon.cut("list-sas", after=2)
            async with AsyncSession(charon.address) as session:
                received = []
                with pytest.raises(ConnectionClosed):
                    async for message in session.stream("list-sas"):
                        received.append(message)
                assert received == [body for _, body in SAS[:2]]
            async with AsyncSession(charon.address) as session:
                charon.on("list-sas", {}, stream=SAS)
                assert len([message async for message in session.stream("list-sas")]) == 5

    run(scenario)


def test_cut_at_a_chosen_byte() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, Wire(charon) as wire:
            await charon.connected(1)
            charon.send(b"\x00\x00\x00\x09\x07")
            await charon.drain()
            charon.drop()
            assert await wire.read() == b"\x00\x00\x00\x09\x07"
            assert await wire.read() == b""
            await charon.connected(0)

    run(scenario)


def test_tcp_and_reset() -> None:
    async def scenario() -> None:
        async with FakeCharon("tcp://127.0.0.1:0") as charon:
            assert not charon.address.endswith(":0")
            charon.on("version", VERSION)
            async with AsyncSession(charon.address) as session:
                assert await session.call("version") == VERSION
                listener = session.listen("log")
                await listener.ready()
                charon.drop()
                with pytest.raises(ConnectionClosed, match="reset|broke"):
                    await listener.batch()

    run(scenario)


def test_gone_and_back_at_the_same_address() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:
            charon.on("version", VERSION)
            async with AsyncSession(charon.address) as session:
                listener = session.listen("log")
                await listener.ready()
                await charon.stop()
                with pytest.raises(ConnectionClosed):
                    await listener.batch()
            with pytest.raises(ConnectionClosed):
                await AsyncSession(charon.address).connect()
            await charon.start()
            assert charon.registrations("log") == 0
            async with AsyncSession(charon.address) as session:
                assert await session.call("version") == VERSION

    run(scenario)


def test_full_backlog_gives_eagain_until_accepting_again() -> None:
    async def scenario() -> None:
        async with FakeCharon(backlog=1) as charon:
            charon.pause_accepting()
            path = charon.address.removeprefix("unix://")
            socks = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            try:
                for sock in socks:
                    sock.setblocking(False)
                codes = [sock.connect_ex(path) for sock in socks]
                assert codes == [0, 0, errno.EAGAIN]
                charon.resume_accepting()
                await charon.connected(2)
                assert socks[2].connect_ex(path) == 0
                await charon.connected(3)
            finally:
                for sock in socks:
                    sock.close()

    run(scenario)


def test_paused_reading_stops_the_client_writing() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, Wire(charon) as wire:
            charon.on("version", VERSION)
            charon.pause_reading()
            sent = 0
            with pytest.raises(BlockingIOError):
                while sent < 1 << 24:
                    sent += wire.sock.send(request("version"))
                    await asyncio.sleep(0)
            assert charon.requests == []
            charon.resume_reading()
            assert len(await wire.packets(sent // len(request("version")))) > 100

    run(scenario)


def test_abrupt_closes_are_counted() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:
            async with Wire(charon) as wire:
                await wire.send(register("log"))
                await charon.registered("log")
            await charon.connected(0)
            assert charon.abrupt_closes == 1
            async with AsyncSession(charon.address) as session:
                await session.listen("log").ready()
            await charon.connected(0)
            assert charon.abrupt_closes == 1

    run(scenario)


def test_output_for_a_slow_reader_is_kept() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon, Wire(charon) as wire:
            await wire.send(register("log"))
            await charon.registered("log")
            message = _wire.encode({"msg": "x" * 200})
            assert sum(charon.emit("log", message) for _ in range(20000)) == 20000
            await asyncio.sleep(0)
            assert len(await wire.packets(20001)) == 20001
            await charon.drain()

    run(scenario)


def test_exit_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:
            path = Path(charon.address.removeprefix("unix://"))
            assert stat.S_ISSOCK(path.stat().st_mode)
            session = await AsyncSession(charon.address).connect()
        assert not path.parent.exists()
        await session.close()
        assert len(asyncio.all_tasks()) == 1

    run(scenario)


def test_address_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ftp://there"):
        FakeCharon("ftp://there")
    with pytest.raises(RuntimeError):
        _ = FakeCharon().address

    async def scenario() -> None:
        (tmp_path / "there").touch()
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await FakeCharon(tmp_path / "there").start()
        assert (tmp_path / "there").exists()

    run(scenario)


def recorded(path: Path) -> Recording:
    """list-sas with its stream, an unknown command and event, and two events 50 ms apart."""
    kinds = (_wire.CMD_UNKNOWN, _wire.EVENT_CONFIRM, _wire.EVENT_UNKNOWN)
    command_unknown, confirm, event_unknown = map(_wire.packet, kinds)
    with RecordingWriter(path, {}) as writer:
        asked = [register("log"), register("alert"), register("list-sa"), request("list-sas")]
        writer.write("client", b"".join([*asked, unregister("list-sa"), request("get-magic")]), 1)
        writer.write("server", confirm + event_unknown + confirm, 2)
        writer.write("server", _wire.packet(_wire.EVENT, "log", {"msg": "1"}), 1_000_000_000)
        writer.write("server", b"".join(_wire.packet(_wire.EVENT, *sa) for sa in SAS), 1_010_000_000)
        writer.write("server", _wire.packet(_wire.CMD_RESPONSE, None, {}) + confirm + command_unknown, 1_020_000_000)
        writer.write("server", _wire.packet(_wire.EVENT, "log", {"msg": "2"}), 1_050_000_000)
    return Recording.load(path)


def test_recorded_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeCharon.from_recordings([recorded(tmp_path / "a")]) as charon:
            async with AsyncSession(charon.address) as session:
                assert [message async for message in session.stream("list-sas")] == [body for _, body in SAS]
                with pytest.raises(UnknownCommand):
                    await session.call("get-magic")
                with pytest.raises(UnknownCommand):
                    await session.call("version")
                with pytest.raises(UnknownEvent):
                    await session.listen("alert").ready()

    run(scenario)


def test_recorded_answers_are_those_to_the_same_request(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a", {}) as writer:
        for name in ("a", "b"):
            writer.write("client", request("get-counters", {"name": name}))
            writer.write("server", _wire.packet(_wire.CMD_RESPONSE, None, {"of": name}))

    async def scenario() -> None:
        async with FakeCharon.from_recordings([Recording.load(tmp_path / "a")]) as charon:
            async with AsyncSession(charon.address) as session:
                for name, of in (("a", "a"), ("b", "b"), ("c", "b")):
                    assert await session.call("get-counters", {"name": name}) == {"of": of}
                charon.on("get-counters", {"of": "all"})
                assert await session.call("get-counters", {"name": "a"}) == {"of": "all"}

    run(scenario)


DATA = Path(__file__).parent / "data"


@pytest.mark.skipif(not list(DATA.glob("*.recording")), reason="no recordings of a real charon in tests/data")
def test_recordings_of_a_real_charon_are_served() -> None:
    recordings = {path.stem: Recording.load(path) for path in DATA.glob("*.recording")}
    events = recordings["events"]

    async def scenario() -> None:
        async with FakeCharon.from_recordings(recordings.values()) as charon:
            async with AsyncSession(charon.address) as session:
                sas = [p for p in recordings["list-sas"].packets("server") if p.kind == _wire.EVENT]
                assert len([sa async for sa in session.stream("list-sas")]) == len(sas) > 0
                listener = session.listen(*{event.name or "" for event in events.events()})
                await listener.ready()
                sent = await charon.replay(events)
                assert sent == len(events.events()) > 0
                received: list[tuple[str, object]] = []
                while len(received) < sent:
                    received += await listener.batch()
                assert [name for name, _ in received] == [event.name for event in events.events()]

    run(scenario)


@pytest.mark.parametrize(("speed", "least", "most"), [(None, 0, 1), (1.0, 0.05, 20), (0.5, 0.1, 20), (50, 0.001, 1)])
def test_replay_at_a_pace(tmp_path: Path, speed: float | None, least: float, most: float) -> None:
    async def scenario() -> None:
        recording = recorded(tmp_path / "a")
        async with FakeCharon() as charon, AsyncSession(charon.address) as session:
            assert await charon.replay(recording) == 0
            listener = session.listen("log", "list-sa")
            await listener.ready()
            start = asyncio.get_running_loop().time()
            assert await charon.replay(recording, speed) == 2
            assert least <= asyncio.get_running_loop().time() - start <= most
            events: list[object] = []
            while len(events) < 2:
                events += await listener.batch()
            assert events == [("log", {"msg": "1"}), ("log", {"msg": "2"})]

    run(scenario)


def test_replay_refuses_a_bad_speed(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="speed is 0"):
            await FakeCharon().replay(recorded(tmp_path / "a"), 0)

    run(scenario)


def test_recording_out_of_step_is_refused(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a", {}) as writer:
        writer.write("client", register("log"), 1)
        writer.write("server", _wire.packet(_wire.CMD_RESPONSE, None, {}), 2)
    with pytest.raises(ProtocolError, match="type 1 answers 3 'log'"):
        FakeCharon.from_recordings([Recording.load(tmp_path / "a")])
