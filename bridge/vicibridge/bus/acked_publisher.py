"""Publishes with JetStream acknowledgements: parses its replies, and keeps a window of unacknowledged messages."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple, TypeAlias

from nats.aio.msg import Msg
from nats.js.errors import NoStreamResponseError

from vicifast._wire import BlockWriter

from .connection import NatsConnection, TooLarge, reason_of
from .hardened_client import Acks

UNEXPECTED = "unexpected reply instead of a JetStream acknowledgement"


class Meaning(Enum):
    """The kind of a refusal, which determines the remedy."""

    MISSING = "no stream has the subject, or JetStream is disabled"
    FULL = "a limit of the stream, the account or the server is reached"
    TOO_LARGE = "the message is larger than the stream allows"
    SETTING = "the configuration of the stream forbids it"
    CONDITION = "a condition in the headers of the message does not hold"
    OTHER = "something else"


class Stored(NamedTuple):
    """The message is stored with number `seq`; a `duplicate` was not stored again: its id is that of an earlier one."""

    stream: str
    seq: int
    duplicate: bool


class Refusal(NamedTuple):
    """The message is not stored; `code` is as in HTTP, `err_code` is JetStream's own or 0."""

    code: int
    err_code: int
    meaning: Meaning
    sentence: str


PublishResult: TypeAlias = Stored | Refusal

# By JetStream's err_code: the meaning of a refusal, and the advice for an administrator. The tests in
# tests/bridge/test_acked_publisher.py make a real nats-server return each of them.
_REFUSALS: dict[int, tuple[Meaning, str]] = {
    10002: (Meaning.FULL, "raise the limits of the account, or remove messages"),
    10023: (Meaning.FULL, "raise max_file_store of the server, or remove messages"),
    10054: (Meaning.TOO_LARGE, "raise max_msg_size of the stream"),
    10060: (Meaning.CONDITION, ""),
    10070: (Meaning.CONDITION, ""),
    10071: (Meaning.CONDITION, ""),
    10077: (Meaning.FULL, "raise this limit of the stream, or remove messages"),
    10109: (Meaning.SETTING, "a sealed stream rejects every message: delete it"),
    10111: (Meaning.SETTING, "set allow_rollup_hdrs of the stream"),
    10166: (Meaning.SETTING, "set allow_msg_ttl of the stream"),
}
_BLOCK = 128 * 1024  # bytes; a larger block is sent at once
_NO_RESPONDERS = "503"


def read_ack(message: Msg) -> PublishResult:
    """Return the meaning of JetStream's reply to a published message; an invalid reply is a refusal."""
    if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
        return Refusal(503, 0, Meaning.MISSING, reason_of(NoStreamResponseError()))
    try:
        answer = json.loads(message.data)
        # The error is checked first: nats-server adds "seq": 0 to it.
        if error := answer.get("error"):
            return _refusal(error, str(answer.get("stream", "")))
        if answer["seq"] > 0:
            return Stored(str(answer["stream"]), int(answer["seq"]), answer.get("duplicate") is True)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return Refusal(0, 0, Meaning.OTHER, UNEXPECTED)


def _refusal(error: Mapping[str, object], stream: str) -> Refusal:
    code, number = (int(str(error.get(key) or 0)) for key in ("code", "err_code"))
    meaning, hint = _REFUSALS.get(number, (Meaning.OTHER, ""))
    where = f" in the stream {stream}" if stream else ""
    sentence = f"{error.get('description')}{where} (JetStream error {number})"
    return Refusal(code, number, meaning, f"{sentence}: {hint}" if hint else sentence)


class AckedPublisher:
    """Publishes on one connection at a time, each message with its own reply subject.

    Messages are collected in a block, which `flush` sends. Every answer ends in a call: `settle` gets the numbers and
    sequence numbers of messages that are stored, `refuse` that of a message that is not, and the reason.

    The caller numbers the messages. A number may be reused only for the same message: a late acknowledgement counts
    for both.
    """

    def __init__(
        self,
        window: int,
        timeout: float,
        settle: Callable[[Acks], None],
        refuse: Callable[[int, Refusal], None],
    ) -> None:
        self.timeout = timeout
        self._window = window
        self._settle = settle
        self._refuse = refuse
        self._connection: NatsConnection | None = None
        self._writer: BlockWriter | None = None
        self._now = time.monotonic
        self._added: list[int] = []  # the messages in the block
        self._deadlines: dict[int, float] = {}  # of the messages without an answer, in order

    async def open(self, connection: NatsConnection) -> None:
        """Publish on `connection` from now on; answers to messages on a former connection are ignored."""
        self.forget()
        inbox = connection.new_inbox()
        self._writer = BlockWriter(inbox, connection.max_payload)
        await connection.subscribe_acks(inbox, self._on_acks, self._on_answer)
        self._connection, self._now = connection, asyncio.get_running_loop().time

    def publish(self, number: int, subject: str, payload: bytes, headers: bytes = b"") -> None:
        """Add a message to the block; `headers` are whole lines, each with its CRLF.

        Raises TooLarge for a message that is not added, and as `flush` if the block is full.
        """
        assert self._writer and self._connection
        if not self._added:
            self._writer.max_payload = self._connection.max_payload  # the server may have changed it
        try:
            size = self._writer.add(number, subject, payload, headers)
        except OverflowError as error:
            raise TooLarge(str(error)) from None
        self._added.append(number)
        if size >= _BLOCK:
            self.flush()

    def flush(self) -> None:
        """Send the block without waiting; raises Disconnected."""
        if not self._added:
            return
        assert self._writer and self._connection
        deadline = self._now() + self.timeout
        self._deadlines.update(dict.fromkeys(self._added, deadline))
        self._added.clear()
        self._connection.send_block(self._writer.take())

    @property
    def room(self) -> int:
        """The number of further messages that may be sent."""
        return self._window - self.waiting

    @property
    def waiting(self) -> int:
        """The number of messages without an answer."""
        return len(self._deadlines) + len(self._added)

    def late(self, now: float) -> list[int]:
        """Forget the messages without an answer within `timeout` seconds, and return their numbers."""
        late = []
        for number, deadline in self._deadlines.items():
            if deadline > now:
                break
            late.append(number)
        for number in late:
            del self._deadlines[number]
        return late

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next message is late; None if none is unanswered."""
        return max(0.0, next(iter(self._deadlines.values())) - now) if self._deadlines else None

    def forget(self) -> None:
        """Ignore the answers to all messages sent so far; the caller sends them again if necessary."""
        if self._writer and self._added:
            self._writer.take()
        self._added.clear()
        self._deadlines.clear()

    def _on_acks(self, acks: Acks) -> None:
        pop = self._deadlines.pop
        for number in [number for number in acks if pop(number, None) is None]:
            del acks[number]
        if acks:
            self._settle(acks)

    def _on_answer(self, message: Msg) -> None:
        """Take a refusal, or an acknowledgement that arrived in several pieces."""
        token = message.subject.rpartition(".")[2]
        number = int(token) if token.isdecimal() else -1
        if self._deadlines.pop(number, None) is None:
            return
        match read_ack(message):
            case Stored(_, seq, _):
                self._settle({number: seq})
            case Refusal() as refusal:
                self._refuse(number, refusal)
