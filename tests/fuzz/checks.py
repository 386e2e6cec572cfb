"""What must hold for any bytes whatever: the properties that the fuzzer looks for exceptions to.

The first byte of an input says what the others are (`CHECKS`). Nothing is kept from one input to the next, so that
one file is all it takes to see a finding again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import reference
from generate import exact

from vicifast import Decoder, Framer, Raw, Reader, Transcoder, decode, encode, packet, to_json, to_msgpack
from vicifast.errors import DecodeError, EncodeError

BINARY = ("data", "", "name")  # the first is that of list-certs
READERS: list[Callable[[], Reader]] = [
    Decoder,
    lambda: Decoder(values=bytes),
    lambda: Decoder(binary=BINARY),
    lambda: Transcoder("msgpack"),
    lambda: Transcoder("json", binary=BINARY),
]


def check(data: bytes) -> None:
    """Raise AssertionError, or what the library should not raise."""
    CHECKS.get(data[:1], check_message)(data[1:])


def same(one: object, other: object) -> None:
    """Equal in type and in the order of the names too."""
    assert repr(one) == repr(other)


# --- messages ---


def check_message(data: bytes) -> None:
    """Every reader refuses the same messages in the same words, or gives what the reference gives."""
    try:
        tree = reference.parse(data)
    except reference.Malformed as malformed:
        check_refusal(data, malformed)
        return
    check_decode(data, tree)
    check_caches(data, tree)
    check_transcode(data, tree)
    check_encode(data, tree)


def check_long(data: bytes) -> None:
    """A small part so often that counts and sizes pass limits, in the root, a section or (those of 16 bits) a list."""
    where, part = data[:1], data[1:]
    if not 0 < len(part) < 32:
        return
    before, behind = {b"s": (b"\x01\x01s", b"\x02"), b"l": (b"\x04\x01l", b"\x06")}.get(where, (b"", b""))
    long = before + part * (65537 if before + part == b"\x04\x01l\x05\x00\x00" else 5000) + behind
    try:
        tree = reference.parse(long)
    except reference.Malformed as malformed:
        check_refusal(long, malformed)
        return
    check_decode(long, tree)
    check_transcode(long, tree)


def check_refusal(data: bytes, malformed: reference.Malformed) -> None:
    refusal = refused(decode, data)
    assert malformed.first <= refusal.offset <= malformed.last
    for reader in (
        lambda given: decode(given, values=bytes),
        lambda given: decode(given, binary=BINARY),
        Decoder().decode,
        Decoder(values=bytes).decode,
        to_msgpack,
        to_json,
        Transcoder("msgpack").transcode,
        Transcoder("json").transcode,
    ):
        assert refused(reader, data).args == refusal.args
    assert refused(decode, bytes(data)).args == refusal.args
    check_after_refusal(data, refusal)


def check_after_refusal(data: bytes, refusal: DecodeError) -> None:
    """What a cache learnt from a message that it refused is right all the same."""
    decoder = Decoder()
    for _ in range(2):
        assert refused(decoder.decode, data).args == refusal.args
    for good in (b"\x03\x01a\x00\x01b", b"\x01\x01s\x04\x01l\x05\x00\x01x\x06\x02"):
        same(decoder.decode(exact(good)), decode(exact(good)))


def refused(reader: Callable[[Any], object], data: bytes) -> DecodeError:
    try:
        reader(exact(data))
    except DecodeError as error:
        assert 0 <= error.offset <= len(data)
        return error
    raise AssertionError("bytes were read that the reference refuses")


def check_decode(data: bytes, tree: reference.Tree) -> None:
    expected = reference.plain(tree)
    same(decode(exact(data)), expected)
    same(decode(memoryview(b"?" + data)[1:]), expected)  # at an odd address
    same(decode(exact(data), values=bytes), reference.plain(tree, bytes))
    same(decode(exact(data), binary=BINARY), reference.plain(tree, binary=BINARY))


def check_caches(data: bytes, tree: reference.Tree) -> None:
    """A decoder gives the same whatever it read before, be it alike or cut short."""
    for make, expected in (
        (Decoder, reference.plain(tree)),
        (lambda: Decoder(values=bytes), reference.plain(tree, bytes)),
        (lambda: Decoder(binary=BINARY), reference.plain(tree, binary=BINARY)),
    ):
        decoder = make()
        for other in (data, data.swapcase(), data[: len(data) // 2], data[:-1], data):
            attempt(decoder.decode, other)
        first = decoder.decode(exact(data))
        same(first, expected)
        spoil(first)
        same(decoder.decode(exact(data)), expected)


def attempt(reader: Callable[[Any], object], data: bytes) -> object:
    """What a reader gives, or the words in which it refuses."""
    try:
        return reader(exact(data))
    except DecodeError as error:
        return error.args


def spoil(message: dict[str, Any]) -> None:
    """Change every container of a message: none may be shared with the next one."""
    for value in message.values():
        if isinstance(value, dict):
            spoil(value)
        elif isinstance(value, list):
            value.append("spoilt")
    message["spoilt"] = "spoilt"


def check_transcode(data: bytes, tree: reference.Tree) -> None:
    transcoders = {"msgpack": Transcoder("msgpack"), "json": Transcoder("json", binary=BINARY)}
    packed, shown = reference.to_msgpack(tree), reference.to_json(tree)
    for _ in range(2):
        assert transcoders["msgpack"].transcode(exact(data)) == packed
    assert to_msgpack(exact(data)) == packed
    assert to_msgpack(exact(data), binary=BINARY) == reference.to_msgpack(tree, BINARY)
    blobs = to_json(exact(data), binary=BINARY)
    assert transcoders["json"].transcode(exact(data)) == blobs
    if reference.has_duplicates(tree):  # all of them are shown
        assert json.loads(to_json(exact(data))) == json.loads(shown)
    else:
        assert to_json(exact(data)) == shown
        assert blobs == reference.to_json(tree, BINARY)


def check_encode(data: bytes, tree: reference.Tree) -> None:
    for values in (str, bytes):
        message = decode(exact(data), values=values)
        if reference.has_duplicates(tree):
            same(decode(encode(message), values=values), message)
        else:
            assert encode(message) == data
            if len(data) < reference.MAX_PACKET:
                assert packet(1, None, message) == (len(data) + 1).to_bytes(4, "big") + b"\x01" + data


# --- streams ---


def check_stream(data: bytes) -> None:
    """Two bytes of seed, which decides how the stream behind it is split into reads."""
    seed, stream = data[:2], data[2:]
    expected, broken = reference.packets(stream)
    for make in READERS:
        rng = random.Random(seed)
        events: Mapping[str, Reader] = {"log": Raw(), "": make()}
        framer, found = Framer(make(), events), []
        for piece in pieces(rng, stream):
            if framer.error is None:
                put(rng, framer, piece)
            found += framer.packets()
        assert (framer.error is not None) == broken
        assert broken or framer.pending == len(stream) - sum(map(framed, expected))
        alone = make()
        for (*head, message), (*wanted, body) in zip(found, expected, strict=True):
            assert head == wanted
            reader = alone if body is None or head[1] != "log" else Raw()
            same(told(message), None if body is None else attempt(read_by(reader), body))


def framed(found: tuple[int, str | None, bytes | None]) -> int:
    _, name, message = found
    return 5 + (0 if name is None else 1 + len(name)) + len(message or b"")


def told(message: object) -> object:
    return message.args if isinstance(message, DecodeError) else message


def read_by(reader: Reader) -> Callable[[Any], object]:
    if isinstance(reader, Decoder):
        return reader.decode
    return reader.transcode if isinstance(reader, Transcoder) else bytes


def pieces(rng: random.Random, stream: bytes) -> Iterator[bytes]:
    longest = rng.choice([7, 100, 5000, len(stream) + 1]) if len(stream) > 300 else rng.choice([1, 7, 100])
    at = 0
    while at < len(stream):
        size = rng.randint(1, longest)
        yield stream[at : at + size]
        at += size


def put(rng: random.Random, framer: Framer, piece: bytes) -> None:
    """Give a read to the framer, after filling the room for it with what would do harm if it were read."""
    with memoryview(framer) as room:
        spoilt = min(len(room), 4096)
        room[:spoilt] = bytes([rng.choice([0, 1, 7, 0xFF])]) * spoilt
        if by_copy := rng.random() < 0.5:
            count = 0
        else:
            count = min(len(room), len(piece))
            room[:count] = piece[:count]
    framer.received(count)
    if by_copy:
        framer.feed(exact(piece))


# --- messages in other formats ---


def check_msgpack(data: bytes) -> None:
    try:
        message = msgpack.unpackb(data, strict_map_key=False)
    except Exception:  # it has many kinds of its own
        return
    check_object(message)


def check_json(data: bytes) -> None:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return
    check_object(message)


def check_object(message: Any) -> None:
    """What VICI can carry is encoded as the reference does it, all else is an EncodeError."""
    if not is_message(message):
        for write in (encode, lambda given: packet(1, None, given)):
            try:
                write(message)
            except EncodeError:
                continue
            raise AssertionError("what VICI cannot carry was encoded")
        return
    data = encode(message)
    assert data == reference.encode(message)
    assert encode(decode(exact(data))) == data


def is_message(message: Any) -> bool:
    return isinstance(message, dict) and is_section(message, 0) and len(reference.encode(message)) <= 524288


def is_section(section: dict[Any, Any], depth: int) -> bool:
    return depth <= 64 and all(is_name(name) and is_content(value, depth) for name, value in section.items())


def is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= 255 and all(" " <= letter <= "~" for letter in name)


def is_content(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return is_section(value, depth + 1)
    return all(map(is_value, value)) if isinstance(value, list | tuple) else is_value(value)


def is_value(value: object) -> bool:
    if isinstance(value, str):
        try:
            return len(value.encode("utf-8", "surrogateescape")) <= 65535
        except UnicodeEncodeError:
            return False
    return isinstance(value, bool | int) or (isinstance(value, bytes) and len(value) <= 65535)


CHECKS: dict[bytes, Callable[[bytes], None]] = {
    b"m": check_message,
    b"M": check_long,
    b"s": check_stream,
    b"p": check_msgpack,
    b"j": check_json,
}
