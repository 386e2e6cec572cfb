"""A fake charon for tests: it speaks VICI on a real socket, sends scripted replies, and behaves like the daemon.

With pytest no import is needed: the fixture `fake_charon` is a `BlockingFakeCharon` that is already listening.

    def test_my_program(fake_charon):
        fake_charon.on("version", {"daemon": "charon", "version": "6.1.0"})
        fake_charon.on("list-sas", {}, stream=[("list-sa", {"gw": {"uniqueid": "1"}})])
        start_my_program(fake_charon.address)           # in a thread or a process: Session, AsyncSession, swanctl, ...
        fake_charon.registered("ike-updown")            # waits until the program has registered the event
        fake_charon.emit("ike-updown", {"up": "yes", "gw": {"uniqueid": "1"}})
        assert fake_charon.requested("terminate") == {"ike": "gw"}

In an event loop, use `FakeCharon`, with `await` for methods that wait:

    async with FakeCharon() as charon:
        charon.on("version", {"daemon": "charon"})
        async with AsyncSession(charon.address) as session: ...

* Replies and streams: `on`, with a message or a function that returns it; whole daemons: `from_recordings`.
* Events: `emit`, any number of times; recorded events at any speed: `replay`; an old daemon: fewer `events`.
* Faults: `mute` (no reply), `cut` (disconnect during a stream), `drop` (disconnect), `send` (any bytes), `stop` and
  `start` (a restart), `pause_accepting` (EAGAIN), `pause_reading` (a hanging daemon).
* Speed: `delay` before each reply, `chunk` bytes at a time (1: byte by byte).
* Actions of the program: `requests`, `packets`, `registrations`, `abrupt_closes`; to wait for them: `requested`,
  `registered`, `connected`, `drain`.

Like charon (strongSwan 5.9.8 to 6.1.0), it handles the packets of one connection strictly in order, so that a request
waits for a running command while events continue; it ignores a malformed packet; it closes the connection on a frame
over 512 KiB, and never sends a reply or event over 512 KiB; it delivers an event registered twice two times; it buffers
output for a slow client without limit; its backlog is 3.
"""

from .blocking import BlockingFakeCharon
from .charon import FakeCharon, Handler, Message

__all__ = ["BlockingFakeCharon", "FakeCharon", "Handler", "Message"]
