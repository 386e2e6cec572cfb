"""The drop-in beside strongSwan's own module: the same calls with equal results, and each difference it documents."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
PARTS = [("list-sa", b"\x03\x01k\x00\x05ab")]  # a value that is shorter than it says
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
    """A result, with the order of its names, and with types that are the same for both."""
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
    """The first items, after which the generator is left."""
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
    "success=no": lambda s: s.unload_conn({"name": "nobody"}),
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


@needs_theirs
def test_signatures() -> None:
    for kind in ("Session", "EventListener"):
        for name, function in inspect.getmembers(getattr(theirs, kind), inspect.isfunction):
            if not name.startswith("_") or name == "__init__":
                ours = inspect.signature(getattr(getattr(compat, kind), name)).parameters
                expected = inspect.signature(function).parameters
                assert [*ours] == [*expected], name
                assert [p.default is p.empty for p in ours.values()] == [
                    p.default is p.empty for p in expected.values()
                ], name


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
        session.transport.socket.settimeout(0.01)
        assert take(session.listen(["log"]), 2) == [(None, None)] * 2
        session.transport.socket.settimeout(None)
        threading.Timer(0.05, charon.emit, ("log", {"msg": "late"})).start()
        assert take(session.listen(["log"]), 1) == [(b"log", {"msg": b"late"})]


@either
def test_a_reply_that_never_comes(vici: Any, charon: Any) -> None:
    charon.mute("version")
    with opened(vici, charon) as session:
        session.transport.socket.settimeout(0.05)
        with pytest.raises(socket.timeout):
            session.version()


@either
def test_charon_has_gone(vici: Any, charon: Any) -> None:
    with opened(vici, charon) as session:
        charon.cut("list-sas", 1)
        assert partly(session.list_sas())[0]["names"] == ["site-1"]
        with pytest.raises(OSError):
            session.version()


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


# What is different, as the docstring of vicifast.compat has it.


def test_difference_dicts(charon: Any) -> None:
    with opened(compat, charon) as session:
        assert type(session.version()) is dict


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
    + ["long value", "no ASCII", "long name", "name that is no text", "endless"],
)
def test_difference_what_cannot_be_sent(charon: Any, value: Any) -> None:
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
        take(session.terminate({"ike": "gw"}), 1)  # and no CommandException either
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
    assert [type(error) for error in ended] == [vicifast.ConnectionClosed]
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
        with pytest.raises(ValueError):
            next(session.listen([]))
        with pytest.raises(ValueError):
            compat.EventListener(session).listen()


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
    """What charon told, without what is different each time."""
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
def test_equal_results_on_a_real_charon() -> None:
    told, used = [], []
    with Lab() as lab:
        asyncio.run(sas.load(lab, 1))
        files = key_and_certificate(lab.directory)
        for vici in (theirs, compat):
            used.append(set[str]())
            told.append([steady(result) for result in everything(vici, lab.left.address, used[-1], *files)])
    for expected, found in zip(*told, strict=True):
        assert found == expected
    commands = {command.replace("-", "_") for command in COMMANDS}
    assert used == [commands | {"request", "listen"}] * 2
