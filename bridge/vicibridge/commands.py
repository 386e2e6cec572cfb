"""Commands from the bus to charon, and the answers back.

A single reply is one message. A streamed one is a message for each part, then an empty message with the headers
`Status`, `Description` and `Vici-Count` (ADR-47); `Vici-Collect: true` in the request gathers the parts into one list.
An error is an empty message with `Nats-Service-Error-Code` and `Nats-Service-Error`, whether parts went before or not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from vicifast._wire import Reader, Transcoder
from vicifast.aio import AsyncSession
from vicifast.commands import COMMANDS, EVENTS
from vicifast.errors import (
    CommandError,
    ConnectionClosed,
    EncodeError,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
    ViciError,
)

from . import config, requests
from .bus import Bus
from .envelope import Codec
from .link import Disconnected, Link, TooLarge
from .requests import Refusal
from .subjects import Subjects, unescape

_logger = logging.getLogger(__name__)

COLLECT = "Vici-Collect"
CODEC = "Vici-Codec"
NODE = "Vici-Node"
COUNT = "Vici-Count"
PART = "Vici-Part"

_CONNECT_TIMEOUT = 5.0  # seconds; charon accepts within milliseconds
_QUEUE = 8  # requests that may wait for each one that may run
_PACE = 512 * 1024  # bytes of a streamed reply between two round trips to the server


class Commands:
    """Answers the requests for one node, side by side up to a limit, each on a VICI connection of its own."""

    def __init__(self, settings: config.Commands, subjects: Subjects, address: str, bus: Bus) -> None:
        self._settings = settings
        self._subjects = subjects
        self._address = address
        self._bus = bus
        self._running = asyncio.Semaphore(settings.concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._stopping = False

    def reload(self, settings: config.Commands) -> None:
        """Take over what may change at run time; requests that run go on as they began."""
        self._settings = settings

    async def run(self) -> None:
        """Serve on every link there is, until cancelled."""
        while True:
            link = await self._bus.link()
            try:
                await self._subscribe(link)
            except Disconnected:
                continue
            await link.lost()

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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _subscribe(self, link: Link) -> None:
        async def take(message: Msg) -> None:
            self._take(link, message)

        # The queue group is the node, so that of two bridges for one node just one answers.
        self._subscriptions = [
            await link.subscribe(subject, take, self._subjects.node) for subject in self._subjects.commands()
        ]

    def _take(self, link: Link, message: Msg) -> None:
        """Begin a request in a task of its own: NATS hands over the next one only after this returns."""
        if not message.reply:
            return  # nobody would read the answer, and none of the commands is worth running without
        busy = len(self._tasks) >= self._settings.concurrency * (1 + _QUEUE)
        task = asyncio.create_task(self._serve(link, message, busy))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: Link, message: Msg, busy: bool) -> None:
        answer = _Answer(link, message, self._subjects.node)
        try:
            try:
                if self._stopping:
                    raise Refusal(requests.UNAVAILABLE, "this bridge is stopping")
                if busy:
                    raise Refusal(requests.BUSY, "too many requests are waiting; try again later")
                await self._run_in_time(answer, message)
            except Refusal as refusal:
                await answer.refuse(refusal)
        except Disconnected:
            pass  # the answer has no way back any more
        except TooLarge:
            _logger.warning("NATS takes messages too short for an error reply")

    async def _run_in_time(self, answer: _Answer, message: Msg) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout), self._running:
                await self._run(answer, message)
        except RequestTimeout:
            raise Refusal(requests.UNAVAILABLE, "charon takes no connections at the moment") from None
        except TimeoutError:
            raise Refusal(requests.TIMEOUT, f"no answer within {self._settings.timeout:g} seconds") from None
        except asyncio.CancelledError:
            if self._stopping:
                raise Refusal(requests.UNAVAILABLE, "this bridge is stopping") from None
            raise
        except (Refusal, Disconnected):
            raise
        except TooLarge:
            raise Refusal(requests.TOO_LARGE, "the reply is larger than NATS accepts here") from None
        except Exception as error:
            raise _refusal(error) from None

    async def _run(self, answer: _Answer, message: Msg) -> None:
        command = _command(message.subject)
        arguments = requests.decode_request(message.data)
        arguments = requests.check(command, arguments, self._settings.allow, self._settings.timeout)
        known = COMMANDS.get(command)
        event = known.event if known else None
        readers: dict[str, Reader] = {}
        if event:
            readers[event] = Transcoder(answer.codec, binary=EVENTS[event].binary)
        # The session's own limit is for connecting; the rest has what is left of the time of the whole request.
        limit = min(_CONNECT_TIMEOUT, self._settings.timeout / 2)
        async with AsyncSession(self._address, timeout=limit, readers=readers) as session:
            if event is None:
                await answer.single(await session.call(command, arguments, timeout=None))
                return
            stream = session.stream(command, arguments, timeout=None)
            async for part in stream:
                assert isinstance(part, bytes)
                await answer.part(part)
            await answer.end(stream.response or {})


class _Answer:
    """The way back to who asked."""

    def __init__(self, link: Link, message: Msg, node: str) -> None:
        self._link = link
        self._reply = message.reply
        self._headers = {NODE: node}
        self._count = 0
        self._unpaced = 0
        asked: Mapping[str, str] = message.headers or {}
        wanted = asked.get(CODEC)
        self._collected: list[bytes] | None = [] if asked.get(COLLECT, "").lower() == "true" else None
        self.codec: Codec = requests.codec_of(message.data)
        if wanted == "json":
            self.codec = "json"
        elif wanted == "msgpack":
            self.codec = "msgpack"

    async def single(self, section: Mapping[str, object]) -> None:
        await self._publish(requests.encode_section(self.codec, section))

    async def part(self, data: bytes) -> None:
        self._count += 1
        self._unpaced += len(data)
        if self._collected is None:
            await self._publish(data)
        elif self._unpaced > self._link.max_payload:
            raise TooLarge
        else:
            self._collected.append(data)

    async def end(self, response: Mapping[str, object]) -> None:
        """End a stream. A response that says more than success goes before the end, marked as such."""
        if self._collected is not None:
            await self._publish(requests.encode_list(self.codec, self._collected), {COUNT: str(self._count)})
            return
        if set(response) - {"success", "errmsg"}:
            await self._publish(requests.encode_section(self.codec, response), {PART: "response"})
        await self._publish(b"", {"Status": "200", "Description": "OK", COUNT: str(self._count)})

    async def refuse(self, refusal: Refusal) -> None:
        await self._publish(b"", {**refusal.headers(), COUNT: str(self._count)})

    async def _publish(self, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        await self._link.publish(self._reply, payload, headers={**self._headers, **(headers or {})})
        if self._collected is None and self._unpaced > _PACE:
            self._unpaced = 0
            await self._link.fence(5)


def _command(subject: str) -> str:
    try:
        return unescape(subject.rpartition(".")[2])
    except ValueError:
        raise Refusal(requests.UNKNOWN, "the last part of the subject is no name of a command") from None


def _refusal(error: Exception) -> Refusal:
    """Return what the caller may know about an error; everything else goes to the log."""
    match error:
        case EncodeError():
            return Refusal(requests.BAD_REQUEST, str(error))
        case UnknownCommand() | UnknownEvent():
            return Refusal(requests.UNKNOWN, str(error))
        case CommandError():
            return Refusal(requests.FAILED, error.errmsg or "charon refused, and gave no reason")
        case ConnectionClosed() | OSError():
            return Refusal(requests.UNAVAILABLE, "charon is not reachable")
        case ViciError():
            return Refusal(requests.BAD_ANSWER, "charon's answer was not understood")
    _logger.error("a request failed in the bridge", exc_info=error)
    return Refusal(requests.INTERNAL, "the bridge failed; its log says how")
