"""One connection to a NATS server; once lost, it never reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from vicifast._wire import MAX_SUBJECTS, Received

from .credentials import Credentials
from .hardened_client import Acks, HardClient

_T = TypeVar("_T")

_API_TIMEOUT = 5.0  # seconds for a reply of the JetStream API
_HEADER_FRAME = len("NATS/1.0\r\n\r\n")
# Texts for errors of nats-py whose own text is only a name or "None"; the closest base class in the table counts.
_MEANINGS: dict[type[Exception], str] = {
    nats.errors.TimeoutError: "no answer in time",
    nats.errors.NoRespondersError: "nothing answers requests on this subject",
    nats.errors.UnexpectedEOF: "the server closed the connection",
    nats.errors.StaleConnectionError: "the server did not answer pings",
    nats.errors.SlowConsumerError: "messages were dropped: they arrived faster than they were processed",
    nats.errors.MsgAlreadyAckdError: "the message was already acknowledged",
    nats.errors.JsonParseError: "the server's first line is not JSON",
    nats.js.errors.ConsumerSequenceMismatchError: "the consumer has lost messages",
    nats.js.errors.NoStreamResponseError: "no stream has this subject, or JetStream is disabled",
    nats.js.errors.ServiceUnavailableError: "JetStream does not respond: it is disabled in this server or for this "
    "account, or its cluster has no leader",
}
# By error number: how to fix an error of JetStream's API whose description does not say it.
_REMEDIES: dict[int, str] = {
    10026: "raise max_consumers of the account or the stream, or delete unused consumers",
    10027: "raise max_streams of the account, or delete a stream",
    10039: "enable JetStream for the account of this user",
    10047: "raise max_file of the account or max_file_store of the server, or delete a stream",
    10076: "enable JetStream in the server",
    10113: "create it manually with max_bytes",
}
# Why a server rejects a client, by OpenSSL's name of its TLS alert.
_ALERTS = {
    "CERTIFICATE_REQUIRED": "the server requires a client certificate: set tls_cert and tls_key",
    "CERTIFICATE_EXPIRED": "the server rejects the client certificate: it has expired or is not valid yet",
    "UNKNOWN_CA": "the server rejects the client certificate: its issuer is unknown",
    "BAD_CERTIFICATE": "the server rejects the client certificate, or requires one: check tls_cert and tls_key",
}


class Disconnected(Exception):
    """The connection is lost: unconfirmed messages that were published on it may or may not have arrived."""


class TooLarge(Exception):
    """A message exceeds what the server accepts; sending it would make the server close the connection."""


class NatsConnection:
    """One connection to the server at `url`; `client` is nats-py's client."""

    def __init__(
        self,
        client: HardClient,
        lost: asyncio.Future[str],
        url: str,
        credentials: Credentials,
        reported: dict[str, frozenset[str]],
    ) -> None:
        self.client = client
        self.url = url
        self.credentials = credentials
        self.reported = reported
        """The problems of JetStream that were logged, by topic; shared by successive connections."""
        self._lost = lost
        # Not callbacks of `_lost`: removing one of hundreds takes time in proportion to their number.
        self._waiting: set[asyncio.Future[None]] = set()
        self.checks: dict[str, Any] = {}
        """The last check of each stream on this connection, by name; of type `streams.Check`."""
        self._inboxes = 0
        self._inbox = ""

    @property
    def alive(self) -> bool:
        return not self._lost.done()

    @property
    def max_payload(self) -> int:
        """The server's limit for payload and headers together, in bytes."""
        return self.client.max_payload

    @property
    def jetstream(self) -> JetStreamContext:
        return self.client.jetstream(timeout=_API_TIMEOUT)

    async def api(self, endpoint: str, request: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Send a request to JetStream's API, such as `STREAM.INFO.VICI`, and return the reply.

        Raises the error that JetStream reports, and TimeoutError without a reply, such as when this user is not
        permitted to send the request.
        """
        payload = json.dumps(request).encode() if request else b""
        work = self.jetstream._api_request(f"$JS.API.{endpoint}", payload, timeout=_API_TIMEOUT)
        reply: dict[str, Any] = await self.unless_lost(work)
        return reply

    def new_inbox(self) -> str:
        self._inbox = self._inbox or self.client.new_inbox()
        self._inboxes += 1
        return f"{self._inbox}.{self._inboxes}"

    def owns_inbox(self, subject: str) -> bool:
        """Whether `subject` is in an inbox of this connection, which takes any message there for a reply."""
        requests = self.client._resp_sub_prefix
        own = [self._inbox, requests.decode().removesuffix(".") if requests else ""]
        return any(inbox and f"{subject}.".startswith(f"{inbox}.") for inbox in own)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, soon after the connection is lost."""
        self._lost.add_done_callback(lambda _: callback())

    async def lost(self) -> str:
        """Wait until the connection is lost and return the reason."""
        return await asyncio.shield(self._lost)

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Queue a message in the client without waiting; the caller must limit what it publishes between fences.

        Raises TooLarge and Disconnected.
        """
        size = len(payload)
        if headers:
            size += _HEADER_FRAME + sum(len(key) + len(value.encode()) + 4 for key, value in headers.items())
        if size > self.client.max_payload:
            raise TooLarge(f"{size} bytes; the server's limit is {self.client.max_payload}")
        if len(subject) + len(reply) > MAX_SUBJECTS:
            raise TooLarge(f"a subject of {len(subject)} bytes; the server's limit is about {MAX_SUBJECTS}")
        with self._sending():
            await self.client.publish(subject, payload, reply, dict(headers) if headers else None)

    def send_block(self, block: bytes) -> None:
        """Queue a block of a `BlockWriter` in the client, in order with `publish`; raises Disconnected."""
        with self._sending():
            self.client.send_block(block)

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """Raise Disconnected if the connection is lost already, or if the client notices it now."""
        if not self.alive:
            raise Disconnected(self._lost.result())
        try:
            yield
        except (
            nats.errors.ConnectionClosedError,
            nats.errors.ConnectionDrainingError,
            nats.errors.OutboundBufferLimitError,
            OSError,
        ) as error:
            self.lose(reason_of(error))
            raise Disconnected(reason_of(error)) from None

    async def fence(self, timeout: float) -> None:
        """Wait until the server has processed all earlier messages; raise Disconnected after `timeout` seconds."""
        # nats-py writes the PING of flush() before messages queued by publish(). When the first PONG arrives, those
        # are written, so the second PING follows them.
        await self._answered(self.client.flush(_whole(timeout)))
        await self._answered(self.client.flush(_whole(timeout)))

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str = "", **limits: Any
    ) -> Subscription:
        """Subscribe; `limits` are nats-py's limits on messages pending for `callback`, 0 for none."""
        return await self.unless_lost(self.client.subscribe(subject, queue, callback, **limits))

    async def subscribe_directly(
        self, subject: str, callback: Callable[[Msg], object], queue: str = ""
    ) -> Subscription:
        """Subscribe; the event loop calls `callback` with each message. Takes less memory than `subscribe`."""
        return await self.unless_lost(self.client.subscribe_directly(subject, callback, queue))

    async def subscribe_acks(
        self, inbox: str, settle: Callable[[Acks], None], callback: Callable[[Msg], object]
    ) -> None:
        """Call `settle` with the acknowledgements that arrive below `inbox`, `callback` with any other message."""
        await self.unless_lost(self.client.subscribe_acks(inbox, settle, callback))

    async def subscribe_blocks(
        self, subject: str, receive: Callable[[list[Received]], None], queue: str = ""
    ) -> Subscription:
        """Subscribe; `receive` gets messages that arrived one after the other, in order also between subscriptions."""
        return await self.unless_lost(self.client.subscribe_blocks(subject, receive, queue))

    async def probe(self, timeout: float) -> None:
        """Raise Disconnected if the server does not respond within `timeout` seconds."""
        await self._answered(self.client.rtt(_whole(timeout)))

    async def _answered(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await self.unless_lost(work)
        except TimeoutError:
            self.lose("the server does not respond")
            raise Disconnected("the server does not respond") from None

    async def unless_lost(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of `work`; raise Disconnected as soon as the connection is lost or if `work` fails for it.

        A timeout of `work` does not prove a lost connection: the server does not reply to forbidden requests either.
        """
        task = asyncio.ensure_future(work)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task.add_done_callback(lambda _: _end(ended))
        self._waiting.add(ended)
        try:
            if self.alive:
                await ended
            if not task.done():
                raise Disconnected(self._lost.result())
            return task.result()
        except TimeoutError:
            raise
        except nats.errors.ConnectionDrainingError as error:  # lost once received messages are processed
            raise Disconnected(reason_of(error)) from None
        except (nats.errors.ConnectionClosedError, OSError) as error:
            self.lose(reason_of(error))
            raise Disconnected(reason_of(error)) from None
        finally:
            self._waiting.discard(ended)
            task.cancel()
            task.add_done_callback(_retrieve)  # nats-py may still raise an error

    def lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)
            for ended in self._waiting:
                _end(ended)

    @property
    def connected(self) -> bool:
        """The state as nats-py sees it; it can become False before the callback for a closed connection."""
        return self.client.is_connected

    async def drain(self, timeout: float) -> None:
        """Process received messages, send queued ones, then close."""
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await asyncio.wait_for(self.client.drain(), timeout)
        self.lose("closed")
        await self.discard()

    async def discard(self) -> None:
        """Close without waiting for the server."""
        tasks = _tasks(self.client)
        _abort(self.client)
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await asyncio.wait_for(self.client.close(), 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Retrieve the exception of an abandoned task, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def _abort(client: Client) -> None:
    """Drop the connection and unsent data: close() would wait for a server that may hang."""
    # nats-py has no public method for this: force_reconnect() and close() both await the transport's end.
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def _tasks(client: Client) -> list[asyncio.Task[None]]:
    """Return the tasks of a client, which `close` leaves running if the server has reset the connection."""
    own = [client._reading_task, client._flusher_task, client._ping_interval_task]
    subscriptions = [subscription._wait_for_msgs_task for subscription in client._subs.values()]
    return [task for task in (*own, *subscriptions) if task is not None]


def reason_of(error: Exception) -> str:
    """Return one sentence about an error of nats-py or of another kind: JetStream's description, or the meaning."""
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
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()  # its text is only the name
    if isinstance(error, ssl.SSLError):
        return _of_tls(error)
    if isinstance(error, socket.gaierror):
        return f"cannot resolve the host name: {error.strerror}"
    # Without the address, which may be one of several for the host; asyncio puts those errors into one text.
    if isinstance(error, OSError) and (
        numbers := [error.errno] if error.errno else re.findall(r"\[Errno (\d+)\]", text)
    ):
        return ", ".join(dict.fromkeys(os.strerror(int(number)) for number in numbers))
    return text or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


def _of_tls(error: ssl.SSLError) -> str:
    """Return why TLS failed, and the key to check; OpenSSL's texts do not say whose certificate is wrong."""
    if isinstance(error, ssl.SSLCertVerificationError):
        cause = error.verify_message.rstrip(".")
        hint = ""
        if "mismatch" in cause:
            hint = ": set tls_hostname to a name in the certificate"
        elif "issuer" in cause or "self" in cause:
            hint = ": set tls_ca to its CA"
        return f"the server's certificate is rejected: {cause}{hint}"
    _, alert, name = (error.reason or "unknown error").rpartition("_ALERT_")
    words = name.replace("_", " ").lower()
    return _ALERTS.get(name, f"the server ended TLS: {words}") if alert else f"TLS failed: {words}"


def _number(error: Exception) -> str:
    """Return JetStream's number of an error, in brackets."""
    number = getattr(error, "err_code", None) or getattr(error, "code", None)
    return f" (JetStream error {number})" if number else ""


def _whole(timeout: float) -> int:
    return max(1, round(timeout))  # nats-py annotates its timeouts as int
