"""The pairing of requests and replies, without a socket: every case of VICI's ordering rules."""

from __future__ import annotations

import random

import pytest

from vicifast import (
    CommandError,
    ConnectionClosed,
    DecodeError,
    Decoder,
    EncodeError,
    ProtocolError,
    UnknownCommand,
    UnknownEvent,
    encode,
    packet,
)
from vicifast import _wire as wire
from vicifast.protocol import LISTENER_LIMIT, Call, Protocol, Subscription, Trickle

CONFIRM = packet(wire.EVENT_CONFIRM)
EVENT_UNKNOWN = packet(wire.EVENT_UNKNOWN)
CMD_UNKNOWN = packet(wire.CMD_UNKNOWN)


def reply(**message: object) -> bytes:
    return packet(wire.CMD_RESPONSE, None, message)


def event(name: str, **message: object) -> bytes:
    return packet(wire.EVENT, name, message)


def register(name: str) -> bytes:
    return packet(wire.EVENT_REGISTER, name)


def unregister(name: str) -> bytes:
    return packet(wire.EVENT_UNREGISTER, name)


def request(name: str, **message: object) -> bytes:
    return packet(wire.CMD_REQUEST, name, message)


@pytest.fixture
def protocol() -> Protocol:
    return Protocol(Decoder(), {})


def give(protocol: Protocol, *packets: bytes) -> list[Call | Subscription]:
    protocol.framer.feed(b"".join(packets))
    return list(protocol.receive())


def test_call_and_reply(protocol: Protocol) -> None:
    call = protocol.call("version", None, None)
    assert protocol.data_to_send() == request("version")
    assert protocol.data_to_send() == b""
    assert not call.done and not protocol.idle
    assert give(protocol, reply(daemon="charon")) == [call]
    assert call.done and call.response == {"daemon": "charon"} and call.error is None
    assert protocol.idle


def test_replies_answer_in_order(protocol: Protocol) -> None:
    first, second, third = (protocol.call(name, None, None) for name in ("version", "nonsense", "stats"))
    give(protocol, reply(n="1"), CMD_UNKNOWN, reply(n="3"))
    assert first.response == {"n": "1"}
    assert isinstance(second.error, UnknownCommand) and second.error.command == "nonsense"
    assert third.response == {"n": "3"}


def test_stream_is_pipelined_and_collected(protocol: Protocol) -> None:
    call = protocol.call("list-sas", {"noblock": True}, "list-sa")
    assert protocol.data_to_send() == (register("list-sa") + request("list-sas", noblock="yes") + unregister("list-sa"))
    give(protocol, CONFIRM, event("list-sa", a={}), event("list-sa", b={}))
    assert list(call.items) == [{"a": {}}, {"b": {}}] and not call.done
    give(protocol, reply(), CONFIRM)
    assert call.done and call.response == {} and protocol.idle


def test_event_between_reply_and_confirm_is_late(protocol: Protocol) -> None:
    call = protocol.call("list-sas", None, "list-sa")
    give(protocol, CONFIRM, reply(), event("list-sa", stale={}), CONFIRM)
    assert call.response == {} and not call.items
    assert protocol.late_events == 1 and protocol.closed is None


def test_two_streams_do_not_mix(protocol: Protocol) -> None:
    first = protocol.call("list-sas", None, "list-sa")
    second = protocol.call("list-sas", None, "list-sa")
    one = (CONFIRM, event("list-sa", a={}), reply(), CONFIRM)
    two = (CONFIRM, event("list-sa", b={}), reply(), CONFIRM)
    give(protocol, *one, *two)
    assert list(first.items) == [{"a": {}}]
    assert list(second.items) == [{"b": {}}]


def test_abandoned_stream_is_drained(protocol: Protocol) -> None:
    call = protocol.call("list-sas", None, "list-sa")
    give(protocol, CONFIRM, event("list-sa", a={}))
    call.abandon()
    after = protocol.call("version", None, None)
    give(protocol, event("list-sa", b={}), reply(), CONFIRM, reply(daemon="charon"))
    assert not call.items
    assert after.response == {"daemon": "charon"}


def test_unknown_event_of_a_stream(protocol: Protocol) -> None:
    call = protocol.call("list-sas", None, "list-nothing")
    give(protocol, EVENT_UNKNOWN, reply(), EVENT_UNKNOWN)
    assert isinstance(call.error, UnknownEvent) and call.done
    assert protocol.idle and protocol.closed is None


def test_listening_at_any_point(protocol: Protocol) -> None:
    subscription = protocol.listen(["log", "ike-updown"])
    assert protocol.data_to_send() == register("log") + register("ike-updown")
    assert subscription.pending == 2
    call = protocol.call("version", None, None)
    give(protocol, CONFIRM, event("log", msg="1"), CONFIRM, event("log", msg="2"), reply(), event("ike-updown", a={}))
    assert subscription.pending == 0 and call.done
    assert list(subscription.items) == [("log", {"msg": "1"}), ("log", {"msg": "2"}), ("ike-updown", {"a": {}})]


def test_one_event_unknown_the_other_not(protocol: Protocol) -> None:
    subscription = protocol.listen(["alert", "log"])
    give(protocol, EVENT_UNKNOWN, CONFIRM, event("log", msg="1"))
    assert subscription.unknown == ["alert"] and subscription.pending == 0
    assert list(subscription.items) == [("log", {"msg": "1"})]
    protocol.data_to_send()
    protocol.unlisten(subscription)
    assert protocol.data_to_send() == unregister("log")


def test_registrations_are_counted(protocol: Protocol) -> None:
    first = protocol.listen(["log"])
    second = protocol.listen(["log"])
    assert protocol.data_to_send() == register("log"), "registering twice would deliver twice"
    give(protocol, CONFIRM, event("log", msg="1"))
    assert list(first.items) == list(second.items) == [("log", {"msg": "1"})]
    protocol.unlisten(first)
    protocol.unlisten(first)
    assert protocol.data_to_send() == b""
    protocol.unlisten(second)
    assert protocol.data_to_send() == unregister("log")
    give(protocol, CONFIRM)
    third = protocol.listen(["log"])
    assert protocol.data_to_send() == register("log")
    give(protocol, CONFIRM, event("log", msg="2"))
    assert not first.items == list(third.items)
    assert list(third.items) == [("log", {"msg": "2"})]


def test_stream_of_an_event_that_is_listened_to(protocol: Protocol) -> None:
    subscription = protocol.listen(["control-log"])
    call = protocol.call("initiate", {"child": "net"}, "control-log")
    assert protocol.data_to_send() == register("control-log") + request("initiate", child="net")
    give(protocol, CONFIRM, event("control-log", msg="1"), reply(success="yes"))
    assert list(call.items) == [{"msg": "1"}]
    assert list(subscription.items) == [("control-log", {"msg": "1"})]


def test_second_listener_of_an_unknown_event(protocol: Protocol) -> None:
    first = protocol.listen(["alert"])
    second = protocol.listen(["alert"])
    give(protocol, EVENT_UNKNOWN)
    third = protocol.listen(["alert"])
    assert first.unknown == second.unknown == third.unknown == ["alert"]
    assert first.pending == second.pending == third.pending == 0


def test_unlisten_before_the_confirm(protocol: Protocol) -> None:
    subscription = protocol.listen(["log"])
    protocol.unlisten(subscription)
    again = protocol.listen(["log"])
    assert protocol.data_to_send() == register("log") + unregister("log") + register("log")
    give(protocol, CONFIRM, event("log", msg="early"), CONFIRM, CONFIRM, event("log", msg="2"))
    assert not subscription.items
    assert ("log", {"msg": "2"}) in again.items and protocol.idle


def test_late_event_is_counted(protocol: Protocol) -> None:
    give(protocol, event("log", msg="1"), event("list-sa"))
    assert protocol.late_events == 2 and protocol.closed is None


def test_listener_that_is_not_read(protocol: Protocol) -> None:
    subscription = protocol.listen(["log"])
    give(protocol, CONFIRM)
    flood = event("log", msg="1") * 1000
    for _ in range(LISTENER_LIMIT // 1000):
        give(protocol, flood)
    assert subscription.lost == 0
    give(protocol, event("log", msg="new") * 3)
    assert subscription.lost == 3 and len(subscription.items) == LISTENER_LIMIT
    assert subscription.items[-1] == ("log", {"msg": "new"})


def test_failed_command(protocol: Protocol) -> None:
    calls = [protocol.call("terminate", {"ike": "x"}, None) for _ in range(3)]
    give(protocol, reply(success="no", errmsg="no matching"), reply(success="no"), reply(success="yes"))
    errors = [call.error for call in calls]
    assert isinstance(errors[0], CommandError) and errors[0].errmsg == "no matching"
    assert errors[0].response == {"success": "no", "errmsg": "no matching"}
    assert isinstance(errors[1], CommandError) and errors[1].errmsg == "" and errors[2] is None


def test_failed_command_with_bytes_values() -> None:
    protocol = Protocol(Decoder(values=bytes), {})
    call = protocol.call("terminate", {"ike": "x"}, None)
    give(protocol, reply(success="no", errmsg="no matching"))
    assert isinstance(call.error, CommandError) and call.error.errmsg == "no matching"


def test_malformed_message_spoils_only_itself(protocol: Protocol) -> None:
    def framed(payload: bytes) -> bytes:
        return len(payload).to_bytes(4, "big") + payload

    stream = protocol.call("list-sas", None, "list-sa")
    broken = protocol.call("stats", None, None)
    after = protocol.call("version", None, None)
    give(
        protocol,
        CONFIRM,
        framed(b"\x07\x07list-sa\x09"),
        event("list-sa", a={}),
        reply(),
        CONFIRM,
        framed(b"\x01\x02"),
        reply(daemon="charon"),
    )
    assert isinstance(stream.items[0], DecodeError) and stream.items[1] == {"a": {}}
    assert isinstance(broken.error, DecodeError)
    assert after.response == {"daemon": "charon"}


@pytest.mark.parametrize(
    "asked, answer",
    [
        (None, reply()),
        (None, CONFIRM),
        (None, EVENT_UNKNOWN),
        (None, CMD_UNKNOWN),
        ("call", CONFIRM),
        ("call", EVENT_UNKNOWN),
        ("listen", reply()),
        ("listen", CMD_UNKNOWN),
        ("call", bytes(4)),
        ("call", b"\x00\x08\x00\x01"),
        ("call", register("log")),
        ("call", b"\x00\x00\x00\x02\x05x"),
        ("call", b"\x00\x00\x00\x01\x07"),
        ("call", b"\x00\x00\x00\x01\x2a"),
    ],
)
def test_a_peer_out_of_step_ends_everything(protocol: Protocol, asked: str | None, answer: bytes) -> None:
    call = protocol.call("version", None, None) if asked == "call" else None
    subscription = protocol.listen(["log"]) if asked == "listen" else None
    touched = give(protocol, answer)
    assert isinstance(protocol.closed, ProtocolError)
    for ended in (call, subscription):
        if ended is not None:
            assert ended in touched and ended.error is protocol.closed
    with pytest.raises(ConnectionClosed):
        protocol.call("version", None, None)
    with pytest.raises(ConnectionClosed):
        protocol.listen(["log"])


def test_packets_before_the_fault_count(protocol: Protocol) -> None:
    first, second = protocol.call("version", None, None), protocol.call("stats", None, None)
    give(protocol, reply(n="1"), bytes(4), reply(n="2"))
    assert first.response == {"n": "1"} and isinstance(second.error, ProtocolError)


def test_eof(protocol: Protocol) -> None:
    call = protocol.call("version", None, None)
    subscription = protocol.listen(["log"])
    assert set(protocol.receive_eof()) == {call, subscription}
    assert isinstance(call.error, ConnectionClosed) and isinstance(subscription.error, ConnectionClosed)
    assert "into a packet" not in str(call.error)


def test_eof_within_a_packet(protocol: Protocol) -> None:
    call = protocol.call("version", None, None)
    give(protocol, reply(daemon="charon")[:7])
    protocol.receive_eof()
    assert "7 bytes into a packet" in str(call.error)


@pytest.mark.parametrize(
    "command, message, path",
    [
        ("unload-conn", {"name": "büro"}, "name"),
        ("unload-conn", {"name": b"\xff"}, "name"),
        ("load-conn", {"gw": {"local": {"id": "a\nb"}}}, "gw.local.id"),
        (
            "load-conn",
            {"gw": {"children": {"net": {"local_ts": ["10.0.0.0/8", "ä"]}}}},
            r"gw.children.net.local_ts\[1\]",
        ),
        ("my-own", {"a": "ä"}, "a"),
    ],
)
def test_text_that_charon_would_not_take(
    protocol: Protocol, command: str, message: dict[str, object], path: str
) -> None:
    with pytest.raises(EncodeError, match=f"^{path}: "):
        protocol.call(command, message, None)
    assert protocol.data_to_send() == b"" and protocol.idle


@pytest.mark.parametrize(
    "command, message",
    [
        ("load-cert", {"type": "X509", "data": b"\x30\x82"}),
        ("load-shared", {"id": "x", "data": bytes(range(256))}),
        ("load-key", {"type": "any", "data": "-----BEGIN\n"}),
        ("load-conn", {"gw": {"local": {"certs": [b"\x30\x82\xff"]}}}),
    ],
)
def test_blob_fields_take_anything(protocol: Protocol, command: str, message: dict[str, object]) -> None:
    protocol.call(command, message, None)
    assert protocol.data_to_send().endswith(encode(message))


def test_refused_request_asks_nothing(protocol: Protocol) -> None:
    for bad in ("", "x" * 256, "bad\nname"):
        if bad:
            with pytest.raises(EncodeError):
                protocol.call(bad, None, "log")
            with pytest.raises(EncodeError):
                protocol.listen(["log", bad])
    loop: dict[str, object] = {}
    loop["a"] = loop["b"] = loop
    with pytest.raises(EncodeError):
        protocol.call("stats", loop, None)
    assert protocol.data_to_send() == b"" and protocol.idle


def test_random_conversations_stay_in_step() -> None:
    """A model of charon answers any request, late and with events in between; replies are never mismatched."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        protocol = Protocol(Decoder(), {})
        calls: list[tuple[Call, str, int]] = []
        answers: list[bytes] = []
        for number in range(rng.randrange(1, 20)):
            if rng.random() < 0.5:
                count = rng.randrange(5)
                calls.append((protocol.call("list-sas", None, "list-sa"), str(number), count))
                answers.append(CONFIRM)
                answers += [event("list-sa", of=number, at=at) for at in range(count)]
                answers += [reply(n=number), CONFIRM]
            else:
                calls.append((protocol.call("version", None, None), str(number), 0))
                answers.append(reply(n=number))
            if rng.random() < 0.3:
                answers.insert(rng.randrange(len(answers) + 1), event("log", msg="late"))
        data = b"".join(answers)
        while data:
            cut = rng.randrange(1, 200)
            give(protocol, data[:cut])
            data = data[cut:]
        assert protocol.closed is None and protocol.idle
        for call, number, count in calls:
            assert call.response == {"n": number}
            assert list(call.items) == [{"of": number, "at": str(at)} for at in range(count)]


def test_only_a_long_stream_accumulates_and_never_fills_the_socket() -> None:
    def pauses(gap: float, size: int, streaming: bool = True, count: int = 2000) -> list[float]:
        trickle = Trickle(0.0001)
        return [trickle.pause(100 + number * gap, size, streaming) for number in range(count)]

    slow = pauses(0.0005, 85)
    assert slow[:20] == [0.0] * 20 and 0 < slow[30] < 0.001 and slow[-1] == 0.03
    assert not any(
        pauses(0.000002, 850, count=50_000)
    )  # a stream that fills the socket in less than the shortest pause
    assert not any(pauses(0.0001, 32_000))  # a client that is slower than the daemon
    for gap in (0.0005, 0.00005, 0.00001):
        assert 30_000 < max(pauses(gap, 850, count=20_000)) / gap * 850 < 33_000
    assert not any(pauses(0.0005, 850, streaming=False))  # events are wanted as they happen


def test_each_stream_is_judged_by_itself() -> None:
    trickle = Trickle(0.0001)
    assert [trickle.pause(now, 850, True) > 0 for now in (100, 101)] == [False, True]
    trickle.pause(102, 850, False)
    assert [trickle.pause(now, 850, True) > 0 for now in (103, 103.005, 104)] == [False, False, True]
