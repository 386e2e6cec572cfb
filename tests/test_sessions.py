"""Both sessions against a scripted daemon, in the same tests: order, timeouts, faults, leaving and closing."""

from __future__ import annotations

import errno
import gc
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from onloop import SAS, Kit

from vicifast import (
    CommandError,
    ConnectionClosed,
    DecodeError,
    EncodeError,
    Message,
    ProtocolError,
    Raw,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
    encode,
)
from vicifast import _wire as wire


def test_call(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        assert session.call("version") == {"daemon": "charon"}
        charon.on("unload-conn", {"success": "yes"})
        assert session.call("unload-conn", {"name": "gw"}) == {"success": "yes"}
        assert charon.requests == [("version", {}), ("unload-conn", {"name": "gw"})]


def test_errors_leave_the_session_usable(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        charon.on("terminate", {"success": "no", "errmsg": "no matching SAs"})
        with pytest.raises(CommandError, match="terminate: no matching SAs"):
            session.call("terminate", {"ike": "x"})
        with pytest.raises(UnknownCommand, match="nonsense"):
            session.call("nonsense")
        with pytest.raises(EncodeError):
            session.call("terminate", {"ike": None})
        assert session.call("version")["daemon"] == "charon"


def test_stream(kit: Kit) -> None:
    with kit.pair() as (session, _):
        stream = session.stream("list-sas")
        assert list(stream) == [{f"site-{i}": {"uniqueid": str(i)}} for i in range(50)]
        assert stream.response == {}
        assert list(stream) == []


def test_stream_is_sent_at_once(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        stream = session.stream("list-sas")
        charon.requested("list-sas")
        assert len(list(stream)) == 50


def test_stream_of_an_unknown_event(kit: Kit) -> None:
    with kit.pair() as (session, _):
        with pytest.raises(ValueError, match="version has no known event to stream"):
            session.stream("version")
        with pytest.raises(UnknownEvent, match="list-nothing"):
            list(session.stream("list-sas", event="list-nothing"))
        assert session.call("version")


def test_failed_stream_gives_its_messages_first(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        log = [("control-log", {"msg": str(i)}) for i in range(3)]
        charon.on("initiate", {"success": "no", "errmsg": "not established"}, stream=log)
        seen = []
        with pytest.raises(CommandError, match="not established") as failed:
            for message in session.stream("initiate", {"child": "net"}):
                seen.append(message["msg"])
        assert seen == ["0", "1", "2"]
        assert failed.value.__context__ is None  # a traceback shows this error alone


def test_waiting_for_the_end_of_a_stream(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        log = [("control-log", {"msg": str(i)}) for i in range(3)]
        charon.on("terminate", {"success": "yes", "matches": 2}, stream=log)
        stream = session.stream("terminate", {"ike": "gw"})
        assert next(stream) == {"msg": "0"}
        assert stream.wait() == stream.wait() == {"success": "yes", "matches": "2"}
        assert list(stream) == []
        charon.on("terminate", {"success": "no"}, stream=log)
        with pytest.raises(CommandError, match="terminate: failed, and charon gave no reason"):
            session.stream("terminate", {"ike": "gw"}).wait()
        left = session.stream("list-sas")
        left.close()
        assert left.wait() == {}


def test_leaving_a_stream(kit: Kit) -> None:
    with kit.pair() as (session, _):
        for _sa in session.stream("list-sas"):
            break
        assert session.call("version")
        with pytest.raises(ZeroDivisionError):
            for _sa in session.stream("list-sas"):
                1 / 0  # noqa: B018
        gc.collect()
        with session.stream("list-sas") as stream:
            assert next(stream)
        assert list(stream) == []
        assert session.call("version")


def test_streams_in_turn(kit: Kit) -> None:
    with kit.pair() as (session, _):
        streams = [session.stream("list-sas") for _ in range(3)]
        found = [[next(stream) for _ in range(10)] for stream in reversed(streams)]
        assert found[0] == found[1] == found[2] and len(found[0]) == 10
        assert session.call("version") == {"daemon": "charon"}
        assert [len(list(stream)) for stream in streams] == [40, 40, 40]


@pytest.mark.parametrize("chunk", [1, 3, 1000, None])
def test_any_size_of_read(kit: Kit, chunk: int | None) -> None:
    with kit.pair() as (session, charon):
        charon.chunk = chunk
        assert len(list(session.stream("list-sas"))) == 50
        assert session.call("version") == {"daemon": "charon"}


def test_large_messages(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        big = {f"k{i}": "x" * 65000 for i in range(8)}
        charon.on("stats", big)
        charon.on("load-conn", lambda message: message)
        for _ in range(5):
            assert session.call("stats") == big
            assert session.call("load-conn", big) == big


def test_peer_that_does_not_read(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        big = {f"k{i}": "x" * 65000 for i in range(8)}
        charon.on("load-conn", {})
        charon.pause_reading()
        with pytest.raises(RequestTimeout, match="load-conn: no reply for 0.1 s"):
            for _ in range(20):
                session.stream("load-conn", big, "log", timeout=0.1).wait()
        charon.resume_reading()
        assert session.closed


def test_listen(kit: Kit) -> None:
    with kit.pair() as (session, charon), session.listen("log", "ike-updown", timeout=10) as listener:
        charon.emit("log", {"msg": "1"})
        charon.emit("ike-updown", {"up": "yes", "gw": {}})
        charon.emit("log", {"msg": "2"})
        events = [next(listener) for _ in range(3)]
        assert events == [("log", {"msg": "1"}), ("ike-updown", {"up": "yes", "gw": {}}), ("log", {"msg": "2"})]
        assert session.call("version")
        with pytest.raises(ValueError, match=r"listen\(\) needs at least one event name"):
            session.listen()


def test_events_between_the_messages_of_a_stream(kit: Kit) -> None:
    with kit.pair() as (session, charon), session.listen("log", timeout=10) as listener:
        seen = 0
        for _ in session.stream("list-sas"):
            charon.emit("log", {"msg": seen})
            seen += 1
        assert [next(listener)[1]["msg"] for _ in range(50)] == [str(i) for i in range(50)]


def test_listener_ends_after_its_timeout(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        listener = session.listen("log", timeout=0.05)
        listener.ready()
        charon.emit("log", {"msg": "1"})
        assert list(listener) == [("log", {"msg": "1"})]
        assert listener.batch() == []
        charon.emit("log", {"msg": "2"})
        assert list(listener) == [("log", {"msg": "2"})]
        assert listener.lost == 0


def test_batch(kit: Kit) -> None:
    with kit.pair(readers={"log": Raw()}) as (session, charon), session.listen("log", timeout=10) as listener:
        for i in range(100):
            charon.emit("log", {"msg": i})
        taken: list[tuple[str, object]] = []
        while len(taken) < 100:
            taken += listener.batch()
        assert taken == [("log", encode({"msg": i})) for i in range(100)]


def test_old_daemon_without_alert(kit: Kit) -> None:
    with kit.charon(events={"log"}) as charon, kit.session(charon.address) as session:
        listener = session.listen("alert", "log", timeout=10)
        with pytest.raises(UnknownEvent, match="alert"):
            listener.ready()
        assert listener.unknown == ("alert",)
        charon.emit("log", {"msg": "1"})
        assert next(listener) == ("log", {"msg": "1"})


def test_leaving_a_listener_unregisters(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        with session.listen("log"):
            assert charon.registrations("log") == 1
        session.call("version")
        assert charon.registrations("log") == 0


def test_dropping_a_listener_unregisters(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        listener = session.listen("log")
        listener.ready()
        del listener
        gc.collect()
        session.call("version")
        session.call("version")
        assert charon.registrations("log") == 0


def test_two_listeners_of_one_event(kit: Kit) -> None:
    with kit.pair() as (session, charon), session.listen("log", timeout=10) as one:
        with session.listen("log", timeout=10) as other:
            assert charon.emit("log", {"msg": "1"}) == 1
            assert next(one) == next(other) == ("log", {"msg": "1"})
        session.call("version")
        assert charon.emit("log", {"msg": "2"}) == 1
        assert next(one) == ("log", {"msg": "2"})


def test_malformed_messages_spoil_only_themselves(kit: Kit) -> None:
    with kit.pair() as (session, charon), session.listen("log", timeout=10) as listener:
        charon.emit("log", b"\x09")
        charon.emit("log", {"msg": "1"})
        with pytest.raises(DecodeError):
            next(listener)
        assert next(listener) == ("log", {"msg": "1"})


def test_malformed_message_in_a_stream(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        charon.on("list-sas", {}, stream=[("list-sa", b"\x09"), *SAS])
        stream = session.stream("list-sas")
        with pytest.raises(DecodeError):
            next(stream)
        assert len(list(stream)) == 50


def test_timeout_closes_the_connection(kit: Kit) -> None:
    with kit.pair(timeout=0.1) as (session, charon):
        charon.mute("version")
        with pytest.raises(RequestTimeout, match="version.* longer than 512 KiB"):
            session.call("version")
        assert session.closed
        with pytest.raises(ConnectionClosed, match="version: no reply"):
            session.call("version")
        session.connect()
        charon.on("version", {"daemon": "charon"})
        assert session.call("version", timeout=10) == {"daemon": "charon"}


def test_timeout_of_one_call(kit: Kit) -> None:
    with kit.pair(timeout=None) as (session, charon):
        charon.delay = 0.05
        assert session.call("version", timeout=5)
        charon.delay = 5
        with pytest.raises(RequestTimeout):
            session.call("version", timeout=0.01)


def test_timeout_of_a_stream_is_between_messages(kit: Kit) -> None:
    with kit.pair(timeout=0.1) as (session, charon):
        charon.delay = 5
        with pytest.raises(RequestTimeout, match="list-sas"):
            next(session.stream("list-sas"))


def test_events_do_not_put_off_a_timeout(kit: Kit) -> None:
    with kit.pair() as (session, charon), session.listen("log"):
        charon.mute("version")
        stop = threading.Event()

        def noise() -> None:
            while not stop.is_set():
                charon.emit("log", {"msg": "x"})

        making = kit.begin(noise)
        try:
            with pytest.raises(RequestTimeout):
                session.call("version", timeout=0.2)
        finally:
            stop.set()
            making.result()


def test_stream_whose_reply_was_dropped(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        charon.mute("list-sas")
        seen = []
        with pytest.raises(ProtocolError, match="reply to list-sas; it silently drops replies over 512 KiB"):
            for sa in session.stream("list-sas"):
                seen.append(sa)
        assert len(seen) == 50


def test_daemon_dies_in_the_middle(kit: Kit) -> None:
    with kit.pair() as (session, charon), session.listen("log", timeout=10) as listener:
        charon.emit("log", {"msg": "last"})
        charon.cut("list-sas", after=3)
        seen = []
        with pytest.raises(ConnectionClosed):
            for sa in session.stream("list-sas"):
                seen.append(sa)
        assert len(seen) == 3
        assert next(listener) == ("log", {"msg": "last"})
        with pytest.raises(ConnectionClosed):
            next(listener)
        with pytest.raises(ConnectionClosed):
            session.call("version")


def test_half_a_packet(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        charon.mute("version")
        call = kit.begin(session.call, "version")
        charon.requested("version")
        charon.send(b"\x00\x00\x00\x09\x01")
        charon.drain()
        charon.stop()
        with pytest.raises(ConnectionClosed, match="5 bytes into a packet|closed the connection"):
            call.result()


@pytest.mark.parametrize("garbage", [bytes(4), b"\xff" * 8, b"\x00\x00\x00\x01\x05", b"HTTP/1.1 400"])
def test_peer_that_is_not_charon(kit: Kit, garbage: bytes) -> None:
    with kit.pair() as (session, charon):
        charon.mute("version")
        call = kit.begin(session.call, "version")
        charon.requested("version")
        charon.send(garbage)
        with pytest.raises(ProtocolError):
            call.result()
        assert session.closed


def test_full_backlog_is_waited_out(kit: Kit) -> None:
    with kit.charon(backlog=1) as charon, ThreadPoolExecutor(40) as pool:
        charon.on("version", {"daemon": "charon"})
        charon.pause_accepting()
        sessions = [kit.session(charon.address) for _ in range(40)]
        connecting = [pool.submit(session.connect) for session in sessions]
        with pytest.raises(TimeoutError):
            for future in connecting:
                future.result(0.05)
        charon.resume_accepting()
        for session, future in zip(sessions, connecting, strict=True):
            future.result()
            assert session.call("version") == {"daemon": "charon"}
            session.close()


def test_no_daemon(kit: Kit, tmp_path: Path) -> None:
    with pytest.raises(ConnectionClosed, match=r"unix://.*none\.vici: No such file"):
        kit.session(tmp_path / "none.vici").connect()
    with pytest.raises(ConnectionClosed, match="not connected"):
        kit.session(tmp_path / "none.vici").call("version")
    with pytest.raises(ValueError, match="invalid VICI address: 'http://x'"):
        kit.session("http://x")
    for address in ("127.0.0.1:4502", "[::1]:4502"):
        with pytest.raises(
            ValueError, match=re.escape(f"'{address}'; write tcp://{address}, or ./{address} for a Unix")
        ):
            kit.session(address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConnectionClosed, match=f"cannot connect to {address}: .*refused"):
        kit.session(address).connect()


def test_an_error_of_the_system_keeps_its_errno(kit: Kit, tmp_path: Path) -> None:
    with pytest.raises(ConnectionClosed) as failure:
        kit.session(tmp_path / "none.vici").connect()
    assert failure.value.errno == errno.ENOENT and isinstance(failure.value.__cause__, FileNotFoundError)
    with kit.charon("tcp://127.0.0.1:0") as charon, kit.session(charon.address) as session:
        events = session.listen("log")
        events.ready()
        charon.drop()
        with pytest.raises(ConnectionClosed, match="^the connection broke: .*reset by peer$") as failure:
            next(events)
        assert failure.value.errno == errno.ECONNRESET
        assert isinstance(failure.value.__cause__, ConnectionResetError)
        with pytest.raises(ConnectionClosed) as later:
            session.call("version")
        assert later.value.__cause__ is failure.value


def test_connecting_takes_no_longer_than_the_timeout(kit: Kit) -> None:
    with kit.charon(backlog=0) as charon:
        charon.pause_accepting()
        taken = []
        for _ in range(3):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            taken.append(sock)
            with suppress(BlockingIOError):
                sock.connect(charon.address.removeprefix("unix://"))
        with pytest.raises(RequestTimeout, match="no connection to unix://.* within 0.05 s"):
            kit.session(charon.address, timeout=0.05).connect()
        for sock in taken:
            sock.close()


def test_tcp(kit: Kit) -> None:
    with kit.charon("tcp://127.0.0.1:0") as charon:
        charon.on("version", {"daemon": "charon"})
        with kit.session(charon.address) as session:
            assert session.call("version") == {"daemon": "charon"}


@pytest.mark.parametrize("lacking", ["", "TCP_KEEPIDLE", "TCP_USER_TIMEOUT"])
def test_tcp_is_kept_alive(kit: Kit, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    """A client that only waits for events must notice a dead path; platforms lack some of the options."""
    wanted = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
    numbers = {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}
    if lacking:
        numbers.pop(getattr(socket, lacking, None), None)
        monkeypatch.delattr(socket, lacking, raising=False)
    with kit.charon("tcp://127.0.0.1:0") as charon, kit.session(charon.address) as session:
        charon.on("version", {"daemon": "charon"})
        assert session.call("version")
        connection = session._connection
        sock = connection._sock if hasattr(connection, "_sock") else connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert {number: sock.getsockopt(socket.IPPROTO_TCP, number) for number in numbers} == numbers


def test_connected_socket(kit: Kit) -> None:
    with kit.charon() as charon:
        charon.on("version", {"daemon": "charon"})
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(charon.address.removeprefix("unix://"))
        session = kit.session(sock)
        with session:
            assert session.call("version") == {"daemon": "charon"}
        assert sock.fileno() == -1
        with pytest.raises(ConnectionClosed, match="cannot connect to the given socket"):
            session.connect()


def test_connecting_twice(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        session.connect()
        session.call("version")
        charon.connected(1)
        session.close()
        session.close()
        assert session.closed
        session.connect()
        assert session.call("version") == {"daemon": "charon"}


def test_daemon_restarts(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        charon.stop()
        with pytest.raises(ConnectionClosed):
            session.call("version")
        charon.start()
        session.connect()
        assert session.call("version") == {"daemon": "charon"}


def test_closing_unregisters_first(kit: Kit) -> None:
    with kit.charon() as charon:
        with kit.session(charon.address) as session:
            listener = session.listen("log", "ike-updown", timeout=10)
            listener.ready()
        charon.connected(0)
        assert (wire.EVENT_UNREGISTER, "log") in charon.packets
        assert charon.abrupt_closes == 0
        with pytest.raises(ConnectionClosed, match="listener was closed"):
            next(listener)


def test_closing_in_the_middle_of_a_stream(kit: Kit) -> None:
    with kit.pair() as (session, charon):
        stream = session.stream("list-sas")
        next(stream)
        session.close()
        charon.connected(0)
        with pytest.raises(ConnectionClosed, match="not connected"):
            session.call("version")
        assert len(list(stream)) == 49


def test_bytes_values_and_binary_fields(kit: Kit) -> None:
    with kit.charon() as charon:
        der = b"0\x82\x01\xff"
        charon.on("list-certs", {}, stream=[("list-cert", {"type": "X509", "data": der})])
        with kit.session(charon.address) as session:
            assert list(session.stream("list-certs")) == [{"type": "X509", "data": der}]
        with kit.session(charon.address, values=bytes) as session:
            assert list(session.stream("list-certs")) == [{"type": b"X509", "data": der}]


def test_messages_read_lazily(kit: Kit) -> None:
    with kit.charon() as charon, kit.session(charon.address, values=Message) as session:
        charon.on("version", {"daemon": "charon"})
        charon.on("list-sas", {}, stream=SAS)
        charon.on("list-certs", {}, stream=[("list-cert", {"type": "X509", "data": b"0\xff"})])
        charon.on("terminate", {"success": "no", "errmsg": "no matching SAs"})
        assert session.call("version")["daemon"] == "charon"
        seen = [sa.get(f"site-{i}", "uniqueid") for i, sa in enumerate(session.stream("list-sas"))]
        assert seen == [str(i) for i in range(50)]
        assert next(session.stream("list-certs"))["data"] == b"0\xff"
        with pytest.raises(CommandError, match="no matching SAs"):
            session.call("terminate", {"ike": "x"})
