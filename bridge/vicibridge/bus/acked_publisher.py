"""Publishes with JetStream acknowledgements: parses its replies, and keeps a window of unacknowledged messages."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple, TypeAlias

from nats.aio.msg import Msg
from nats.js.errors import NoStreamResponseError

from .connection import NatsConnection, reason_of

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
_NO_RESPONDERS = "503"
_PLAIN = re.compile(rb'\{"stream":"([^"\\]+)",(?:"domain":"[^"\\]*",)?"seq":([1-9]\d*)(,"duplicate": true)?\}')


def read_ack(message: Msg) -> PublishResult:
    """Return the meaning of JetStream's reply to a published message; an invalid reply is a refusal."""
    if plain := _PLAIN.fullmatch(message.data):
        return Stored(plain[1].decode(), int(plain[2]), plain[3] is not None)
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
    """Publishes on one connection at a time, each message with its own reply subject; calls `settle` with every answer.

    The caller numbers the messages. A number may be reused only for the same message: a late acknowledgement counts
    for both.
    """

    def __init__(self, window: int, timeout: float, settle: Callable[[int, PublishResult], None]) -> None:
        self.timeout = timeout
        self._window = window
        self._settle = settle
        self._connection: NatsConnection | None = None
        self._inbox = ""
        self._now = time.monotonic
        self._deadlines: dict[int, float] = {}  # of the messages without an answer, in order

    async def open(self, connection: NatsConnection) -> None:
        """Publish on `connection` from now on; answers to messages on a former connection are ignored."""
        self.forget()
        inbox = self._inbox = connection.new_inbox()
        await connection.subscribe(f"{inbox}.*", self._on_answer)
        self._connection, self._now = connection, asyncio.get_running_loop().time

    async def publish(
        self, number: int, subject: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a message without waiting; after TooLarge or Disconnected, `settle` is not called for it."""
        assert self._connection
        await self._connection.publish(subject, payload, f"{self._inbox}.{number}", headers)
        self._deadlines[number] = self._now() + self.timeout

    @property
    def room(self) -> int:
        """The number of further messages that may be sent."""
        return self._window - len(self._deadlines)

    @property
    def waiting(self) -> int:
        """The number of messages without an answer."""
        return len(self._deadlines)

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
        self._deadlines.clear()

    async def _on_answer(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        if self._deadlines.pop(number, None) is not None:
            self._settle(number, read_ack(message))
