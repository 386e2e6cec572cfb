"""The blocking follower."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Self

from ..blocking import Listener, Session
from ..errors import UnknownEvent, ViciError
from ..session import M
from .base import BaseFollower, Item


class Follower(BaseFollower[M]):
    """An iterator that follows the events of one charon; see `vicifast.follow`.

    `address` is a path, `unix://PATH`, `tcp://HOST:PORT` or None for strongSwan's default; `events` are names, by
    default all standalone events except `log`. `sas` and `conns` select the content of a `Snapshot`; without either
    none are taken. The iteration ends after `timeout` seconds without an item, once outstanding requests have
    been answered, and can be resumed. `request_timeout` is the maximum wait for a connection and for each reply;
    `values` is as for `Session`.

    The follower reads only while waiting for an item, and charon buffers without limit for a client that does not read.
    Only one thread at a time may use it. Use `with`, or call `close`: charon logs each event that it cannot deliver.
    """

    _session: Session[M] | None = None
    _listener: Listener[M] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item[M]:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        while not self._items:
            if self._closed or not self._advance(deadline):
                raise StopIteration
        return self._items.popleft()

    def close(self) -> None:
        """Unregister and disconnect; ends the iteration."""
        self._closed = True
        self._items.clear()
        self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._disconnect()

    def _advance(self, deadline: float | None) -> bool:
        """Perform the next step; False when the deadline passed first."""
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self._session is None or self._listener is None:
            pause = self._pause()
            if remaining is not None and remaining < pause:
                time.sleep(remaining)
                return False
            time.sleep(pause)
            if not self._closed:
                self._connect()
            return True
        try:
            if self._stale:
                self._listed(self._list(self._session))
                return True
            self._listener.timeout = remaining
            batch = self._listener.batch()
        except ViciError as error:
            self._disconnect()
            self._went_down(error)
            return True
        self._took(batch, self._listener.lost)
        return bool(batch)

    def _connect(self) -> None:
        self._session = session = Session(self.address, **self._options)
        try:
            session.connect()
            listener = session.listen(*self.events)
            with suppress(UnknownEvent):
                listener.ready()
            registered = time.time()
            self._came_up(listener.unknown, registered, self._list(session))
            self._listener = listener
        except ViciError as error:
            self._went_down(error)
        finally:
            if self._listener is None:
                self._disconnect()

    def _list(self, session: Session[M]) -> dict[str, list[M]]:
        return {command: list(session.stream(command)) for command in self._snapshot_commands}

    def _disconnect(self) -> None:
        session, self._session, self._listener = self._session, None, None
        if session is not None:
            session.close()
