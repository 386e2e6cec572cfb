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
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from .config import Nats, hide
from .link import Disconnected, Link, reason_of
from .natsclient import HardClient

_logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 5
_NEVER = 10**9  # seconds; switches nats-py's own pings off, as the probe is ours
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0
_QUIET = 10.0  # seconds between two log lines about errors that NATS reports


class Bus:
    """Keeps one link up; `link()` is how everybody gets at it."""

    def __init__(self, config: Nats) -> None:
        self._config = config
        self._options = config.options()
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._servers = list(config.urls)
        self._last_error: Exception | None = None
        self._told: set[str] = set()  # reasons of the present outage that the log has
        self._reported: dict[str, frozenset[str]] = {}
        self._closed = False
        self._quiet_until = 0.0
        self.errors = 0  # what nats-py reported while connected
        self.connects = 0
        self.reason = "not connected yet"  # why there is no link

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

    async def run(self) -> None:
        """Connect, watch, and connect again, until closed or cancelled."""
        delay = _FIRST_DELAY
        while not self._closed:
            url = self._servers[0]
            self._servers.append(self._servers.pop(0))
            if await self._live(url) >= self._config.probe_interval:
                delay = _FIRST_DELAY
            elif not self._closed:  # a server that takes us and throws us out at once is not to be pestered either
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, _LONGEST_DELAY)

    async def _live(self, url: str) -> float:
        """Connect and stay as long as it goes; return for how many seconds that was."""
        link = await self._connect(url)
        if link is None:
            return 0.0
        began = time.monotonic()
        try:
            reason = await self._watch(link)
        finally:
            link.lose("stopped")
            await link.discard()
        if not self._closed:
            self._report_down(reason)
        return time.monotonic() - began

    async def close(self, timeout: float) -> None:
        """Drain the link, if there is one, and make no other."""
        self._closed = True
        if self._link is not None and self._link.alive:
            await self._link.drain(timeout)

    async def _connect(self, url: str) -> Link | None:
        client = HardClient()
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link = Link(client, lost, self._reported)

        async def closed() -> None:
            link.lose(reason_of(client.last_error) if client.last_error else "the connection was closed")

        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT * 2):
                await self._open(client, url, closed)
            _notice_cancellation()
        except asyncio.CancelledError:
            await link.discard()
            raise
        except Exception as error:  # whatever is wrong with server, credentials or TLS, the next try may find it right
            await link.discard()
            _notice_cancellation()
            self._report_down(reason_of(self._last_error or error))
            return None
        self._keep(client, url)
        self.connects += 1
        self._told.clear()
        _logger.info("NATS: connected to %s", hide(url))
        self._link = link
        self._changed.set()
        return link

    async def _open(self, client: Client, url: str, closed: Callable[[], Awaitable[None]]) -> None:
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
            **self._options,
        )

    def _keep(self, client: Client, url: str) -> None:
        """Remember the servers of the cluster that the one at `url` told of, in place of those told of before."""
        userinfo, at, _ = urlsplit(url).netloc.rpartition("@")
        told = {_host(server.netloc): server.scheme or "nats" for server in client.discovered_servers}
        kept = [s for s in self._servers if s in self._config.urls or s == url or _host(urlsplit(s).netloc) in told]
        known = {_host(urlsplit(s).netloc) for s in kept}
        new = [f"{scheme}://{userinfo}{at}{host}" for host, scheme in told.items() if host not in known]
        self._servers = kept + new

    async def _watch(self, link: Link) -> str:
        """Return why the link has to be given up."""
        interval, timeout = self._config.probe_interval, self._config.probe_timeout
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    return await link.lost()
            if not link.connected:
                return "the connection was closed"
            try:
                await link.probe(timeout)
            except Disconnected:
                if link.connected:
                    return f"the server has not answered for {timeout:g} seconds"

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        if not self.connected or isinstance(error, (nats.errors.UnexpectedEOF, OSError)):
            return  # the end of the link will be reported as such
        self.errors += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET
            _logger.warning("NATS: %s (%d errors so far)", reason_of(error), self.errors)

    def _report_down(self, reason: str) -> None:
        self._link = None
        self.reason = reason
        # The server may close before its own reason has been read, and a later attempt be the one that tells it.
        if reason not in self._told:
            self._told.add(reason)
            _logger.warning("NATS: not connected: %s; trying again", reason)


def _notice_cancellation() -> None:
    """Raise CancelledError if that was asked for: nats-py waits by `asyncio.wait_for`, which may take no notice."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]
