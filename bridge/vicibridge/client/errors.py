"""What can go wrong on the bus beyond the errors of the sessions, which are the same here."""

from __future__ import annotations

from vicifast.errors import ViciError


class BusError(ViciError):
    """A bridge refused a request or failed at it: `code` as in HTTP, `node` who said so, `text` in its words."""

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
    """Too many requests wait at the bridge; later there may be fewer (429)."""


class Unavailable(BusError):
    """No bridge serves the node, or charon is not there behind it (503)."""


class SlowConsumer(ViciError):
    """Messages were dropped, the oldest first, as they came faster than they were taken; `lost` is how many.

    It is raised in their place; the iteration may go on.
    """

    def __init__(self, lost: int) -> None:
        super().__init__(f"{lost} messages were dropped: they came faster than they were taken")
        self.lost = lost

    def __reduce__(self) -> tuple[type[SlowConsumer], tuple[int]]:
        return type(self), (self.lost,)


class JetStreamError(ViciError):
    """JetStream does not do as asked; the text has its words."""
