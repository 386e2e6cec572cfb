"""Commands from the bus to charon: each request in a task of its own, so that none waits for another."""

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

from ..bus.connection import Disconnected, Link, TooLarge
from ..bus.supervisor import Bus
from ..config.model import CommandsConfig
from ..contract import names
from ..contract.subjects import Subjects, unescape
from ..events.losses import Tally
from . import audit
from .audit import Audit
from .discovery import DiscoveryResponder
from .limiter import Limiter
from .policy import Policy, may_block
from .reply import Reply
from .request import Options, RequestError, decode_request, read_options
from .session_pool import CONNECT_TIMEOUT, SessionPool

_logger = logging.getLogger(__name__)

_SHARE = 4  # of charon's threads, one of so many may be held by commands that block
_SMALL = 4096  # bytes of a request that was denied which are still read, for the audit


class Request:
    """One request, and what becomes of it."""

    def __init__(self, message: Msg) -> None:
        self.message = message
        self.headers: Mapping[str, str] = message.headers or {}
        self.command = ""
        self.arguments: dict[str, object] | None = None
        self.changes = False  # whether the audit has made room for it
        self.blocks = False
        self.code, self.text = 200, ""
        self.time = time.time_ns()
        self._began = time.perf_counter_ns()

    @property
    def nanoseconds(self) -> int:
        """How long it has taken so far."""
        return time.perf_counter_ns() - self._began

    def read_command(self) -> None:
        try:
            self.command = unescape(self.message.subject.rpartition(".")[2])
        except ValueError:
            raise RequestError(names.UNKNOWN, "the last part of the subject is no name of a command") from None

    def ended(self, code: int, text: str) -> None:
        self.code = code
        self.text = audit.printable(" ".join(audit.scrub(text, self.command, self.arguments or {}).split()), 500)

    def entry(self, answer: Reply) -> dict[str, object]:
        """Return what the audit says of it; who asks is told as the request itself says."""
        told = {"user": names.USER_HEADER, "id": names.REQUEST_ID_HEADER, "info": names.REQUEST_INFO_HEADER}
        who = {key: audit.printable(self.headers[name], 512) for key, name in told.items() if name in self.headers}
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
    """Answers the requests for one node, side by side up to a limit.

    `stats` has what became of them: a tally for each command, those unknown together under "". `tell` publishes an
    envelope of the bridge's own.
    """

    def __init__(self, settings: CommandsConfig, subjects: Subjects, address: str, bus: Bus, tell: audit.Tell) -> None:
        self.stats: dict[str, Tally] = {}
        self.quick = Limiter(settings.concurrency)
        self.blocking = Limiter(settings.blocking or 1)
        self._settings = settings
        self._policy = Policy(settings)
        self._subjects = subjects
        self._bus = bus
        self._audit = Audit(tell, settings.audit)
        self._charon = SessionPool(address)
        self._discovery = DiscoveryResponder(subjects, self._policy, self.stats, self._charon)
        self._tasks: set[asyncio.Task[None]] = set()
        self._exchanges: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._stopping = False

    def reload(self, settings: CommandsConfig) -> None:
        """Take over other settings; requests that run go on as they began."""
        self._settings = settings
        self._policy = self._discovery.policy = Policy(settings)
        self._audit.scope = settings.audit

    async def run(self) -> None:
        """Serve on every link there is, until cancelled."""
        await self._bus.serve(self._subscribe)

    async def stop(self, timeout: float) -> None:
        """Take no more requests and wait for those that run; what is not done in time is answered with 503."""
        self._stopping = True
        for subscription in self._subscriptions:
            try:
                await subscription.unsubscribe()
            except Exception:  # the link may be gone, then so is the subscription
                _logger.debug("unsubscribing failed", exc_info=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for tasks in (self._tasks, self._exchanges):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._audit.flush()
        await self._charon.close()

    async def _subscribe(self, link: Link) -> None:
        # The queue group is the node, so that of two bridges for one node just one answers.
        group = self._subjects.node
        take = partial(self._take, link)
        commands = [await link.subscribe(subject, take, group) for subject in self._subjects.commands()]
        self._subscriptions = [*commands, *await self._discovery.subscribe(link)]

    async def _take(self, link: Link, message: Msg) -> None:
        """Begin a request in a task of its own: NATS hands over the next one only after this returns."""
        task = asyncio.create_task(self._serve(link, Request(message)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: Link, request: Request) -> None:
        reply = request.message.reply
        most = {"max_parts": self._settings.max_parts, "max_bytes": self._settings.max_bytes}
        answer = Reply(link, reply, self._subjects.node, **most)
        try:
            try:
                request.read_command()
                if not self._subjects.allows_reply(reply) or link.listens_to(reply):
                    request.ended(names.DENIED, "the reply subject is none, or no inbox: nothing was answered")
                    return
                await self._answer(request, answer)
            except RequestError as refusal:
                request.ended(refusal.code, refusal.text)
                await answer.refuse(RequestError(refusal.code, request.text))
        except Disconnected:
            request.ended(names.UNAVAILABLE, "NATS was lost before the answer")
        except TooLarge:
            _logger.warning("NATS takes messages too short for an error reply")
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
        """Make sure that the request may be run, and find out how it wants to be answered."""
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
        lane = await self._lane(request, options.seconds)
        await lane.enter(options.seconds)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        exchange = asyncio.create_task(self._exchange(request, answer, options, lane, told))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanges.discard)
        try:
            async with asyncio.timeout_at(deadline):
                await told
        except RequestTimeout:  # of connecting; it is a TimeoutError as well
            raise
        except TimeoutError:
            raise RequestError(names.TIMEOUT, f"no answer within {options.seconds:g} seconds") from None
        finally:
            if not request.blocks:
                exchange.cancel()

    async def _lane(self, request: Request, seconds: float) -> Limiter:
        if not request.blocks:
            return self.quick
        async with asyncio.timeout(seconds):
            self.blocking.limit = self._settings.blocking or max(1, await self._charon.threads() // _SHARE)
        return self.blocking

    async def _exchange(
        self, request: Request, answer: Reply, options: Options, lane: Limiter, told: asyncio.Future[None]
    ) -> None:
        """Run a command and answer, then give `told` the result.

        A command that blocks is followed to its end even when nobody waits any more, as it holds a thread of charon.
        """
        try:
            known = COMMANDS.get(request.command)
            if known is None or known.danger is not Danger.READ:
                await self._audit.room()
                request.changes = True
            limit = min(CONNECT_TIMEOUT, options.seconds / 2)
            async with self._charon.session(options.codec, limit) as session:
                await _ask(session, request, answer, told)
        except Exception as error:
            if not told.done():
                told.set_exception(error)
        else:
            if not told.done():
                told.set_result(None)
        finally:
            lane.leave()


async def _ask(session: AsyncSession, request: Request, answer: Reply, told: asyncio.Future[None]) -> None:
    known = COMMANDS.get(request.command)
    if known is None or known.event is None:
        await answer.single(await session.call(request.command, request.arguments, timeout=None))
        return
    stream = session.stream(request.command, request.arguments, timeout=None)
    async for part in stream:
        assert isinstance(part, bytes)
        if told.done():
            continue
        try:
            await answer.part(part)
        except (RequestError, Disconnected, TooLarge) as error:
            if not request.blocks:
                raise
            if not told.done():
                told.set_exception(error)
    if not told.done():
        await answer.end(stream.response or {})


def _refusal(error: Exception) -> RequestError:
    """Return what the caller may know about an error; everything else goes to the log."""
    match error:
        case EncodeError():
            return RequestError(names.BAD_REQUEST, str(error).partition(", not ")[0])  # what follows is a value
        case UnknownCommand() | UnknownEvent():
            return RequestError(names.UNKNOWN, str(error))
        case CommandError():
            return RequestError(names.FAILED, error.errmsg or "charon refused, and gave no reason")
        case TooLarge():
            return RequestError(names.TOO_LARGE, "the reply is larger than NATS accepts here")
        case RequestTimeout():
            return RequestError(names.UNAVAILABLE, "charon takes no connections at the moment")
        case ConnectionClosed() | OSError():
            return RequestError(names.UNAVAILABLE, "charon is not reachable")
        case ViciError():
            return RequestError(names.BAD_ANSWER, "charon's answer was not understood")
    _logger.error("a request failed in the bridge", exc_info=error)
    return RequestError(names.INTERNAL, "the bridge failed; its log says how")
