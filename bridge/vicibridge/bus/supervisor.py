"""Maintains the NATS connection, reconnecting indefinitely.

nats-py's reconnect gives up on several errors, silently loses buffered messages, and hangs if the server hangs
(nats-py#671). Therefore each `NatsConnection` is a nats-py client that never reconnects; `ConnectionSupervisor` probes
it, aborts it if it hangs, and opens the next one. Publishers get `Disconnected` for a lost connection and decide what
to send again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from ..contract.nats_settings import NatsSettings, hide
from .connection import Disconnected, NatsConnection, reason_of
from .credentials import Credentials, CredentialsError, read_credentials, without_userinfo
from .hardened_client import HardClient

_logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 5
_NEVER = 10**9  # seconds; disables nats-py's pings, which `ConnectionSupervisor` replaces by its probe
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0
_QUIET = 10.0  # seconds between two log lines about errors that NATS reports


class Refused(Exception):
    """A server rejects the connection or is unreachable; the text gives the reason."""


class ConnectionSupervisor:
    """Keeps one NATS connection open; `connection()` returns it.

    Credentials are read again for each connection. `name` is the client's name in NATS. `on_violation` is called with
    the text of each permissions violation that NATS reports, in lower case, and returns whether it was handled; others
    are logged.
    """

    def __init__(
        self, settings: NatsSettings, name: str = "vicibridge", on_violation: Callable[[str], bool] = lambda text: False
    ) -> None:
        self._settings = settings
        self._name = name
        self._on_violation = on_violation
        self._connection: NatsConnection | None = None
        self._changed = asyncio.Event()
        self._reread = asyncio.Event()
        self._servers = list(settings.servers)
        self._logged: set[str] = set()  # reasons that were logged during the present outage
        self._reported: dict[str, frozenset[str]] = {}
        self._closed = False
        self._quiet_until = 0.0
        self.errors = 0  # errors that nats-py reported while connected
        self.connects = 0
        self.reason = "not connected yet"  # why the bus is not connected
        self.expires: Mapping[str, float] = {}  # expiry of the credentials in use, as in `Credentials`

    async def connection(self) -> NatsConnection:
        """Return the open connection, waiting for one if necessary."""
        while self._connection is None or not self._connection.alive:
            self._changed.clear()
            await self._changed.wait()
        return self._connection

    async def serve(self, work: Callable[[NatsConnection], Awaitable[None]]) -> None:
        """Run `work` on each successive connection until cancelled; `work` may raise Disconnected."""
        while True:
            connection = await self.connection()
            with contextlib.suppress(Disconnected):
                await work(connection)
            await connection.lost()

    @property
    def connected(self) -> bool:
        return self._connection is not None and self._connection.alive

    @property
    def current(self) -> NatsConnection:
        """The open connection; raises Disconnected if there is none."""
        if self._connection is None or not self._connection.alive:
            raise Disconnected(self.reason)
        return self._connection

    async def connect(self, rounds: int) -> None:
        """Try each server `rounds` times without logging; raise Refused if none accepts. `run` uses the connection."""
        for _ in range(rounds * len(self._servers)):
            try:
                return self._use(await self._open(self._next_server()))
            except Refused as refused:
                self.reason = str(refused)
        raise Refused(self.reason)

    async def run(self) -> None:
        """Connect, watch, and connect again, until closed or cancelled."""
        delay = _FIRST_DELAY
        while not self._closed:
            if await self._live() >= self._settings.probe_interval:
                delay = _FIRST_DELAY
            elif not self._closed:  # also back off from a server that accepts and closes at once
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, _LONGEST_DELAY)

    def reload(self, settings: NatsSettings, *, reconnect: bool) -> None:
        """Apply new servers and credentials; with `reconnect`, if they require it, a new connection replaces this one.

        The embedded server needs no `reconnect`: it closes connections itself when its credentials change.
        """
        if settings.servers != self._settings.servers:
            self._servers = list(settings.servers)
        self._settings = settings
        if reconnect:
            self._reread.set()

    async def close(self, timeout: float) -> None:
        """Drain the connection, if there is one, and do not reconnect."""
        self._closed = True
        if self._connection is not None and self._connection.alive:
            await self._connection.drain(timeout)

    async def _live(self) -> float:
        """Connect, unless `connect` did, and wait until the connection is lost; return its duration in seconds."""
        if self._connection is None:
            try:
                self._use(await self._open(self._next_server()))
            except Refused as refused:
                self._report_down(str(refused))
                return 0.0
        began = time.monotonic()
        try:
            while (reason := await self._watch()) is None:
                await self._renew()
        finally:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.lose("stopped")
                await connection.discard()
        if not self._closed:
            self._report_down(reason)
        return time.monotonic() - began

    def _next_server(self) -> str:
        url = self._servers.pop(0)
        self._servers.append(url)
        return url

    async def _open(self, url: str) -> NatsConnection:
        """Return a connection to the server at `url`; raise Refused."""
        reported: Exception | None = None

        async def on_error(error: Exception) -> None:
            nonlocal reported
            reported = error
            self._note(connection, error)

        async def closed() -> None:
            connection.lose(reason_of(client.last_error) if client.last_error else "the connection was closed")

        try:
            credentials = read_credentials(self._settings, url)
        except CredentialsError as error:
            raise Refused(str(error)) from None
        client = HardClient()
        connection = NatsConnection(
            client, asyncio.get_running_loop().create_future(), url, credentials, self._reported
        )
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT * 2):
                await self._connect(connection, on_error, closed)
            _notice_cancellation()
        except asyncio.CancelledError:
            await connection.discard()
            raise
        except Exception as error:  # any problem of server, credentials or TLS may be fixed by the next attempt
            await connection.discard()
            _notice_cancellation()
            raise Refused(_refusal(reported or error, credentials)) from None
        self._keep(client, url)
        return connection

    async def _connect(
        self,
        connection: NatsConnection,
        on_error: Callable[[Exception], Awaitable[None]],
        closed: Callable[[], Awaitable[None]],
    ) -> None:
        await connection.client.connect(
            servers=[without_userinfo(connection.url)],
            name=self._name,
            error_cb=on_error,
            closed_cb=closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_TIMEOUT,
            ping_interval=_NEVER,
            pending_size=-1,  # publish() then never blocks; publishers limit pending data
            inbox_prefix=self._settings.inbox_prefix,
            **connection.credentials.options,
        )

    def _use(self, connection: NatsConnection) -> None:
        self.connects += 1
        self._logged.clear()
        _logger.info("NATS: connected to %s", hide(connection.url))
        self._connection = connection
        self.expires = connection.credentials.expires
        self._changed.set()

    def _keep(self, client: Client, url: str) -> None:
        """Keep the configured servers and those of the cluster that the server at `url` announces."""
        userinfo, at, _ = urlsplit(url).netloc.rpartition("@")
        announced = {_host(server.netloc): server.scheme or "nats" for server in client.discovered_servers}
        kept = [
            s
            for s in self._servers
            if s in self._settings.servers or s == url or _host(urlsplit(s).netloc) in announced
        ]
        known = {_host(urlsplit(s).netloc) for s in kept}
        new = [f"{scheme}://{userinfo}{at}{host}" for host, scheme in announced.items() if host not in known]
        self._servers = kept + new

    async def _watch(self) -> str | None:
        """Wait, then return why the connection must be given up, or None if its credentials may have changed."""
        assert self._connection is not None
        connection, reread = self._connection, asyncio.create_task(self._reread.wait())
        interval, timeout = self._settings.probe_interval, self._settings.probe_timeout
        lost = asyncio.create_task(connection.lost())
        try:
            while True:
                await asyncio.wait([lost, reread], timeout=interval, return_when=asyncio.FIRST_COMPLETED)
                if lost.done():
                    return lost.result()
                if not connection.connected:
                    return "the connection was closed"
                if reread.done():
                    return None
                try:
                    await connection.probe(timeout)
                except Disconnected:
                    if connection.connected:
                        return f"the server has not responded for {timeout:g} seconds"
        finally:
            reread.cancel()
            lost.cancel()

    async def _renew(self) -> None:
        """Replace the connection by one with the current servers and credentials; keep it if they do not work."""
        old = self._connection
        assert old is not None
        self._reread.clear()
        try:
            urls = self._current(old.url)
            if read_credentials(self._settings, urls[0]).digest == old.credentials.digest:
                _logger.info("NATS: credentials reloaded, unchanged")
                return
            new = await self._first(urls)
        except (CredentialsError, Refused) as error:
            _logger.error("NATS: keeping the connection, because the new servers or credentials fail: %s", error)
            return
        _logger.info("NATS: servers or credentials have changed: replacing the connection")
        self._use(new)
        old.lose("the credentials were renewed")
        await old.discard()

    def _current(self, url: str) -> list[str]:
        """Return the address that the server at `url` has now, or all addresses if it is no longer one of them."""
        if url in self._servers:
            return [url]
        same = [server for server in self._servers if _host(urlsplit(server).netloc) == _host(urlsplit(url).netloc)]
        return same[:1] or list(self._servers)

    async def _first(self, urls: list[str]) -> NatsConnection:
        """Return a connection to the first server that accepts; raise Refused with the last reason if none does."""
        for url in urls[:-1]:
            with contextlib.suppress(Refused):
                return await self._open(url)
        return await self._open(urls[-1])

    def _note(self, connection: NatsConnection, error: Exception) -> None:
        """Count and log an error of the current connection."""
        if (
            connection is not self._connection
            or not connection.alive
            or isinstance(error, (nats.errors.UnexpectedEOF, OSError))
        ):
            return  # the loss of the connection is reported separately
        text = str(error).lower()
        if "permissions violation" in text and self._on_violation(text):
            return
        self.errors += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET
            _logger.warning("NATS: %s (%d errors so far)", reason_of(error), self.errors)

    def _report_down(self, reason: str) -> None:
        self.reason = reason
        # The server may close the connection before its reason is read; then a later attempt gets the reason.
        if reason not in self._logged:
            self._logged.add(reason)
            _logger.warning("NATS: not connected: %s; retrying", reason)


def _refusal(error: Exception, credentials: Credentials) -> str:
    """Return why a connection with `credentials` failed, with the setting to change and what has expired."""
    reason, first = reason_of(error), credentials.options["tls_handshake_first"]
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        reason = "the server has no TLS: unset tls_first in [nats]" if first else "the server has no TLS"
    elif first and isinstance(error, TimeoutError):
        reason += ": unset tls_first in [nats] for a server without handshake_first in its tls"
    elif not first and "expecting INFO" in reason:
        reason += ": set tls_first in [nats] for a server with handshake_first in its tls"
    elif "authorization violation" in reason.lower():
        reason = "the server rejects the credentials: Authorization Violation"
    # The server does not say that a credential has expired, or its reason may get lost with the connection.
    for key, end in credentials.expires.items():
        if end <= time.time():
            reason += f"; {key} expired at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(end))}"
    return reason


def _notice_cancellation() -> None:
    """Raise CancelledError if this task was cancelled: `asyncio.wait_for` in nats-py may swallow it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]
