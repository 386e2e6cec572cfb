"""A drop-in replacement for strongSwan's Python module: `from vicifast import compat as vici` replaces `import vici`.

Every public name of strongSwan's module 6.0.3 exists with the same signature, in a module of the same name: `Session`,
`EventListener` and `StopListening`; `vici.exception`, `vici.session`, `vici.event_listener`, `vici.command_wrappers`;
and `Packet`, `Transport`, `Message`, `FiniteStream` and `RECV_TIMEOUT_DEFAULT` of `vici.protocol`. Names that begin
with `_` are missing. `Session.closed` and `Transport.shutdown` are additions.

A session reads one packet at a time, and only while a caller waits for one. Therefore `session.transport.socket` can be
used with `select`, `poll`, `selectors` or an event loop: it is readable as long as an event is pending. Its timeout is
set by the program. A lost connection raises the socket's error, as in strongSwan's module: `BrokenPipeError` and
`ConnectionResetError` with their `errno`, and an OSError without one at the end of the connection.

Differences from strongSwan's module 6.0.3, "the original":

Received messages

- raise DeserializationException when malformed (unknown element types, an unmatched end, truncated values and lists,
  names that are not printable ASCII, more than 64 levels); the original accepts them, or raises struct.error or
  UnicodeDecodeError.

Sent messages

- contain yes and no for True and False, where the original sends "True" and "False"; and a list for a tuple, a section
  for any mapping, the content of a bytearray and the value of a text enumeration, where the original sends the `str()`.
- raise `vicifast.EncodeError`, a ValueError, before anything is sent, for content that VICI or charon cannot accept:
  None, a set, an iterator, dicts and lists inside a list, names and values that are too long, and text that is not
  printable ASCII where charon requires it. The original sends most of these as their `str()`, which charon rejects or
  misinterprets, and raises struct.error or AttributeError for the rest. Both send any other object as its `str()`.

Sessions

- stay in step: other calls during a stream or `listen` work (in the original: "Unexpected response type 7"), no event
  is lost while events are registered, and exceptions in the consumer are harmless.
- do not wait in the `close()` of an unfinished generator: the rest of a stream is read and dropped when the session is
  used next, and its error, if any, is not raised. Until then the socket may be readable without an event.
- shut the connection down when the socket's timeout ends a request, as a late reply would be mistaken for the next, or
  ends a partial packet, to which the original applies no timeout.
- raise RuntimeError when a second thread, or a signal handler, uses a session that is being read. `transport.close()`
  may always be called, any number of times, and unregisters all events first; otherwise charon would log a line for
  each event.
- raise CommandException for `success=no` without an `errmsg` too; the original raises KeyError.
- unregister the events of a `listen` if charon does not know one of them. A `streamed_request` with an event unknown to
  charon runs its command before it raises EventUnknownException. An event named twice in `listen` is delivered once.
- raise SessionException for packets that no daemon sends, such as one over 512 KiB, and shut the connection down.
- have different texts in SessionException and DeserializationException; errors of `vicifast.errors` are their causes.

EventListener

- propagates an OSError of a called function, unless the connection has ended; the original treats it as the end.
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
