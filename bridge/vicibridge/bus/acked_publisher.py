"""Publishing with JetStream's acknowledgements: what its replies say, and a window of messages that wait for theirs."""

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

from .connection import Link, reason_of

UNEXPECTED = "unexpected reply instead of a JetStream acknowledgement"


class Meaning(Enum):
    """What a refusal is about, and so what mends it."""

    MISSING = "no stream takes the subject, or JetStream is off"
    FULL = "a limit of the stream, the account or the server is reached"
    TOO_LARGE = "the message is larger than the stream allows"
    SETTING = "the configuration of the stream forbids it"
    CONDITION = "a condition in the headers of the message does not hold"
    OTHER = "something else"


class Stored(NamedTuple):
    """The message is in the stream as number `seq`; of a `duplicate`, an earlier one with its id is or was there."""

    stream: str
    seq: int
    duplicate: bool


class Refusal(NamedTuple):
    """The message is not in the stream; `code` is as in HTTP, `err_code` is JetStream's own, 0 where there is none."""

    code: int
    err_code: int
    meaning: Meaning
    sentence: str


Answer: TypeAlias = Stored | Refusal

# By JetStream's err_code: what a refusal means, and what an administrator can do, after "in the stream X" where the
# stream is at fault. tests/bridge/test_acked_publisher.py makes a real nats-server give each of them.
_REFUSALS: dict[int, tuple[Meaning, str]] = {
    10002: (Meaning.FULL, "raise the limits of the account, or remove messages"),
    10023: (Meaning.FULL, "raise max_file_store of the server, or remove messages"),
    10054: (Meaning.TOO_LARGE, "raise max_msg_size of the stream"),
    10060: (Meaning.CONDITION, ""),
    10070: (Meaning.CONDITION, ""),
    10071: (Meaning.CONDITION, ""),
    10077: (Meaning.FULL, "raise this limit of the stream, or remove messages"),
    10109: (Meaning.SETTING, "a sealed stream takes nothing any more: delete it"),
    10111: (Meaning.SETTING, "set allow_rollup_hdrs of the stream"),
    10166: (Meaning.SETTING, "set allow_msg_ttl of the stream"),
}
_NO_RESPONDERS = "503"
_PLAIN = re.compile(rb'\{"stream":"([^"\\]+)",(?:"domain":"[^"\\]*",)?"seq":([1-9]\d*)(,"duplicate": true)?\}')


def read_ack(message: Msg) -> Answer:
    """Return what a reply of JetStream to a published message says; one that says nothing is a refusal."""
    if plain := _PLAIN.fullmatch(message.data):
        return Stored(plain[1].decode(), int(plain[2]), plain[3] is not None)
    if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
        return Refusal(503, 0, Meaning.MISSING, reason_of(NoStreamResponseError()))
    try:
        answer = json.loads(message.data)
        # An error comes first: nats-server adds "seq": 0 to it.
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
    """Publishes on one link at a time, each message with a reply subject of its own; `settle` gets every answer.

    The caller numbers the messages. A number may be used again only for the same message: an acknowledgement that
    comes late counts for both.
    """

    def __init__(self, window: int, timeout: float, settle: Callable[[int, Answer], None]) -> None:
        self.timeout = timeout
        self._window = window
        self._settle = settle
        self._link: Link | None = None
        self._inbox = ""
        self._now = time.monotonic
        self._deadlines: dict[int, float] = {}  # in order, of the messages that have no answer

    async def open(self, link: Link) -> None:
        """Publish on `link` from now on; what was sent on another gets no answer."""
        self.forget()
        inbox = self._inbox = link.new_inbox()
        await link.subscribe(f"{inbox}.*", self._on_answer)
        self._link, self._now = link, asyncio.get_running_loop().time

    async def publish(
        self, number: int, subject: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a message; never waits. Raises TooLarge or Disconnected, and then no answer will come."""
        assert self._link
        await self._link.publish(subject, payload, f"{self._inbox}.{number}", headers)
        self._deadlines[number] = self._now() + self.timeout

    @property
    def room(self) -> int:
        """How many more messages may be sent."""
        return self._window - len(self._deadlines)

    @property
    def waiting(self) -> int:
        """How many messages have no answer."""
        return len(self._deadlines)

    def late(self, now: float) -> list[int]:
        """Return the numbers of the messages whose answer has not come within `timeout` seconds, and forget them."""
        late = []
        for number, deadline in self._deadlines.items():
            if deadline > now:
                break
            late.append(number)
        for number in late:
            del self._deadlines[number]
        return late

    def wait(self, now: float) -> float | None:
        """Return the seconds until a message is late; None when none waits."""
        return max(0.0, next(iter(self._deadlines.values())) - now) if self._deadlines else None

    def forget(self) -> None:
        """Stop waiting for answers; the caller sends again what it has to."""
        self._deadlines.clear()

    async def _on_answer(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        if self._deadlines.pop(number, None) is not None:
            self._settle(number, read_ack(message))
