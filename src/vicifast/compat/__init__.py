"""A drop-in for strongSwan's Python module: `from vicifast import compat as vici` in place of `import vici`.

`vici.Session`, `vici.EventListener` and `vici.StopListening` are as there, and so are `vici.exception`, `vici.session`,
`vici.event_listener` and, of `vici.protocol`, `Message`, `FiniteStream`, `RECV_TIMEOUT_DEFAULT` and the `socket` and
`close` of a session's `transport`. Names that begin with `_`, `Packet` and the `CommandWrappers` class are not here.

What is different from strongSwan's module 6.0.3:

Messages that are received

- are dicts, not OrderedDicts: the decoder makes them in C, and dicts keep the order too.
- that are malformed (unknown element types, an end of nothing, values and lists cut short, names that are no printable
  ASCII, more than 64 levels) raise DeserializationException; there they are accepted, or raise struct.error or
  UnicodeDecodeError.

Messages that are sent

- have yes and no for True and False, there "True" and "False"; and a list for a tuple, there its `str()`.
- raise `vicifast.EncodeError`, a ValueError, before anything is sent, for what VICI or charon cannot take: None, a set,
  an iterator, dicts and lists inside a list, names and values that are too long, text that is not printable ASCII where
  charon wants that. There most is sent as its `str()`, which charon refuses or takes for something else, and the rest
  raises struct.error or AttributeError. Any other object is sent as its `str()`, as there.

Sessions

- stay in step: other calls in the middle of a stream or of `listen` work (there: "Unexpected response type 7"), no
  event is lost while events are registered, and exceptions in the consumer do no harm.
- do not wait in the `close()` of a generator: the rest of a stream is read and dropped when the session is used next,
  and its error, if any, is not raised.
- close their connection when a timeout of the socket ends a request, as a late reply would be taken for the next one's.
- raise RuntimeError when a second thread uses one while the first is reading; `transport.close()` may always be called,
  as often as one likes, and unregisters all events first, without which charon writes a line to its log for each.
- raise CommandException for `success=no` without an `errmsg` too, there KeyError.
- unregister the events of a `listen` of which charon does not know one; a `streamed_request` with an event that charon
  does not know runs its command before it raises EventUnknownException. An event named twice in `listen` comes once.
- must be given the name of an event in `listen`, and so must an EventListener, or raise ValueError.
- have other texts in SessionException and DeserializationException; the errors of `vicifast.errors` are their causes.

EventListener

- passes on an OSError of the function that was called, unless the connection has ended; there it is taken for the end.
"""

from . import event_listener, exception, protocol, session
from .event_listener import EventListener, StopListening
from .session import Session

__all__ = ["EventListener", "Session", "StopListening", "event_listener", "exception", "protocol", "session"]
