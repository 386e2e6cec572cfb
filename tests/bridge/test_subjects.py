"""Subjects: escaping of names, the table of events, and pattern matching."""

from __future__ import annotations

import json
import re
from itertools import combinations, product
from typing import Any

import nats
import pytest
from generate import packed, trees
from harness import NatsServer, run
from hypothesis import given
from hypothesis import strategies as st
from vicibridge.contract.bucket_values import BUCKETS
from vicibridge.contract.subjects import (
    OUTLINE,
    WORDS,
    Subjects,
    covered,
    escape,
    is_unestablished,
    overlap,
    patterns,
    stream_subjects,
    unescape,
)
from vicibridge.events.ratelimit import unauthenticated

import vicifast

SA = {"uniqueid": "7", "state": "ESTABLISHED"}
UNESTABLISHED = {"uniqueid": "7", "state": "CONNECTING"}


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("site-a_1", "site-a_1"),
        ("", "="),
        ("=", "=3D"),
        ("a.b", "a=2Eb"),
        ("*", "=2A"),
        (">", "=3E"),
        ("with space", "with=20space"),
        ("ü", "=C3=BC"),
        ("\udcff", "=FF"),
    ],
)
def test_escape(name: str, token: str) -> None:
    assert escape(name) == token
    assert unescape(token) == name


@given(st.binary(max_size=255))
def test_every_name_is_one_token_and_round_trips(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    token = escape(name)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert unescape(token) == name


@pytest.mark.parametrize("token", ["", "a=", "=2", "=2e", "a.b", "=41", "==", "a b", "ü"])
def test_unescape_rejects_invalid_tokens(token: str) -> None:
    with pytest.raises(ValueError):
        unescape(token)


CHILD_UP = {"up": "yes", "ike": {**SA, "child-sas": {"net-4": {"name": "net", "uniqueid": "4"}}}}
CHILD_REKEY = {"ike": {**SA, "child-sas": {"net": {"old": {"name": "net"}, "new": {"name": "net"}}}}}


@pytest.mark.parametrize(
    ("event", "message", "subject"),
    [
        ("ike-updown", {"up": "yes", "ike": SA}, "event.ike-updown.ike.up"),
        ("ike-updown", {"ike": SA}, "event.ike-updown.ike.down"),
        ("ike-updown", {"ike": {"state": "DELETING"}}, "event.ike-updown.ike.down"),
        ("ike-updown", {"ike": UNESTABLISHED}, "event.ike-updown.ike.failed"),
        ("ike-updown", {"(unnamed)": UNESTABLISHED}, "event.ike-updown.=28unnamed=29.failed"),
        ("ike-updown", {"up": UNESTABLISHED}, "event.ike-updown.up.failed"),
        ("ike-updown", {"ike": {"state": ["CONNECTING"]}}, "event.ike-updown.ike.down"),
        ("ike-rekey", {"ike": {"old": SA, "new": SA}}, "event.ike-rekey.ike"),
        ("ike-update", {"local-host": "192.0.2.1", "ike": SA}, "event.ike-update.ike"),
        ("child-updown", CHILD_UP, "event.child-updown.ike.net.up"),
        ("child-updown", {"ike": CHILD_UP["ike"]}, "event.child-updown.ike.net.down"),
        ("child-rekey", CHILD_REKEY, "event.child-rekey.ike.net"),
        ("alert", {"type": "peer-auth-failed"}, "event.alert.peer-auth-failed"),
        ("alert", {"type": "ts-narrowed", "ike-sa": {"ike": SA}}, "event.alert.ts-narrowed"),
        ("log", {"group": "IKE", "level": "1", "thread": "5", "msg": "up"}, "log.IKE.1"),
        ("log", {"group": "CFG", "level": "0", "ikesa-name": "x", "msg": ""}, "log.CFG.0"),
        # any name: sections are found by type, and each name stays in its token
        ("ike-updown", {"ike.*": SA}, "event.ike-updown.ike=2E=2A.down"),
        ("ike-updown", {"": SA}, "event.ike-updown.=.down"),
        ("ike-updown", {"up": SA}, "event.ike-updown.up.down"),
        # incomplete messages
        ("ike-updown", {}, "event.ike-updown.=.down"),
        ("child-updown", {"ike": SA}, "event.child-updown.ike.=.down"),
        ("alert", {}, "event.alert.="),
        ("log", {"group": ["a"], "msg": "x"}, "log.=.="),
    ],
)
def test_subject_of_every_event(event: str, message: dict[str, object], subject: str) -> None:
    raw = vicifast.encode(message)
    assert Subjects("vici", "gw.1").event(event, raw) == f"vici.gw=2E1.{subject}"


@pytest.mark.parametrize("event", [name for name in patterns("vici") if name != "log"])
@given(tree=trees | st.tuples(st.just("gw"), trees).map(lambda pair: ((pair[0], (("child-sas", pair[1]),)),)))
def test_outline_determines_subject_and_limit(event: str, tree: Any) -> None:
    """The bridge keeps both by the outline of an event."""
    subjects, raw = Subjects("vici", "gw"), packed(tree)
    outline = vicifast._wire.Outliner(OUTLINE).outline(raw)
    assert subjects.event(event, outline) == subjects.event(event, raw)
    assert unauthenticated(event, outline) == unauthenticated(event, raw)


@pytest.mark.parametrize(
    ("message", "unestablished"),
    [
        ({"ike": UNESTABLISHED}, True),
        ({"ike": {"state": "CREATED"}}, True),
        ({"ike": SA}, False),
        ({"ike": {"old": SA, "new": UNESTABLISHED}}, False),  # ike-rekey
        ({"ike": {"old": UNESTABLISHED, "new": UNESTABLISHED}}, False),
        (CHILD_REKEY, False),
        ({"local-host": "192.0.2.1", "ike": UNESTABLISHED}, True),  # ike-update
        ({"state": "CONNECTING"}, False),
        ({}, False),
    ],
)
def test_never_established(message: dict[str, object], unestablished: bool) -> None:
    assert is_unestablished(vicifast._wire.Message(vicifast.encode(message))) is unestablished


def test_ike_sa_named_up() -> None:
    raw = vicifast.encode({"up": "yes"}) + vicifast.encode({"up": SA})
    assert Subjects("vici", "gw").event("ike-updown", raw) == "vici.gw.event.ike-updown.up.up"


def test_words_explains_every_token() -> None:
    tokens = {token for subject in patterns("vici").values() for token in re.findall(r"{(\w+)}", subject)}
    assert WORDS.keys() == tokens | {word for bucket in BUCKETS.values() for word in bucket.words}


def test_malformed_message_raises_decode_error() -> None:
    with pytest.raises(vicifast.DecodeError):
        Subjects("vici", "gw").event("log", b"\x03\x05gr")


def test_other_subjects() -> None:
    subjects = Subjects("acme.vpn", "gw 1")
    assert subjects.bridge("gap") == "acme.vpn.gw=201.bridge.gap"
    assert subjects.commands() == ("acme.vpn.gw=201.cmd.*", "acme.vpn.all.cmd.*")
    assert [subjects.allows_reply(f"{first}.x") for first in ("_INBOX", "_INBOX_ann", "_R_", "_GR_.a.b._INBOX")] == [
        True
    ] * 4
    assert not Subjects("_vici", "gw").allows_reply("_vici.gw.event.x")
    assert stream_subjects("acme.vpn") == ["acme.vpn.*.event.>", "acme.vpn.*.bridge.>"]


LONGEST = 3
PATTERNS = [
    ".".join((*tokens, last))
    for count in range(LONGEST)
    for tokens in product("ab*", repeat=count)
    for last in ("a", "b", "*", ">")
]
# c is a token that occurs in no pattern; subjects have up to one token more than patterns, for >.
SUBJECTS = [".".join(tokens) for count in range(1, LONGEST + 2) for tokens in product("abc", repeat=count)]


def matched(pattern: str) -> set[str]:
    """Return the SUBJECTS that a pattern matches, by an independent implementation."""
    expression = re.compile(pattern.replace(".", r"\.").replace("*", "[^.]+").replace(">", ".+"))
    return {subject for subject in SUBJECTS if expression.fullmatch(subject)}


MATCHED = {pattern: matched(pattern) for pattern in PATTERNS}


def test_overlap_of_every_two_patterns() -> None:
    for one, other in product(PATTERNS, PATTERNS):
        assert overlap(one, other) == bool(MATCHED[one] & MATCHED[other]), (one, other)


def test_covered_by_one_or_two_patterns() -> None:
    for subject in PATTERNS:
        assert not covered(subject, [])
        for by in (*combinations(PATTERNS, 1), *combinations(PATTERNS, 2)):
            expected = MATCHED[subject] <= set().union(*(MATCHED[pattern] for pattern in by))
            assert covered(subject, by) == expected, (subject, by)


@given(st.sampled_from(PATTERNS), st.lists(st.sampled_from(PATTERNS), max_size=6))
def test_covered_by_several_patterns(subject: str, by: list[str]) -> None:
    assert covered(subject, by) == (MATCHED[subject] <= set().union(*(MATCHED[pattern] for pattern in by)))


def test_bridge_subjects() -> None:
    event, bridge = stream_subjects("vici")
    assert covered(event, ["vici.>"]) and covered(event, ["vici.*.*.>"]) and covered(event, [">"])
    assert covered(event, ["vici.*.event.*", "vici.*.event.*.>"])
    assert not covered(event, ["vici.*.event.*", "vici.gw1.>", bridge])
    assert overlap("vici.>", "vici.*.cmd.*") and not overlap(event, "vici.*.cmd.*")


def test_overlap_agrees_with_nats_server(nats_server: NatsServer) -> None:
    """STREAM.NAMES returns the streams whose subjects overlap with a pattern."""

    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        jetstream = client.jetstream()
        for pattern in [pattern for pattern in PATTERNS if pattern != ">"]:  # nats-server requires no_ack for it
            await jetstream.add_stream(name="S", subjects=[f"x.{pattern}"])
            for other in PATTERNS:
                answer = await client.request("$JS.API.STREAM.NAMES", json.dumps({"subject": f"x.{other}"}).encode())
                assert bool(json.loads(answer.data)["streams"]) == overlap(pattern, other), (pattern, other)
            await jetstream.delete_stream("S")
        await client.close()

    run(test(), 120)
