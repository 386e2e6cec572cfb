"""The batcher: log events sorted into envelopes while they are read."""

from __future__ import annotations

import io
from typing import Any

import msgpack
import pytest
from generate import collecting, only_where_c_code_is_interrupted

from vicifast import Batcher, DecodeError, EnvelopeWriter, Framer, Raw, encode, packet
from vicifast._wire import EVENT

Batch = tuple[str, bytes, int, int, int]


def line(group: str, level: int, text: str) -> dict[str, object]:
    return {"group": group, "level": level, "thread": "07", "msg": text}


class Log:
    """A framer that reads events through a batcher."""

    def __init__(self, limit: int = 65536, unwanted: bytes | None = None, format: str = "msgpack") -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.unwanted = unwanted
        self.envelope = EnvelopeWriter(format, "gw1", "b")  # type: ignore[arg-type]
        self.batcher = Batcher(self.envelope, "log", ("group", "level"), self.topic, limit=limit)
        self.framer = Framer(Raw(), {"log": self.batcher})

    def topic(self, group: bytes, level: bytes) -> str | None:
        self.asked.append((group, level))
        return None if group == self.unwanted else f"{group.decode()}.{level.decode()}"

    def read(self, *messages: object) -> list[object]:
        for message in messages:
            data = message if isinstance(message, bytes) else encode(message)  # type: ignore[arg-type]
            body = bytes([EVENT, 3]) + b"log" + data
            self.framer.feed(len(body).to_bytes(4, "big") + body)
        return [body for _, _, body in self.framer.packets()]


def texts(batch: Batch) -> list[tuple[int, str]]:
    return [(e["seq"], e["data"]["msg"]) for e in msgpack.Unpacker(io.BytesIO(batch[1]))]


def test_one_packet_a_read_and_batches_by_topic() -> None:
    log = Log()
    assert log.read(line("IKE", 1, "a"), line("CFG", 0, "b"), line("IKE", 1, "c")) == [log.batcher]
    assert log.read(line("IKE", 1, "d")) == []  # not taken yet, so no new packet
    batches = {batch[0]: batch for batch in log.batcher.take()}
    assert texts(batches["IKE.1"]) == [(1, "a"), (3, "c"), (4, "d")]
    assert texts(batches["CFG.0"]) == [(2, "b")]
    assert batches["IKE.1"][2:] == (3, 1, 4)
    assert log.asked == [(b"IKE", b"1"), (b"CFG", b"0")]
    assert log.batcher.take() == []
    assert log.read(line("IKE", 1, "e")) == [log.batcher]


def test_other_packets_are_as_before() -> None:
    log = Log()
    log.framer.feed(packet(EVENT, "ike-updown", {"up": "yes"}))
    assert log.read(line("IKE", 1, "a"), line("IKE", 1, "b")) == [encode({"up": "yes"}), log.batcher]


def test_limit_splits_between_messages() -> None:
    log = Log(limit=1000)
    log.read(*(line("IKE", 1, f"{number:0300}") for number in range(10)))
    batches = log.batcher.take()
    assert all(len(batch[1]) <= 1000 for batch in batches)
    assert [int(text) for batch in batches for _, text in texts(batch)] == list(range(10))
    assert [batch[2:] for batch in batches] == [(2, 1, 2), (2, 3, 4), (2, 5, 6), (2, 7, 8), (2, 9, 10)]


def test_message_above_the_limit_is_a_batch() -> None:
    log = Log(limit=1000)
    log.read(line("IKE", 1, "a"), line("IKE", 1, "b" * 5000), line("IKE", 1, "c"))
    assert [[text[:1] for _, text in texts(batch)] for batch in log.batcher.take()] == [["a"], ["b"], ["c"]]


def test_malformed_message_leaves_the_others_whole() -> None:
    log = Log()
    good, bad = line("IKE", 1, "a"), encode(line("IKE", 1, "b"))[:-1]
    first, error = log.read(good, bad, line("IKE", 1, "c"))
    assert first is log.batcher and isinstance(error, DecodeError)
    (batch,) = log.batcher.take()
    assert texts(batch) == [(1, "a"), (2, "c")]


def test_excluded_topics_have_no_number() -> None:
    log = Log(unwanted=b"NET")
    assert log.read(line("NET", 1, "a")) == []
    log.read(line("IKE", 1, "b"), line("NET", 1, "c"))
    (batch,) = log.batcher.take()
    assert texts(batch) == [(1, "b")] and log.batcher.left_out == 2


def test_wanted_sees_the_text() -> None:
    log = Log()
    log.batcher.wanted = lambda text: b"peer" in text
    log.read(line("IKE", 1, "peer gone"), line("IKE", 1, "other"), {"group": "IKE", "level": 1})
    (batch,) = log.batcher.take()
    assert texts(batch) == [(1, "peer gone")] and log.batcher.left_out == 2


def test_sampling_is_reported() -> None:
    log = Log()
    log.batcher.every = 3
    log.read(*(line("IKE", 1, str(number)) for number in range(1, 8)))
    (batch,) = log.batcher.take()
    assert texts(batch) == [(3, "3"), (6, "6")]
    assert log.batcher.dropped() == [("sampled", 5, 1, 7)]
    assert log.batcher.dropped() == []


def test_rate_limit_is_reported() -> None:
    log = Log()
    log.batcher.rate = 4.0
    log.read(*(line("IKE", 1, str(number)) for number in range(10)))
    (batch,) = log.batcher.take()
    assert [seq for seq, _ in texts(batch)] == [1, 2, 3, 4]
    assert log.batcher.dropped() == [("over the rate limit", 6, 5, 10)]


def test_rate_of_less_than_one_a_second() -> None:
    log = Log()
    log.batcher.rate = 0.001
    log.read(*(line("IKE", 1, str(number)) for number in range(3)))
    assert [batch[2:] for batch in log.batcher.take()] == [(1, 1, 1)]
    assert log.batcher.dropped() == [("over the rate limit", 2, 2, 3)]


def test_forget_calls_topic_again_and_loses_nothing() -> None:
    log = Log()
    log.read(line("IKE", 1, "a"))
    log.unwanted = b"IKE"
    log.batcher.forget()
    log.read(line("IKE", 1, "b"))
    (batch,) = log.batcher.take()
    assert texts(batch) == [(1, "a")] and len(log.asked) == 2


@pytest.mark.parametrize("begun", [[], ["0"]])
def test_forget_called_by_wanted(begun: list[str]) -> None:
    log = Log()
    log.read(*(line("IKE", 1, text) for text in begun))

    def wanted(text: bytes) -> bool:
        log.unwanted = b"IKE" if text == b"c" else None
        log.batcher.forget()
        return text != b"b"

    log.batcher.wanted = wanted
    log.read(*(line("IKE", 1, text) for text in "abcd"))
    taken = [text for batch in log.batcher.take() for _, text in texts(batch)]
    assert taken == [*begun, "a"]
    assert log.batcher.left_out == 3


def test_more_topics_than_are_remembered() -> None:
    log = Log()
    log.read(*(line(f"G{number}", number % 2, str(number)) for number in range(1000)))
    seen = sorted(int(text) for batch in log.batcher.take() for _, text in texts(batch))
    assert seen == list(range(1000))


def test_missing_values_are_empty() -> None:
    log = Log()
    log.read({"msg": "a"}, {})
    assert {batch[0] for batch in log.batcher.take()} == {"."}


def test_silent_gives_no_packet() -> None:
    log = Log()
    log.batcher.silent = True
    assert log.read(line("IKE", 1, "a")) == []
    assert [texts(batch) for batch in log.batcher.take()] == [[(1, "a")]]


def test_json_lines() -> None:
    log = Log(format="json")
    log.read(line("IKE", 1, 'say "a"'), line("IKE", 1, "b"))
    (batch,) = log.batcher.take()
    assert batch[1].count(b"\n") == 2 and b'\\"a\\"' in batch[1]


def test_error_in_topic_is_raised_by_the_read() -> None:
    log = Log()
    log.unwanted = b"x"
    batcher = Batcher(log.envelope, "log", ("group", "level"), lambda group, level: 7)  # type: ignore[arg-type, return-value]
    framer = Framer(Raw(), {"log": batcher})
    framer.feed(packet(EVENT, "log", line("IKE", 1, "a")))
    with pytest.raises(TypeError, match="topic"):
        framer.packets()
    with pytest.raises(ValueError, match="two keys"):
        Batcher(log.envelope, "log", ("group",), log.topic)


@pytest.mark.parametrize("wrong", [{"event": 5}, {"keys": ("group",)}, {"text_key": 5}], ids=str)
def test_batcher_whose_init_failed_reads_nothing(wrong: dict[str, Any]) -> None:
    log = Log()
    given: dict[str, Any] = {"event": "log", "keys": ("group", "level"), "topic": log.topic}
    batcher: Any = Batcher.__new__(Batcher)
    for wanted in (None, lambda text: True):
        with pytest.raises((TypeError, ValueError)):
            batcher.__init__(log.envelope, **given | wrong)
        batcher.wanted = wanted
        framer = Framer(Raw(), {"log": batcher})
        framer.feed(packet(EVENT, "log", line("IKE", 1, "a")))
        with pytest.raises(TypeError):
            framer.packets()
        assert batcher.take() == []


@only_where_c_code_is_interrupted
def test_batches_taken_during_a_read() -> None:
    """The garbage collector may run when a batch or the error for a malformed message is created."""
    log = Log(limit=1000)
    taken: list[Batch] = []
    refused: list[RuntimeError] = []

    def take() -> None:
        for use in (lambda: taken.extend(log.batcher.take()), log.batcher.forget):
            try:
                use()
            except RuntimeError as error:
                refused.append(error)

    with collecting(take):
        for number in range(100):
            log.read(*(line("IKE", 1, f"{number}-{at}") for at in range(20)))
            log.read(line("CFG", 1, "good"), encode(line("CFG", 1, "malformed")) + b"\x09", line("CFG", 1, "good"))
    taken += log.batcher.take()
    envelopes = [envelope for batch in taken for envelope in msgpack.Unpacker(io.BytesIO(batch[1]))]
    assert sorted(envelope["seq"] for envelope in envelopes) == list(range(1, 2201))
    assert sum(batch[2] for batch in taken) == 2200
    assert refused
