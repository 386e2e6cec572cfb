"""The command connections to one charon: one per running command, kept briefly for the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vicifast._wire import Transcoder
from vicifast.aio import AsyncSession
from vicifast.commands import EVENTS
from vicifast.errors import CommandError, EncodeError, RequestTimeout, UnknownCommand, UnknownEvent, ViciError

from ..contract.codecs import CODECS
from ..contract.names import Codec

CONNECT_TIMEOUT = 5.0  # seconds; charon accepts within milliseconds
_IDLE = 10.0  # seconds that an idle connection is kept
_KEPT = 4  # idle connections per codec
_FACTS_AGE = 30.0  # seconds that charon's version and thread count are cached
_VERSION_TIMEOUT = 0.2  # seconds; clients that list a fleet do not wait longer for one node
_STATS_TIMEOUT = 2.0
_THREADS = 16  # charon's default, if it does not report the number
_STREAMED = [event for event in EVENTS.values() if not event.standalone]
_HARMLESS = (CommandError, UnknownCommand, UnknownEvent, EncodeError)  # the connection is still usable


class SessionPool:
    """Lends sessions; a session that failed is closed, not lent again."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: dict[Codec, list[tuple[AsyncSession, asyncio.TimerHandle]]] = {codec: [] for codec in CODECS}
        self._closing: set[asyncio.Task[None]] = set()
        self._version = ""
        self._threads = 0
        self._asked: dict[str, float] = {}
        self._asking = asyncio.Lock()
        self.connects = 0

    @asynccontextmanager
    async def session(self, codec: Codec, seconds: float = CONNECT_TIMEOUT) -> AsyncIterator[AsyncSession]:
        """Yield a session that streams in `codec`; connecting is limited to `seconds`, calls are not."""
        session = self._reuse(codec) or await self._connect(codec, seconds)
        usable = False
        try:
            yield session
            usable = True
        except _HARMLESS:
            usable = True
            raise
        finally:
            if usable and not session.closed and len(self._idle[codec]) < _KEPT:
                timer = asyncio.get_running_loop().call_later(_IDLE, self._expire, codec, session)
                self._idle[codec].append((session, timer))
            else:
                self._close(session)

    async def version(self) -> str:
        """Return charon's version, cached for half a minute; empty if charon does not reply."""
        if self._is_due("version"):
            try:
                async with asyncio.timeout(_VERSION_TIMEOUT), self.session("msgpack") as session:
                    self._version = str((await session.call("version", timeout=None)).get("version", ""))
            except (ViciError, OSError, TimeoutError):
                self._version = ""
        return self._version

    async def threads(self) -> int:
        """Return the number of charon's worker threads; raises as a call does if it was never reported."""
        async with self._asking:
            if not self._threads or self._is_due("stats"):
                try:
                    self._threads = await self._ask_threads()
                except (ViciError, OSError):
                    if not self._threads:
                        raise
        return self._threads

    async def _ask_threads(self) -> int:
        try:
            async with asyncio.timeout(_STATS_TIMEOUT), self.session("msgpack") as session:
                workers = (await session.call("stats", timeout=None)).get("workers")
        except TimeoutError:
            raise RequestTimeout("stats: no reply") from None
        except (CommandError, UnknownCommand):
            return _THREADS
        total = workers.get("total") if isinstance(workers, dict) else None
        return int(total) if isinstance(total, str) and total.isdecimal() else _THREADS

    async def close(self) -> None:
        """Close the idle sessions."""
        for kept in self._idle.values():
            for session, timer in kept:
                timer.cancel()
                self._close(session)
            kept.clear()
        await asyncio.gather(*self._closing)

    def _reuse(self, codec: Codec) -> AsyncSession | None:
        kept = self._idle[codec]
        while kept:
            session, timer = kept.pop()
            timer.cancel()
            if not session.closed:
                return session
            self._close(session)
        return None

    async def _connect(self, codec: Codec, seconds: float) -> AsyncSession:
        readers = {event.name: Transcoder(codec, binary=event.binary) for event in _STREAMED}
        session = AsyncSession(self._address, timeout=seconds, readers=readers)
        await session.connect()
        self.connects += 1
        return session

    def _expire(self, codec: Codec, session: AsyncSession) -> None:
        self._idle[codec] = [(kept, timer) for kept, timer in self._idle[codec] if kept is not session]
        self._close(session)

    def _close(self, session: AsyncSession) -> None:
        """Close in the background: a session with a running command waits two seconds for charon."""
        task = asyncio.create_task(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _is_due(self, fact: str) -> bool:
        now = time.monotonic()
        if now < self._asked.get(fact, 0.0):
            return False
        self._asked[fact] = now + _FACTS_AGE
        return True
