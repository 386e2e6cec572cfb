"""Functions called for events."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, TypeVar

from .protocol import RECV_TIMEOUT_DEFAULT
from .session import Session

F = TypeVar("F", bound=Callable[..., Any])


class StopListening(Exception):
    """Raised by a function that was called for an event or a timeout, it ends `EventListener.listen`."""


class EventListener:
    """Calls functions for events, for a timeout, and when the connection has ended."""

    def __init__(self, session: Session | None = None) -> None:
        self.event_map: dict[str, Callable[..., Any]] = {}
        self.disconnect_list: list[Callable[..., Any]] = []
        self.timeout_list: list[Callable[..., Any]] = []
        self.session = session

    def set_session(self, session: Session | None) -> None:
        """Set the session that `listen` uses from its start, or after a disconnection."""
        self.session = session

    def on_events(self, events: Iterable[str]) -> Callable[[F], F]:
        """Decorate a function to be called with the name and the message of each of these events."""

        def decorator(func: F) -> F:
            self.event_map.update(dict.fromkeys(events, func))
            return func

        return decorator

    def on_disconnected(self) -> Callable[[F], F]:
        """Decorate a function to be called with this listener when the connection has ended; it may set a session."""

        def decorator(func: F) -> F:
            self.disconnect_list.append(func)
            return func

        return decorator

    def on_timeout(self) -> Callable[[F], F]:
        """Decorate a function to be called, without arguments or with None twice, when no event came in time."""

        def decorator(func: F) -> F:
            self.timeout_list.append(func)
            return func

        return decorator

    def listen(self, timeout: float | None = RECV_TIMEOUT_DEFAULT) -> bool:
        """Wait for events and call the functions: True after `StopListening`, False when there is no session left.

        Without an event for `timeout` seconds, left out the socket's, those for a timeout are called.
        Other exceptions are passed on, as is `EventUnknownException`.
        """
        while (session := self.session) is not None:
            try:
                self._dispatch(session, timeout)
            except StopListening:
                return True
            except OSError:
                if not getattr(session, "closed", True):  # the function's own
                    raise
            self.session = None
            for func in self.disconnect_list:
                func(self)
        return False

    def _dispatch(self, session: Session, timeout: float | None) -> None:
        with closing(session.listen(self.event_map, timeout)) as events:
            for label, message in events:
                if label is None:
                    for func in self.timeout_list:
                        func(*([None, None] if inspect.signature(func).parameters else []))
                else:
                    name = label.decode()
                    self.event_map[name](name, message)
