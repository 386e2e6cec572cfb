"""Calls functions for events."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, TypeVar

from .protocol import RECV_TIMEOUT_DEFAULT
from .session import Session

F = TypeVar("F", bound=Callable[..., Any])


class StopListening(Exception):
    """Raise this in a function called for an event or a timeout to end `EventListener.listen`."""


class EventListener:
    """Calls registered functions on events, on a timeout, and when the connection has ended."""

    def __init__(self, session: Session | None = None) -> None:
        self.event_map: dict[str, Callable[..., Any]] = {}
        self.disconnect_list: list[Callable[..., Any]] = []
        self.timeout_list: list[Callable[..., Any]] = []
        self.session = session

    def set_session(self, session: Session | None) -> None:
        """Set the session that `listen` uses when it starts, or after a disconnection."""
        self.session = session

    def on_events(self, events: Iterable[str]) -> Callable[[F], F]:
        """Decorate a function to be called with the name and the message of each of these events."""

        def decorator(func: F) -> F:
            self.event_map.update(dict.fromkeys(events, func))
            return func

        return decorator

    def on_disconnected(self) -> Callable[[F], F]:
        """Decorate a function to be called with this listener when the connection ends; it may set a new session."""

        def decorator(func: F) -> F:
            self.disconnect_list.append(func)
            return func

        return decorator

    def on_timeout(self) -> Callable[[F], F]:
        """Decorate a function to be called on a timeout, without arguments, or with None twice if it has parameters."""

        def decorator(func: F) -> F:
            self.timeout_list.append(func)
            return func

        return decorator

    def listen(self, timeout: float | None = RECV_TIMEOUT_DEFAULT) -> bool:
        """Wait for events and call the functions; return True after `StopListening`, False when no session is left.

        After `timeout` seconds without an event, by default the timeout of the socket, the functions for a timeout are
        called. Other exceptions propagate, including `EventUnknownException`.
        """
        while (session := self.session) is not None:
            try:
                self._dispatch(session, timeout)
            except StopListening:
                return True
            except OSError:
                if not getattr(session, "closed", True):  # raised by the function, not by the connection
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
