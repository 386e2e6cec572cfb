"""Framer: packets from a byte stream in reads of any size, and its end when the peer violates the protocol."""

from __future__ import annotations

import array
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
from generate import (
    RECORDINGS,
    SEED,
    collecting,
    exact,
    mutated,
    noise,
    only_where_c_code_is_interrupted,
)

from vicifast._wire import Decoder, Framer, Raw, Transcoder, encode, packet, to_json, to_msgpack
from vicifast.errors import DecodeError, ProtocolError
from vicifast.recording import Recording

CMD_REQUEST, CMD_RESPONSE, CMD_UNKNOWN, EVENT_REGISTER, EVENT_UNREGISTER, EVENT_CONFIRM, EVENT_UNKNOWN, EVENT = range(8)

Feed = Callable[[Framer, bytes], None]


def frame(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def by_copy(framer: Framer, data: bytes) -> None:
    framer.feed(data)


def by_buffer(framer: Framer, data: bytes) -> None:
    """Fill it as a socket does: one read at a time, each as large as the free space."""
    while data:
        with memoryview(framer) as room:
            count = min(len(room), len(data))
            room[:count] = data[:count]
        framer.received(count)
        data = data[count:]


both_ways = pytest.mark.parametrize("feed", [by_copy, by_buffer])

# Everything a server may send: the bytes, and the packet with its message as bytes.
STREAM: list[tuple[bytes, tuple[int, str | None, bytes | None]]] = [
    (packet(CMD_RESPONSE), (CMD_RESPONSE, None, b"")),
    (packet(CMD_RESPONSE, None, {"a": "b"}), (CMD_RESPONSE, None, encode({"a": "b"}))),
    (packet(CMD_UNKNOWN), (CMD_UNKNOWN, None, None)),
    (packet(EVENT_CONFIRM), (EVENT_CONFIRM, None, None)),
    (packet(EVENT_UNKNOWN), (EVENT_UNKNOWN, None, None)),
    (packet(EVENT, "log"), (EVENT, "log", b"")),
    (packet(EVENT, "", {"a": "b"}), (EVENT, "", encode({"a": "b"}))),
    (packet(EVENT, "n" * 255, {"l": ["x"] * 300}), (EVENT, "n" * 255, encode({"l": ["x"] * 300}))),
    (packet(EVENT, "log", {"msg": "m" * 65535}), (EVENT, "log", encode({"msg": "m" * 65535}))),
    (packet(EVENT, "log", {"msg": "ä"}), (EVENT, "log", encode({"msg": "ä"}))),
]
BYTES = b"".join(data for data, _ in STREAM)
PACKETS = [found for _, found in STREAM]


# --- splitting ---


@both_ways
def test_one_packet_at_a_time(feed: Feed) -> None:
    framer = Framer(Raw())
    assert framer.packets() == []
    for data, found in STREAM:
        feed(framer, data)
        assert framer.packets() == [found]
        assert framer.packets() == []
        assert framer.pending == 0
    assert framer.error is None


@both_ways
def test_many_packets_in_one_read(feed: Feed) -> None:
    framer = Framer(Raw())
    feed(framer, BYTES)
    assert framer.packets() == PACKETS
    assert (framer.pending, framer.error) == (0, None)


@both_ways
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 4096, 65535, 65536, 65537])
def test_any_size_of_read(feed: Feed, size: int) -> None:
    framer, found = Framer(Raw()), []
    for at in range(0, len(BYTES), size):
        feed(framer, BYTES[at : at + size])
        if (at // size) % 3 == 0:  # packets may also accumulate over several reads
            found += framer.packets()
    assert found + framer.packets() == PACKETS
    assert framer.pending == 0


@both_ways
def test_reads_of_random_sizes(feed: Feed) -> None:
    print(f"VICIFAST_SEED={SEED}")
    rng = random.Random(SEED)
    framer, found, stream = Framer(Raw()), [], BYTES * 40
    at = 0
    while at < len(stream):
        size = rng.choice([1, 10, 1000, 100_000, rng.randrange(300_000)])
        feed(framer, stream[at : at + size])
        at += size
        found += framer.packets()
    assert found == PACKETS * 40


@both_ways
def test_pending_counts_bytes_of_an_incomplete_packet(feed: Feed) -> None:
    framer = Framer(Raw())
    data = packet(EVENT, "log", {"a": "b"})
    for count in range(len(data)):
        assert framer.packets() == []
        assert framer.pending == count
        feed(framer, data[count : count + 1])
    assert framer.packets() == [(EVENT, "log", encode({"a": "b"}))]
    assert framer.pending == 0
    feed(framer, data + data[:6])
    assert len(framer.packets()) == 1
    assert framer.pending == 6


def test_a_socket_can_fill_it() -> None:
    framer, found = Framer(Raw()), []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        for data, _ in STREAM:
            theirs.sendall(data[:1000])
            framer.received(ours.recv_into(framer))
            found += framer.packets()
            theirs.sendall(data[1000:])
            while framer.pending:
                framer.received(ours.recv_into(framer))
                found += framer.packets()
    assert found == PACKETS


def test_room_is_at_least_64_kib() -> None:
    framer = Framer(Raw())
    for data in (BYTES, BYTES[:-1], BYTES[:60_000], b""):
        with memoryview(framer) as room:
            assert (room.nbytes >= 65536, room.readonly, room.format, room.c_contiguous) == (True, False, "B", True)
        framer.feed(data)
        framer.packets()


def test_a_view_kept_too_long_does_no_harm() -> None:
    framer = Framer(Raw())
    view = memoryview(framer)
    try:
        framer.feed(BYTES * 20)
        framer.packets()
    except BufferError:
        pass
    view[:] = bytes(len(view))
    view.release()


@pytest.mark.parametrize("waiting", [0, 1, 5000])
def test_it_is_not_fed_to_itself(waiting: int) -> None:
    framer = Framer(Raw())
    framer.feed(b"\0" * min(waiting, 1) + b"\7" * (waiting - 1))
    with pytest.raises(BufferError):
        framer.feed(framer)  # type: ignore[arg-type, unused-ignore]
    assert framer.pending == waiting
    memoryview(framer).release()


@pytest.mark.parametrize("count", [-1, 10**9, 2**62])
def test_more_received_than_there_was_room_for(count: int) -> None:
    framer = Framer(Raw())
    with pytest.raises(ValueError):
        framer.received(count)
    framer.received(0)
    framer.feed(BYTES)
    assert framer.packets() == PACKETS


@pytest.mark.parametrize("wrong", ["", "text", None, 1, [1]])
def test_only_bytes_are_fed(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Framer(Raw()).feed(wrong)


def test_any_contiguous_bytes_are_fed() -> None:
    for given in (bytearray(BYTES), memoryview(BYTES), array.array("B", BYTES)):
        framer = Framer(Raw())
        framer.feed(given)
        assert framer.packets() == PACKETS
    reused = bytearray(BYTES)
    framer = Framer(Raw())
    framer.feed(reused)
    reused[:] = bytes(len(reused))
    assert framer.packets() == PACKETS


@both_ways
def test_packets_to_512_kib(feed: Feed) -> None:
    framer = Framer(Raw())
    longest = bytes([CMD_RESPONSE]) + b"x" * 524287
    for _ in range(2):
        feed(framer, frame(longest) + packet(EVENT_CONFIRM))
        assert framer.packets() == [(CMD_RESPONSE, None, longest[1:]), (EVENT_CONFIRM, None, None)]
    feed(framer, frame(longest + b"x"))
    assert framer.packets() == []
    assert isinstance(framer.error, ProtocolError)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_connections(path: Path) -> None:
    recording = Recording.load(path)
    framer, stream, at = Framer(Raw()), recording.stream("server"), 0
    framer.feed(stream)
    for kind, name, body in framer.packets():
        end = at + 4 + int.from_bytes(stream[at : at + 4], "big")
        label = b"" if name is None else bytes([len(name)]) + name.encode()
        assert stream[at + 4 : end] == bytes([kind]) + label + (body if isinstance(body, bytes) else b"")
        at = end
    assert framer.error is None
    assert framer.pending == len(stream) - at


# --- reading messages ---


def test_each_event_by_its_own_reader() -> None:
    readers: dict[str, Raw | Decoder | Transcoder]
    readers = {"log": Raw(), "alert": Transcoder("msgpack"), "list-cert": Decoder(binary=["data"])}
    readers[""] = Transcoder("json")
    framer = Framer(Decoder(), readers)
    message = {"data": "d", "l": ["x"]}
    for name in ("log", "alert", "list-cert", "", "list-sa"):
        framer.feed(packet(EVENT, name, message))
    framer.feed(packet(CMD_RESPONSE, None, message) + packet(EVENT_CONFIRM))
    data = encode(message)
    assert framer.packets() == [
        (EVENT, "log", data),
        (EVENT, "alert", to_msgpack(data)),
        (EVENT, "list-cert", message | {"data": b"d"}),
        (EVENT, "", to_json(data)),
        (EVENT, "list-sa", message),
        (CMD_RESPONSE, None, message),
        (EVENT_CONFIRM, None, None),
    ]


@pytest.mark.parametrize("reader", [Raw(), Decoder(), Decoder(values=bytes), Transcoder("msgpack"), Transcoder("json")])
def test_the_default_reader(reader: Any) -> None:
    framer = Framer(reader)
    data = encode({"k": "v"})
    expected = data if isinstance(reader, Raw) else reader.decode(data) if isinstance(reader, Decoder) else None
    if isinstance(reader, Transcoder):
        expected = reader.transcode(data)
    framer.feed(packet(CMD_RESPONSE, None, {"k": "v"}) + packet(EVENT, "e", {"k": "v"}) + packet(CMD_UNKNOWN))
    assert framer.packets() == [(CMD_RESPONSE, None, expected), (EVENT, "e", expected), (CMD_UNKNOWN, None, None)]


def test_raw_bytes_stay_after_the_buffer_is_used_again() -> None:
    framer = Framer(Raw())
    framer.feed(packet(EVENT, "log", {"msg": "first"}))
    [(_, _, first)] = framer.packets()
    by_buffer(framer, packet(EVENT, "log", {"msg": "other"}) * 1000)
    framer.packets()
    assert first == encode({"msg": "first"})


@pytest.mark.parametrize("reader", [Decoder(), Transcoder("msgpack"), Transcoder("json")])
def test_a_malformed_message_harms_no_other(reader: Any) -> None:
    framer = Framer(reader)
    good = packet(EVENT, "log", {"a": "b"})
    framer.feed(good + frame(b"\x07\x03log\x03\x01a\x00\x01b\x08") + good + frame(b"\x01\x01\x00") + good)
    before, broken, between, reply, after = framer.packets()
    assert before == between == after == (EVENT, "log", before[2])
    assert (broken[:2], reply[:2]) == ((EVENT, "log"), (CMD_RESPONSE, None))
    assert isinstance(broken[2], DecodeError) and broken[2].offset == 6
    assert isinstance(reply[2], DecodeError) and reply[2].offset == 2
    assert framer.error is None
    framer.feed(good)
    assert framer.packets() == [before]


def test_raw_messages_are_not_looked_at() -> None:
    framer = Framer(Raw())
    framer.feed(frame(b"\x01\x08\x09"))
    assert framer.packets() == [(CMD_RESPONSE, None, b"\x08\x09")]


@pytest.mark.parametrize("size", [1, 2, 8, 31, 32, 255])
def test_names_of_events_that_differ_in_one_byte(size: int) -> None:
    names = ["n" * at + "m" + "n" * (size - at - 1) for at in range(size)] + ["n" * size, "n" * (size - 1)]
    framer = Framer(Raw(), {"n" * size: Decoder()})
    for name in names:
        for one in (name, "n" * size):
            framer.feed(packet(EVENT, one))
            assert framer.packets() == [(EVENT, one, {} if one == "n" * size else b"")]


@pytest.mark.parametrize("wrong", [None, object(), Decoder, str])
def test_readers_are_readers(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Framer(wrong)
    with pytest.raises(TypeError):
        Framer(Raw(), {"log": wrong})


def test_the_mapping_of_readers_may_change_afterwards() -> None:
    readers: dict[str, Raw | Decoder] = {"log": Raw()}
    framer = Framer(Decoder(), readers)
    framer.feed(packet(EVENT, "log", {"a": "b"}))
    readers.clear()
    assert framer.packets() == [(EVENT, "log", encode({"a": "b"}))]


# --- protocol violations ---

VIOLATIONS = {
    "empty packet": b"\x00\x00\x00\x00",
    "one byte too long": (524289).to_bytes(4, "big"),
    "4 GiB": b"\xff\xff\xff\xff",
    "2 GiB": b"\x80\x00\x00\x00",
    "request": packet(CMD_REQUEST, "version"),
    "register": packet(EVENT_REGISTER, "log"),
    "unregister": packet(EVENT_UNREGISTER, "log"),
    **{f"kind {kind}": frame(bytes([kind])) for kind in (8, 9, 127, 128, 255)},
    **{f"bytes behind kind {kind}": frame(bytes([kind, 0])) for kind in (CMD_UNKNOWN, EVENT_CONFIRM, EVENT_UNKNOWN)},
    "confirm with a message": frame(bytes([EVENT_CONFIRM]) + encode({"a": "b"})),
    "event without a name": frame(b"\x07"),
    "event name missing": frame(b"\x07\x01"),
    "event name cut": frame(b"\x07\x05logs"),
    "event name cut at 255": frame(b"\x07\xff" + b"n" * 254),
    **{f"event name with {byte:#04x}": frame(bytes([7, 3, 0x6C, byte, 0x67])) for byte in (0, 10, 0x1F, 0x7F, 0x80)},
    "long event name with NUL": frame(b"\x07\x40" + b"n" * 63 + b"\0"),
}


@both_ways
@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS.keys())
@pytest.mark.parametrize("reader", [Raw(), Decoder()], ids=["raw", "decoder"])
def test_a_broken_rule_ends_the_stream(feed: Feed, violation: bytes, reader: Any) -> None:
    framer = Framer(reader)
    good = packet(EVENT, "log", {"a": "b"})
    feed(framer, good * 2 + violation)
    assert [(kind, name) for kind, name, _ in framer.packets()] == [(EVENT, "log")] * 2
    assert isinstance(framer.error, ProtocolError) and str(framer.error)
    error = framer.error
    assert framer.packets() == []
    try:
        feed(framer, good)
    except ProtocolError:
        pass
    assert framer.packets() == []
    assert framer.error is error


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_packets_behind_a_broken_rule_are_lost(violation: bytes) -> None:
    framer = Framer(Raw())
    framer.feed(packet(EVENT_CONFIRM) + violation + packet(EVENT_CONFIRM))
    assert framer.packets() == [(EVENT_CONFIRM, None, None)]
    assert framer.packets() == []
    assert framer.error is not None


def test_client_packets_are_rejected_byte_by_byte() -> None:
    for violation in VIOLATIONS.values():
        framer = Framer(Raw())
        for at in range(len(violation)):
            assert framer.error is None
            framer.feed(violation[at : at + 1])
            assert framer.packets() == []
            if framer.error is not None:
                break
        assert isinstance(framer.error, ProtocolError)


def test_the_cut_name_of_an_event_is_not_completed_by_the_next_packet() -> None:
    framer = Framer(Raw())
    framer.feed(frame(b"\x07\x08logs") + packet(EVENT, "log"))
    assert framer.packets() == []
    assert framer.error is not None


@only_where_c_code_is_interrupted
def test_a_framer_that_is_used_while_it_cuts() -> None:
    """The garbage collector may run while a message is read; the code that it runs must not move the buffer."""
    framer = Framer(Decoder())
    data = packet(EVENT, "log", {f"s{i}": {"a": str(i)} for i in range(40)})
    refused: list[type[Exception]] = []

    def use() -> None:
        for again in (framer.packets, lambda: framer.feed(bytes(10**6)), lambda: memoryview(framer)):
            try:
                again()
            except (BufferError, RuntimeError) as error:
                refused.append(type(error))

    framer.feed(data * 3)
    with collecting(use):
        found = framer.packets()
    assert len(found) == 3 and framer.pending == 0
    assert {BufferError, RuntimeError} <= set(refused)


# --- hostile bytes ---


def test_hostile_streams() -> None:
    print(f"VICIFAST_SEED={SEED}")
    rng = random.Random(SEED)
    short = b"".join(data for data, _ in STREAM if len(data) < 100)
    broken = 0
    for _ in range(3000):
        content = rng.choice([b"\x07\x03log", b"\x01", b"\x07\x00"]) + noise(rng)
        stream = mutated(rng, short) + frame(content) + mutated(rng, short + frame(content))
        raw, read, collected = Framer(Raw()), Framer(Decoder()), []
        cut = rng.randrange(len(stream) + 1)
        for piece in (stream[:cut], stream[cut:]):
            for framer in (raw, read):
                try:
                    framer.feed(exact(piece))
                except ProtocolError:
                    assert framer.error is not None
            collected += raw.packets()
        decoded = read.packets()
        expected, violated = reference.packets(stream)
        broken += violated
        assert collected == expected, stream.hex()
        if violated:
            assert raw.error is not None and read.error is not None, stream.hex()
        assert [entry[:2] for entry in decoded] == [entry[:2] for entry in expected]
        for (_, _, body), (_, _, message) in zip(decoded, expected, strict=True):
            try:
                assert message is None or body == reference.plain(reference.parse(message))
            except reference.Malformed:
                assert isinstance(body, DecodeError)
    assert 300 < broken < 2990
