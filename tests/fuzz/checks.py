"""The properties that must hold for any bytes; the fuzzer looks for counterexamples.

The first byte of an input selects the check of the others (`CHECKS`). No state is kept between inputs, so that one
file suffices to reproduce a finding.
"""

from __future__ import annotations

import base64
import json
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgpack
import reference
from generate import check_json_both_ways, exact

from vicifast import (
    Batcher,
    Decoder,
    EnvelopeWriter,
    Framer,
    Message,
    MessageReader,
    Raw,
    Reader,
    Transcoder,
    decode,
    encode,
    from_json,
    from_msgpack,
    packet,
    to_json,
    to_msgpack,
)
from vicifast._wire import EVENT, AckReader, BlockReader, BlockWriter, Outliner, envelopes
from vicifast.errors import DecodeError, EncodeError

BINARY = ("data", "", "name")  # the first is that of list-certs
READERS: list[Callable[[], Reader]] = [
    Decoder,
    lambda: Decoder(values=bytes),
    lambda: Decoder(binary=BINARY),
    MessageReader,
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
    """Every reader refuses the same messages with the same error, or returns the result of the reference."""
    try:
        tree = reference.parse(data)
    except reference.Malformed as malformed:
        check_refusal(data, malformed)
        check_batches(data)
        return
    check_decode(data, tree)
    check_caches(data, tree)
    check_transcode(data, tree)
    check_envelope(data, tree)
    check_batches(data)
    check_encode(data, tree)
    check_view(data, tree)
    same(reference.parse(Outliner(BINARY).outline(exact(data))), reference.outline(tree, BINARY))


def check_long(data: bytes) -> None:
    """Repeat a small part until counts and sizes exceed limits, in the root, a section or (16-bit counts) a list."""
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
    same(Message(exact(long)).to_dict(), reference.plain(tree))


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
        Outliner(BINARY).outline,
        Transcoder("msgpack").transcode,
        Transcoder("json").transcode,
        Message,
    ):
        assert refused(reader, data).args == refusal.args
    assert refused(decode, bytes(data)).args == refusal.args
    check_after_refusal(data, refusal)


def check_after_refusal(data: bytes, refusal: DecodeError) -> None:
    """A cache stays correct after a refused message."""
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
    """A decoder's result does not depend on earlier messages, whether similar or truncated."""
    for make, expected in (
        (Decoder, reference.plain(tree)),
        (lambda: Decoder(values=bytes), reference.plain(tree, bytes)),
        (lambda: Decoder(binary=BINARY), reference.plain(tree, binary=BINARY)),
        (lambda: Decoder(ordered=True), with_ordered_sections(reference.plain(tree))),
    ):
        decoder = make()
        for other in (data, data.swapcase(), data[: len(data) // 2], data[:-1], data):
            attempt(decoder.decode, other)
        first = decoder.decode(exact(data))
        same(first, expected)
        spoil(first)
        same(decoder.decode(exact(data)), expected)


def with_ordered_sections(value: Any) -> Any:
    if type(value) is not dict:
        return value
    return OrderedDict((name, with_ordered_sections(content)) for name, content in value.items())


def attempt(reader: Callable[[Any], object], data: bytes) -> object:
    """Return the result of a reader, or the text of its error."""
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
    if reference.has_duplicates(tree):  # all duplicates are returned
        assert json.loads(to_json(exact(data))) == json.loads(shown)
    else:
        assert to_json(exact(data)) == shown
        assert blobs == reference.to_json(tree, BINARY)


def check_envelope(data: bytes, tree: reference.Tree) -> None:
    """Envelopes around valid messages; a malformed one uses up no number."""
    for format, packed in (("msgpack", reference.to_msgpack(tree)), ("json", to_json(data))):
        envelope = EnvelopeWriter(format, "gw-1", 'b"1')
        envelope.time = len(data)
        transcoder = Transcoder(format, envelope=envelope, event="ike-updown")
        for seq in (1, 2):
            attempt(transcoder.transcode, data + b"\x09")
            out = transcoder.transcode(exact(data))
            if format == "msgpack":
                numbers = (b"\xcf" + number.to_bytes(8, "big") for number in (seq, len(data)))
                head = b'\x87\xa1v\1\xa4node\xa4gw-1\xa4boot\xa3b"1\xa3seq%b\xa4time%b\xa5event\xaaike-updown\xa4data'
                assert out == head % tuple(numbers) + packed
            else:
                head = b'{"v":1,"node":"gw-1","boot":"b\\"1","seq":%d,"time":%d,"event":"ike-updown","data":'
                assert out == head % (seq, len(data)) + packed + b"}\n"


def check_batches(data: bytes) -> None:
    """A batch equals the output of a transcoder for each message; a malformed one leaves nothing."""
    good = attempt(decode, data)
    events = [packet(EVENT, "log", {"group": "IKE"}), *[event_of(data)] * 2, packet(EVENT, "log", {"level": "1"})]
    for format, transcode in (("msgpack", to_msgpack), ("json", to_json)):
        envelope = EnvelopeWriter(format, "gw1", "b")
        batcher = Batcher(envelope, "log", ("group", "level"), lambda *values: str(values), limit=64)
        framer = Framer(Raw(), {"log": batcher})
        framer.feed(b"".join(events))
        errors = [message for _, _, message in framer.packets() if message is not batcher]
        batches = batcher.take()
        assert sum(batch[2] for batch in batches) + len(errors) == len(events)
        if isinstance(good, dict):
            assert not errors and b"".join(batch[1] for batch in batches).count(transcode(data)) >= 2
        else:
            assert [outcome(error) for error in errors] == [good] * 2


def event_of(data: bytes) -> bytes:
    body = bytes([EVENT, 3]) + b"log" + data
    return len(body).to_bytes(4, "big") + body


def check_encode(data: bytes, tree: reference.Tree) -> None:
    for values in (str, bytes):
        message = decode(exact(data), values=values)
        if reference.has_duplicates(tree):
            same(decode(encode(message), values=values), message)
        else:
            assert encode(message) == encode(Message(data)) == from_msgpack(exact(to_msgpack(data))) == data
            if not has_base64_section(tree):
                assert from_json(exact(to_json(data))) == from_json(exact(to_json(data, binary=BINARY))) == data
            if len(data) < reference.MAX_PACKET:
                assert packet(1, None, message) == (len(data) + 1).to_bytes(4, "big") + b"\x01" + data


def check_view(data: bytes, tree: reference.Tree) -> None:
    """A Message has the whole tree, also after its source buffer is reused."""
    given = exact(data)
    messages = [Message(given), Message(data, values=bytes), Message(given, binary=BINARY)]
    for at in range(len(given)):
        given[at] ^= 0xFF
    text, raw, blobs = messages
    same(text.to_dict(), reference.plain(tree))
    same(blobs.to_dict(), reference.plain(tree, binary=BINARY))
    assert tree_of(raw) == tree
    assert tree_of(text) == tree
    assert text.to_msgpack() == reference.to_msgpack(tree)
    assert blobs.to_json() == to_json(data, binary=BINARY)
    for message in messages:
        again = pickle.loads(pickle.dumps(message))
        assert bytes(message) == data and message == again and hash(message) == hash(again)
        same(again.to_dict(), message.to_dict())


def tree_of(message: Message) -> reference.Tree:
    names = message.keys()
    assert len(message) == len(names) and list(message) == names
    last = dict(message.items())
    for name in last:
        assert name in message and message.get_all(name)[-1] == message[name] == last[name] == message.get(name)
    for name, value in last.items():
        if isinstance(value, Message) and len(value):
            inner = value.keys()[-1]
            assert message.get(name, inner) == value[inner]
    return tuple((name, content_of(value)) for name, value in message.items())


def content_of(value: Any) -> Any:
    if isinstance(value, Message):
        return tree_of(value)
    return [bytes_of(item) for item in value] if isinstance(value, list) else bytes_of(value)


def bytes_of(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def has_base64_section(tree: reference.Tree) -> bool:
    """Whether a section looks like bytes in JSON."""
    sections = [value for _, value in tree if isinstance(value, tuple)]
    return any([name for name, _ in section] == ["$base64"] or has_base64_section(section) for section in sections)


# --- streams ---


def check_stream(data: bytes) -> None:
    """Two bytes of seed, which determine how the following stream is split into reads."""
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
            same(outcome(message), None if body is None else attempt(read_by(reader), body))


def framed(found: tuple[int, str | None, bytes | None]) -> int:
    _, name, message = found
    return 5 + (0 if name is None else 1 + len(name)) + len(message or b"")


def outcome(message: object) -> object:
    return message.args if isinstance(message, DecodeError) else message


def read_by(reader: Reader) -> Callable[[Any], object]:
    if isinstance(reader, Decoder):
        return reader.decode
    if isinstance(reader, MessageReader):
        return Message
    return reader.transcode if isinstance(reader, Transcoder) else bytes


def pieces(rng: random.Random, stream: bytes) -> Iterator[bytes]:
    longest = rng.choice([7, 100, 5000, len(stream) + 1]) if len(stream) > 300 else rng.choice([1, 7, 100])
    at = 0
    while at < len(stream):
        size = rng.randint(1, longest)
        yield stream[at : at + size]
        at += size


def put(rng: random.Random, framer: Framer, piece: bytes) -> None:
    """Write a read into the framer, after filling its buffer with bytes that would be harmful if they were read."""
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
    refused, message = False, None
    try:
        message = msgpack.unpackb(
            data,
            strict_map_key=False,
            unicode_errors="surrogateescape",
            object_pairs_hook=section_of,
            ext_hook=no_extension,
        )
    except Exception:  # it raises many types
        refused = True
    else:
        check_object(message)
    check_written(from_msgpack, data, not refused and is_message(message), message)


def check_json(data: bytes) -> None:
    refused, message = False, None
    try:
        message = json.loads(data.decode(), object_pairs_hook=section_or_bytes)
    except (ValueError, RecursionError):
        refused = True
    else:
        check_object(message)
    check_written(from_json, data, not refused and is_message(message), message)
    check_json_both_ways(data)


def section_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    section = dict(pairs)
    if len(section) < len(pairs):
        raise ValueError("duplicate name")
    return section


def section_or_bytes(pairs: list[tuple[str, Any]]) -> Any:
    section = section_of(pairs)
    if list(section) != ["$base64"]:
        return section
    if not isinstance(section["$base64"], str):
        raise ValueError("invalid base64")
    return base64.b64decode(section["$base64"], validate=True)


def no_extension(code: int, data: bytes) -> object:
    raise ValueError("an extension")


def check_written(write: Callable[[Any], bytes], data: bytes, good: bool, message: Any) -> None:
    """Bytes in another format are converted to VICI bytes; refusals are DecodeError or EncodeError."""
    try:
        written = write(exact(data))
    except DecodeError as error:
        assert not good and 0 <= error.offset <= len(data)
    except EncodeError:
        assert not good
    else:
        assert good and written == reference.encode(message)


def check_object(message: Any) -> None:
    """Content that VICI can carry is encoded as by the reference; anything else is an EncodeError."""
    if not is_message(message):
        try:
            encode(message)
        except EncodeError:
            return
        raise AssertionError("what VICI cannot carry was encoded")
    data = encode(message)
    assert data == reference.encode(message) == encode(disguised(message))
    assert encode(decode(exact(data))) == data


class Text(str):
    pass


def disguised(value: Any) -> Any:
    """The same message in types that are not the plain ones."""
    if isinstance(value, dict):
        return MappingProxyType({Text(name): disguised(content) for name, content in value.items()})
    if isinstance(value, list | tuple):
        return tuple(map(disguised, value))
    if isinstance(value, bytes):
        return memoryview(value)
    return Text(value) if isinstance(value, str) else value


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


# --- NATS ---


def check_acks(data: bytes) -> None:
    """Acknowledgements are found as by the reference, wherever the bytes are cut."""
    watched = {3: "_INBOX.a", 4: "_INBOX.b"}
    cut = data[0] if data else 0
    for given in (data[1:], data[1 : 1 + cut]):
        reader = AckReader()
        for sid, inbox in watched.items():
            reader.watch(sid, inbox)
        same((reader.read(exact(given)), reader.take()), reference.acknowledged(given, watched))


def check_messages(data: bytes) -> None:
    """Messages are found as by the reference, wherever the bytes are cut."""
    cut = data[0] if data else 0
    for given in (data[1:], data[1 : 1 + cut]):
        reader = BlockReader()
        reader.watch(3)
        reader.watch(4)
        used = reader.read(exact(given))
        found = [
            (sid, [(message.subject, message.reply, message.data, message.headers) for message in messages])
            for sid, messages in reader.take()
        ]
        same((used, reader.incomplete, found), reference.delivered(given, (3, 4)))


def check_block(data: bytes) -> None:
    """A message is written as by the reference, or refused if its subject or headers are malformed."""
    name, headers, payload = (data.split(b"\0", 2) + [b"", b""])[:3]
    subject, writer = name.decode("latin-1"), BlockWriter("_INBOX.a", 1 << 20)
    try:
        writer.add(7, subject, payload, headers)
    except ValueError:
        assert not reference.can_be_published(subject, headers)
        same(writer.take(), b"")
    else:
        assert reference.can_be_published(subject, headers)
        same(writer.take(), reference.published("_INBOX.a.7", subject, payload, headers))


def check_envelopes(data: bytes) -> None:
    """Envelopes are read as msgpack and json read them, or not at all."""
    found = envelopes(data, "s", "gw")
    if found is None:
        return
    if data[:1] == b"{":
        expected = [json.loads(line) for line in data.splitlines()]
    else:
        unpacker = msgpack.Unpacker(unicode_errors="surrogateescape", max_buffer_size=len(data))
        unpacker.feed(data)
        expected = [texts(envelope) for envelope in unpacker]
        assert unpacker.tell() == len(data)
    same(
        [{"v": 1, **envelope.to_dict()} for envelope in found], [{**envelope, "subject": "s"} for envelope in expected]
    )


def texts(value: Any) -> Any:
    """The same with bytes as texts."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [texts(item) for item in value]
    return {name: texts(item) for name, item in value.items()} if isinstance(value, dict) else value


CHECKS: dict[bytes, Callable[[bytes], None]] = {
    b"m": check_message,
    b"M": check_long,
    b"s": check_stream,
    b"p": check_msgpack,
    b"j": check_json,
    b"a": check_acks,
    b"d": check_messages,
    b"b": check_block,
    b"e": check_envelopes,
}
