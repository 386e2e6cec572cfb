"""JetStream's replies to published messages, from a real nats-server, and their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import nats
import pytest
from harness import NatsServer, run, running, settings, until
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, StreamConfig
from vicibridge.bus.acked_publisher import (
    UNEXPECTED,
    AckedPublisher,
    Meaning,
    PublishResult,
    Refusal,
    Stored,
    read_ack,
)
from vicibridge.bus.connection import NatsConnection, TooLarge
from vicibridge.bus.hardened_client import Acks

ACCOUNTS = """accounts {
  ROOMY { jetstream: enabled, users: [{user: roomy, password: x}] }
  SMALL { jetstream: {max_store: 2000}, users: [{user: small, password: x}] }
  NONE { users: [{user: none, password: x}] }
}"""
NO_STREAM = "no stream has this subject, or JetStream is disabled"


async def ask(client: Client, payload: bytes = b"x", subject: str = "s.a", **headers: str) -> PublishResult:
    message = await answer(client, payload, subject, {key.replace("_", "-"): value for key, value in headers.items()})
    return read_ack(message)


async def answer(client: Client, payload: bytes, subject: str, headers: dict[str, str]) -> Msg:
    """Publish as the bridge does, and return the reply; `request` would raise for some replies."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox, max_msgs=1)
    await client.publish(subject, payload, inbox, headers)
    return await answers.next_msg(timeout=10)


@asynccontextmanager
async def account(server: NatsServer, user: str) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, user=user, password="x")
    try:
        yield client
    finally:
        await client.close()


def stream(**config: Any) -> StreamConfig:
    return StreamConfig(name="S", subjects=["s.>"], discard=DiscardPolicy.NEW, **config)


@pytest.fixture
def accounts(make_nats_server: Callable[..., NatsServer]) -> NatsServer:
    return make_nats_server(ACCOUNTS)


async def seal(client: Client) -> None:
    config = (await client.jetstream().stream_info("S")).config
    await client.jetstream().update_stream(config.evolve(sealed=True))


async def nothing(client: Client) -> None:
    """The stream refuses with its initial configuration."""


async def one(client: Client) -> None:
    await ask(client, b"x" * 50)


FULL, SETTING, CONDITION = Meaning.FULL, Meaning.SETTING, Meaning.CONDITION
Before = Callable[[Client], Awaitable[None]]
REFUSED: dict[str, tuple[dict[str, Any], Before, dict[str, str], tuple[int, int, Meaning], str]] = {
    "max_bytes": ({"max_bytes": 150}, one, {}, (503, 10077, FULL), "maximum bytes exceeded"),
    "max_msgs": ({"max_msgs": 1}, one, {}, (503, 10077, FULL), "maximum messages exceeded"),
    "discard new per subject": (
        {"max_msgs_per_subject": 1, "discard_new_per_subject": True},
        *(one, {}, (503, 10077, FULL), "maximum messages per subject exceeded"),
    ),
    "max_msg_size": (
        {"max_msg_size": 10},
        *(nothing, {}, (400, 10054, Meaning.TOO_LARGE), "message size exceeds maximum allowed"),
    ),
    "sealed": ({}, seal, {}, (400, 10109, SETTING), "invalid operation on sealed stream"),
    "no rollup": ({}, nothing, {"Nats_Rollup": "sub"}, (500, 10111, SETTING), "rollup not permitted"),
    "no ttl": ({}, nothing, {"Nats_TTL": "5s"}, (400, 10166, SETTING), "per-message TTL is disabled"),
    "wrong last sequence": (
        *({}, nothing, {"Nats_Expected_Last_Sequence": "9"}),
        *((400, 10071, CONDITION), "wrong last sequence: 0"),
    ),
    "wrong last sequence of the subject": (
        *({}, nothing, {"Nats_Expected_Last_Subject_Sequence": "9"}),
        *((400, 10071, CONDITION), "wrong last sequence: 0"),
    ),
    "wrong last id": (
        *({}, nothing, {"Nats_Expected_Last_Msg_Id": "a"}),
        *((400, 10070, CONDITION), 'wrong last msg ID: '),
    ),
    "another stream": (
        *({}, nothing, {"Nats_Expected_Stream": "T"}),
        *((400, 10060, CONDITION), "expected stream does not match"),
    ),
    "a header that it does not know how to do": (
        *({}, nothing, {"Nats_Incr": "1"}),
        *((400, 10168, Meaning.OTHER), "message counters is disabled"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_problem_and_fix(accounts: NatsServer, case: str) -> None:
    config, before, headers, (code, err_code, meaning), description = REFUSED[case]

    async def test() -> None:
        await accounts.up()
        async with account(accounts, "roomy") as client:
            await client.jetstream().add_stream(stream(**config))
            await before(client)
            refused = await ask(client, b"x" * 50, **headers)
            assert isinstance(refused, Refusal)
            assert (refused.code, refused.err_code, refused.meaning) == (code, err_code, meaning)
            assert refused.sentence.startswith(f"{description} in the stream S (JetStream error {err_code})")
            assert (": " in refused.sentence.partition(")")[2]) == (meaning in (FULL, SETTING, Meaning.TOO_LARGE))

    run(test())


def test_stored_and_duplicate_including_purged_messages(accounts: NatsServer) -> None:
    async def test() -> None:
        await accounts.up()
        async with account(accounts, "roomy") as client:
            await client.jetstream().add_stream(stream())
            assert await ask(client, Nats_Msg_Id="1") == Stored("S", 1, False)
            assert await ask(client, Nats_Msg_Id="1") == Stored("S", 1, True)
            await client.jetstream().purge_stream("S")
            assert await ask(client, Nats_Msg_Id="1") == Stored("S", 1, True)
            assert (await client.jetstream().stream_info("S")).state.messages == 0

    run(test())


def test_acknowledgement_with_a_domain(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server(jetstream="domain: hub")

    async def test() -> None:
        await server.up()
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(stream())
        for duplicate in (False, True):
            message = await answer(client, b"x", "s.a", {"Nats-Msg-Id": "1"})
            assert b'"domain":"hub"' in message.data
            assert read_ack(message) == Stored("S", 1, duplicate)
        await client.close()

    run(test())


def test_limits_of_account_and_server(accounts: NatsServer, make_nats_server: Callable[..., NatsServer]) -> None:
    async def fill(client: Client) -> Refusal:
        await client.jetstream().add_stream(stream())
        for _ in range(10):
            if isinstance(refused := await ask(client, b"x" * 500), Refusal):
                return refused
        raise AssertionError("there is no limit")

    async def test() -> None:
        await accounts.up()
        async with account(accounts, "small") as client:
            assert (await fill(client))[:3] == (400, 10002, FULL)
        server = make_nats_server(jetstream="max_file_store: 1500")
        await server.up()
        client = await nats.connect(server.url)
        assert (await fill(client))[:3] == (503, 10023, FULL)
        await client.close()

    run(test())


def test_without_stream_and_without_jetstream(
    accounts: NatsServer, make_nats_server: Callable[..., NatsServer]
) -> None:
    refused = Refusal(503, 0, Meaning.MISSING, NO_STREAM)

    async def test() -> None:
        await accounts.up()
        async with account(accounts, "roomy") as client:
            assert await ask(client, subject="other") == refused
            await client.jetstream().add_stream(stream())
            await client.jetstream().add_stream(StreamConfig(name="M", mirror=nats.js.api.StreamSource(name="S")))
            assert await ask(client, subject="M") == refused  # a mirror only accepts messages that it copies
        async with account(accounts, "none") as client:
            assert await ask(client) == refused
        server = make_nats_server("jetstream: disabled")
        await server.up()
        client = await nats.connect(server.url)
        assert await ask(client) == refused
        await client.close()

    run(test())


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"null", b"[]", b"{}", b'{"stream":"S"}', b'{"stream":"S","seq":0}', b'{"stream":"S","seq":"1"}',
     b'{"error":null,"stream":"S","seq":0}', b'{"seq":1}', b"\xff", b'{"stream":"S","seq":-1}'],
)  # fmt: skip
def test_invalid_acknowledgements_are_refusals(data: bytes) -> None:
    assert read_ack(Msg(None, data=data)) == Refusal(0, 0, Meaning.OTHER, UNEXPECTED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"error":{"code":500,"description":"odd"}}', "odd (JetStream error 0)"),
        (b'{"stream":"S","seq":1,"error":{"code":400,"err_code":7,"description":"odd"}}', "odd in the stream S"),
    ],
)
def test_error_takes_precedence_over_number(data: bytes, sentence: str) -> None:
    refused = read_ack(Msg(None, data=data))  # type: ignore[arg-type]
    assert isinstance(refused, Refusal) and refused.sentence.startswith(sentence)


Answers = dict[int, int | Refusal]  # the sequence number of what is stored


def _note(answers: Answers, acks: Acks) -> None:
    answers.update(acks)


@asynccontextmanager
async def publishing(
    server: NatsServer, **config: Any
) -> AsyncIterator[tuple[AckedPublisher, NatsConnection, Answers]]:
    answers: Answers = {}
    await server.up()
    async with running(settings(server.url)) as bus:
        connection = await bus.connection()
        await connection.jetstream.add_stream(stream(**config))
        settled, refused = (partial(_note, answers), answers.__setitem__)
        publisher = AckedPublisher(4, 0.3, settled, refused)
        await publisher.open(connection)
        yield publisher, connection, answers


def test_each_answer_settles_its_message(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with publishing(nats_server, max_msg_size=10) as (publisher, _, answers):
            for number, payload in enumerate((b"x", b"x" * 50, b"x"), 1):
                publisher.publish(number, "s.a", payload)
            publisher.publish(7, "elsewhere", b"x")
            assert (publisher.room, publisher.waiting, publisher.wait(0)) == (0, 4, None)
            publisher.flush()
            assert (publisher.room, publisher.waiting) == (0, 4)
            await until(lambda: len(answers) == 4)
            assert (publisher.room, publisher.waiting, publisher.wait(0)) == (4, 0, None)
            assert [answers[n] for n in (1, 3)] == [1, 2]
            assert isinstance(answers[2], Refusal) and answers[2].meaning is Meaning.TOO_LARGE
            assert isinstance(answers[7], Refusal) and answers[7].meaning is Meaning.MISSING

    run(test())


def test_unanswered_messages_are_late(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with publishing(nats_server, no_ack=True) as (publisher, _, answers):
            now = asyncio.get_running_loop().time
            publisher.publish(1, "s.a", b"x")
            publisher.publish(2, "s.a", b"x")
            publisher.flush()
            assert publisher.late(now()) == [] and 0 < (publisher.wait(now()) or 0) <= 0.3
            await asyncio.sleep(publisher.wait(now()) or 0)
            await until(lambda: now() > 0 and publisher.wait(now()) == 0)
            assert publisher.late(now() + 0.3) == [1, 2] and publisher.waiting == 0 and answers == {}

    run(test())


def test_unsent_messages_get_no_answer_and_use_no_room(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with publishing(nats_server) as (publisher, connection, answers):
            with pytest.raises(TooLarge):
                publisher.publish(1, "s.a", bytes(2 * 1024 * 1024))
            assert (publisher.room, publisher.waiting) == (4, 0)
            connection.client._max_payload = 5  # as the server reports after a reload
            with pytest.raises(TooLarge, match="6 bytes; the server's limit is 5"):
                publisher.publish(1, "s.a", bytes(6))
            publisher.publish(1, "s.a", b"x")
            publisher.flush()
            await until(lambda: answers)

    run(test())


def test_message_sent_again_accepts_the_first_answer(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with publishing(nats_server) as (publisher, connection, answers):
            publisher.publish(1, "s.a", b"x")
            publisher.flush()
            publisher.publish(2, "s.a", b"never sent")
            publisher.forget()
            publisher.publish(3, "s.a", b"x")
            publisher.flush()
            await until(lambda: answers)
            assert answers == {3: 2}  # the others are no longer pending; JetStream acknowledges in order
            answers.clear()
            for _ in range(2):
                publisher.forget()
                publisher.publish(1, "s.a", b"x", b"Nats-Msg-Id: 1\r\n")
                publisher.flush()
            await until(lambda: answers)
            assert answers == {1: 3} and publisher.waiting == 0
            assert (await connection.jetstream.stream_info("S")).state.messages == 3

    run(test())
