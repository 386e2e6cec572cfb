"""One command on every gateway, with one result from each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Self, cast

from nats.aio.msg import Msg

from vicifast.errors import ViciError
from vicifast.methods import DEFAULT, Commands
from vicifast.protocol import Values
from vicifast.session import M

from ..contract.names import NODE_HEADER
from ..contract.subjects import ALL_NODES, command_subject, name_of
from .calls import Calls, NodeCall, encode_request, is_no_responders, news, request_headers


@dataclass(frozen=True, slots=True)
class Answer(Generic[M]):
    """The result of one gateway: the `parts` it streamed, and its `response` or `error`."""

    node: str
    parts: list[M] = field(default_factory=list)
    response: M | None = None
    error: ViciError | None = None


class Everyone(Commands["Answers[M]", "Answers[M]"], Generic[M]):
    """The commands as methods, each run on every gateway; see `Answers`. Created by `Fleet.everyone`."""

    def __init__(
        self,
        calls: Callable[[], Calls],
        prefix: str,
        present: Callable[[], Awaitable[Iterable[str]]],
        timeout: float | None,
        stall: float,
        values: Values,
    ) -> None:
        self.timeout = timeout
        self._calls = calls
        self._prefix = prefix
        self._present = present
        self._stall = stall
        self._values = values

    def call(
        self, command: str, message: Mapping[str, object] | None = None, *, timeout: float | None = DEFAULT
    ) -> Answers[M]:
        """Start a command on every gateway and return the answers as they arrive."""
        limit = self.timeout if timeout is DEFAULT else timeout
        calls, payload = self._calls(), encode_request(command, message)
        answers = Answers[M](
            command_subject(self._prefix, ALL_NODES, command), command, limit, self._stall, self._values
        )
        answers._begin(calls.begin(answers, payload, request_headers(limit), limit), self._present())
        return answers

    def stream(
        self,
        command: str,
        message: Mapping[str, object] | None = None,
        event: str | None = None,
        *,
        timeout: float | None = DEFAULT,
    ) -> Answers[M]:
        """The same as `call`: each answer collects the streamed messages. `event` is ignored; the bridge knows it."""
        return self.call(command, message, timeout=timeout)


class Answers(Generic[M]):
    """The answers of all gateways, as an async iterator of `Answer`, each when it is complete.

    It ends when every running gateway has answered; otherwise after `timeout` seconds in total, or `stall` seconds
    after the latest message. `missing` then names the gateways that did not answer.
    """

    def __init__(self, subject: str, command: str, timeout: float | None, stall: float, values: Values) -> None:
        self.subject = subject
        self.wake: Callable[[], None] | None = None
        self.expected: set[str] | None = None
        self._command = command
        self._stall = stall
        self._values = values
        self._answering: dict[str, NodeCall] = {}
        self._answered: set[str] = set()
        self._ready: deque[Answer[M]] = deque()
        self._error: ViciError | None = None
        self._no_responders = False
        loop = asyncio.get_running_loop()
        self._deadline = None if timeout is None else loop.time() + timeout
        self._last: float | None = None
        self._leave: Callable[[], None] = lambda: None
        self._asking: asyncio.Task[None] | None = None

    @property
    def answered(self) -> list[str]:
        """The gateways whose answer is complete."""
        return sorted(self._answered)

    @property
    def missing(self) -> list[str]:
        """The gateways that are running or began to answer, and whose answer is not complete."""
        return sorted(({*self._answering} | (self.expected or set())) - self._answered)

    async def all(self) -> list[Answer[M]]:
        """Wait for the end and return all answers, sorted by node."""
        return sorted([answer async for answer in self], key=lambda answer: answer.node)

    def _begin(self, leave: Callable[[], None], present: Awaitable[Iterable[str]]) -> None:
        self._leave = leave
        self._asking = asyncio.ensure_future(self._ask(present))

    async def _ask(self, present: Awaitable[Iterable[str]]) -> None:
        try:
            self.expected = set(await present)
            self._news()
        except ViciError as error:
            self.fail(error)

    def take(self, message: Msg) -> None:
        token = (message.headers or {}).get(NODE_HEADER)
        node = None if token is None else name_of(token)
        if token is None:
            if not is_no_responders(message):
                return  # an acknowledgement of JetStream, as a stream captures the request
            self._no_responders = True
        elif node is None:
            return  # not from a bridge
        self._last = asyncio.get_running_loop().time()
        if node is not None:
            call = self._answering.get(node)
            if call is None:
                call = self._answering[node] = NodeCall(node, self.subject, self._command, self._values)
            call.take(message)
            if call.done and node not in self._answered:
                self._answered.add(node)
                self._ready.append(
                    Answer(node, cast("list[M]", list(call.items)), cast("M | None", call.response), call.error)
                )
        self._news()

    def fail(self, error: ViciError) -> None:
        self._error = error
        self._news()

    def _news(self) -> None:
        if self.wake is not None:
            self.wake()

    def _complete(self) -> bool:
        return self.expected is not None and (self._no_responders or not self.missing)

    def _wait(self) -> float | None:
        now = asyncio.get_running_loop().time()
        ends = [] if self._deadline is None else [self._deadline]
        if self._last is not None and self.expected is not None:
            ends.append(self._last + self._stall)
        return min(ends) - now if ends else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer[M]:
        while not self._ready:
            if self._error is not None:
                raise self._error
            wait = self._wait()
            if self._complete() or (wait is not None and wait <= 0):
                await self.aclose()
                raise StopAsyncIteration
            try:
                async with asyncio.timeout(wait):
                    await news(self)
            except TimeoutError:
                continue
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Stop waiting for answers."""
        self._leave()
        if self._asking is not None:
            self._asking.cancel()

    def __del__(self) -> None:
        self._leave()
        if self._asking is not None:
            self._asking.cancel()
