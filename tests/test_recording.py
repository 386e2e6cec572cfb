from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vicifast import _wire
from vicifast.address import Unix
from vicifast.errors import DecodeError, ProtocolError, ViciError
from vicifast.recording import (
    MAGIC,
    Chunk,
    RecordedPacket,
    Recording,
    RecordingWriter,
    RequestSplitter,
    listen_at,
    proxy,
    tee,
)

METADATA = {"made": "by a test", "daemon": "charon 6.0.6"}


def frame(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return len(body).to_bytes(4) + body


VERSION = frame(b"\x00\x07version")
REGISTER = frame(b"\x03\x03log")
CONFIRM = frame(b"\x05")
MESSAGE = b"\x03\x03msg\x00\x02hi"
EVENT = frame(b"\x07\x03log", MESSAGE)
RESPONSE = frame(b"\x01", MESSAGE)


def write(path: Path, *chunks: tuple[int, str, bytes]) -> Path:
    with RecordingWriter(path, METADATA) as writer:
        for when, side, data in chunks:
            writer.write("client" if side == "client" else "server", data, when)
    return path


def test_recording_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "a", (0, "client", b"ask"), (5, "server", b"ans"), (5, "server", b"wer"))
    recording = Recording.load(path)
    assert recording.metadata == METADATA
    assert recording.chunks == [
        Chunk(0, "client", b"ask"),
        Chunk(5, "server", b"ans"),
        Chunk(5, "server", b"wer"),
    ]
    assert recording.stream("server") == b"answer"
    assert recording.stream("client") == b"ask"
    assert recording.duration == 5


def test_empty_recording(tmp_path: Path) -> None:
    recording = Recording.load(write(tmp_path / "a"))
    assert recording.duration == 0
    assert recording.stream("server") == b""
    assert recording.packets("server") == recording.packets("client") == []


def test_time_defaults_to_now(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a", METADATA) as writer:
        writer.write("client", b"a")
        writer.write("server", b"b")
        assert writer.size == 2
    first, second = Recording.load(tmp_path / "a").chunks
    assert 0 <= first.time <= second.time < 60_000_000_000


def test_every_truncation_is_reported_with_file_and_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "whole", (1, "client", b"ask"), (2, "server", b"answer"))
    data = path.read_bytes()
    first = data.index(b">")
    whole = {first, data.index(b"<")}
    for end in range(len(data)):
        path.write_bytes(data[:end])
        if end in whole:
            Recording.load(path)
            continue
        with pytest.raises(DecodeError, match="whole: ") as caught:
            Recording.load(path)
        assert isinstance(caught.value, ViciError)
        assert caught.value.offset <= end


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a VICI recording"),
        (b"GIF89a", "not a VICI recording"),
        (MAGIC + b"{", "metadata"),
        (MAGIC + b"{\n", "metadata"),
        (MAGIC + b"[]\n", "metadata"),
        (MAGIC + b'{"made": 1}\n', "metadata"),
        (MAGIC + b"\xff\n", "metadata"),
        (MAGIC + b"{}\nx" + bytes(12), "begins with the byte 0x78"),
        (MAGIC + b"{}\n>" + bytes(7) + b"\x02" + bytes(4) + b"<" + bytes(12), "time of a chunk"),
        (MAGIC + b"{}\n>" + bytes(8) + b"\xff\xff\xff\xff", "truncated, 0 of 4294967295 bytes of a chunk"),
    ],
)
def test_damage_is_reported(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=f"damaged: .*{reason}"):
        Recording.load(path)


def test_missing_file_keeps_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "nowhere")


def test_packets_carry_the_time_of_their_last_byte(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        (1, "client", REGISTER[:3]),
        (2, "client", REGISTER[3:] + VERSION),
        (3, "server", CONFIRM + EVENT[:7]),
        (4, "server", EVENT[7:] + RESPONSE),
        (5, "server", EVENT[:9]),
    )
    recording = Recording.load(path)
    assert recording.packets("client") == [
        RecordedPacket(2, _wire.EVENT_REGISTER, "log", None),
        RecordedPacket(2, _wire.CMD_REQUEST, "version", b""),
    ]
    assert recording.packets("server") == [
        RecordedPacket(3, _wire.EVENT_CONFIRM, None, None),
        RecordedPacket(4, _wire.EVENT, "log", MESSAGE),
        RecordedPacket(4, _wire.CMD_RESPONSE, None, MESSAGE),
    ]


def test_broken_server_stream_is_an_error(tmp_path: Path) -> None:
    recording = Recording.load(write(tmp_path / "a", (1, "server", CONFIRM + frame(b"\x09"))))
    with pytest.raises(ProtocolError):
        recording.packets("server")


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_splitter_accepts_any_pieces(step: int) -> None:
    data = REGISTER + VERSION + frame(b"\x00\x08get-keys", MESSAGE) + frame(b"\x04\x03log")
    splitter = RequestSplitter()
    requests = [found for at in range(0, len(data), step) for found in splitter.feed(data[at : at + step])]
    assert requests == [
        (_wire.EVENT_REGISTER, "log", None),
        (_wire.CMD_REQUEST, "version", b""),
        (_wire.CMD_REQUEST, "get-keys", MESSAGE),
        (_wire.EVENT_UNREGISTER, "log", None),
    ]


@pytest.mark.parametrize(
    "ignored",
    [frame(), frame(b"\x00"), frame(b"\x03\x05log"), frame(b"\x00\x03l\xc3g"), frame(b"\x00\x03l\x00g")]
    + [frame(bytes([kind]) + b"\x03log") for kind in (1, 2, 5, 6, 7, 8, 255)],
)
def test_splitter_omits_packets_that_charon_ignores(ignored: bytes) -> None:
    assert RequestSplitter().feed(ignored + VERSION) == [(_wire.CMD_REQUEST, "version", b"")]


def test_splitter_ignores_what_follows_the_name_of_a_registration() -> None:
    assert RequestSplitter().feed(frame(b"\x03\x03log", b"more")) == [(_wire.EVENT_REGISTER, "log", None)]


def test_splitter_limits_a_frame() -> None:
    largest = frame(b"\x00\x01x", bytes(_wire.MAX_PACKET - 3))
    assert len(RequestSplitter().feed(largest)) == 1
    with pytest.raises(ProtocolError, match="524289"):
        RequestSplitter().feed((_wire.MAX_PACKET + 1).to_bytes(4))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(limited())


async def read_all(sock: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while more := await loop.sock_recv(sock, 65536):
        data += more
    return data


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def test_tee_carries_and_records_both_ways(tmp_path: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        client, client_end = pair()
        server, server_end = pair()
        big = bytes(range(256)) * 4096
        with client, server, RecordingWriter(tmp_path / "a", METADATA) as writer:
            carried = asyncio.create_task(tee(client_end, server_end, writer))
            await loop.sock_sendall(client, VERSION)
            assert await loop.sock_recv(server, 100) == VERSION
            sending = asyncio.create_task(loop.sock_sendall(server, big))
            received = b""
            while len(received) < len(big):
                received += await loop.sock_recv(client, 65536)
            await sending
            assert received == big
            client.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(server, 1) == b""
            await loop.sock_sendall(server, b"last")
            server.close()
            assert await read_all(client) == b"last"
            await carried
        recording = Recording.load(tmp_path / "a")
        assert recording.stream("client") == VERSION
        assert recording.stream("server") == big + b"last"
        assert client_end.fileno() == server_end.fileno() == -1

    run(scenario)


def test_tee_ends_when_the_daemon_dies(tmp_path: Path) -> None:
    async def scenario() -> None:
        client, client_end = pair()
        server, server_end = pair()
        with client, RecordingWriter(tmp_path / "a", METADATA) as writer:
            carried = asyncio.create_task(tee(client_end, server_end, writer))
            server.close()
            assert await read_all(client) == b""
            client.close()
            await carried

    run(scenario)


def test_proxy_records_each_client_in_its_own_file(tmp_path: Path) -> None:
    ends = [pair(), pair()]

    async def connect() -> socket.socket:
        return ends[len(files)][0]

    files: list[Path] = []

    def new_writer() -> RecordingWriter:
        files.append(tmp_path / f"{len(files)}.rec")
        return RecordingWriter(files[-1], METADATA)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with listen_at(Unix(str(tmp_path / "vici")), 3) as listener:
            running = asyncio.create_task(proxy(listener, connect, new_writer))
            for number, (_, daemon) in enumerate(ends):
                with socket.socket(socket.AF_UNIX) as client, daemon:
                    client.setblocking(False)
                    await loop.sock_connect(client, str(tmp_path / "vici"))
                    await loop.sock_sendall(client, b"%d" % number)
                    assert await loop.sock_recv(daemon, 10) == b"%d" % number
                    client.close()
                    assert await loop.sock_recv(daemon, 10) == b""
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(scenario)
    assert [Recording.load(path).stream("client") for path in files] == [b"0", b"1"]


def test_proxy_disconnects_a_client_without_a_daemon(tmp_path: Path) -> None:
    async def connect() -> socket.socket:
        raise ConnectionRefusedError

    def new_writer() -> RecordingWriter:
        raise AssertionError("nothing to record")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with listen_at(Unix(str(tmp_path / "vici")), 3) as listener:
            running = asyncio.create_task(proxy(listener, connect, new_writer))
            for _ in range(2):
                with socket.socket(socket.AF_UNIX) as client:
                    client.setblocking(False)
                    await loop.sock_connect(client, str(tmp_path / "vici"))
                    assert await loop.sock_recv(client, 10) == b""
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(scenario)
