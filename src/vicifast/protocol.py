"""The sans-I/O protocol of one VICI connection: matches replies to requests.

VICI has no request identifiers. charon answers the packets of a connection strictly in order, with events anywhere in
between, so the state is a queue of outstanding requests. Only one command is in flight at a time: charon silently drops
a reply over 512 KiB, and the next reply would be mistaken for it.

This module has no socket, clock or lock: a client writes `data_to_send()`, fills `framer` with the bytes it read, and
calls `receive()`, which returns every call and subscription that changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from . import _wire
from .commands import COMMANDS, EVENTS
from .errors import (
    CommandError,
    ConnectionClosed,
    EncodeError,
    ProtocolError,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
    ViciError,
)

Section: TypeAlias = dict[str, "str | bytes | list[str | bytes] | Section"]
Body: TypeAlias = "Section | _wire.Message | bytes | _wire.Batcher | ViciError"
Values: TypeAlias = type[str] | type[bytes] | type[_wire.Message]

# Waking up for each message of a stream costs more than reading it: charon needs 50 microseconds for an SA, and half a
# millisecond with the kernel's IPsec. The client lets messages accumulate for _PART of the stream's duration so far, at
# most _LONGEST_PAUSE seconds, and at most until _ROOM bytes should have arrived: half of what the socket holds of
# charon's small writes, so that charon is not delayed. A stream shorter than _SHORT seconds is not delayed either.
_ROOM, _SHORT, _PART, _LONGEST_PAUSE = 32_000, 0.01, 0.05, 0.03

# A listener keeps this many unread events, then drops the oldest: charon must not be blocked.
LISTENER_LIMIT = 100_000

# Seconds that closing a session waits for charon to confirm that all events are unregistered.
CLOSE_TIMEOUT = 2.0


class Call:
    """A command that is `sent` or queued; `items` are the streamed messages not yet read.

    Once `done`, either `error` or `response` is set. `wake` belongs to the client.
    """

    __slots__ = ("command", "event", "items", "response", "error", "sent", "done", "abandoned", "wake")

    def __init__(self, command: str, event: str | None) -> None:
        self.command = command
        self.event = event
        self.items: deque[Body] = deque()
        self.response: Section | _wire.Message | None = None
        self.error: ViciError | None = None
        self.sent = False
        self.done = False
        self.abandoned = False
        self.wake: Callable[[], None] | None = None

    def abandon(self) -> None:
        """Read and drop the rest of the stream."""
        self.abandoned = True
        self.items.clear()

    def result(self) -> Section | _wire.Message:
        """Return the reply of a finished call, or raise its error."""
        if self.error is not None:
            raise self.error
        assert self.response is not None
        return self.response

    def has_ended(self) -> bool:
        """Whether the stream has ended; raises the error of a failed call that was not abandoned."""
        if self.done and not self.abandoned:
            self.result()
        return self.done or self.abandoned


class Subscription:
    """The `events` of one listener, and in `items` those received, oldest first, with their names.

    `pending` counts unanswered registrations, `unknown` names events that charon does not support, `lost` counts events
    dropped because more than `LISTENER_LIMIT` were unread. `error` is set once no more events can arrive. `wake`
    belongs to the client.
    """

    __slots__ = ("events", "items", "pending", "unknown", "lost", "error", "wake")

    def __init__(self, events: tuple[str, ...]) -> None:
        self.events = events
        self.items: deque[tuple[str, Body]] = deque(maxlen=LISTENER_LIMIT)
        self.pending = 0
        self.unknown: list[str] = []
        self.lost = 0
        self.error: ViciError | None = None
        self.wake: Callable[[], None] | None = None


class _Registration:
    """One event registered with charon for all its holders: registering it twice would deliver it twice."""

    __slots__ = ("event", "holders", "answered", "known", "waiting")

    def __init__(self, event: str) -> None:
        self.event = event
        self.holders = 0
        self.answered = False
        self.known = False
        self.waiting: list[Call | Subscription] = []


class Trickle:
    """Decides when to let the messages of a stream accumulate before reading them.

    `shortest` is the shortest pause in seconds that the client can make.
    """

    __slots__ = ("_began", "_bytes", "_shortest")

    def __init__(self, shortest: float) -> None:
        self._shortest = shortest
        self._began = 0.0
        self._bytes = 0

    def pause(self, now: float, size: int, streaming: bool) -> float:
        """Return the seconds to wait after a read of `size` bytes at the time `now`, usually 0."""
        if not streaming:
            self._began = 0.0
            return 0.0
        if not self._began:
            self._began, self._bytes = now, 0
        self._bytes += size
        elapsed = now - self._began
        if elapsed < _SHORT or size >= _ROOM:  # a socket that was full has already let them accumulate
            return 0.0
        pause = min(_LONGEST_PAUSE, _PART * elapsed, _ROOM * elapsed / self._bytes)
        return pause if pause >= self._shortest else 0.0


class Protocol:
    """The state of one connection. Any exception from it other than a `ViciError` is a bug."""

    def __init__(self, default: _wire.Reader, readers: Mapping[str, _wire.Reader]) -> None:
        self.framer = _wire.Framer(default, readers)
        self.late_events = 0
        self.closed: ViciError | None = None
        self._asked: deque[Call | _Registration | None] = deque()  # None: the end of a registration
        self._waiting: deque[tuple[Call, bytes]] = deque()
        self._registrations: dict[str, _Registration] = {}
        self._listeners: dict[str, list[Subscription]] = {}
        self._left: list[Subscription] = []
        self._out: list[bytes] = []

    @property
    def idle(self) -> bool:
        """Whether every request has been answered."""
        return not self._asked and not self._waiting

    @property
    def unregistering(self) -> bool:
        """Whether the next expected reply confirms that an event is unregistered."""
        return bool(self._asked) and self._asked[0] is None

    @property
    def streaming(self) -> bool:
        """Whether charon is executing a streaming command."""
        asked = self._asked[0] if self._asked else None
        return isinstance(asked, Call) and asked.event is not None

    def data_to_send(self) -> bytes:
        """Return the bytes to write next, and clear them."""
        self._drop_left()
        data = b"".join(self._out)
        self._out.clear()
        return data

    def call(self, command: str, message: Mapping[str, object] | None, event: str | None) -> Call:
        """Queue a command; its event is registered and unregistered around it in the same write.

        Raises `EncodeError` before anything is queued, `ConnectionClosed` if the connection is closed.
        """
        self._require_open()
        self._drop_left()
        packet = _wire.packet(_wire.CMD_REQUEST, command, message)
        if message is not None:
            check_text(command, message)
        if event is not None:
            _wire.packet(_wire.EVENT_REGISTER, event)
        call = Call(command, event)
        self._waiting.append((call, packet))
        self._ask_next()
        return call

    def withdraw(self, call: Call, error: ViciError) -> bool:
        """Remove a queued command and end it with `error`; False if it has been sent."""
        for waiting in self._waiting:
            if waiting[0] is call:
                self._waiting.remove(waiting)
                call.error, call.done = error, True
                return True
        return False

    def listen(self, events: Iterable[str]) -> Subscription:
        """Register for events; charon confirms or refuses each one separately."""
        self._require_open()
        self._drop_left()
        names = tuple(dict.fromkeys(events))
        for name in names:
            _wire.packet(_wire.EVENT_REGISTER, name)  # raises for an invalid name, before any event is registered
        subscription = Subscription(names)
        for name in names:
            self._listeners.setdefault(name, []).append(subscription)
            self._register(name, subscription)
        return subscription

    def unlisten(self, subscription: Subscription) -> None:
        """End a subscription; events in flight are dropped, those received can still be read."""
        subscription.error = subscription.error or ConnectionClosed("the listener was closed")
        for name in subscription.events:
            listeners = self._listeners.get(name, [])
            if subscription in listeners:
                listeners.remove(subscription)
                if self.closed is None:
                    self._unregister(name)

    def leave(self, subscription: Subscription) -> None:
        """End a subscription when the connection is used next; a finalizer may call this at any point."""
        self._left.append(subscription)

    def unlisten_all(self) -> Sequence[Subscription]:
        """End all subscriptions and return them; required before the connection is closed.

        charon logs one line for each event that it cannot deliver, and each line is an event for other clients.
        """
        everyone = {id(s): s for listeners in self._listeners.values() for s in listeners}
        for subscription in everyone.values():
            self.unlisten(subscription)
        return list(everyone.values())

    def receive(self) -> Sequence[Call | Subscription]:
        """Process the packets in the framer and return the calls and subscriptions that changed, with duplicates."""
        self._drop_left()
        touched: list[Call | Subscription] = []
        call = self._only_receiver()
        for kind, name, body in self.framer.packets():
            if name is not None:  # of an event
                assert body is not None
                if call is not None and call.event == name:
                    call.items.append(body)
                else:
                    self._event(name, body, touched)
            elif self._answer(kind, body, touched):
                call = self._only_receiver()
            else:
                return touched + self.fail(self._out_of_step(kind))
        if call is not None and call.items:
            touched.append(call)
        if self.framer.error is not None:
            return touched + self.fail(self.framer.error)
        return touched

    def receive_eof(self) -> Sequence[Call | Subscription]:
        """Handle the end of the connection: every open call and subscription ends with `ConnectionClosed`."""
        if self.framer.pending:
            return self.fail(
                ConnectionClosed(f"charon closed the connection {self.framer.pending} bytes into a packet")
            )
        return self.fail(ConnectionClosed("charon closed the connection"))

    def fail(self, error: ViciError) -> list[Call | Subscription]:
        """End every open call and subscription with `error`, once; the connection cannot be used after that."""
        if self.closed is not None:
            return []
        self.closed = error
        ended: list[Call | Subscription] = []
        for call in (*self._asked, *(waiting[0] for waiting in self._waiting)):
            if isinstance(call, Call) and not call.done:
                call.error, call.done = error, True
                ended.append(call)
        for subscription in [s for listeners in self._listeners.values() for s in listeners]:
            subscription.error = error
            ended.append(subscription)
        self._asked.clear()
        self._waiting.clear()
        self._out.clear()
        return ended

    def _require_open(self) -> None:
        if self.closed is not None:
            raise ConnectionClosed(f"the connection is closed: {self.closed}") from self.closed

    def _drop_left(self) -> None:
        while self._left:
            self.unlisten(self._left.pop())

    def _ask_next(self) -> None:
        if not self._waiting or any(isinstance(asked, Call) for asked in self._asked):
            return
        call, packet = self._waiting.popleft()
        if call.event is not None:
            self._register(call.event, call)
        self._out.append(packet)
        self._asked.append(call)
        call.sent = True
        if call.event is not None:
            self._unregister(call.event)

    def _register(self, event: str, holder: Call | Subscription) -> None:
        registration = self._registrations.get(event)
        if registration is None:
            packet = _wire.packet(_wire.EVENT_REGISTER, event)
            registration = self._registrations[event] = _Registration(event)
            self._out.append(packet)
            self._asked.append(registration)
        registration.holders += 1
        if not registration.answered:
            registration.waiting.append(holder)
            if isinstance(holder, Subscription):
                holder.pending += 1
        elif not registration.known:
            _refuse(holder, event)

    def _unregister(self, event: str) -> None:
        registration = self._registrations[event]
        registration.holders -= 1
        if not registration.holders:
            del self._registrations[event]
            if registration.known or not registration.answered:
                self._out.append(_wire.packet(_wire.EVENT_UNREGISTER, event))
                self._asked.append(None)

    def _only_receiver(self) -> Call | None:
        """Return the running call if its event has no other receiver, so that nothing is looked up for each message."""
        call = self._asked[0] if self._asked else None
        if not isinstance(call, Call) or call.abandoned or call.event in self._listeners:
            return None
        return call

    def _event(self, name: str, body: Body, touched: list[Call | Subscription]) -> None:
        call = self._asked[0] if self._asked else None
        wanted = False
        if isinstance(call, Call) and call.event == name:
            wanted = True
            if not call.abandoned:
                call.items.append(body)
                touched.append(call)
        for subscription in self._listeners.get(name, ()):
            wanted = True
            subscription.lost += len(subscription.items) == LISTENER_LIMIT
            subscription.items.append((name, body))
            touched.append(subscription)
        self.late_events += not wanted

    def _answer(self, kind: int, body: Body | None, touched: list[Call | Subscription]) -> bool:
        """Match a reply to the oldest outstanding request; False if the types do not match."""
        if not self._asked:
            return False
        asked = self._asked[0]
        if isinstance(asked, Call):
            if kind not in (_wire.CMD_RESPONSE, _wire.CMD_UNKNOWN):
                return False
            self._finish(asked, body)
            touched.append(asked)
        else:
            if kind not in (_wire.EVENT_CONFIRM, _wire.EVENT_UNKNOWN):
                return False
            if asked is not None:
                touched.extend(_confirm(asked, kind == _wire.EVENT_CONFIRM))
        self._asked.popleft()
        if isinstance(asked, Call):
            self._ask_next()
        return True

    def _out_of_step(self, kind: int) -> ViciError:
        asked = self._asked[0] if self._asked else None
        if isinstance(asked, Call):
            return ProtocolError(
                f"charon sent a packet of type {kind} instead of the reply to {asked.command}; "
                "it silently drops replies over 512 KiB"
            )
        return ProtocolError(f"charon sent a packet of type {kind} that matches no request")

    @staticmethod
    def _finish(call: Call, body: Body | None) -> None:
        call.done = True
        if body is None:
            call.error = UnknownCommand(call.command)
        elif isinstance(body, ViciError):
            call.error = body
        elif isinstance(body, (dict, _wire.Message)):
            call.response = body
            if call.error is None and body.get("success") in ("no", b"no"):
                call.error = _failure(call.command, body if isinstance(body, dict) else body.to_dict())


def _failure(command: str, response: Section) -> CommandError:
    errmsg = response.get("errmsg", "")
    text = errmsg.decode(errors="replace") if isinstance(errmsg, bytes) else str(errmsg)
    return CommandError(command, text, response)


def _refuse(holder: Call | Subscription, event: str) -> None:
    if isinstance(holder, Subscription):
        holder.unknown.append(event)
    elif holder.error is None:
        holder.error = UnknownEvent(event)


def _confirm(registration: _Registration, known: bool) -> list[Call | Subscription]:
    registration.answered = True
    registration.known = known
    waiting, registration.waiting = registration.waiting, []
    for holder in waiting:
        if isinstance(holder, Subscription):
            holder.pending -= 1
        if not known:
            _refuse(holder, registration.event)
    return waiting


def content(body: Body) -> Any:
    """Return a message, or raise the error in its place."""
    if isinstance(body, ViciError):
        raise body
    return body


def overdue(call: Call, timeout: float | None) -> RequestTimeout:
    """The error for a call without a message or reply in time."""
    if not call.sent:
        return RequestTimeout(f"{call.command}: not sent within {timeout} s, as charon is busy with earlier requests")
    return RequestTimeout(
        f"{call.command}: no reply for {timeout} s, and the connection was closed; charon is busy, or the reply is "
        "longer than 512 KiB and charon dropped it silently"
    )


def unanswered(subscription: Subscription, timeout: float | None) -> RequestTimeout:
    """The error for registrations that were not confirmed in time."""
    return RequestTimeout(f"registering {', '.join(subscription.events)}: no reply for {timeout} s")


def stream_event(command: str, event: str | None) -> str:
    """Return the event that a command streams: the given one, or the one in `COMMANDS`."""
    if event is not None:
        return event
    known = COMMANDS.get(command)
    if known is None or known.event is None:
        raise ValueError(f"{command} has no known event to stream; pass event=")
    return known.event


def readers_for(
    values: Values, readers: Mapping[str, _wire.Reader], *, ordered: bool = False
) -> tuple[_wire.Reader, dict[str, _wire.Reader]]:
    """Return the default reader, and the readers of events with binary fields and of those in `readers`.

    With `ordered`, sections are OrderedDicts.
    """

    def make(binary: Iterable[str] = ()) -> _wire.Reader:
        if values is str or values is bytes:
            return _wire.Decoder(values=values, binary=binary, ordered=ordered)
        return _wire.MessageReader(binary=binary)

    binary = [event for event in EVENTS.values() if event.binary and event.name not in readers]
    return make(), {**{event.name: make(event.binary) for event in binary}, **readers}


def check_text(command: str, message: Mapping[str, object]) -> None:
    """Raise `EncodeError` for text to which charon would reply "missing ...", or not at all (vici_message.c)."""
    blob = COMMANDS[command].blob if command in COMMANDS else frozenset()
    for path, key, value in _values(message, ""):
        if not _is_printable(value) and str(key).lower() not in blob:  # charon itself reports a key like CERTS
            raise EncodeError(f"{path}: {command} requires printable ASCII here, not {_shorten(value)}")


def _is_printable(value: str | bytes) -> bool:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text.isascii() and text.isprintable()


def _shorten(value: str | bytes) -> str:
    return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."


def _values(section: Mapping[str, object], path: str) -> Iterator[tuple[str, str, str | bytes]]:
    """Yield the texts of a message with their paths and keys; other values are checked by the encoder."""
    pending: list[tuple[Mapping[str, object], str, int]] = [(section, path, 0)]
    while pending:
        section, path, depth = pending.pop()
        for key, value in section.items():
            here = f"{path}.{key}" if path else str(key)
            if isinstance(value, Mapping) and depth < _wire.MAX_DEPTH:
                pending.append((value, here, depth + 1))
            elif isinstance(value, (list, tuple)):
                yield from ((f"{here}[{i}]", key, v) for i, v in enumerate(value) if isinstance(v, (str, bytes)))
            elif isinstance(value, (str, bytes)):
                yield here, key, value
