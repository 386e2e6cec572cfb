"""The lag of events."""

from __future__ import annotations

from vicibridge.events.losses import Counts
from vicibridge.ops.watchdog import Lag


def test_lag_is_the_age_of_the_oldest_pending_event() -> None:
    counts = Counts()
    lag = Lag(counts)
    lag.sample(0.0)
    assert lag.seconds(0.5) == 0
    for second in range(1, 5000):
        counts.received += 10
        lag.sample(second)
    assert lag.seconds(5000) == 4999
    assert len(lag._samples) <= 1025
    counts.published = counts.received - 1000
    assert 100 <= lag.seconds(5000) <= 110
    counts.drop("full", 1000)
    lag.sample(5000)
    assert lag.seconds(5000) == 0
