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
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from ..contract.nats_settings import NatsSettings, hide
from .connection import Disconnected, Link, reason_of
from .credentials import CredentialsError, read_credentials, without_userinfo
from .hardened_client import HardClient

_logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 5
_NEVER = 10**9  # seconds; switches nats-py's own pings off, as the probe is ours
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0
_QUIET = 10.0  # seconds between two log lines about errors that NATS reports


class Refused(Exception):
    """A server does not take us, or cannot be reached; the text says why."""


class Bus:
    """Keeps one link up; `link()` is how everybody gets at it.

    Every credential is read anew for each connection. `name` is what NATS shows of the client. `on_violation` gets
    each permission that NATS denies, in small letters, and returns whether that has reached whom it concerns; what
    has not is logged.
    """

    def __init__(
        self, settings: NatsSettings, name: str = "vicibridge", on_violation: Callable[[str], bool] = lambda text: False
    ) -> None:
        self._settings = settings
        self._name = name
        self._on_violation = on_violation
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._reread = asyncio.Event()
        self._servers = list(settings.servers)
        self._told: set[str] = set()  # reasons of the present outage that the log has
        self._reported: dict[str, frozenset[str]] = {}
        self._closed = False
        self._quiet_until = 0.0
        self.errors = 0  # what nats-py reported while connected
        self.connects = 0
        self.reason = "not connected yet"  # why there is no link
        self.expires: Mapping[str, float] = {}  # when the credentials in use do, as `Credentials` says it

    async def link(self) -> Link:
        """Return the link that is up, waiting for one if need be."""
        while self._link is None or not self._link.alive:
            self._changed.clear()
            await self._changed.wait()
        return self._link

    async def serve(self, work: Callable[[Link], Awaitable[None]]) -> None:
        """Do `work` on every link there is, one after the other, until cancelled; Disconnected may end it early."""
        while True:
            link = await self.link()
            with contextlib.suppress(Disconnected):
                await work(link)
            await link.lost()

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.alive

    @property
    def current(self) -> Link:
        """The link that is up; Disconnected when none is."""
        if self._link is None or not self._link.alive:
            raise Disconnected(self.reason)
        return self._link

    async def connect(self, rounds: int) -> None:
        """Try each server `rounds` times, without a word in the log; Refused when none takes us. `run` goes on."""
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
            elif not self._closed:  # a server that takes us and throws us out at once is not to be pestered either
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, _LONGEST_DELAY)

    def reload(self, settings: NatsSettings, *, reconnect: bool) -> None:
        """Take over credentials; with `reconnect`, where any have changed, a new connection replaces the one there is.

        The nats-server of our own needs no reconnecting: it ends connections itself when it takes over others.
        """
        self._settings = settings
        if reconnect:
            self._reread.set()

    async def close(self, timeout: float) -> None:
        """Drain the link, if there is one, and make no other."""
        self._closed = True
        if self._link is not None and self._link.alive:
            await self._link.drain(timeout)

    async def _live(self) -> float:
        """Connect, unless `connect` has, and stay as long as it goes; return for how many seconds that was."""
        if self._link is None:
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
            link, self._link = self._link, None
            if link is not None:
                link.lose("stopped")
                await link.discard()
        if not self._closed:
            self._report_down(reason)
        return time.monotonic() - began

    def _next_server(self) -> str:
        url = self._servers.pop(0)
        self._servers.append(url)
        return url

    async def _open(self, url: str) -> Link:
        """Return a link to the server at `url`; Refused says why there is none."""
        reported: Exception | None = None

        async def on_error(error: Exception) -> None:
            nonlocal reported
            reported = error
            self._note(link, error)

        async def closed() -> None:
            link.lose(reason_of(client.last_error) if client.last_error else "the connection was closed")

        try:
            credentials = read_credentials(self._settings, url)
        except CredentialsError as error:
            raise Refused(str(error)) from None
        client = HardClient()
        link = Link(client, asyncio.get_running_loop().create_future(), url, credentials, self._reported)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT * 2):
                await self._connect(link, on_error, closed)
            _notice_cancellation()
        except asyncio.CancelledError:
            await link.discard()
            raise
        except Exception as error:  # whatever is wrong with server, credentials or TLS, the next try may find it right
            await link.discard()
            _notice_cancellation()
            raise Refused(_refusal(reported or error, tls_first=self._settings.tls_first)) from None
        self._keep(client, url)
        return link

    async def _connect(
        self, link: Link, on_error: Callable[[Exception], Awaitable[None]], closed: Callable[[], Awaitable[None]]
    ) -> None:
        await link.client.connect(
            servers=[without_userinfo(link.url)],
            name=self._name,
            error_cb=on_error,
            closed_cb=closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_TIMEOUT,
            ping_interval=_NEVER,
            pending_size=-1,  # publish() then never blocks; pipelines bound what is pending
            inbox_prefix=self._settings.inbox_prefix,
            **link.credentials.options,
        )

    def _use(self, link: Link) -> None:
        self.connects += 1
        self._told.clear()
        _logger.info("NATS: connected to %s", hide(link.url))
        self._link = link
        self.expires = link.credentials.expires
        self._changed.set()

    def _keep(self, client: Client, url: str) -> None:
        """Remember the servers of the cluster that the one at `url` told of, in place of those told of before."""
        userinfo, at, _ = urlsplit(url).netloc.rpartition("@")
        told = {_host(server.netloc): server.scheme or "nats" for server in client.discovered_servers}
        kept = [
            s for s in self._servers if s in self._settings.servers or s == url or _host(urlsplit(s).netloc) in told
        ]
        known = {_host(urlsplit(s).netloc) for s in kept}
        new = [f"{scheme}://{userinfo}{at}{host}" for host, scheme in told.items() if host not in known]
        self._servers = kept + new

    async def _watch(self) -> str | None:
        """Return why the link has to be given up; None when its credentials may have changed."""
        assert self._link is not None
        link, reread = self._link, asyncio.create_task(self._reread.wait())
        interval, timeout = self._settings.probe_interval, self._settings.probe_timeout
        lost = asyncio.create_task(link.lost())
        try:
            while True:
                await asyncio.wait([lost, reread], timeout=interval, return_when=asyncio.FIRST_COMPLETED)
                if lost.done():
                    return lost.result()
                if not link.connected:
                    return "the connection was closed"
                if reread.done():
                    return None
                try:
                    await link.probe(timeout)
                except Disconnected:
                    if link.connected:
                        return f"the server has not answered for {timeout:g} seconds"
        finally:
            reread.cancel()
            lost.cancel()

    async def _renew(self) -> None:
        """Replace the link by one with the credentials as they are now; it stays where they do not work."""
        old = self._link
        assert old is not None
        self._reread.clear()
        try:
            if read_credentials(self._settings, old.url).digest == old.credentials.digest:
                _logger.info("NATS: credentials read again, and unchanged")
                return
            new = await self._open(old.url)
        except (CredentialsError, Refused) as error:
            _logger.error("NATS: the connection goes on with the credentials it has, as the new ones fail: %s", error)
            return
        _logger.info("NATS: credentials read again, and changed: connecting anew with them")
        self._use(new)
        old.lose("the credentials were renewed")
        await old.discard()

    def _note(self, link: Link, error: Exception) -> None:
        """Count and log an error of a link in use."""
        if link is not self._link or not link.alive or isinstance(error, (nats.errors.UnexpectedEOF, OSError)):
            return  # the end of the link will be reported as such
        text = str(error).lower()
        if "permissions violation" in text and self._on_violation(text):
            return
        self.errors += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET
            _logger.warning("NATS: %s (%d errors so far)", reason_of(error), self.errors)

    def _report_down(self, reason: str) -> None:
        self.reason = reason
        # The server may close before its own reason has been read, and a later attempt be the one that tells it.
        if reason not in self._told:
            self._told.add(reason)
            _logger.warning("NATS: not connected: %s; trying again", reason)


def _refusal(error: Exception, *, tls_first: bool) -> str:
    """Return why a server does not take us, and what to set where client and server begin TLS in different ways."""
    reason = reason_of(error)
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "the server has no TLS: unset tls_first in [nats]" if tls_first else "the server has no TLS"
    if tls_first and isinstance(error, TimeoutError):
        return f"{reason}: unset tls_first in [nats] for a server without handshake_first in its tls"
    if not tls_first and "expecting INFO" in reason:
        return f"{reason}: set tls_first in [nats] for a server with handshake_first in its tls"
    return reason


def _notice_cancellation() -> None:
    """Raise CancelledError if that was asked for: nats-py waits by `asyncio.wait_for`, which may take no notice."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]
