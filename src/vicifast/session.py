"""Base classes of the blocking and the asyncio session: everything except waiting."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from . import _wire, protocol
from .address import Address, parse_address
from .errors import ConnectionClosed
from .methods import DEFAULT, Commands
from .protocol import Call, Section, Subscription, Values

if TYPE_CHECKING:
    import typing_extensions

    M = typing_extensions.TypeVar("M", default=Section)  # the type of a message: dict or Message
else:
    M = TypeVar("M")


class Connection(Protocol):
    """Transfers bytes between a socket and the protocol."""

    protocol: protocol.Protocol


class Waits(Protocol):
    """The interface that an asyncio stream needs from its connection."""

    async def wait_call(self, call: Call, timeout: float | None) -> None:
        """Return when `call` has new messages or is done; raise `RequestTimeout` after `timeout` seconds without."""


ReplyT = TypeVar("ReplyT")
StreamT = TypeVar("StreamT")
C = TypeVar("C", bound=Connection)
W = TypeVar("W")  # waits for messages of a call


class BaseSession(Commands[ReplyT, StreamT], Generic[ReplyT, StreamT, C]):
    """The settings of a session, and its connection while it is open."""

    def __init__(
        self,
        address: Address,
        timeout: float | None,
        values: Values,
        readers: Mapping[str, _wire.Reader] | None,
    ) -> None:
        if not isinstance(address, socket.socket):
            parse_address(address)
        self.address = address
        self.timeout = timeout
        self._values = values
        self._readers = dict(readers or {})
        self._connection: C | None = None
        self._protocol: protocol.Protocol | None = None

    @property
    def closed(self) -> bool:
        """Whether a call would raise `ConnectionClosed` now."""
        return self._connection is None or self._connection.protocol.closed is not None

    @property
    def late_events(self) -> int:
        """Events on this or the last connection that arrived after their last listener left, and were dropped."""
        return self._protocol.late_events if self._protocol is not None else 0

    def _new_protocol(self) -> protocol.Protocol:
        self._protocol = protocol.Protocol(*protocol.readers_for(self._values, self._readers))
        return self._protocol

    def _require(self) -> C:
        if self._connection is None:
            raise ConnectionClosed("the session is not connected")
        return self._connection

    def _limit(self, timeout: float | None) -> float | None:
        return self.timeout if timeout is DEFAULT else timeout


class BaseStream(Generic[W, M]):
    """The messages of one streaming command."""

    def __init__(self, connection: W, call: Call, timeout: float | None) -> None:
        self._connection = connection
        self._call = call
        self._timeout = timeout

    @property
    def response(self) -> M | None:
        """The reply that ended the stream; None until then."""
        return cast("M | None", self._call.response)

    def __del__(self) -> None:
        self._call.abandon()


class BaseListener(Generic[C, M]):
    """The events registered by one `listen`; its `timeout` may be changed."""

    _is_ready = False

    def __init__(
        self, connection: C, subscription: Subscription, timeout: float | None, register_timeout: float | None
    ) -> None:
        self._connection = connection
        self._subscription = subscription
        self.timeout = timeout
        self._register_timeout = register_timeout

    @property
    def unknown(self) -> tuple[str, ...]:
        """The events that charon does not support; complete once the listener is ready."""
        return tuple(self._subscription.unknown)

    @property
    def lost(self) -> int:
        """Number of events dropped, oldest first, because more than `protocol.LISTENER_LIMIT` were unread."""
        return self._subscription.lost

    def _take_all(self) -> list[tuple[str, Any]]:
        taken = list(self._subscription.items)
        self._subscription.items.clear()
        return taken

    def _take(self) -> tuple[str, M]:
        name, body = self._subscription.items.popleft()
        return name, protocol.content(body)

    def __del__(self) -> None:
        self._connection.protocol.leave(self._subscription)
