"""A drop-in for strongSwan's Python module: `from vicifast import compat as vici` in place of `import vici`.

Every public name of strongSwan's module 6.0.3 is here with the same signature, in a module of the same name: `Session`,
`EventListener` and `StopListening`; `vici.exception`, `vici.session`, `vici.event_listener`, `vici.command_wrappers`;
and `Packet`, `Transport`, `Message`, `FiniteStream` and `RECV_TIMEOUT_DEFAULT` of `vici.protocol`. Names that begin
with `_` are not here. `Session.closed` and `Transport.shutdown` are new.

A session reads one packet at a time, and none that nobody waits for. So `session.transport.socket` may be given to
`select`, `poll`, `selectors` or an event loop: it is readable as long as an event is waiting. Its timeout is the
program's. Errors of a lost connection are those of the socket, as there: `BrokenPipeError` and `ConnectionResetError`
with their `errno`, and an OSError without one at the end of the connection.

What is different from strongSwan's module 6.0.3:

Messages that are received

- are dicts, not OrderedDicts: the decoder makes them in C, and dicts keep the order too.
- that are malformed (unknown element types, an end of nothing, values and lists cut short, names that are no printable
  ASCII, more than 64 levels) raise DeserializationException; there they are accepted, or raise struct.error or
  UnicodeDecodeError.

Messages that are sent

- have yes and no for True and False, there "True" and "False"; and a list for a tuple, a section for any mapping, the
  content of a bytearray and the value of a text enumeration, there its `str()`.
- raise `vicifast.EncodeError`, a ValueError, before anything is sent, for what VICI or charon cannot take: None, a set,
  an iterator, dicts and lists inside a list, names and values that are too long, text that is not printable ASCII where
  charon wants that. There most is sent as its `str()`, which charon refuses or takes for something else, and the rest
  raises struct.error or AttributeError. Any other object is sent as its `str()`, as there.

Sessions

- stay in step: other calls in the middle of a stream or of `listen` work (there: "Unexpected response type 7"), no
  event is lost while events are registered, and exceptions in the consumer do no harm.
- do not wait in the `close()` of a generator that has not ended: the rest of a stream is read and dropped when the
  session is used next, and its error, if any, is not raised. Until then the socket may be readable without an event.
- shut their connection down when a timeout of the socket ends a request, as a late reply would be taken for the next
  one's; and when one ends a packet that has begun, for which there no timeout holds.
- raise RuntimeError when a second thread, or a signal handler, uses one while it is being read; `transport.close()` may
  always be called, as often as one likes, and unregisters all events first, without which charon writes a line to its
  log for each.
- raise CommandException for `success=no` without an `errmsg` too, there KeyError.
- unregister the events of a `listen` of which charon does not know one; a `streamed_request` with an event that charon
  does not know runs its command before it raises EventUnknownException. An event named twice in `listen` comes once.
- raise SessionException for packets that no daemon sends, as one longer than 512 KiB, and shut the connection down.
- have other texts in SessionException and DeserializationException; the errors of `vicifast.errors` are their causes.

EventListener

- passes on an OSError of the function that was called, unless the connection has ended; there it is taken for the end.
"""

from . import command_wrappers, event_listener, exception, protocol, session
from .event_listener import EventListener, StopListening
from .session import Session

__all__ = [
    "EventListener",
    "Session",
    "StopListening",
    "command_wrappers",
    "event_listener",
    "exception",
    "protocol",
    "session",
]
