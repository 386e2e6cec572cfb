"""The nats-py client of the bridge: blocks of messages, and acknowledgements however they arrive."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats.errors
import pytest
from harness import NatsServer, processed, run, until
from nats.aio import client as nats_py
from nats.aio.msg import Msg
from vicibridge.bus.hardened_client import Acks, HardClient, Malformed

from vicifast._wire import BlockWriter, Received


class Answers:
    """What a client passes on of the answers to published messages."""

    def __init__(self) -> None:
        self.acks: Acks = {}
        self.others: list[Msg] = []

    def take(self, message: Msg) -> None:
        self.others.append(message)

    @property
    def numbers(self) -> list[int]:
        """The numbers of all answers so far, in order."""
        return sorted([*self.acks] + [int(m.subject.rpartition(".")[2]) for m in self.others])


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[tuple[HardClient, Answers, str]]:
    """A client with a subscription for acknowledgements, whose inbox is the last item."""
    await server.up()
    client, answers = HardClient(), Answers()
    await client.connect(server.url, allow_reconnect=False, pending_size=-1)
    try:
        inbox = client.new_inbox()
        await client.subscribe_acks(inbox, answers.acks.update, answers.take)
        yield client, answers, inbox
    finally:
        await client.close()


def sent(inbox: str, number: int, answer: bytes) -> bytes:
    """A message as the server would send it to the client's first subscription."""
    return f"MSG {inbox}.{number} 1 {len(answer)}\r\n".encode() + answer + b"\r\n"


def stored(number: int) -> bytes:
    return b'{"stream":"S","seq":%d}' % (number + 100)


def test_a_stream_of_answers_cut_anywhere(nats_server: NatsServer) -> None:
    """Every answer arrives once, as an acknowledgement or a message, wherever the stream is cut."""

    async def test() -> None:
        async with connected(nats_server) as (client, answers, inbox):
            refusal = b'{"error":{"code":400,"err_code":10054,"description":"x"},"stream":"S","seq":0}'
            head = b"NATS/1.0 503\r\n\r\n"
            no_responders = f"HMSG {inbox}.4 1 {len(head)} {len(head)}\r\n".encode() + head + b"\r\n"
            data = b"".join(
                [*(sent(inbox, n, stored(n)) for n in (1, 2)), b"PING\r\n", sent(inbox, 3, refusal), no_responders,
                 *(sent(inbox, n, stored(n)) for n in (5, 6))]
            )  # fmt: skip
            for cut in range(len(data) + 1):
                answers.acks.clear()
                answers.others.clear()
                await client._ps.parse(data[:cut])
                await client._ps.parse(data[cut:])
                await until(lambda: len(answers.others) + len(answers.acks) == 6)
                assert answers.numbers == [1, 2, 3, 4, 5, 6]
                assert {m.data for m in answers.others} >= {refusal, b""} and len(answers.acks) >= 3
                assert all(seq == number + 100 for number, seq in answers.acks.items())
            answers.acks.clear()
            answers.others.clear()
            for byte in data:
                await client._ps.parse(bytes([byte]))
            await until(lambda: answers.numbers == [1, 2, 3, 4, 5, 6])

    run(test())


def test_blocks_and_single_messages_keep_their_order(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with connected(nats_server) as (client, answers, inbox):
            await client.jetstream().add_stream(name="S", subjects=["s.>"])
            got: list[bytes] = []

            async def note(message: Msg) -> None:
                got.append(message.data)

            writer = BlockWriter(inbox, client.max_payload)
            await client.subscribe("s.>", cb=note)  # must reach the server before the first block
            for number in range(0, 300, 3):
                writer.add(number, "s.a", b"%d" % number)
                writer.add(number + 1, "s.b", b"%d" % (number + 1), b"Nats-Msg-Id: %d\r\n" % number)
                client.send_block(writer.take())
                await client.publish("s.c", b"%d" % (number + 2), f"{inbox}.{number + 2}")
                await asyncio.sleep(0)
            await until(lambda: len(got) == 300 and len(answers.numbers) == 300)
            assert got == [b"%d" % number for number in range(300)]
            assert answers.numbers == list(range(300))
            assert len(set(answers.acks.values())) == len(answers.acks)

    run(test())


def test_error_in_a_callback_does_not_end_the_connection(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with connected(nats_server) as (client, _, _):
            errors: list[Exception] = []

            async def note(error: Exception) -> None:
                errors.append(error)

            def fail(acks: Acks) -> None:
                raise KeyError("test")

            client._error_cb = note
            inbox = client.new_inbox()
            await client.subscribe_acks(inbox, fail, Answers().take)
            await client._ps.parse(sent(inbox, 1, stored(1)).replace(b".1 1", b".1 2"))
            assert isinstance(errors[0], KeyError)
            await processed(client)

    run(test())


def test_messages_in_blocks_cut_anywhere(nats_server: NatsServer) -> None:
    """Every message arrives once and in order: those that nats-py parses, too. Malformed ones are reported."""

    async def test() -> None:
        async with connected(nats_server) as (client, _, _):
            got: list[tuple[str, bytes, dict[str, str] | None]] = []
            errors: list[Exception] = []

            async def note(error: Exception) -> None:
                errors.append(error)

            def receive(messages: list[Received]) -> None:
                got.extend((message.subject, message.data, message.headers) for message in messages)

            client._error_cb = note
            subscription = await client.subscribe_blocks("none", receive)
            idle = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n"
            plain = b"NATS/1.0\r\nA: b\r\n\r\n"
            data = b"".join(
                [
                    b"MSG a 2 3\r\none\r\n",
                    b"HMSG b 2 %d %d\r\n%b\r\n" % (len(idle), len(idle), idle),
                    b"MSG \xff 2 1\r\nx\r\nPING\r\n",
                    b"MSG a\tb 2 r 3\r\ntwo\r\n",
                    b"HMSG c 2 r %d %d\r\n%bthree\r\n" % (len(plain), len(plain) + 5, plain),
                ]
            )
            status = {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "7"}
            wanted = [("a", b"one", None), ("b", b"", status), ("a\tb", b"two", None), ("c", b"three", {"A": "b"})]
            for cut in range(len(data) + 1):
                await client._ps.parse(data[:cut])
                await client._ps.parse(data[cut:])
                assert got == wanted
                assert [type(error) for error in errors] == [Malformed]
                got.clear()
                errors.clear()
            for byte in data:
                await client._ps.parse(bytes([byte]))
            assert got == wanted
            await subscription.unsubscribe()
            await client._ps.parse(data)
            assert got == wanted
            await processed(client)

    run(test())


def test_large_messages_and_other_subscriptions_in_between(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with connected(nats_server) as (client, _, _):
            got: list[bytes] = []
            others: list[bytes] = []

            def fail(messages: list[Received]) -> None:
                raise KeyError("test")

            async def note(message: Msg) -> None:
                others.append(message.data)

            await client.subscribe_blocks("s.>", lambda messages: got.extend(message.data for message in messages))
            await client.subscribe_blocks("s.>", fail)  # must not end the reading
            await client.subscribe("s.>", cb=note)
            sizes = [0, 1, 40_000, 7, 300_000, 1_000_000, 32_768, 2]
            for size in sizes:
                await client.publish("s.a", bytes(size))
            await until(lambda: len(others) == len(sizes))
            assert list(map(len, got)) == list(map(len, others)) == sizes

    run(test())


def test_order_between_subscriptions(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with connected(nats_server) as (client, _, _):
            got: list[bytes] = []
            for subject in ("s.a", "s.b", "s.c"):
                await client.subscribe_blocks(
                    subject, lambda messages: got.extend(message.data for message in messages)
                )
            for number in range(300):
                await client.publish(f"s.{'abc'[number % 3]}", b"%d" % number)
            await until(lambda: len(got) == 300)
            assert got == [b"%d" % number for number in range(300)]

    run(test())


def test_lost_connection_sends_no_block(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with connected(nats_server) as (client, _, _):
            nats_server.kill()
            await until(lambda: not client.is_connected)
            with pytest.raises((nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError)):
                client.send_block(b"PING\r\n")
            await until(lambda: client.is_closed)
            with pytest.raises(nats.errors.ConnectionClosedError):
                client.send_block(b"PING\r\n")

    run(test())


def test_nats_py_queues_and_writes_as_send_block_expects() -> None:
    """`send_block` does the part of `publish` that follows the formatting; nats-py has no public method for it."""
    body = inspect.getsource(nats_py.Client._send_command) + inspect.getsource(nats_py.Client._flush_pending)
    for line in (
        "self._pending.append(cmd)",
        "self._pending_data_size += len(cmd)",
        "if self._max_pending_size > 0 and",
        "await self._flush_queue.put(future)",
    ):
        assert line in body
    assert "if self._flush_queue is not None and self._flush_queue.empty():" in inspect.getsource(
        nats_py.Client._send_publish
    )
    subscribing = inspect.getsource(nats_py.Client.subscribe)
    assert "await" not in subscribing.partition("self._sid += 1\n")[0]  # `subscribe_blocks` knows the number before
    assert "await self._ps.parse(b)" in inspect.getsource(nats_py.Client._read_loop)
    assert "self._transport.writelines(self._pending[:])" in inspect.getsource(nats_py.Client._flusher)
