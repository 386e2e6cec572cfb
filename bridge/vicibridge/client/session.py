"""charon's commands over NATS, to one gateway."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, cast

from vicifast.aio import Stream
from vicifast.commands import COMMANDS
from vicifast.methods import DEFAULT, Commands
from vicifast.protocol import Values, stream_event
from vicifast.session import M

from ..contract.subjects import command_subject
from .calls import Calls, NodeCall, encode_request, request_headers


class BusSession(Commands[Coroutine[Any, Any, M], Stream[M]], Generic[M]):
    """The commands of one gateway, as `AsyncSession` has them, through its bridge; `Fleet.node` makes it.

    Errors are those of `AsyncSession`, and `Denied`, `Unavailable`, `Busy` or another `BusError` when the bridge says
    no. Requests run side by side. `timeout` is told to the bridge, whose own limit holds where it is shorter. A
    request that timed out or was cancelled may still be running at the gateway.
    """

    def __init__(
        self, calls: Callable[[], Calls], prefix: str, node: str, timeout: float | None, values: Values
    ) -> None:
        self.node = node
        self.timeout = timeout
        self._calls = calls
        self._prefix = prefix
        self._values = values

    async def call(
        self, command: str, message: Mapping[str, object] | None = None, *, timeout: float | None = DEFAULT
    ) -> M:
        """Run a command and return its reply; what it streams is dropped."""
        limit = self.timeout if timeout is DEFAULT else timeout
        calls, call = self._begin(command, message, limit)
        if call.event is None:
            while not call.done:
                await calls.wait_call(call, limit)
            return cast(M, call.result())
        return await Stream[M](calls, call, limit).wait()

    def stream(
        self,
        command: str,
        message: Mapping[str, object] | None = None,
        event: str | None = None,
        *,
        timeout: float | None = DEFAULT,
    ) -> Stream[M]:
        """Run a command, at once, and return its messages as they come.

        `event` may only be what `vicifast.commands` has for the command: bridges stream nothing else.
        """
        known = COMMANDS.get(command)
        if event is not None and (known is None or known.event != event):
            raise ValueError(f"a bridge streams no {event} for {command}")
        stream_event(command, event)
        limit = self.timeout if timeout is DEFAULT else timeout
        calls, call = self._begin(command, message, limit)
        return Stream(calls, call, limit)

    def _begin(self, command: str, message: Mapping[str, object] | None, limit: float | None) -> tuple[Calls, NodeCall]:
        calls = self._calls()
        payload = encode_request(command, message)
        call = NodeCall(self.node, command_subject(self._prefix, self.node, command), command, self._values)
        # The limit of a stream is for each message, and the bridge's is for all, except where charon has one itself.
        told = limit if call.event is None or COMMANDS[command].blocks else None
        call.leave = calls.begin(call, payload, request_headers(told), limit)
        return calls, call
