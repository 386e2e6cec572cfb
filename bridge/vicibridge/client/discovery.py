"""Who is there: NATS's service discovery (ADR-32), which every bridge answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from nats.aio.msg import Msg

from vicifast.errors import ViciError

from .calls import Calls, news

SERVICE = "vicibridge"
_FIRST = 1.0  # seconds for the first answer; nobody at all NATS tells at once
_NEXT = 0.25  # for another one after that


class Discovery:
    """Gathers what the instances of the service say of themselves."""

    def __init__(self, what: str) -> None:
        self.subject = f"$SRV.{what}.{SERVICE}"
        self.found: list[Mapping[str, Any]] = []
        self.wake: Callable[[], None] | None = None
        self._ended = False
        self._error: ViciError | None = None

    async def run(self, calls: Calls) -> list[Mapping[str, Any]]:
        """Ask, and return the answers once no more come."""
        leave = calls.begin(self, b"", {})
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
        if message.data:
            self.found.append(json.loads(message.data))
        else:
            self._ended = True  # NATS says that nobody is there
        if self.wake is not None:
            self.wake()

    def fail(self, error: ViciError) -> None:
        self._error = error
        self._ended = True
        if self.wake is not None:
            self.wake()
