"""A charon for tests: it speaks VICI on a real socket, answers as told, and keeps the daemon's rules and oddities.

With pytest there is nothing to import: the fixture `fake_charon` is a `BlockingFakeCharon` that listens already.

    def test_my_program(fake_charon):
        fake_charon.on("version", {"daemon": "charon", "version": "6.1.0"})
        fake_charon.on("list-sas", {}, stream=[("list-sa", {"gw": {"uniqueid": "1"}})])
        start_my_program(fake_charon.address)           # in a thread or a process: Session, AsyncSession, swanctl, ...
        fake_charon.registered("ike-updown")            # waits until it has registered that
        fake_charon.emit("ike-updown", {"up": "yes", "gw": {"uniqueid": "1"}})
        assert fake_charon.requested("terminate") == {"ike": "gw"}

In an event loop `FakeCharon` is the same with `await` where it waits:

    async with FakeCharon() as charon:
        charon.on("version", {"daemon": "charon"})
        async with AsyncSession(charon.address) as session: ...

* Replies and streams: `on`, with a message or a function that makes it; whole daemons: `from_recordings`.
* Events: `emit`, a flood with many of them, recorded ones at any pace with `replay`; an old daemon has fewer `events`.
* Faults: `mute` (a reply that never comes), `cut` (gone in the middle of a stream), `drop` (gone), `send` (any bytes),
  `stop` and `start` (a restart), `pause_accepting` (EAGAIN), `pause_reading` (a daemon that hangs).
* Pace: `delay` before each reply, `chunk` bytes at a time (1: byte by byte).
* What the program did: `requests`, `packets`, `registrations`, `abrupt_closes`; and the waits `requested`,
  `registered`, `connected`, `drain`.

What it does as charon does (strongSwan 5.9.8 to 6.1.0): the packets of one connection are handled strictly in order,
so a request waits for a running command while events flow; a malformed packet gets no answer; a frame over 512 KiB
ends the connection, and an answer or event over 512 KiB is never sent; an event registered twice comes twice; the
output waiting for a slow reader has no bound; the backlog is 3.
"""

from .blocking import BlockingFakeCharon
from .charon import FakeCharon, Handler, Message

__all__ = ["BlockingFakeCharon", "FakeCharon", "Handler", "Message"]
