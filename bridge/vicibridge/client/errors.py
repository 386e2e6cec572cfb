"""Errors of the bridge and of NATS, in addition to those of the sessions."""

from __future__ import annotations

from vicifast.errors import ViciError


class BusError(ViciError):
    """A bridge refused a request or failed: `code` as in HTTP, the `node`, and the `text` of the error."""

    def __init__(self, node: str, command: str, code: int, text: str) -> None:
        super().__init__(f"{node}: {command}: {text}")
        self.node = node
        self.command = command
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[type[BusError], tuple[str, str, int, str]]:
        return type(self), (self.node, self.command, self.code, self.text)


class Denied(BusError):
    """The bridge's configuration, or the permissions of this NATS user, do not allow the command (403)."""


class Busy(BusError):
    """Too many requests are queued at the bridge; retry later (429)."""


class Unavailable(BusError):
    """No bridge serves the node, or its charon is unreachable (503)."""


class SlowConsumer(ViciError):
    """Messages arrived faster than the program read them; `lost` is how many were dropped, oldest first.

    Raised in their place; the iteration may continue.
    """

    def __init__(self, lost: int) -> None:
        super().__init__(f"{lost} messages were dropped: they arrived faster than the program read them")
        self.lost = lost

    def __reduce__(self) -> tuple[type[SlowConsumer], tuple[int]]:
        return type(self), (self.lost,)


class JetStreamError(ViciError):
    """JetStream refused a request or cannot serve it; the text has its reason."""
