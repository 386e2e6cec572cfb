"""The fleet from Python: commands, events and the state of all gateways, over NATS.

async with Fleet("nats://127.0.0.1:4222") as fleet:
    print(await fleet.node("gw1").version())
    async for sa in fleet.node("gw1").list_sas():
        print(sa)
    async for answer in fleet.everyone().stats():
        print(answer.node, answer.response or answer.error)
"""

from .errors import BusError, Busy, Denied, SlowConsumer, Unavailable
from .everyone import Answer, Answers, Everyone
from .fleet import Fleet
from .session import BusSession

__all__ = [
    "Answer",
    "Answers",
    "BusError",
    "BusSession",
    "Busy",
    "Denied",
    "Everyone",
    "Fleet",
    "SlowConsumer",
    "Unavailable",
]
