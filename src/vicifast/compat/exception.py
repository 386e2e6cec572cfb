"""The exceptions of strongSwan's module, and which of ours becomes which."""

from __future__ import annotations

from types import TracebackType

from .. import errors


class DeserializationException(Exception):
    """A message is malformed."""


class SessionException(Exception):
    """charon does not know the command, or broke the rules of the packet layer."""


class CommandException(Exception):
    """charon answered a command with `success=no`; the text has its reason."""


class EventUnknownException(Exception):
    """charon does not know the event."""


class Translated:
    """Raises, on leaving `with`, the exception of this module for one of `vicifast.errors`, which is its cause."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, errors.CommandError):
            raise CommandException(f"Command failed: {error.errmsg}") from error
        if isinstance(error, errors.UnknownEvent):
            raise EventUnknownException(f"Unknown event type '{error.event}'") from error
        if isinstance(error, errors.DecodeError):
            raise DeserializationException(str(error)) from error
        if isinstance(error, (errors.UnknownCommand, errors.ProtocolError)):
            raise SessionException(str(error)) from error
