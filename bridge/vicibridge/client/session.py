"""charon's commands over NATS, on one gateway."""

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
    """The commands of one gateway, as in `AsyncSession`, through its bridge; created by `Fleet.node`.

    Errors are those of `AsyncSession`, plus `Denied`, `Unavailable`, `Busy` or another `BusError` from the bridge.
    Requests run concurrently. `timeout` is sent to the bridge, which applies its own limit if that is shorter. A
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
        """Run a command and return its reply; streamed messages are dropped."""
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
        """Start a command and return its messages as they arrive.

        Raises ValueError if `event` is not the event of the command in `vicifast.commands`: bridges stream no other.
        """
        known = COMMANDS.get(command)
        if event is not None and (known is None or known.event != event):
            raise ValueError(f"a bridge does not stream {event} for {command}")
        stream_event(command, event)
        limit = self.timeout if timeout is DEFAULT else timeout
        calls, call = self._begin(command, message, limit)
        return Stream(calls, call, limit)

    def _begin(self, command: str, message: Mapping[str, object] | None, limit: float | None) -> tuple[Calls, NodeCall]:
        calls = self._calls()
        payload = encode_request(command, message)
        call = NodeCall(self.node, command_subject(self._prefix, self.node, command), command, self._values)
        # A stream's limit is per message, the bridge's is for all of them; a blocking command has one in charon.
        header = limit if call.event is None or COMMANDS[command].blocks else None
        call.leave = calls.begin(call, payload, request_headers(header), limit)
        return calls, call
