"""The drop-in beside strongSwan's own module: the same calls with equal results, and each difference it documents."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import inspect
import ipaddress
import pickle
import pkgutil
import re
import select
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, sas
from onloop import Loop, time_limit

import vicifast
from vicifast import _wire, compat
from vicifast.commands import COMMANDS
from vicifast.testing import FakeCharon

try:
    import vici as theirs
except ImportError:
    theirs = None

needs_theirs = pytest.mark.skipif(theirs is None, reason="strongSwan's module is not installed: pip install vici")
either = pytest.mark.parametrize(
    "vici", [pytest.param(compat, id="compat"), pytest.param(theirs, id="theirs", marks=needs_theirs)]
)

SAS = [("list-sa", {f"site-{i}": {"uniqueid": i, "local-ts": ["10.0.0.0/8", "::/0"], "child-sas": {}}}) for i in (1, 2)]
LOG = [("control-log", {"group": "IKE", "level": 1, "msg": line}) for line in ("initiating", "Zürich", "done")]
CERT = {"type": "X509", "data": bytes(range(256))}
PARTS = [("list-sa", b"\x03\x01k\x00\x05ab")]  # a value shorter than its length
NO = {"success": "no", "errmsg": "not found"}


@pytest.fixture
def charon() -> Iterator[Any]:
    with time_limit(), Loop() as loop, loop.blocking(FakeCharon()) as charon:
        charon.on("version", {"daemon": "charon", "version": "6.0.6", "": {"a": "", "b": []}})
        charon.on("load-conn", {"success": "yes"})
        charon.on("load-key", {"success": "yes", "id": "ab"})
        charon.on("unload-conn", NO)
        charon.on("list-sas", {}, stream=SAS)
        charon.on("list-certs", {}, stream=[("list-cert", CERT)])
        charon.on("initiate", {"success": "yes"}, stream=LOG)
        charon.on("terminate", NO, stream=LOG[:1])
        charon.on("get-counters", {"counters": {"": {"invalid": 0}}, "success": "yes"})
        yield charon


def connected(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(address.removeprefix("unix://"))
    return sock


@contextmanager
def opened(vici: Any, charon: Any) -> Iterator[Any]:
    with connected(charon.address) as sock:
        yield vici.Session(sock)


def plain(value: Any) -> Any:
    """Return a result with the order of its names, in types that are the same for both."""
    if isinstance(value, dict):
        return {"names": list(value), **{f".{name}": plain(inner) for name, inner in value.items()}}
    if inspect.isgenerator(value):
        return ["generator", *(plain(item) for item in value)]
    return [type(value).__name__, *map(plain, value)] if isinstance(value, (list, tuple)) else value


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return plain(function())
    except Exception as error:
        return type(error).__name__, str(error)


def take(generator: Any, count: int) -> list[Any]:
    """Return the first items, then abandon the generator."""
    with closing(generator):
        return [next(generator) for _ in range(count)]


def partly(generator: Any) -> Any:
    """The items and then the exception of a stream that fails."""
    items = []
    try:
        for item in generator:
            items.append(plain(item))
    except Exception as error:
        items.append((type(error).__name__, str(error)))
    return items


def raising(session: Any) -> Any:
    for _ in session.list_sas():
        raise LookupError("the consumer's")


CALLS: dict[str, Callable[[Any], Any]] = {
    "reply": lambda s: s.version(),
    "no reply": lambda s: s.load_conn({"gw": {"version": 2, "remote_addrs": ["192.0.2.1", b"gw"], "children": {}}}),
    "reply of success": lambda s: s.load_key({"type": "rsa", "data": b"\x00\xff"}),
    "empty name": lambda s: s.get_counters(),
    "request": lambda s: s.request("version", {}),
    "success=no": lambda s: s.unload_conn({"name": "absent"}),
    "stream": lambda s: s.list_sas(),
    "stream with filters": lambda s: s.list_sas({"noblock": "yes"}),
    "any stream": lambda s: s.streamed_request("list-sas", "list-sa"),
    "binary": lambda s: s.list_certs(),
    "log": lambda s: partly(s.initiate({"child": "net", "timeout": 1000})),
    "log, then success=no": lambda s: partly(s.terminate({"ike": "gw"})),
    "left after an item": lambda s: [take(s.list_sas(), 1), s.version()],
    "left before the first": lambda s: [s.list_sas().close(), s.version()],
    "consumer raises": lambda s: [outcome(lambda: raising(s)), s.version()],
    "unknown event": lambda s: [outcome(lambda: next(s.listen(["no-such"]))), s.version()],
    "no event": lambda s: [take(s.listen(["ike-updown"], 0.01), 2), s.version()],
    "object as text": lambda s: s.load_pool({"p": {"addrs": ipaddress.ip_network("10.0.0.0/24"), "dns": [1.5]}}),
}


@needs_theirs
@pytest.mark.parametrize("call", CALLS)
def test_equal_results(charon: Any, call: str) -> None:
    charon.on("load-pool", {"success": "yes"})
    results, requests = [], []
    for vici in (theirs, compat):
        with opened(vici, charon) as session:
            results.append(outcome(lambda session=session: CALLS[call](session)))
        requests.append(charon.requests[:])
        charon.requests.clear()
    assert results[0] == results[1]
    assert requests[0] == requests[1]


@needs_theirs
def test_unknown_commands_raise_the_same_exception(charon: Any) -> None:
    for vici in (theirs, compat):
        with opened(vici, charon) as session:
            with pytest.raises(vici.exception.SessionException):
                session.request("no-such-command")
            assert session.version()["daemon"] == b"charon"


def modules(vici: Any) -> list[Any]:
    return [
        vici,
        *(importlib.import_module(f"{vici.__name__}.{info.name}") for info in pkgutil.iter_modules(vici.__path__)),
    ]


def surface(vici: Any) -> dict[str, Any]:
    """The public names that a package defines, with signatures, bases and values, in the same form for both."""
    found: dict[str, Any] = {}
    for module in modules(vici)[1:]:
        for name, value in vars(module).items():
            here = getattr(value, "__module__", module.__name__) == module.__name__
            if here and not name.startswith("_") and not inspect.ismodule(value):
                found |= described(f"{module.__name__.rpartition('.')[2]}.{name}", value)
    return found


def described(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, type) and issubclass(value, tuple):
        return {name: value._fields}  # type: ignore[attr-defined]
    if isinstance(value, type):
        found: dict[str, Any] = {name: [base.__name__ for base in value.__mro__]}
        for inner in vars(value):
            if not inner.startswith("_") or inner in ("__init__", "__len__"):
                found |= described(f"{name}.{inner}", getattr(value, inner))
        return found
    if callable(value):
        parameters = inspect.signature(value).parameters.values()
        return {name: [(p.name, p.default is p.empty) for p in parameters]}
    return {name: value if isinstance(value, int) else type(value).__name__}


@needs_theirs
def test_every_public_name_is_here() -> None:
    expected, ours = surface(theirs), surface(compat)
    assert len(expected) > 80
    assert {name: ours.get(name) for name in expected} == expected
    assert set(vars(theirs)) <= set(vars(compat))


@needs_theirs
def test_every_name_can_be_imported_from_every_module_that_has_it() -> None:
    compared = 0
    for module in modules(theirs):
        ours = importlib.import_module(module.__name__.replace(theirs.__name__, compat.__name__, 1))
        for name, value in vars(module).items():
            home = getattr(value, "__module__", module.__name__)
            if name.startswith("_") or inspect.ismodule(value) or home.partition(".")[0] != theirs.__name__:
                continue
            mine = getattr(ours, name)
            if hasattr(value, "__module__"):
                assert mine.__module__ == home.replace(theirs.__name__, compat.__name__, 1)
            else:
                assert mine is getattr(compat.protocol, name)
            compared += 1
    assert compared > 20


@needs_theirs
def test_exceptions() -> None:
    def hierarchy(module: Any) -> dict[str, list[str]]:
        found = inspect.getmembers(module, lambda member: inspect.isclass(member) and issubclass(member, Exception))
        return {name: [base.__name__ for base in kind.__mro__] for name, kind in found}

    assert hierarchy(compat.exception) == hierarchy(theirs.exception)
    assert hierarchy(compat) == hierarchy(theirs)


def test_imports_that_programs_have() -> None:
    from vicifast.compat import EventListener, Session, StopListening  # noqa: F401
    from vicifast.compat.event_listener import EventListener as Listener
    from vicifast.compat.exception import CommandException
    from vicifast.compat.protocol import RECV_TIMEOUT_DEFAULT, Message  # noqa: F401
    from vicifast.compat.session import Session as SessionOfModule

    assert (compat.session.Session, compat.exception.CommandException) == (SessionOfModule, CommandException)
    assert compat.event_listener.EventListener is Listener is EventListener


@either
def test_generators_send_nothing_before_the_first_item(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        generators = [session.initiate({"child": "net"}), session.list_sas(), session.listen(["log"])]
        session.version()
        assert charon.packets == [(_wire.CMD_REQUEST, "version")]
        assert next(generators[0])["msg"] == b"initiating"
        del generators


@either
def test_sections_are_ordered_dicts(vici: Any, charon: Any) -> None:
    """Programs test for that with isinstance, and print sections."""
    with opened(vici, charon) as session:
        with closing(session.listen(["ike-updown"], 0.01)) as events:
            next(events)
            charon.emit("ike-updown", {"up": "yes", "gw": {"child-sas": {}}})
            event = next(item for name, item in events if name)
        reply, [_, last] = session.version(), session.list_sas()
    read = vici.protocol.Message.deserialize(vici.protocol.FiniteStream(b"\x01\x01a\x02"))
    sections = [
        reply,
        reply[""],
        last,
        last["site-2"],
        last["site-2"]["child-sas"],
        event,
        event["gw"],
        read,
        read["a"],
    ]
    assert {type(section) for section in sections} == {OrderedDict}
    reply.move_to_end("daemon")
    assert [*reply] == ["version", "", "daemon"]
    assert last["site-2"] != OrderedDict(reversed(last["site-2"].items()))


@either
def test_values_are_bytes(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        message = next(session.list_certs())
    assert isinstance(message, dict)
    assert (message["type"], message["data"]) == (b"X509", bytes(range(256)))


@either
def test_listen(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        events = session.listen(["ike-updown", "log"], timeout=0.01)
        assert next(events) == (None, None)
        charon.emit("log", {"msg": "hello"})
        charon.emit("ike-updown", {"up": "yes"})
        found = [event for event in take(events, 20) if event[0]]
        assert found == [(b"log", {"msg": b"hello"}), (b"ike-updown", {"up": b"yes"})]
        assert session.version()["daemon"] == b"charon"
    assert (_wire.EVENT_UNREGISTER, "log") in charon.packets


@either
def test_listen_and_the_timeout_of_the_socket(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        session.transport.socket.settimeout(0.3)  # the registration takes some of it on a busy machine
        assert take(session.listen(["log"]), 2) == [(None, None)] * 2
        session.transport.socket.settimeout(None)

        def emit() -> None:
            charon.registered("log")
            charon.emit("log", {"msg": "late"})

        threading.Thread(target=emit).start()
        assert take(session.listen(["log"]), 1) == [(b"log", {"msg": b"late"})]


@either
def test_missing_reply(vici: Any, charon: Any) -> None:
    charon.mute("version")
    with opened(vici, charon) as session:
        session.transport.socket.settimeout(0.05)
        with pytest.raises(socket.timeout):
            session.version()


@either
def test_charon_has_disconnected(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        charon.cut("list-sas", 1)
        assert partly(session.list_sas())[0]["names"] == ["site-1"]
        with pytest.raises(OSError):
            session.version()


class ClosedByCharon:
    """A socket whose third packet cannot be sent, while what charon sent before can be received."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._left = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        if not self._left:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self._left -= 1
        self._socket.sendall(data)


@either
def test_items_sent_before_charon_closed_are_received(vici: Any, charon: Any) -> None:
    charon.cut("list-sas", 1)
    with connected(charon.address) as sock:
        items = partly(vici.Session(ClosedByCharon(sock)).list_sas())
    assert [items[0]["names"], items[1][0]] == [["site-1"], "BrokenPipeError"]


@either
def test_no_charon_at_the_default_address(vici: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(self: socket.socket, where: Any) -> None:
        asked.append(where)
        self.close()
        raise FileNotFoundError(2, "No such file or directory")

    class Refusing(socket.socket):
        connect = refuse  # type: ignore[assignment]

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(FileNotFoundError):
        vici.Session()
    assert asked == ["/var/run/charon.vici"]


@either
def test_transport_close(vici: Any, charon: Any) -> None:
    session = vici.Session(connected(charon.address))
    session.version()
    session.transport.close()
    assert session.transport.socket.fileno() == -1
    with pytest.raises(OSError):
        session.version()


def program(vici: Any, session: Any, charon: Any) -> list[Any]:
    """A program with an EventListener, written for strongSwan's module."""
    heard: list[Any] = []
    listener = vici.EventListener()

    @listener.on_events(["ike-updown", "child-updown"])
    def updown(name: str, event: Any) -> None:
        heard.append((name, plain(event)))

    @listener.on_timeout()
    @listener.on_events(["log"])
    def both(name: Any, event: Any) -> None:
        if name is None:
            charon.emit("ike-updown", {"up": "yes", "gw": {"uniqueid": 7}})
            charon.emit("log", {"msg": "bye"})
        else:
            heard.append((name, plain(event)))
            raise vici.StopListening

    @listener.on_timeout()
    def quiet() -> None:
        heard.append("timeout")

    listener.set_session(session)
    heard.append(listener.listen(timeout=0.2))
    heard.append(session.version()["daemon"])
    return heard


@either
def test_event_listener(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        up = plain({"up": b"yes", "gw": {"uniqueid": b"7"}})
        bye = plain({"msg": b"bye"})
        assert program(vici, session, charon) == ["timeout", ("ike-updown", up), ("log", bye), True, b"charon"]


@either
def test_event_listener_after_a_disconnection(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as first, opened(vici, charon) as second:
        sessions = [second]
        listener = vici.EventListener(first)

        @listener.on_events(["log"])
        def stay(name: str, event: Any) -> None:
            raise AssertionError(name)

        @listener.on_timeout()
        def cut() -> None:
            charon.drop()

        @listener.on_disconnected()
        def again(which: Any) -> None:
            assert which is listener and listener.session is None
            if sessions:
                which.set_session(sessions.pop())

        assert listener.listen(timeout=0.05) is False
        assert sessions == []


@either
def test_event_listener_passes_on_other_exceptions(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        listener = vici.EventListener(session)
        listener.on_timeout()(lambda: [][0])
        listener.on_events(["log"])(print)
        with pytest.raises(IndexError):
            listener.listen(timeout=0.01)
        assert session.version()["daemon"] == b"charon"
        listener.on_events(["no-such"])(print)
        with pytest.raises(vici.exception.EventUnknownException, match="^Unknown event type 'no-such'$"):
            listener.listen()
    assert vici.EventListener().listen() is False


# What programs do apart from the methods of a session: with the socket, packets, transports and errors.

CONFIRM = _wire.packet(_wire.EVENT_CONFIRM)
REPLY = _wire.packet(_wire.CMD_RESPONSE, None, {"success": "yes"})


def logged(text: str) -> bytes:
    return _wire.packet(_wire.EVENT, "log", {"msg": text})


@contextmanager
def scripted(vici: Any, *answers: bytes) -> Iterator[tuple[Any, socket.socket]]:
    """A session, and the daemon's end of its connection, where the replies are already pending."""
    ours, daemon = socket.socketpair()
    with time_limit(), ours, daemon:
        ours.settimeout(10)
        daemon.sendall(b"".join(answers))
        yield vici.Session(ours), daemon


def by_select(sock: socket.socket) -> Callable[[], object]:
    return lambda: select.select([sock], [], [], 0)[0]


def by_poll(sock: socket.socket) -> Callable[[], object]:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda: poll.poll(0)


def by_selectors(sock: socket.socket) -> Callable[[], object]:
    selector = selectors.SelectSelector()
    selector.register(sock, selectors.EVENT_READ)
    return lambda: selector.select(0)


@either
@pytest.mark.parametrize("wait", [by_select, by_poll, by_selectors])
def test_the_socket_is_readable_as_long_as_there_are_events(vici: Any, wait: Any) -> None:
    with scripted(vici, CONFIRM, logged("0")) as (session, daemon):
        events = session.listen(["log"])
        assert next(events) == (b"log", {"msg": b"0"})
        readable = wait(session.transport.socket)
        assert not readable()
        daemon.sendall(logged("1") + logged("2") + logged("3"))
        found = []
        while readable():
            found.append(next(events)[1]["msg"])
        assert found == [b"1", b"2", b"3"]
        daemon.sendall(CONFIRM)
        events.close()
        assert not readable()


@either
def test_the_socket_is_quiet_after_a_stream(vici: Any) -> None:
    with scripted(vici, CONFIRM, logged("1"), REPLY, CONFIRM) as (session, _):
        assert len(list(session.streamed_request("initiate", "log"))) == 1
        assert not by_select(session.transport.socket)()


@either
def test_the_timeout_of_the_socket_is_the_programs(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        sock = session.transport.socket
        before = sock.gettimeout()
        sock.settimeout(5)
        session.version()
        assert (before, sock.gettimeout()) == (10, 5)
        assert take(session.listen(["log"], 0.01), 1) == [(None, None)]
        assert sock.gettimeout() == 5


@either
def test_a_program_reads_packets_itself(vici: Any, charon: Any) -> None:
    packets, messages = vici.protocol.Packet, vici.protocol.Message

    def watch(transport: Any) -> Iterator[Any]:
        while True:
            response = packets.parse(transport.receive())
            if response.response_type == packets.EVENT:
                yield response.event_type, messages.deserialize(response.payload)

    with opened(vici, charon) as session:
        session.transport.send(packets.register_event("log"))
        assert packets.parse(session.transport.receive()).response_type == packets.EVENT_CONFIRM
        charon.emit("log", {"msg": "hello"})
        assert next(watch(session.transport)) == (b"log", {"msg": b"hello"})
        session.transport.send(packets.unregister_event("log"))
        assert packets.parse(session.transport.receive())[0] == packets.EVENT_CONFIRM
        assert session.version()["daemon"] == b"charon"


@either
def test_an_asyncio_wrapper(vici: Any, charon: Any) -> None:
    class AsyncTransport(vici.protocol.Transport):  # type: ignore[misc]
        async def send(self, packet: bytes) -> None:
            await asyncio.get_running_loop().sock_sendall(self.socket, struct.pack("!I", len(packet)) + packet)

        async def receive(self) -> bytes:
            (length,) = struct.unpack("!I", await self._recvall(self.HEADER_LENGTH))
            return await self._recvall(length)

        async def _recvall(self, count: int) -> bytes:
            data = b""
            while len(data) < count:
                data += await asyncio.get_running_loop().sock_recv(self.socket, count - len(data))
            return data

    async def version() -> Any:
        packets = vici.protocol.Packet
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        transport = AsyncTransport(sock)
        await asyncio.get_running_loop().sock_connect(transport.socket, charon.address.removeprefix("unix://"))
        await transport.send(packets.request("version", vici.protocol.Message.serialize({})))
        response = packets.parse(await transport.receive())
        transport.close()
        assert response.response_type == packets.CMD_RESPONSE and sock.fileno() == -1
        return vici.protocol.Message.deserialize(response.payload)

    assert asyncio.run(version())["version"] == b"6.0.6"


@either
def test_objects_in_place_of_a_socket(vici: Any, charon: Any) -> None:
    class Recording:
        def __init__(self, sock: socket.socket) -> None:
            self.sent, self.received, self.sock = b"", b"", sock

        def sendall(self, data: bytes) -> None:
            self.sent += data
            self.sock.sendall(data)

        def recv(self, count: int) -> bytes:
            data = self.sock.recv(count)
            self.received += data
            return data

        def __getattr__(self, name: str) -> Any:
            assert name in ("gettimeout", "settimeout", "shutdown", "close")
            return getattr(self.sock, name)

    recording = Recording(connected(charon.address))
    session = vici.Session(recording)
    session.version()
    assert recording.sent == _wire.packet(_wire.CMD_REQUEST, "version")
    assert recording.received[4:5] == bytes([_wire.CMD_RESPONSE])
    assert len(list(session.list_sas())) == 2
    session.transport.close()


@either
def test_a_session_made_before_its_socket_is_connected(vici: Any, charon: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        session = vici.Session(sock)
        with pytest.raises(OSError) as failure:
            session.version()
        assert failure.value.errno == errno.ENOTCONN
        sock.connect(charon.address.removeprefix("unix://"))
        assert session.version()["daemon"] == b"charon"


@either
def test_another_transport_in_a_session(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        charon.cut("list-sas", 0)
        with pytest.raises(OSError):
            list(session.list_sas())
        with connected(charon.address) as again:
            session.transport = vici.protocol.Transport(again)
            assert session.version()["daemon"] == b"charon"


@either
def test_a_subclass_of_the_session(vici: Any, charon: Any) -> None:
    class Text(vici.Session):  # type: ignore[misc]
        def request(self, command: str, message: Any = None) -> Any:
            return {name: value for name, value in super().request(command, message).items() if name}

        def streamed_request(self, command: str, event_stream_type: str, message: Any = None) -> Any:
            return [[*item] for item in super().streamed_request(command, event_stream_type, message)]

    with connected(charon.address) as sock:
        session = Text(sock)
        assert session.version() == {"daemon": b"charon", "version": b"6.0.6"}
        assert session.list_sas() == [["site-1"], ["site-2"]]


@either
def test_commands_over_a_request_of_the_programs_own(vici: Any) -> None:
    class Noting(vici.command_wrappers.CommandWrappers):  # type: ignore[misc]
        def request(self, command: str, message: Any = None) -> Any:
            return command, message

    assert Noting().unload_pool({"name": "p"}) is None
    assert Noting().load_pool({"p": {}}) == ("load-pool", {"p": {}})


@either
def test_an_interrupt_while_listening_does_no_harm(vici: Any, charon: Any) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with opened(vici, charon) as session:
            events = session.listen(["log"])
            threading.Thread(target=lambda: (charon.registered("log"), charon.emit("log", {"msg": "1"}))).start()
            assert next(events)[1] == {"msg": b"1"}
            main = threading.get_ident()
            threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGUSR1)).start()
            with pytest.raises(KeyboardInterrupt):
                next(events)
            assert session.version()["daemon"] == b"charon"
    finally:
        signal.signal(signal.SIGUSR1, before)


@either
def test_exceptions_can_be_pickled(vici: Any) -> None:
    for name in ("DeserializationException", "SessionException", "CommandException", "EventUnknownException"):
        error = pickle.loads(pickle.dumps(getattr(vici.exception, name)("text")))
        assert (type(error).__name__, str(error)) == (name, "text")


@either
def test_no_events(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        assert take(session.listen([], 0.01), 2) == [(None, None)] * 2
        listener = vici.EventListener(session)

        @listener.on_timeout()
        def stop() -> None:
            raise vici.StopListening

        assert listener.listen(timeout=0.01) is True


PARSED = {
    "response": b"\x01\x03\x01k\x00\x01v",
    "no message": b"\x05",
    "event": b"\x07\x03log\x03\x01k\x00\x01v",
    "event without a message": b"\x07\x03log",
}
PACKETS: dict[str, Callable[[Any], Any]] = {
    "request": lambda p: p.Packet.request("version"),
    "request with a message": lambda p: p.Packet.request("get-pools", p.Message.serialize({"leases": "yes"})),
    "register": lambda p: p.Packet.register_event("log"),
    "unregister": lambda p: p.Packet.unregister_event("log"),
    "serialize": lambda p: p.Message.serialize({"a": 1, "b": ["x", b"\xff"], "c": {"d": {"e": ""}}, "f": []}),
    "no message": lambda p: p.Message.serialize({}),
    "deserialize": lambda p: p.Message.deserialize(p.FiniteStream(p.Message.serialize({"a": {"b": ["x"]}, "c": "d"}))),
    "stream": lambda p: [(s := p.FiniteStream(b"abc")).read(1), len(s), s.tell(), s.has_more(), s.read(), s.has_more()],
    **{f"parse {name}": lambda p, data=data: [*p.Packet.parse(data)[:-1]] for name, data in PARSED.items()},
    **{f"payload of {name}": lambda p, data=data: p.Packet.parse(data).payload.read() for name, data in PARSED.items()},
}


@needs_theirs
@pytest.mark.parametrize("call", PACKETS)
def test_equal_packets(call: str) -> None:
    assert plain(PACKETS[call](compat.protocol)) == plain(PACKETS[call](theirs.protocol))


@either
def test_transports(vici: Any) -> None:
    ours, daemon = socket.socketpair()
    client, server = vici.protocol.Transport(ours), vici.protocol.Transport(daemon)
    client.send(b"one")
    client.send(b"")
    client.send(b"x" * 100_000)
    assert [server.receive(), server.receive(timeout=10), server.receive()] == [b"one", b"", b"x" * 100_000]
    with pytest.raises(socket.timeout):
        server.receive(timeout=0.01)
    assert daemon.gettimeout() is None
    client.close()
    with pytest.raises(OSError, match="Connection closed"):
        server.receive()
    server.close()


# Errors of a connection that has ended: their class for `except`, and their errno.

LOSSES = (BrokenPipeError, ConnectionResetError, TimeoutError, OSError)


def loss(function: Callable[[], Any]) -> tuple[type[OSError], int | None]:
    with pytest.raises(OSError) as failure:
        function()
    return next(kind for kind in LOSSES if isinstance(failure.value, kind)), failure.value.errno


BROKEN, RESET = (BrokenPipeError, errno.EPIPE), (ConnectionResetError, errno.ECONNRESET)
EOF, LATE, NO_SOCKET = (OSError, None), (TimeoutError, None), (OSError, errno.EBADF)


@either
def test_charon_ends_before_a_request(vici: Any) -> None:
    with scripted(vici) as (session, daemon):
        daemon.close()
        calls = [session.version, lambda: list(session.list_sas()), lambda: next(session.listen(["log"]))]
        assert [loss(call) for call in calls * 2] == [BROKEN] * 6


@either
@pytest.mark.parametrize("answer", [b"", REPLY[:2], REPLY[:-1]], ids=["nothing", "half a length", "half a packet"])
def test_charon_closes_in_place_of_a_reply(vici: Any, answer: bytes) -> None:
    with scripted(vici, answer) as (session, daemon):
        daemon.shutdown(socket.SHUT_WR)
        assert loss(session.version) == EOF
        daemon.close()
        assert loss(session.version) == BROKEN


@either
def test_charon_is_killed_with_a_request_unread(vici: Any) -> None:
    with scripted(vici) as (session, daemon):
        killer = threading.Thread(target=lambda: (daemon.recv(1), daemon.close()))
        killer.start()
        assert loss(session.version) == RESET
        assert loss(session.version) == BROKEN
        killer.join(10)


@either
def test_a_reset_over_tcp(vici: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        daemon, _ = server.accept()
        session = vici.Session(sock)
        daemon.sendall(CONFIRM + logged("1"))
        events = session.listen(["log"])
        next(events)
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        daemon.close()
        assert loss(lambda: next(events)) == BROKEN
        assert loss(session.version) == BROKEN


@either
@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("generator", [lambda s: s.listen(["log"]), lambda s: s.streamed_request("initiate", "log")])
def test_charon_ends_while_events_are_waited_for(vici: Any, generator: Any, unread: bool) -> None:
    with scripted(vici, CONFIRM, logged("1")) as (session, daemon):
        events = generator(session)
        next(events)
        if not unread:
            daemon.recv(65536)
        daemon.close()
        assert loss(lambda: next(events)) == BROKEN
        assert [*events] == []
        assert loss(session.version) == BROKEN


@either
def test_a_loss_that_another_call_found(vici: Any) -> None:
    with scripted(vici, CONFIRM, logged("1")) as (session, daemon):
        events = session.listen(["log"])
        next(events)
        daemon.close()
        assert loss(session.version) == BROKEN
        assert loss(lambda: next(events)) == BROKEN


@either
def test_a_lost_session_is_freed_at_once(vici: Any) -> None:
    gc.disable()
    try:
        with scripted(vici, CONFIRM, logged("1")) as (session, daemon):
            daemon.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                for _ in session.listen(["log"]):
                    pass
            transport = weakref.ref(session.transport)
            del session
            assert transport() is None
    finally:
        gc.enable()


@either
def test_charon_does_not_answer(vici: Any) -> None:
    with scripted(vici) as (session, _):
        session.transport.socket.settimeout(0.01)
        assert loss(session.version) == LATE
    with scripted(vici, CONFIRM, logged("1")) as (session, _):
        session.transport.socket.settimeout(0.01)
        stream = session.streamed_request("initiate", "log")
        next(stream)
        assert loss(lambda: next(stream)) == LATE


@either
def test_the_program_has_closed_the_socket(vici: Any) -> None:
    with scripted(vici, CONFIRM, logged("1")) as (session, _):
        events = session.listen(["log"])
        next(events)
        session.transport.socket.close()
        assert [loss(lambda: next(events)), loss(session.version)] == [NO_SOCKET] * 2


# The differences that the docstring of vicifast.compat lists.


@pytest.mark.parametrize(
    "data", [b"\x00", b"\x08", b"\xff", b"\x06", b"\x03\x01k\x00\x05ab", b"\x04\x01l", b"\x03\x01\xff\x00\x00"]
)
def test_difference_malformed_messages(charon: Any, data: bytes) -> None:
    with pytest.raises(compat.exception.DeserializationException, match="at offset"):
        compat.protocol.Message.deserialize(compat.protocol.FiniteStream(data))
    charon.on("version", data)
    charon.on("list-sas", {}, stream=[("list-sa", data)])
    with opened(compat, charon) as session:
        for call in (session.version, lambda: list(session.list_sas())):
            with pytest.raises(compat.exception.DeserializationException) as failure:
                call()
            assert isinstance(failure.value.__cause__, vicifast.DecodeError)
        charon.on("version", {"daemon": "charon"})
        assert session.version() == {"daemon": b"charon"}


def test_difference_values(charon: Any) -> None:
    with opened(compat, charon) as session:
        session.load_conn({"gw": {"encap": True, "mobike": False, "vips": ("::", "0.0.0.0")}})
    assert charon.requests == [("load-conn", {"gw": {"encap": "yes", "mobike": "no", "vips": ["::", "0.0.0.0"]}})]


ENDLESS: dict[str, Any] = {}
ENDLESS["again"] = ENDLESS


@pytest.mark.parametrize(
    "value",
    [None, {1}, iter([1]), {}.values(), [{}], [[1]], [None], "x" * 65536, "Zürich", {"n" * 256: 1}, {1: 1}, ENDLESS],
    ids=["None", "set", "iterator", "view", "dict in a list", "list in a list", "None in a list"]
    + ["long value", "not ASCII", "long name", "name that is not text", "endless"],
)
def test_difference_unencodable_messages(charon: Any, value: Any) -> None:
    with opened(compat, charon) as session:
        for call in (session.unload_conn, lambda message: next(session.list_sas(message))):
            with pytest.raises(vicifast.EncodeError):
                call({"name": value})
        assert session.version()["daemon"] == b"charon"
    assert [packet for packet in charon.packets if packet[0] == _wire.CMD_REQUEST] == [(_wire.CMD_REQUEST, "version")]


def test_difference_calls_in_the_middle_of_streams(charon: Any) -> None:
    with opened(compat, charon) as session:
        events = session.listen(["log"], 5)
        streams = [session.list_sas(), session.list_sas()]
        names = [[*next(stream)] for stream in streams]
        charon.on("version", lambda request: charon._subject.emit("log", {"msg": "hello"}) and {"daemon": "charon"})
        threading.Timer(0.05, charon.emit, ("log", {"msg": "first"})).start()
        assert next(events)[1] == {"msg": b"first"}
        assert session.version() == {"daemon": b"charon"}
        assert next(events) == (b"log", {"msg": b"hello"})
        assert names + [[*message] for stream in streams for message in stream] == [["site-1"]] * 2 + [["site-2"]] * 2
        events.close()


def test_difference_exceptions_in_consumers(charon: Any) -> None:
    with opened(compat, charon) as session:
        for generator in (session.list_sas(), session.listen(["log"], 0.01)):
            next(generator)
            with pytest.raises(LookupError):
                generator.throw(LookupError("the consumer's"))
            assert session.version()["daemon"] == b"charon"
        assert charon.registrations("log") == 0


def test_difference_close_of_a_generator_does_not_wait(charon: Any) -> None:
    go = threading.Event()

    async def slow(request: Any) -> Any:
        while not go.is_set():
            await asyncio.sleep(0.01)
        return NO

    charon.on("terminate", slow, stream=LOG)
    with opened(compat, charon) as session:
        take(session.terminate({"ike": "gw"}), 1)  # and it raises no CommandException
        go.set()
        assert session.version()["daemon"] == b"charon"


def test_difference_a_timeout_closes(charon: Any) -> None:
    charon.mute("version")
    with opened(compat, charon) as session:
        session.transport.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            session.version()
        with pytest.raises(ConnectionError):
            session.load_conn({})
        assert session.closed


def test_difference_incomplete_packet(charon: Any) -> None:
    with scripted(compat, CONFIRM, logged("1"), logged("2")[:-1]) as (session, daemon):
        session.transport.socket.settimeout(0.05)
        events = session.listen(["log"])
        assert next(events)[1] == {"msg": b"1"}
        assert loss(lambda: next(events)) == LATE
        assert session.closed and loss(session.version) == BROKEN


def test_difference_packets_that_no_daemon_sends(charon: Any) -> None:
    for data in (b"\x00\x08\x00\x01", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\x00", _wire.packet(_wire.EVENT_CONFIRM)):
        with scripted(compat, data) as (session, _):
            with pytest.raises(compat.exception.SessionException):
                session.version()
            assert session.closed and loss(session.version) == BROKEN
    for packet in (b"", b"\x07", b"\x07\x04log"):
        with pytest.raises(compat.exception.DeserializationException):
            compat.protocol.Packet.parse(packet)


def test_difference_a_second_thread(charon: Any) -> None:
    session = compat.Session(connected(charon.address))
    ended: list[BaseException] = []

    def listen() -> None:
        try:
            next(session.listen(["log"], None))
        except OSError as error:
            ended.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    deadline = time.monotonic() + 10
    while not charon.registrations("log"):
        assert time.monotonic() < deadline
    with pytest.raises(RuntimeError, match="in use"):
        session.version()
    session.transport.close()
    thread.join(10)
    assert len(ended) == 1
    assert session.closed and session.transport.socket.fileno() == -1
    session.transport.close()


def test_difference_close_unregisters(charon: Any) -> None:
    session = compat.Session(connected(charon.address))
    events = session.listen(["log"], 0.01)
    next(events)
    session.transport.close()
    session.transport.close()
    assert charon.registrations("log") == 0 and charon.abrupt_closes == 0
    with pytest.raises(OSError):
        next(events)


def test_difference_no_errmsg(charon: Any) -> None:
    charon.on("unload-conn", {"success": "no"})
    charon.on("terminate", {"success": "no", "errmsg": b"\xff"})
    with opened(compat, charon) as session:
        with pytest.raises(compat.exception.CommandException, match="^Command failed: $"):
            session.unload_conn({"name": "x"})
        with pytest.raises(compat.exception.CommandException, match="^Command failed: \ufffd$"):
            next(session.terminate({"ike": "x"}))


def test_difference_unknown_events(charon: Any) -> None:
    with opened(compat, charon) as session:
        with pytest.raises(compat.exception.EventUnknownException):
            next(session.listen(["log", "no-such"]))
        session.version()
        assert charon.registrations("log") == 0
        with pytest.raises(compat.exception.EventUnknownException):
            next(session.streamed_request("load-conn", "no-such", {}))
        assert charon.requests[-1] == ("load-conn", {})
        events = session.listen(["log", "log"], 0.01)
        next(events)
        charon.emit("log", {"msg": "once"})
        assert [label for label, _ in take(events, 10) if label] == [b"log"]


def test_difference_causes(charon: Any) -> None:
    with opened(compat, charon) as session:
        with pytest.raises(compat.exception.SessionException, match="does not know the command 'nothing'") as failure:
            session.request("nothing")
        assert isinstance(failure.value.__cause__, vicifast.UnknownCommand)
        with pytest.raises(compat.exception.CommandException) as refusal:
            session.unload_conn({"name": "x"})
        assert isinstance(refusal.value.__cause__, vicifast.CommandError)
        assert refusal.value.__cause__.response == {"success": b"no", "errmsg": b"not found"}


def test_difference_oserror_of_a_function(charon: Any) -> None:
    with opened(compat, charon) as session:
        listener = compat.EventListener(session)
        listener.on_events(["log"])(print)

        @listener.on_timeout()
        def fail() -> None:
            raise FileNotFoundError("the function's own")

        with pytest.raises(FileNotFoundError, match="the function's own"):
            listener.listen(timeout=0.01)
        assert listener.session is session and session.version()["daemon"] == b"charon"


# On a real charon.

VARYING = re.compile(
    r"established|.*-time|use-(in|out)|.*spi.*|uptime|workers|queues|scheduled|mallinfo|mem|thread|uniqueid|ikesa-.*"
    r"|msg|local-host|remote-host|.*-port|.*packets.*|.*bytes.*|reqid|nat-.*"
)


def steady(value: Any) -> Any:
    """charon's messages, without the parts that differ in each run."""
    if isinstance(value, dict):
        return {
            re.sub(r"-\d+$", "-N", name): "..." if VARYING.fullmatch(name) else steady(inner)
            for name, inner in value.items()
        }
    if inspect.isgenerator(value):
        return partly(steady(item) for item in value)
    return [steady(item) for item in value] if isinstance(value, list) else value


class Noted:
    """A session that notes which of its methods were used."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        return getattr(self._session, name)


def credentials(session: Any, key: bytes, certificate: bytes) -> Iterator[Any]:
    yield session.load_cert({"type": "X509", "flag": "CA", "data": certificate})
    yield session.list_certs({"flag": "CA"})
    yield session.flush_certs()
    yield session.flush_certs({"type": "X509_CRL"})
    loaded = session.load_key({"type": "any", "data": key})
    yield loaded
    yield session.get_keys()
    yield session.unload_key({"id": loaded["id"]})
    yield outcome(lambda: session.unload_key({"id": loaded["id"]}))
    yield outcome(lambda: session.load_token({"handle": "00", "slot": 0, "module": "none", "pin": "1234"}))
    yield session.load_authority({"home": {"cacert": certificate, "crl_uris": ["http://crl.example/"]}})
    yield session.get_authorities()
    yield session.list_authorities({"name": "home"})
    yield session.unload_authority({"name": "home"})
    yield outcome(lambda: session.unload_authority({"name": "home"}))
    yield session.load_shared({"id": "more", "type": "EAP", "data": bytes(range(256)), "owners": ["a"]})
    yield session.get_shared()
    yield session.unload_shared({"id": "more"})
    yield session.clear_creds()
    yield session.get_shared()
    yield session.load_shared({"id": "lab", "type": "IKE", "data": b"only for the lab"})


def everything(vici: Any, address: str, used: set[str], key: bytes, certificate: bytes) -> Iterator[Any]:
    """Use each command on a real charon as a program for strongSwan's module does."""
    with connected(address) as sock:
        session = Noted(vici.Session(sock))
        session.used = used
        yield session.reload_settings()
        yield from credentials(session, key, certificate)
        yield session.load_pool({"p": {"addrs": "10.9.0.0/24", "dns": ["10.9.0.1"]}})
        yield session.get_pools({"name": "p", "leases": "yes"})
        yield session.get_pools()
        yield session.unload_pool({"name": "p"})
        yield session.reset_counters({"all": "yes"})
        yield session.reset_counters()
        yield session.get_counters()
        yield outcome(lambda: session.rekey({"ike": "nothing"}))
        yield outcome(lambda: session.redirect({"ike": "nothing", "gateway": "10.99.0.77"}))
        yield session.version()
        yield session.stats()
        yield session.get_algorithms()
        conn = {"remote_addrs": ["10.99.0.77"], "version": 2, "children": {"net": {"mode": "drop"}}}
        yield session.load_conn({"spare": conn})
        yield session.get_conns()
        yield session.list_conns({"ike": "spare"})
        yield outcome(lambda: session.load_conn({"bad": {"colour": "blue"}}))
        yield session.install({"child": "net", "ike": "spare"})
        yield session.list_policies({"drop": "yes"})
        yield session.uninstall({"child": "net", "ike": "spare"})
        yield session.unload_conn({"name": "spare"})
        yield outcome(lambda: session.unload_conn({"name": "spare"}))
        yield outcome(lambda: session.load_pool({"p": {"addrs": "everywhere"}}))
        yield partly(session.initiate({"child": "nothing"}))
        yield type(outcome(lambda: session.request("no-such-command"))[0])
        yield outcome(lambda: take(session.listen(["no-such-event"]), 1))
        lines = [line["msg"] for line in session.initiate({"child": "site-001-lan", "timeout": 10000})]
        yield any(line.startswith(b"initiating IKE_SA site-001") for line in lines)
        yield session.list_sas()
        yield take(session.list_sas(), 1) and session.get_counters({"name": "site-001"})["counters"].keys()
        with connected(address) as other:
            events = vici.Session(other).listen(["ike-updown", "child-updown"], 0.1)
            yield next(events)
            yield len([*session.terminate({"ike": "site-001", "timeout": 10000})]) > 0
            label, message = next(events)
            yield label
            yield message
            events.close()
        yield session.list_sas()
        yield partly(session.terminate({"ike": "site-001"}))


def key_and_certificate(directory: Path) -> tuple[bytes, bytes]:
    key, certificate = directory / "compat-key.pem", directory / "compat-ca.pem"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", certificate]
    named = ["-subj", "/CN=Drop-in CA", "-addext", "basicConstraints=critical,CA:TRUE"]
    subprocess.run(["openssl", "req", "-x509", *made, *named], check=True, capture_output=True, timeout=30)
    return key.read_bytes(), certificate.read_bytes()


@needs_theirs
@pytest.mark.lab
def test_equal_losses_of_a_real_charon() -> None:
    with Lab() as lab:
        for vici in (theirs, compat):
            with connected(lab.left.address) as first, connected(lab.left.address) as second:
                session, events = vici.Session(first), vici.Session(second).listen(["log"], 0.01)
                session.version()
                readable = by_select(second)
                while next(events) != (None, None):
                    pass
                assert not readable()
                lab.left.kill()
                assert select.select([second], [], [], 10)[0] == [second]
                assert loss(lambda events=events: next(events)) == BROKEN
                assert loss(session.version) == BROKEN
            lab.left.start()


@needs_theirs
@pytest.mark.lab
def test_equal_results_on_a_real_charon() -> None:
    outcomes, used = [], []
    with Lab() as lab:
        asyncio.run(sas.load(lab, 1))
        files = key_and_certificate(lab.directory)
        for vici in (theirs, compat):
            used.append(set[str]())
            outcomes.append([steady(result) for result in everything(vici, lab.left.address, used[-1], *files)])
    for expected, found in zip(*outcomes, strict=True):
        assert found == expected
    commands = {command.replace("-", "_") for command in COMMANDS}
    assert used == [commands | {"request", "listen"}] * 2
