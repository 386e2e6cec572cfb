"""One connection to a NATS server, from connected to lost; it never comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from .credentials import Credentials

_T = TypeVar("_T")

_API_TIMEOUT = 5.0  # seconds for an answer of the JetStream API
_HEADER_FRAME = len("NATS/1.0\r\n\r\n")
# What errors of nats-py mean, where their own text has only a name or "None"; the nearest class in the table counts.
_MEANINGS: dict[type[Exception], str] = {
    nats.errors.TimeoutError: "no answer in time",
    nats.errors.NoRespondersError: "nothing answers requests on this subject",
    nats.errors.UnexpectedEOF: "the server closed the connection",
    nats.errors.StaleConnectionError: "the server did not answer pings",
    nats.errors.SlowConsumerError: "messages were dropped, as they came faster than they were taken",
    nats.errors.MsgAlreadyAckdError: "the message was already acknowledged",
    nats.errors.JsonParseError: "the first line of the server is not JSON",
    nats.js.errors.ConsumerSequenceMismatchError: "the consumer has lost messages",
    nats.js.errors.NoStreamResponseError: "no stream takes this subject, or JetStream is off",
    nats.js.errors.ServiceUnavailableError: "JetStream does not answer: it is off in this server or for this account, "
    "or its cluster has no leader",
}
# What mends an error of JetStream's API, by its number, where the description alone does not say it.
_REMEDIES: dict[int, str] = {
    10026: "raise max_consumers of the account or the stream, or delete consumers that nobody uses",
    10027: "raise max_streams of the account, or delete a stream",
    10039: "enable JetStream for the account of this user",
    10047: "raise max_file of the account or max_file_store of the server, or delete a stream",
    10076: "enable JetStream in the server",
    10113: "create it by hand with max_bytes",
}
_MAX_SUBJECTS = 3500  # bytes of subject and reply: the line they are in may have 4096 (max_control_line of nats-server)


class Disconnected(Exception):
    """The link is gone: what was published on it and not confirmed may or may not have arrived."""


class TooLarge(Exception):
    """A message exceeds what the server accepts; sending it would make the server close the connection."""


class Link:
    """One connection to the server at `url`, from connected to lost; `client` is nats-py's."""

    def __init__(
        self,
        client: Client,
        lost: asyncio.Future[str],
        url: str,
        credentials: Credentials,
        reported: dict[str, frozenset[str]],
    ) -> None:
        self.client = client
        self.url = url
        self.credentials = credentials
        self.reported = reported
        """What the log has of the problems of JetStream, by topic; it goes on from link to link."""
        self._lost = lost
        self._inboxes: list[str] = []

    @property
    def alive(self) -> bool:
        return not self._lost.done()

    @property
    def max_payload(self) -> int:
        """The most bytes that payload and headers may have together."""
        return self.client.max_payload

    @property
    def jetstream(self) -> JetStreamContext:
        return self.client.jetstream(timeout=_API_TIMEOUT)

    async def api(self, endpoint: str, request: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Ask JetStream's API, such as `STREAM.INFO.VICI`, and return its answer as it came.

        Raises what JetStream says, TimeoutError when it does not answer, such as what this user may not ask.
        """
        payload = json.dumps(request).encode() if request else b""
        work = self.jetstream._api_request(f"$JS.API.{endpoint}", payload, timeout=_API_TIMEOUT)
        answer: dict[str, Any] = await self.unless_lost(work)
        return answer

    def new_inbox(self) -> str:
        self._inboxes.append(self.client.new_inbox())
        return self._inboxes[-1]

    def release_inbox(self, inbox: str) -> None:
        """Forget an inbox that nothing comes to any more."""
        self._inboxes.remove(inbox)

    def listens_to(self, subject: str) -> bool:
        """Whether `subject` is in an inbox of our own, where what others send would pass for an answer to us."""
        requests = self.client._resp_sub_prefix
        own = [*self._inboxes, *([requests.decode().removesuffix(".")] if requests else [])]
        return any(subject == inbox or subject.startswith(f"{inbox}.") for inbox in own)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, soon after the link is lost."""
        self._lost.add_done_callback(lambda _: callback())

    async def lost(self) -> str:
        """Wait until the link is lost and return why."""
        return await asyncio.shield(self._lost)

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand a message to the client; never waits, so the caller bounds what it publishes between fences."""
        size = len(payload)
        if headers:
            size += _HEADER_FRAME + sum(len(key) + len(value.encode()) + 4 for key, value in headers.items())
        if size > self.client.max_payload:
            raise TooLarge(f"{size} bytes, and the server takes {self.client.max_payload}")
        if len(subject) + len(reply) > _MAX_SUBJECTS:
            raise TooLarge(f"a subject of {len(subject)} bytes, and the server takes about {_MAX_SUBJECTS}")
        if not self.alive:
            raise Disconnected(self._lost.result())
        try:
            await self.client.publish(subject, payload, reply, dict(headers) if headers else None)
        except (
            nats.errors.ConnectionClosedError,
            nats.errors.ConnectionDrainingError,
            nats.errors.OutboundBufferLimitError,
            OSError,
        ) as error:
            self.lose(reason_of(error))
            raise Disconnected(reason_of(error)) from None

    async def fence(self, timeout: float) -> None:
        """Wait until the server has processed all that was published before; Disconnected if it does not."""
        # nats-py writes the PING of flush() ahead of what publish() has queued. When the first PONG comes, that has
        # been written, so the second PING follows it.
        await self._answered(self.client.flush(_whole(timeout)))
        await self._answered(self.client.flush(_whole(timeout)))

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str = "", **limits: Any
    ) -> Subscription:
        """Subscribe; `limits` are those of nats-py for what waits for `callback`, 0 for none."""
        return await self.unless_lost(self.client.subscribe(subject, queue, callback, **limits))

    async def probe(self, timeout: float) -> None:
        """Raise Disconnected when the server does not answer within `timeout` seconds."""
        await self._answered(self.client.rtt(_whole(timeout)))

    async def _answered(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await self.unless_lost(work)
        except TimeoutError:
            self.lose("the server does not answer")
            raise Disconnected("the server does not answer") from None

    async def unless_lost(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of `work`, or raise Disconnected as soon as the link is lost or `work` shows it is.

        A timeout of `work` is no such sign: the server also leaves unanswered what it does not permit.
        """
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Disconnected(self._lost.result())
            return task.result()
        except TimeoutError:
            raise
        except nats.errors.ConnectionDrainingError as error:  # it will be lost when all that came has been answered
            raise Disconnected(reason_of(error)) from None
        except (nats.errors.ConnectionClosedError, OSError) as error:
            self.lose(reason_of(error))
            raise Disconnected(reason_of(error)) from None
        finally:
            task.cancel()
            task.add_done_callback(_heard)  # nats-py may end with an error of its own all the same

    def lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    @property
    def connected(self) -> bool:
        """What nats-py thinks; it may say no without having called back."""
        return self.client.is_connected

    async def drain(self, timeout: float) -> None:
        """Finish in order: handle what has come in, send what is queued, close."""
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await asyncio.wait_for(self.client.drain(), timeout)
        self.lose("closed")
        await self.discard()

    async def discard(self) -> None:
        """Close without waiting for the server, which may hang."""
        tasks = _tasks(self.client)
        _abort(self.client)
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await asyncio.wait_for(self.client.close(), 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _heard(task: asyncio.Future[Any]) -> None:
    """Take notice of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _abort(client: Client) -> None:
    """Drop the connection and what is unsent: close() would wait for a server that may hang."""
    # No public way exists: force_reconnect() and close() both await the transport's end.
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def _tasks(client: Client) -> list[asyncio.Task[None]]:
    """Return the tasks of a client, which its `close` leaves behind when the server has reset the connection."""
    own = [client._reading_task, client._flusher_task, client._ping_interval_task]
    subscriptions = [subscription._wait_for_msgs_task for subscription in client._subs.values()]
    return [task for task in (*own, *subscriptions) if task is not None]


def reason_of(error: Exception) -> str:
    """Return one sentence about `error`, of nats-py or any other: what JetStream said, or what the error means."""
    if description := getattr(error, "description", None):
        remedy = _REMEDIES.get(getattr(error, "err_code", None) or 0)
        return f"{' '.join(description.split())}{_number(error)}{f': {remedy}' if remedy else ''}"
    for kind in type(error).__mro__:
        if kind in _MEANINGS:
            return _MEANINGS[kind]
    if type(error).__str__ is nats.js.errors.APIError.__str__:
        return f"JetStream answered with an error without a description{_number(error)}"
    text = " ".join(str(error).split()).removeprefix("nats: ")
    if isinstance(error, nats.errors.Error) and (text in ("", "None") or text.startswith("JetStream.")):
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()  # it says no more than its name
    return text or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


def _number(error: Exception) -> str:
    """Return the number by which JetStream's documentation lists an error."""
    number = getattr(error, "err_code", None) or getattr(error, "code", None)
    return f" (JetStream error {number})" if number else ""


def _whole(timeout: float) -> int:
    return max(1, round(timeout))  # nats-py annotates its timeouts as int
