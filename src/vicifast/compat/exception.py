"""The exceptions of strongSwan's module, and their mapping from `vicifast.errors`."""

from __future__ import annotations

from types import TracebackType

from .. import errors


class DeserializationException(Exception):
    """A message is malformed."""


class SessionException(Exception):
    """charon does not know the command, or violated the packet protocol."""


class CommandException(Exception):
    """charon answered a command with `success=no`; the text contains the reason."""


class EventUnknownException(Exception):
    """charon does not know the event."""


class Translated:
    """On leaving `with`, raises the exception of this module for one of `vicifast.errors`, which becomes its cause."""

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
