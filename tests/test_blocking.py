"""Features of Session only: a second thread is refused, signals may interrupt, and it reads only while a call waits."""

from __future__ import annotations

import asyncio
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from onloop import Loop, time_limit

from vicifast import ConnectionClosed, ProtocolError, RequestTimeout, Session, ViciError
from vicifast import _wire as wire
from vicifast.testing import FakeCharon

SAS = [("list-sa", {f"site-{i}": {"uniqueid": i}}) for i in range(50)]
BIG = {f"k{i}": "x" * 65000 for i in range(8)}  # more than a socket takes at once


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    with time_limit():
        yield


@pytest.fixture
def charon() -> Iterator[Any]:
    with Loop() as loop, loop.blocking(FakeCharon()) as charon:
        charon.on("version", {"daemon": "charon"})
        charon.on("list-sas", {}, stream=SAS)
        yield charon


class Peer:
    """The other end of a session's socket, in the same thread."""

    def __init__(self) -> None:
        self.sock, ours = socket.socketpair()
        self.sock.settimeout(10)
        self.session = Session(ours, timeout=10).connect()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()
        self.session.close()

    def send(self, kind: int, name: str | None = None, message: Any = None) -> None:
        self.sock.sendall(wire.packet(kind, name, message))

    def confirm(self) -> None:
        self.send(wire.EVENT_CONFIRM)


def test_a_second_thread_is_refused_at_once(charon: Any) -> None:
    with Session(charon.address) as session, ThreadPoolExecutor() as pool:
        stream = session.stream("list-sas")
        listener = session.listen("log", timeout=10)
        charon.mute("version")
        call = pool.submit(session.call, "version", timeout=10)
        charon.requested("version")
        uses = (session.version, session.list_sas, session.close, session.connect, listener.ready, listener.close)
        for use in uses:
            with pytest.raises(RuntimeError, match="in use, by another thread .* one session per thread") as refusal:
                use()
            assert not isinstance(refusal.value, ViciError)
        assert next(stream) == {"site-0": {"uniqueid": "0"}}  # which the other thread has read already
        charon.send(wire.packet(wire.CMD_RESPONSE, None, {"daemon": "late"}))
        assert call.result() == {"daemon": "late"}
        assert len(list(stream)) == 49


def test_threads_may_take_turns(charon: Any) -> None:
    with Session(charon.address) as session:
        for _ in range(3):
            with ThreadPoolExecutor() as pool:
                assert pool.submit(session.version).result() == {"daemon": "charon"}
            assert session.version() == {"daemon": "charon"}


def test_a_session_for_each_thread(charon: Any) -> None:
    def work(_: int) -> int:
        with Session(charon.address) as session:
            return sum(len(list(session.list_sas())) for _ in range(3))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(64))) == [150] * 64


def test_signals_do_not_disturb(charon: Any) -> None:
    stop, seen = threading.Event(), []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    me = threading.get_ident()

    def knock() -> None:
        while not stop.wait(0.005):
            signal.pthread_kill(me, signal.SIGUSR1)

    with ThreadPoolExecutor() as pool:
        knocking = pool.submit(knock)
        try:
            with Session(charon.address) as session:
                charon.delay = 0.1
                assert session.version() == {"daemon": "charon"}
                assert len(list(session.list_sas())) == 50
                with pytest.raises(RequestTimeout):
                    session.version(timeout=0.05)
        finally:
            stop.set()
            knocking.result()
            signal.signal(signal.SIGUSR1, before)
    assert seen


INTERRUPTED = """
import sys
from vicifast import ConnectionClosed, Session

session = Session(sys.argv[1]).connect()
listener = session.listen("log")
listener.ready()
try:
    print("ready", flush=True)
    session.version() if sys.argv[2] == "call" else next(listener)
except KeyboardInterrupt:
    print("interrupted", session.closed)
try:
    print(session.stats())
except ConnectionClosed as error:
    print(error)
session.close()
"""


@pytest.mark.parametrize(
    "what, then",
    [
        ("call", "interrupted True\nthe connection is closed: (version|reading or writing) was interrupted\n"),
        ("listener", "interrupted False\n{'uptime': 'long'}\n"),
    ],
)
def test_ctrl_c(charon: Any, what: str, then: str) -> None:
    charon.mute("version")
    charon.on("stats", {"uptime": "long"})
    argv = [sys.executable, "-c", INTERRUPTED, charon.address, what]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if what == "call":
            charon.requested("version")
        process.send_signal(signal.SIGINT)
        assert re.fullmatch(then, process.stdout.read())
    assert process.returncode == 0
    charon.connected(0)
    assert charon.abrupt_closes == (what == "call")


def test_interrupted_while_it_reads(charon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were read and not processed would leave the connection out of step."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with Session(charon.address) as session:
        listener = session.listen("log")
        listener.ready()
        charon.emit("log", {"msg": "1"})
        assert session._connection is not None
        monkeypatch.setattr(session._connection.protocol, "receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(listener)
        with pytest.raises(ConnectionClosed, match="reading or writing was interrupted"):
            next(listener)
        assert session.closed


def test_requests_are_sent_at_once() -> None:
    with Peer() as peer:
        stream = peer.session.list_sas()
        request = peer.sock.recv(65536)
        assert request == b"".join(
            [
                wire.packet(wire.EVENT_REGISTER, "list-sa"),
                wire.packet(wire.CMD_REQUEST, "list-sas", {}),
                wire.packet(wire.EVENT_UNREGISTER, "list-sa"),
            ]
        )
        peer.session.listen("log")
        assert peer.sock.recv(65536) == wire.packet(wire.EVENT_REGISTER, "log")
        peer.confirm()
        peer.send(wire.EVENT, "list-sa", {"gw": {}})
        assert next(stream) == {"gw": {}}
        peer.send(wire.CMD_RESPONSE, None, {})
        peer.confirm()
        peer.confirm()
        assert list(stream) == []


def test_a_stream_behind_another_is_sent_when_that_has_been_read(charon: Any) -> None:
    with Session(charon.address) as session:
        first = session.list_sas()
        next(first)
        second = session.stream("list-sas")
        charon.requested("list-sas", 2)
        assert (len(list(first)), len(list(second))) == (49, 50)


def test_a_stream_that_cannot_be_sent_is_given_up(charon: Any) -> None:
    with Session(charon.address) as session:
        release = threading.Event()

        async def slow(message: object) -> dict[str, object]:
            await asyncio.to_thread(release.wait, 10)
            return {"success": True}

        charon.on("initiate", slow)
        first = session.initiate(child="net")
        charon.requested("initiate")
        with pytest.raises(RequestTimeout, match="list-sas: not sent within 0.05 s"):
            session.list_sas(timeout=0.05)
        assert not session.closed
        release.set()
        assert first.wait() == {"success": "yes"}
        assert session.version() == {"daemon": "charon"}
        assert [name for name, _ in charon.requests] == ["initiate", "version"]


def test_writing_and_reading_at_once(charon: Any) -> None:
    """Peer and session both write before they read on: neither may wait for the other."""
    charon.on("load-conn", BIG)
    with Session(charon.address) as session, session.listen("log", timeout=10) as listener:
        charon.pause_reading()
        with ThreadPoolExecutor() as pool:
            call = pool.submit(session.call, "load-conn", BIG)
            for _ in range(4):
                charon.emit("log", BIG)
            charon.drain()  # this ends only if the session reads while it cannot write
            charon.resume_reading()
            assert call.result() == BIG
        assert [name for name, _ in listener.batch()] == ["log"] * 4


def test_last_events_before_a_request_that_came_too_late() -> None:
    with Peer() as peer:
        listener = peer.session.listen("log", timeout=10)
        peer.confirm()
        listener.ready()
        peer.send(wire.EVENT, "log", {"msg": "last"})
        peer.sock.recv(65536)
        peer.sock.close()
        with pytest.raises(ConnectionClosed, match="charon closed the connection"):
            peer.session.version()
        assert next(listener) == ("log", {"msg": "last"})
        with pytest.raises(ConnectionClosed, match="charon closed the connection"):
            next(listener)


def test_listening_without_waiting() -> None:
    with Peer() as peer:
        listener = peer.session.listen("log", timeout=0)
        peer.confirm()
        assert listener.batch() == []
        peer.send(wire.EVENT, "log", {"msg": "1"})
        assert list(listener) == [("log", {"msg": "1"})]
        peer.send(wire.EVENT_UNKNOWN)
        with pytest.raises(ProtocolError, match="matches no request"):
            listener.batch()


def test_closing_waits_no_longer_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicifast._blocking_connection.CLOSE_TIMEOUT", 0.05)
    with Peer() as peer:
        listener = peer.session.listen("log")
        peer.confirm()
        listener.ready()
        peer.session.close()
        sent = wire.packet(wire.EVENT_REGISTER, "log") + wire.packet(wire.EVENT_UNREGISTER, "log")
        assert peer.sock.recv(65536) == sent
        assert peer.sock.recv(65536) == b""


def test_registration_that_is_never_answered() -> None:
    with Peer() as peer:
        peer.session.timeout = 0.05
        listener = peer.session.listen("log", "alert")
        with pytest.raises(RequestTimeout, match="registering log, alert: no reply for 0.05 s"):
            listener.ready()
        assert peer.session.closed


def test_without_poll(charon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    charon.on("load-conn", {"success": "yes"})
    with Session(charon.address) as session:
        assert session.call("load-conn", BIG) == {"success": "yes"}
        assert len(list(session.list_sas())) == 50


def test_many_descriptors(charon: Any) -> None:
    """select() could not wait for them."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"no more than {hard} open files are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [socket.socket() for _ in range(1100)]
    try:
        with Session(charon.address) as session:
            assert session.version() == {"daemon": "charon"}
    finally:
        for sock in taken:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
