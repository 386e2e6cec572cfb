"""Lists the gateways with NATS service discovery (ADR-32), which every bridge answers, and the mirror."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from vicifast.errors import ViciError

from ..bus.bucket_reader import BucketReader, Entry
from ..bus.connection import NatsConnection
from ..contract.bucket_values import HEARTBEATS, NODE, NodeValue, load
from ..contract.names import SERVICE
from .calls import Calls, is_no_responders, news


@dataclass(frozen=True, slots=True)
class Node:
    """A gateway and its bridge: `present` is its value in the mirror's bucket of nodes, `answers` to service discovery.

    `alive` is whether either shows that the bridge runs. Unknown values are None.
    """

    name: str
    answers: bool
    present: NodeValue | None
    bridge_version: str | None = None
    charon_version: str | None = None

    @property
    def alive(self) -> bool:
        if self.answers or self.present is None:
            return self.answers
        # A server that expires keys has removed those of stopped bridges.
        age = time.time_ns() - self.present["updated"]
        return self.present["expires"] or age < HEARTBEATS * self.present["heartbeat"] * 1e9

    @property
    def charon(self) -> str | None:
        """`up` or `down`."""
        return self.present["charon"] if self.present else None

    @property
    def mirror(self) -> str | None:
        """`complete` or `incomplete`."""
        return self.present["mirror"] if self.present else None


async def take_inventory(calls: Calls, connection: NatsConnection) -> list[Node]:
    """Ask all bridges and read the bucket of nodes concurrently."""
    asking = asyncio.create_task(Discovery("PING").run(calls))
    try:
        present = await _present(connection)
        found = await asking
    finally:
        asking.cancel()
    answers = {str(one.get("metadata", {}).get("node", "")): one.get("metadata", {}) for one in found}
    return [
        Node(
            name,
            name in answers,
            present.get(name),
            answers.get(name, {}).get("bridge") or (present[name]["bridge"] if name in present else None),
            answers.get(name, {}).get("charon") or (present[name]["charon_version"] if name in present else None),
        )
        for name in sorted(answers.keys() | present.keys())
    ]


async def _present(connection: NatsConnection) -> dict[str, NodeValue]:
    """Return the bucket of nodes; empty if it does not exist or this user may not read it."""
    values: dict[str, NodeValue] = {}

    async def take(page: list[Entry]) -> None:
        for entry in page:
            values.pop(entry.key, None)
            if entry.value is not None:
                with contextlib.suppress(ValueError):
                    values[entry.key] = load(entry.value)

    with contextlib.suppress(NatsError, TimeoutError):
        async with BucketReader(connection) as reader:
            await reader.read(NODE, ">", take, history=False, values=True)
    return {value["node"]: value for value in values.values()}


_FIRST = 1.0  # seconds to wait for the first reply; NATS reports missing bridges at once
_NEXT = 0.25  # seconds to wait for each further reply


class Discovery:
    """Collects the replies of all service instances."""

    def __init__(self, what: str) -> None:
        self.subject = f"$SRV.{what}.{SERVICE}"
        self.found: list[Mapping[str, Any]] = []
        self.wake: Callable[[], None] | None = None
        self._ended = False
        self._error: ViciError | None = None

    async def run(self, calls: Calls) -> list[Mapping[str, Any]]:
        """Send the request and return the replies when no more arrive."""
        leave = calls.begin(self, b"", {}, _FIRST)
        try:
            while not self._ended:
                async with asyncio.timeout(_NEXT if self.found else _FIRST):
                    await news(self)
        except TimeoutError:
            pass
        finally:
            leave()
        if self._error is not None:
            raise self._error
        return self.found

    def take(self, message: Msg) -> None:
        if is_no_responders(message):
            self._ended = True
        elif (instance := _instance(message.data)) is not None:
            self.found.append(instance)
        else:
            return  # such as an acknowledgement of JetStream, if a stream captures the request
        if self.wake is not None:
            self.wake()

    def fail(self, error: ViciError) -> None:
        self._error = error
        self._ended = True
        if self.wake is not None:
            self.wake()


def _instance(answer: bytes) -> Mapping[str, Any] | None:
    """Return the reply of a service instance; None if the payload is something else."""
    try:
        reply = json.loads(answer)
    except ValueError:
        return None
    return reply if isinstance(reply, dict) and reply.get("name") == SERVICE else None
