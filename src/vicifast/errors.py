"""The exceptions of the library."""

from __future__ import annotations

from collections.abc import Mapping


class ViciError(Exception):
    """Base class of all exceptions of vicifast."""


class DecodeError(ViciError, ValueError):
    """Invalid bytes in a VICI message.

    `offset` is the position in bytes, from the start of the message, of the invalid part of an element.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at offset {offset}")
        self.reason = reason
        self.offset = offset

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, int]]:
        return type(self), (self.reason, self.offset)


class EncodeError(ViciError, ValueError):
    """A message that VICI cannot carry; nothing has been sent. The text names the path of the invalid part."""


class ConfigError(ViciError, ValueError):
    """An unreadable or invalid configuration file. The text names file and line, and never contains a value."""


class ProtocolError(ViciError):
    """The peer violated the packet protocol; the connection has been closed."""


class ConnectionClosed(ViciError, ConnectionError):
    """The connection is closed, was never opened, or closed before the reply arrived.

    If a system error ended it, that error is the cause, and `errno` is set.
    """


class RequestTimeout(ViciError, TimeoutError):
    """No reply within the timeout; the connection has been closed, as a late reply could not be identified."""


class CommandError(ViciError):
    """charon answered a command with `success=no`.

    `errmsg` is charon's text, empty if there is none; `response` is the whole reply.
    """

    def __init__(self, command: str, errmsg: str, response: Mapping[str, object]) -> None:
        super().__init__(f"{command}: {errmsg or 'failed, and charon gave no reason'}")
        self.command = command
        self.errmsg = errmsg
        self.response = response

    def __reduce__(self) -> tuple[type[CommandError], tuple[str, str, Mapping[str, object]]]:
        return type(self), (self.command, self.errmsg, self.response)


class UnknownCommand(ViciError):
    """charon does not know this command (CMD_UNKNOWN); the connection stays usable."""

    def __init__(self, command: str) -> None:
        super().__init__(f"charon does not know the command {command!r}")
        self.command = command

    def __reduce__(self) -> tuple[type[UnknownCommand], tuple[str]]:
        return type(self), (self.command,)


class UnknownEvent(ViciError):
    """charon does not know this event (EVENT_UNKNOWN); the connection stays usable."""

    def __init__(self, event: str) -> None:
        super().__init__(f"charon does not know the event {event!r}")
        self.event = event

    def __reduce__(self) -> tuple[type[UnknownEvent], tuple[str]]:
        return type(self), (self.event,)
