"""Runs commands from the bus on charon: each request in its own task, so that none waits for another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from vicifast.aio import AsyncSession
from vicifast.commands import COMMANDS, Danger
from vicifast.errors import (
    CommandError,
    ConnectionClosed,
    EncodeError,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
    ViciError,
)

from ..bus.connection import Disconnected, NatsConnection, TooLarge
from ..bus.supervisor import ConnectionSupervisor
from ..config.model import CommandsConfig
from ..contract import names
from ..contract.subjects import Subjects, unescape
from ..events.losses import Tally
from . import audit
from .audit import Audit
from .discovery import Instance, unsubscribe
from .limiter import Limiter
from .policy import Policy, may_block
from .reply import Reply
from .request import Options, RequestError, decode_request, read_options
from .session_pool import CONNECT_TIMEOUT, SessionPool

_logger = logging.getLogger(__name__)

_SHARE = 4  # blocking commands may hold one in this many of charon's threads
_SMALL = 4096  # bytes; the arguments of larger denied requests are not decoded for the audit


class Request:
    """One request and its result."""

    def __init__(self, message: Msg) -> None:
        self.message = message
        self.headers: Mapping[str, str] = message.headers or {}
        self.command = ""
        self.arguments: dict[str, object] | None = None
        self.changes = False  # whether `Audit.room` was awaited for it
        self.blocks = False
        self.code, self.text = 200, ""
        self.time = time.time_ns()
        self._began = time.perf_counter_ns()

    @property
    def nanoseconds(self) -> int:
        """The time since the request arrived."""
        return time.perf_counter_ns() - self._began

    def read_command(self) -> None:
        try:
            self.command = unescape(self.message.subject.rpartition(".")[2])
        except ValueError:
            raise RequestError(names.UNKNOWN, "the last token of the subject is not a command name") from None

    def ended(self, code: int, text: str) -> None:
        self.code = code
        self.text = audit.printable(" ".join(audit.scrub(text, self.command, self.arguments or {}).split()), 500)

    def entry(self, answer: Reply) -> dict[str, object]:
        """Return the audit entry; the requester's identity is taken from the request's headers, unverified."""
        headers = {"user": names.USER_HEADER, "id": names.REQUEST_ID_HEADER, "info": names.REQUEST_INFO_HEADER}
        who = {key: audit.printable(self.headers[name], 512) for key, name in headers.items() if name in self.headers}
        shown = None if self.arguments is None else audit.show(self.command, self.arguments)
        return {
            "subject": audit.printable(self.message.subject, 256),
            "reply": audit.printable(self.message.reply, 256),
            **who,
            "command": audit.printable(self.command, 64),
            "arguments": shown,
            "code": self.code,
            "text": self.text,
            "parts": answer.parts,
            "bytes": answer.bytes,
            "began": self.time,
            "nanoseconds": self.nanoseconds,
        }


class CommandServer:
    """Serves the command requests for one node, concurrently up to a limit.

    `stats` counts their results for each command, with all unknown commands under "". `report` publishes an event of
    the bridge.
    """

    def __init__(
        self,
        settings: CommandsConfig,
        subjects: Subjects,
        address: str,
        bus: ConnectionSupervisor,
        report: audit.ReportEvent,
    ) -> None:
        self.stats: dict[str, Tally] = {}
        self.quick = Limiter(settings.concurrency)
        self.blocking = Limiter(settings.blocking or 1)
        self._settings = settings
        self._policy = Policy(settings)
        self._subjects = subjects
        self._bus = bus
        self._audit = Audit(report, settings.audit)
        self._charon = SessionPool(address)
        self.instance = Instance(subjects, self._policy, self.stats, self._charon)
        self._tasks: set[asyncio.Task[None]] = set()
        self._exchanges: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._stopping = False

    def reload(self, settings: CommandsConfig) -> None:
        """Apply new settings to later requests."""
        self._settings = settings
        self._policy = self.instance.policy = Policy(settings)
        self._audit.scope = settings.audit

    async def run(self) -> None:
        """Serve on every connection until cancelled."""
        await self._bus.serve(self._subscribe)

    async def stop(self, timeout: float) -> None:
        """Stop accepting requests and wait `timeout` seconds for running ones; the rest get error 503."""
        self._stopping = True
        await unsubscribe(self._subscriptions)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for tasks in (self._tasks, self._exchanges):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._audit.flush()
        await self._charon.close()

    async def _subscribe(self, connection: NatsConnection) -> None:
        # The queue group is the node, so that only one of two bridges for the same node answers.
        group = self._subjects.node
        take = partial(self._take, connection)
        self._subscriptions = [
            await connection.subscribe_directly(subject, take, group) for subject in self._subjects.commands()
        ]

    def _take(self, connection: NatsConnection, message: Msg) -> None:
        task = asyncio.create_task(self._serve(connection, Request(message)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: NatsConnection, request: Request) -> None:
        reply = request.message.reply
        most = {"max_parts": self._settings.max_parts, "max_bytes": self._settings.max_bytes}
        answer = Reply(connection, reply, self._subjects.node, **most)
        try:
            try:
                request.read_command()
                if not self._subjects.allows_reply(reply) or connection.owns_inbox(reply):
                    request.ended(names.DENIED, "the reply subject is missing or not an inbox: no reply was sent")
                    return
                await self._answer(request, answer)
            except RequestError as refusal:
                request.ended(refusal.code, refusal.text)
                await answer.refuse(RequestError(refusal.code, request.text))
        except Disconnected:
            request.ended(names.UNAVAILABLE, "the connection to NATS was lost before the reply")
        except TooLarge:
            _logger.warning("max_payload of NATS is too small for an error reply")
        finally:
            self._record(request, answer)

    def _record(self, request: Request, answer: Reply) -> None:
        known = request.command in COMMANDS or self._policy.allows(request.command)
        name = request.command if known else ""
        self.stats.setdefault(name, Tally()).count(request.code, request.text, request.nanoseconds)
        self._audit.record(name, request.code, request.entry(answer), changes=request.changes)

    async def _answer(self, request: Request, answer: Reply) -> None:
        try:
            if self._stopping:
                raise RequestError(names.UNAVAILABLE, "this bridge is stopping")
            await self._run(request, answer, self._check(request, answer))
        except asyncio.CancelledError:
            if self._stopping:
                raise RequestError(names.UNAVAILABLE, "this bridge is stopping") from None
            raise
        except (RequestError, Disconnected):
            raise
        except Exception as error:
            raise _refusal(error) from None

    def _check(self, request: Request, answer: Reply) -> Options:
        """Check that the request is allowed and return its options."""
        message = request.message
        try:
            self._policy.admit(request.command)
        except RequestError:
            if len(message.data) <= _SMALL:
                with suppress(RequestError):
                    request.arguments = decode_request(message.data)
            raise
        options = read_options(message.data, request.headers, self._settings.timeout)
        answer.begin(options)
        request.arguments = decode_request(message.data)
        request.arguments = self._policy.judge(request.command, request.arguments, options.seconds)
        request.blocks = may_block(request.command, request.arguments)
        return options

    async def _run(self, request: Request, answer: Reply, options: Options) -> None:
        deadline = asyncio.get_running_loop().time() + options.seconds
        limiter = await self._limiter(request, options.seconds)
        await limiter.enter(options.seconds)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        exchange = asyncio.create_task(self._exchange(request, answer, options, limiter, done))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanges.discard)
        try:
            async with asyncio.timeout_at(deadline):
                await done
        except RequestTimeout:  # while connecting; also a TimeoutError
            raise
        except TimeoutError:
            raise RequestError(names.TIMEOUT, f"no reply within {options.seconds:g} seconds") from None
        finally:
            if not request.blocks:
                exchange.cancel()

    async def _limiter(self, request: Request, seconds: float) -> Limiter:
        if not request.blocks:
            return self.quick
        async with asyncio.timeout(seconds):
            self.blocking.limit = self._settings.blocking or max(1, await self._charon.threads() // _SHARE)
        return self.blocking

    async def _exchange(
        self, request: Request, answer: Reply, options: Options, limiter: Limiter, done: asyncio.Future[None]
    ) -> None:
        """Run a command, send the reply, and complete `done`.

        A blocking command is awaited to its end even after the request timed out, as it holds a thread of charon.
        """
        try:
            known = COMMANDS.get(request.command)
            if known is None or known.danger is not Danger.READ:
                await self._audit.room()
                request.changes = True
            limit = min(CONNECT_TIMEOUT, options.seconds / 2)
            async with self._charon.session(options.codec, limit) as session:
                await _ask(session, request, answer, done)
        except Exception as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(None)
        finally:
            limiter.leave()


async def _ask(session: AsyncSession, request: Request, answer: Reply, done: asyncio.Future[None]) -> None:
    known = COMMANDS.get(request.command)
    if known is None or known.event is None:
        await answer.single(await session.call(request.command, request.arguments, timeout=None))
        return
    stream = session.stream(request.command, request.arguments, timeout=None)
    async for part in stream:
        assert isinstance(part, bytes)
        if done.done():
            continue
        try:
            await answer.part(part)
        except (RequestError, Disconnected, TooLarge) as error:
            if not request.blocks:
                raise
            if not done.done():
                done.set_exception(error)
    if not done.done():
        await answer.end(stream.response or {})


def _refusal(error: Exception) -> RequestError:
    """Convert an error to one without internals for the requester; log an unexpected one."""
    match error:
        case EncodeError():
            # What follows ", not " is a value, which may be a secret.
            return RequestError(names.BAD_REQUEST, str(error).partition(", not ")[0])
        case UnknownCommand() | UnknownEvent():
            return RequestError(names.UNKNOWN, str(error))
        case CommandError():
            return RequestError(names.FAILED, error.errmsg or "charon reported an error without a reason")
        case TooLarge():
            return RequestError(names.TOO_LARGE, "the reply exceeds the maximum payload of NATS")
        case RequestTimeout():
            return RequestError(names.UNAVAILABLE, "charon does not accept connections at present")
        case ConnectionClosed() | OSError():
            return RequestError(names.UNAVAILABLE, "charon is not reachable")
        case ViciError():
            return RequestError(names.BAD_ANSWER, "charon sent an invalid reply")
    _logger.error("internal error while serving a request", exc_info=error)
    return RequestError(names.INTERNAL, "internal error of the bridge; see its log")
