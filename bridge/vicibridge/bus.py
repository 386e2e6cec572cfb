"""The connection to NATS: made again for ever, by us.

nats-py's own reconnecting gives up on several errors, loses what it buffered without a word, and hangs when the server
hangs (nats-py#671). So every `Link` is one nats-py client that never reconnects; `Bus` probes it, aborts it when it
hangs, and makes the next one. Who publishes learns of the loss as `Disconnected` and decides what to send again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from .config import Nats, hide

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 5
_NEVER = 10**9  # seconds; switches nats-py's own pings off, as the probe is ours
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0
_QUIET = 10.0  # seconds between two log lines about errors that NATS reports
_HEADER_FRAME = len("NATS/1.0\r\n\r\n")


class Disconnected(Exception):
    """The link is gone: what was published on it and not confirmed may or may not have arrived."""


class TooLarge(Exception):
    """Payload and headers exceed what the server accepts; sending them would make it close the connection."""


class Link:
    """One connection to one server, from connected to lost."""

    def __init__(self, client: Client, lost: asyncio.Future[str]) -> None:
        self._client = client
        self._lost = lost

    @property
    def alive(self) -> bool:
        return not self._lost.done()

    @property
    def max_payload(self) -> int:
        """The most bytes that payload and headers may have together."""
        return self._client.max_payload

    @property
    def jetstream(self) -> JetStreamContext:
        return self._client.jetstream(timeout=_CONNECT_TIMEOUT)

    def new_inbox(self) -> str:
        return self._client.new_inbox()

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
        if size > self._client.max_payload:
            raise TooLarge(f"{size} bytes, and the server takes {self._client.max_payload}")
        if not self.alive:
            raise Disconnected(self._lost.result())
        try:
            await self._client.publish(subject, payload, reply, dict(headers) if headers else None)
        except (
            nats.errors.ConnectionClosedError,
            nats.errors.ConnectionDrainingError,
            nats.errors.OutboundBufferLimitError,
            OSError,
        ) as error:
            self.lose(_reason(error))
            raise Disconnected(_reason(error)) from None

    async def fence(self, timeout: float) -> None:
        """Wait until the server has processed all that was published before; Disconnected if it does not."""
        # nats-py writes the PING of flush() ahead of what publish() has queued. When the first PONG comes, that has
        # been written, so the second PING follows it.
        await self._answered(self._client.flush(_whole(timeout)))
        await self._answered(self._client.flush(_whole(timeout)))

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str = ""
    ) -> Subscription:
        return await self.unless_lost(self._client.subscribe(subject, queue, callback))

    async def probe(self, timeout: float) -> None:
        """Raise Disconnected when the server does not answer within `timeout` seconds."""
        await self._answered(self._client.rtt(_whole(timeout)))

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
        except (nats.errors.ConnectionClosedError, OSError) as error:
            self.lose(_reason(error))
            raise Disconnected(_reason(error)) from None
        finally:
            task.cancel()

    def lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    @property
    def connected(self) -> bool:
        """What nats-py thinks; it may say no without having called back."""
        return self._client.is_connected

    async def drain(self, timeout: float) -> None:
        """Finish in order: handle what has come in, send what is queued, close."""
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await asyncio.wait_for(self._client.drain(), timeout)
        self.lose("closed")
        await self.discard()

    async def discard(self) -> None:
        """Close without waiting for the server, which may hang."""
        _abort(self._client)
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await asyncio.wait_for(self._client.close(), 1)


class Bus:
    """Keeps one link up; `link()` is how everybody gets at it."""

    def __init__(self, config: Nats) -> None:
        self._config = config
        self._tls = config.tls()
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._servers = list(config.servers)
        self._last_error: Exception | None = None
        self._told_down = False
        self._closed = False
        self._quiet_until = 0.0
        self.errors = 0  # what nats-py reported while connected
        self.connects = 0

    async def link(self) -> Link:
        """Return the link that is up, waiting for one if need be."""
        while self._link is None or not self._link.alive:
            self._changed.clear()
            await self._changed.wait()
        return self._link

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.alive

    async def run(self) -> None:
        """Connect, watch, and connect again, until closed or cancelled."""
        delay = _FIRST_DELAY
        while not self._closed:
            url = self._servers[0]
            self._servers.append(self._servers.pop(0))
            link = await self._connect(url)
            if link is None:
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, _LONGEST_DELAY)
                continue
            delay = _FIRST_DELAY
            try:
                reason = await self._watch(link)
            finally:
                link.lose("stopped")
                await link.discard()
            if not self._closed:
                self._report_down(reason)

    async def close(self, timeout: float) -> None:
        """Drain the link, if there is one, and make no other."""
        self._closed = True
        if self._link is not None and self._link.alive:
            await self._link.drain(timeout)

    async def _connect(self, url: str) -> Link | None:
        client = Client()
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link = Link(client, lost)

        async def closed() -> None:
            link.lose(_reason(client.last_error) if client.last_error else "the connection was closed")

        try:
            await asyncio.wait_for(self._open(client, url, closed), _CONNECT_TIMEOUT * 2)
        except asyncio.CancelledError:
            await link.discard()
            raise
        except Exception as error:  # whatever is wrong with server, credentials or TLS, the next try may find it right
            await link.discard()
            self._report_down(_reason(self._last_error or error))
            return None
        self._keep(client)
        self.connects += 1
        self._told_down = False
        _log.info("NATS: connected to %s", hide(url))
        self._link = link
        self._changed.set()
        return link

    async def _open(self, client: Client, url: str, closed: Callable[[], Awaitable[None]]) -> None:
        config = self._config
        self._last_error = None
        await client.connect(
            servers=[url],
            name="vicibridge",
            error_cb=self._on_error,
            closed_cb=closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_TIMEOUT,
            ping_interval=_NEVER,
            pending_size=-1,  # publish() then never blocks; pipelines bound what is pending
            tls=self._tls,
            tls_hostname=config.tls_hostname,
            user=config.user,
            password=config.password.get_secret_value() if config.password else None,
            token=config.token.get_secret_value() if config.token else None,
            user_credentials=str(config.creds) if config.creds else None,
            nkeys_seed=str(config.nkey) if config.nkey else None,
        )

    def _keep(self, client: Client) -> None:
        """Remember the servers of the cluster that the server told of."""
        known = {urlsplit(url).netloc.rpartition("@")[2] for url in self._servers}
        for server in client.discovered_servers:
            if server.netloc not in known:
                self._servers.append(f"{server.scheme or 'nats'}://{server.netloc}")

    async def _watch(self, link: Link) -> str:
        """Return why the link has to be given up."""
        interval, timeout = self._config.probe_interval, self._config.probe_timeout
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(link.lost(), interval)
            if not link.connected:
                return "the connection was closed"
            try:
                await link.probe(timeout)
            except Disconnected:
                if link.connected:
                    return f"the server has not answered for {timeout:g} seconds"

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        if not self.connected:
            return
        self.errors += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET
            _log.warning("NATS: %s (%d errors so far)", _reason(error), self.errors)

    def _report_down(self, reason: str) -> None:
        self._link = None
        if not self._told_down:
            self._told_down = True
            _log.warning("NATS: not connected: %s; trying again", reason)


def _abort(client: Client) -> None:
    """Drop the connection and what is unsent: close() would wait for a server that may hang."""
    # No public way exists: force_reconnect() and close() both await the transport's end.
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def _reason(error: Exception) -> str:
    """Return one line about `error`, without what nats-py puts before it."""
    text = " ".join(str(error).split()).removeprefix("nats: ")
    return text or type(error).__name__


def _whole(timeout: float) -> int:
    return max(1, round(timeout))  # nats-py annotates its timeouts as int
