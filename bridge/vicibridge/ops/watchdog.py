"""The heartbeat of the service: it beats only while the event loop turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..events.losses import Counts
from .systemd import Systemd

_INTERVAL = 1.0
_SAMPLES = 1024


class Lag:
    """For how long the oldest event of a pipeline has waited, to about a second; nothing is noted per event."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._samples: deque[tuple[float, int]] = deque()  # when, and how many had been received by then

    def sample(self, now: float) -> None:
        received = self._counts.received
        if not self._samples or self._samples[-1][1] != received:
            self._samples.append((now, received))
        while self._samples and self._samples[0][1] <= self._done:
            self._samples.popleft()
        if len(self._samples) > _SAMPLES:  # an outage of many minutes: every second one will do
            self._samples = deque(list(self._samples)[::2])

    def seconds(self, now: float) -> float:
        """Return the age, 0 when nothing waits."""
        for when, received in self._samples:
            if received > self._done:
                return now - when
        return 0.0

    @property
    def _done(self) -> int:
        return self._counts.published + self._counts.dropped


class Watchdog:
    """Once a second: takes samples of the lags, and tells systemd that the service lives and how it does."""

    def __init__(self, lags: list[Lag], systemd: Systemd, status: Callable[[], str]) -> None:
        self._lags = lags
        self._systemd = systemd
        self._status = status
        self.delay = 0.0  # seconds that the loop was late at the last beat

    async def run(self) -> None:
        """Beat until cancelled."""
        loop = asyncio.get_running_loop()
        interval = min(_INTERVAL, (self._systemd.watchdog or _INTERVAL * 2) / 2)
        while True:
            for lag in self._lags:
                lag.sample(loop.time())
            self._systemd.alive(self._status())
            due = loop.time() + interval
            await asyncio.sleep(interval)
            self.delay = max(0.0, loop.time() - due)
