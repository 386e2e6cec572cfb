"""The heartbeat of the service, which stops if the event loop hangs, and the lag of its pipelines."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..events.losses import Counts
from .systemd import Systemd

_INTERVAL = 1.0
_SAMPLES = 1024


class Lag:
    """The age of the oldest pending event of a pipeline, to about a second, from samples of its counts."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._samples: deque[tuple[float, int]] = deque()  # time, and the number received by then

    def sample(self, now: float) -> None:
        counts = self._counts
        received = counts.received
        if received == counts.published + counts.dropped:  # as nearly always: `_done` would be a call for nothing
            self._samples.clear()
            return
        if not self._samples or self._samples[-1][1] != received:
            self._samples.append((now, received))
        while self._samples and self._samples[0][1] <= self._done:
            self._samples.popleft()
        if len(self._samples) > _SAMPLES:  # after many minutes of outage, every second sample is enough
            self._samples = deque(list(self._samples)[::2])

    def seconds(self, now: float) -> float:
        """Return the age in seconds, 0 if no event is pending."""
        for when, received in self._samples:
            if received > self._done:
                return now - when
        return 0.0

    @property
    def _done(self) -> int:
        return self._counts.published + self._counts.dropped


class Watchdog:
    """Once a second: samples the lags, feeds systemd's watchdog and updates the status."""

    def __init__(self, lags: list[Lag], systemd: Systemd, status: Callable[[], str]) -> None:
        self._lags = lags
        self._systemd = systemd
        self._status = status
        self.delay = 0.0  # seconds that the event loop was late at the last beat

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        interval = min(_INTERVAL, (self._systemd.watchdog or _INTERVAL * 2) / 2)
        while True:
            now = loop.time()
            for lag in self._lags:
                lag.sample(now)
            if self._systemd.listens:
                self._systemd.alive(self._status())
            due = loop.time() + interval
            await asyncio.sleep(interval)
            self.delay = max(0.0, loop.time() - due)
