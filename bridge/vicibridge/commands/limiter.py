"""Limits concurrent requests; excess requests queue, up to a bound."""

from __future__ import annotations

import asyncio
from collections import deque

from ..contract.names import BUSY
from .request import RequestError

_QUEUE = 8  # requests that may wait, per request that may run


class Limiter:
    """Call `enter` before the work and `leave` after it; first come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def enter(self, seconds: float) -> None:
        """Wait at most `seconds` for a turn; raises RequestError 429 on timeout or if the queue is full."""
        if self.running < self.limit and not self._queue:
            self.running += 1
            return
        if len(self._queue) >= self.limit * _QUEUE:
            raise RequestError(BUSY, "too many requests are queued; retry later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except TimeoutError:
            self._give_up(turn)
            raise RequestError(BUSY, "earlier requests took too long; retry later") from None
        except asyncio.CancelledError:
            self._give_up(turn)
            raise

    def leave(self) -> None:
        """Give the turn to the next request."""
        self.running -= 1
        while self._queue and self.running < self.limit:
            turn = self._queue.popleft()
            if not turn.cancelled():
                self.running += 1
                turn.set_result(None)

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn in self._queue:
            self._queue.remove(turn)
        elif not turn.cancelled():
            self.leave()  # the turn was given in the same moment
