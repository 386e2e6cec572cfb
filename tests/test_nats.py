"""BlockWriter, AckReader, BlockReader: blocks of messages for NATS, acknowledgements and messages out of its bytes."""

from __future__ import annotations

from typing import Any

import pytest
import reference
from generate import collecting, exact, only_where_c_code_is_interrupted
from hypothesis import given
from hypothesis import strategies as st

from vicifast._wire import MAX_HEADERS, MAX_SUBJECTS, AckReader, BlockReader, BlockWriter, Received

INBOX = "_INBOX.a-b_c.1"


def writer(max_payload: int = 1 << 20) -> BlockWriter:
    return BlockWriter(INBOX, max_payload)


def expected(number: int, subject: str, payload: bytes, headers: bytes) -> bytes:
    return reference.published(f"{INBOX}.{number}", subject, payload, headers)


TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=".*>"), min_size=1, max_size=9)
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=6).map(".".join)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=9)
VALUES = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=9)
HEADERS = st.lists(st.tuples(NAMES, VALUES).map(lambda pair: f"{pair[0]}: {pair[1]}\r\n"), max_size=3).map(
    lambda lines: "".join(lines).encode()
)
MESSAGES = st.tuples(st.integers(0, 2**64 - 1), SUBJECTS, st.binary(max_size=40), HEADERS)


@given(st.lists(MESSAGES, max_size=9))
def test_a_block_is_its_messages_in_order(messages: list[tuple[int, str, bytes, bytes]]) -> None:
    block, size = writer(), 0
    for message in messages:
        size += len(expected(*message))
        assert block.add(*message) == size
    assert block.take() == b"".join(expected(*message) for message in messages)
    assert block.take() == b""


def test_a_block_larger_than_the_buffer() -> None:
    block = writer(1 << 22)
    for _ in range(2):
        block.add(1, "a", bytes(3_000_000))
        assert block.take() == expected(1, "a", bytes(3_000_000), b"")


@pytest.mark.parametrize(
    "subject",
    ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\r\nPUB x 0", "a\x00", "\x7f", "ä", "\ud800", "*", "a.*.b", "a.>"],
)
def test_subjects_that_nobody_can_publish_to_are_refused(subject: str) -> None:
    block = writer()
    with pytest.raises(ValueError, match="cannot publish to the subject"):
        block.add(1, subject, b"x")
    with pytest.raises(ValueError, match="cannot publish with the reply subject|surrogates"):
        BlockWriter(subject, 10)
    assert block.take() == b""


@pytest.mark.parametrize("subject", ["a*", "*a", "a>b", "$KV.B.=20", "_x.-.~"])
def test_wildcards_are_tokens_of_one_character(subject: str) -> None:
    block = writer()
    block.add(1, subject, b"")
    assert block.take() == expected(1, subject, b"", b"")


@pytest.mark.parametrize(
    "headers",
    [b"a", b"a: b", b"a: b\n", b"a: b\r", b"a:b\r\n", b": b\r\n", b"a b: c\r\n", b"a: b\r\n\r\n", b"\r\n",
     b"a: b\r\nc\r\n",
     b"a: \x00\r\n", b"a: b\rc: d\r\n", b"a: b\nc: d\r\n", b"\xc3\xa4: b\r\n", b"a: \x7f\r\n"],
)  # fmt: skip
def test_malformed_headers_are_refused(headers: bytes) -> None:
    block = writer()
    with pytest.raises(ValueError, match="malformed headers"):
        block.add(1, "a", b"x", headers)
    assert block.take() == b""


def test_limits_count_headers_and_reply_subject() -> None:
    headers = b"a: b\r\n"
    block = writer(30)
    block.add(1, "a", bytes(30))
    block.add(1, "a", bytes(30 - 12 - len(headers)), headers)
    block.take()
    with pytest.raises(OverflowError, match="31 bytes; the server's limit is 30"):
        block.add(1, "a", bytes(31))
    with pytest.raises(OverflowError, match="31 bytes"):
        block.add(1, "a", bytes(30 - 11 - len(headers)), headers)
    longest = MAX_SUBJECTS - len(INBOX) - 1 - 20
    with pytest.raises(OverflowError, match=f"a subject of {longest + 1} bytes"):
        block.add(1, "a" * (longest + 1), b"")
    block.add(2**64 - 1, "a" * longest, b"")
    assert len(block.take().partition(b"\r\n")[0]) < 4096
    block.max_payload = 31
    block.add(1, "a", bytes(31))


@pytest.mark.parametrize(
    "arguments",
    [(-1, "a", b""), (2**64, "a", b""), (1, b"a", b""), (1, "a", "x"), (1, "a", bytearray()), (1, None, b"")],
)
def test_other_types_and_numbers_are_refused(arguments: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        writer().add(*arguments)


# --- acknowledgements ---


def ack(number: int, seq: int, sid: int = 3, more: bytes = b"", inbox: str = INBOX) -> bytes:
    answer = b'{"stream":"VICI",%b"seq":%d}' % (b'"domain":"hub",' if more == b"domain" else b"", seq)
    if more == b"duplicate":
        answer = answer[:-1] + b',"duplicate": true}'
    return f"MSG {inbox}.{number} {sid} {len(answer)}\r\n".encode() + answer + b"\r\n"


def reader(watched: dict[int, str] | None = None) -> AckReader:
    made = AckReader()
    for sid, inbox in (watched or {3: INBOX}).items():
        made.watch(sid, inbox)
    return made


def test_acknowledgements_by_subscription() -> None:
    acks = reader({3: INBOX, 4: "_INBOX.other"})
    data = (
        ack(1, 10) + ack(7, 1, 4, inbox="_INBOX.other") + ack(2, 2**63, more=b"duplicate") + ack(3, 12, more=b"domain")
    )
    assert acks.read(data) == len(data)
    assert acks.read(ack(4, 13)) == len(ack(4, 13))
    assert acks.take() == {3: {1: 10, 2: 2**63, 3: 12, 4: 13}, 4: {7: 1}}
    assert acks.take() == {}


def test_nothing_is_read_when_nothing_is_watched() -> None:
    acks = AckReader()
    assert acks.read(ack(1, 1)) == 0 and acks.take() == {}


@pytest.mark.parametrize(
    "other",
    [b"PING\r\n", b"+OK\r\n", b"INFO {}\r\n", ack(1, 1, sid=4), ack(1, 1, inbox="_INBOX.other"), ack(0, 0),
     ack(10**19, 1),
     ack(1, 10**19), ack(1, 1).replace(b".1 3", b".01 3"), ack(1, 1).replace(b".1 3", b".x 3"),
     ack(1, 1).replace(b" 3 ", b" 3 reply "), ack(1, 1).replace(b"MSG", b"HMSG"), ack(1, 1).replace(b"}\r\n", b"}  "),
     ack(1, 1).replace(b'"VICI"', b'"VI\\u"'), ack(1, 1).replace(b"stream", b"strean"),
     b"MSG " + INBOX.encode() + b".1 3 9999999999999999999\r\n{}",
     b"MSG " + INBOX.encode() + b".1 3 99999999999999999999\r\n",
     b'MSG %b.1 3 28\r\n{"error":{"code":503},"seq":0}\r\n' % INBOX.encode(), b"MSG x 3 0\r\n\r\n", b"MSG ", b"M", b""],
)  # fmt: skip
def test_anything_else_ends_the_reading(other: bytes) -> None:
    acks, first = reader(), ack(5, 6)
    assert acks.read(exact(first + other)) == len(first)
    assert acks.take() == {3: {5: 6}}


def test_every_cut() -> None:
    """What is cut is left for later, or for the client; nothing is read twice or beyond the end."""
    data = ack(1, 10) + ack(2, 11, more=b"duplicate") + ack(3, 12, more=b"domain")
    for cut in range(len(data) + 1):
        acks = reader()
        used = acks.read(exact(data[:cut]))
        assert used <= cut and acks.read(exact(data[used:])) == len(data) - used
        assert acks.take() == {3: {1: 10, 2: 11, 3: 12}}


PIECES = st.one_of(
    st.builds(
        ack,
        st.integers(0, 2**64),
        st.integers(0, 2**64),
        st.integers(2, 5),
        st.sampled_from([b"", b"duplicate", b"domain"]),
        st.sampled_from([INBOX, "_INBOX.other"]),
    ),
    st.sampled_from([b"PING\r\n", b"MSG ", b"\r\n", b'{"stream":"', b',"seq":1', b"}", b"_INBOX.a-b_c.1.1 3 "]),
    st.binary(max_size=3),
)


@given(st.lists(PIECES, max_size=8).map(b"".join), st.integers(0, 600), st.binary(max_size=2))
def test_any_bytes_as_the_model(data: bytes, place: int, replaced: bytes) -> None:
    watched = {3: INBOX, 4: "_INBOX.other"}
    data = data[:place] + replaced + data[place + len(replaced) :]
    acks = reader(watched)
    assert (acks.read(exact(data)), acks.take()) == reference.acknowledged(data, watched)


@only_where_c_code_is_interrupted
def test_collector_takes_acknowledgements_meanwhile() -> None:
    """The garbage collector runs while numbers are created; a caller that takes them meanwhile loses none."""
    acks, data = (
        reader({3: INBOX, 4: "_INBOX.other"}),
        b"".join(ack(n, n + 1) + ack(n, n, 4, inbox="_INBOX.other") for n in range(1, 300)),
    )
    taken: list[tuple[int, int]] = []

    def take() -> None:
        for found in acks.take().values():
            taken.extend(found.items())

    with collecting(take):
        assert acks.read(data) == len(data)
    take()
    assert sorted(taken) == sorted([(n, n + 1) for n in range(1, 300)] + [(n, n) for n in range(1, 300)])


# --- messages ---


def delivery(
    payload: bytes = b"x", headers: bytes = b"", sid: int = 3, subject: bytes = b"vici.gw1.log", reply: bytes = b""
) -> bytes:
    """A message as a server sends it."""
    head = b"NATS/1.0\r\n" + headers + b"\r\n" if headers else b""
    sizes = b"%d %d" % (len(head), len(head + payload)) if head else b"%d" % len(payload)
    line = b" ".join([b"HMSG" if head else b"MSG", subject, b"%d" % sid, *([reply] if reply else []), sizes])
    return line + b"\r\n" + head + payload + b"\r\n"


def block_reader(*watched: int) -> BlockReader:
    made = BlockReader()
    for sid in watched or (3,):
        made.watch(sid)
    return made


def taken(blocks: BlockReader) -> list[tuple[int, list[reference.Delivered]]]:
    return [
        (sid, [(message.subject, message.reply, message.data, message.headers) for message in messages])
        for sid, messages in blocks.take()
    ]


def test_messages_by_subscription() -> None:
    blocks = block_reader(3, 4)
    data = b"".join(
        [
            delivery(b""),
            delivery(b"a\r\nMSG", b"A: \xc3\xa4\r\nB:  \xff \r\nB: \r\n", reply=b"7"),
            delivery(b"b", sid=4, reply=b"$JS.ACK.x"),
            delivery(b"c"),
        ]
    )
    assert blocks.read(data) == len(data) and not blocks.incomplete
    subject = "vici.gw1.log"
    assert taken(blocks) == [
        (3, [(subject, "", b"", None), (subject, "7", b"a\r\nMSG", {"A": "ä", "B": ""})]),
        (4, [(subject, "$JS.ACK.x", b"b", None)]),
        (3, [(subject, "", b"c", None)]),
    ]
    assert blocks.take() == []
    blocks.forget(4)
    assert blocks.read(delivery(sid=4)) == 0 and BlockReader().read(data) == 0


def test_messages_that_were_left_to_the_client_keep_their_order() -> None:
    blocks, other = block_reader(), Received("s", "r", b"d", {"Status": "100"})
    blocks.read(delivery(b"a"))
    blocks.add(3, other)
    blocks.read(delivery(b"b"))
    assert [data for _, _, data, _ in taken(blocks)[0][1]] == [b"a", b"d", b"b"]
    assert (other.subject, other.reply, other.data, other.headers) == ("s", "r", b"d", {"Status": "100"})


@pytest.mark.parametrize(
    "other",
    [b"PING\r\n", b"M", b"", b"MSG s 3 1", delivery(sid=5), delivery(subject=b"a\tb"), delivery(subject=b"\xc3\xa4"),
     delivery(reply=b"a\tb"), delivery()[:-1] + b"x", delivery().replace(b" 3 ", b" 03 "), b"msg s 3 0\r\n\r\n",
     b"MSG  s 3 0\r\n\r\n", b"MSG s 3 a b 0\r\n\r\n", b"HMSG s 3 9 3\r\nabc\r\n", b"HMSG s 3 3\r\nabc\r\n",
     b"HMSG s 3 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", delivery(headers=b"A:b\r\n"), delivery(headers=b"A: \t\r\n"),
     b"MSG s 3 9999999999999999999\r\n", delivery(headers=b"A: %b\r\n" % bytes(MAX_HEADERS))],
)  # fmt: skip
def test_any_other_message_is_left_to_the_client(other: bytes) -> None:
    blocks, first = block_reader(), delivery(b"first")
    assert blocks.read(exact(first + other)) == len(first) and not blocks.incomplete
    assert len(blocks.take()[0][1]) == 1


def test_every_cut_of_messages() -> None:
    data = delivery(b"a") + delivery(b"b" * 40, b"A: b\r\n", reply=b"r") + delivery(b"c")
    for cut in range(len(data) + 1):
        blocks = block_reader()
        used = blocks.read(exact(data[:cut]))
        assert used <= cut and blocks.read(exact(data[used:])) == len(data) - used and not blocks.incomplete
        assert [message[2] for _, messages in taken(blocks) for message in messages] == [b"a", b"b" * 40, b"c"]


DELIVERIES = st.one_of(
    st.builds(
        delivery,
        st.binary(max_size=9),
        HEADERS,
        st.integers(2, 5),
        st.sampled_from([b"s", b"a.b", b"a b", b"1"]),
        st.sampled_from([b"", b"r", b"9", b"a b"]),
    ),
    st.sampled_from([b"PING\r\n", b"MSG ", b"HMSG s 3 ", b"\r\n", b"NATS/1.0\r\n", b"1 "]),
    st.binary(max_size=3),
)


@given(st.lists(DELIVERIES, max_size=8).map(b"".join), st.integers(0, 600), st.binary(max_size=2))
def test_any_bytes_of_messages_as_the_model(data: bytes, place: int, replaced: bytes) -> None:
    data = data[:place] + replaced + data[place + len(replaced) :]
    blocks = block_reader(3, 4)
    assert (blocks.read(exact(data)), blocks.incomplete, taken(blocks)) == reference.delivered(data, (3, 4))


@only_where_c_code_is_interrupted
def test_collector_takes_messages_meanwhile() -> None:
    blocks, data = block_reader(3, 4), b"".join(delivery(b"%d" % n, sid=3 + n % 2) for n in range(300))
    found: list[int] = []

    def take() -> None:
        for _, messages in blocks.take():
            found.extend(int(message.data) for message in messages)

    with collecting(take):
        assert blocks.read(data) == len(data)
    take()
    assert sorted(found) == list(range(300))
