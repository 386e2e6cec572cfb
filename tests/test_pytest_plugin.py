"""The fixture `fake_charon`, and the blocking form of FakeCharon that it gives."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from pages import blocks

from vicifast import RequestTimeout, Session, UnknownEvent
from vicifast.testing import BlockingFakeCharon, FakeCharon

USERS_TESTS = """
import sys
from vicifast import AsyncSession, Session

def test_one(fake_charon):
    fake_charon.on("version", {"daemon": "charon"})
    with Session(fake_charon.address) as session:
        assert session.version() == {"daemon": "charon"}

def test_other(fake_charon):
    assert fake_charon.requests == []

def test_handler_that_fails(fake_charon):
    fake_charon.on("version", lambda message: 1 / 0)
    with Session(fake_charon.address) as session:
        try:
            session.version()
        except ConnectionError:
            pass
"""


def run_pytest(directory: Path, tests: str, *options: str) -> str:
    (directory / "test_user.py").write_text(tests)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options, str(directory)]
    return subprocess.run(argv, capture_output=True, text=True, cwd=directory, timeout=60).stdout


def test_pytest_finds_the_fixture(tmp_path: Path) -> None:
    found = {point.value for point in entry_points(group="pytest11")}
    assert "vicifast.pytest_plugin" in found, "vicifast was installed before it had this; install it again"
    output = run_pytest(tmp_path, USERS_TESTS)
    assert "3 passed, 1 error" in output and "ZeroDivisionError" in output


def test_documented_example(tmp_path: Path) -> None:
    (example,) = [block.text for block in blocks("python") if "(fake_charon)" in block.text]
    assert "1 passed" in run_pytest(tmp_path, example)


def test_the_plugin_loads_no_asyncio(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, "import sys\ndef test(): assert 'vicifast.testing' not in sys.modules")
    assert "1 passed" in output


def test_waits_time_out(fake_charon: BlockingFakeCharon) -> None:
    fake_charon.timeout = 0.05
    with pytest.raises(TimeoutError, match="waited 0.05 s for 1 registrations of log"):
        fake_charon.registered("log")
    with pytest.raises(TimeoutError, match="waited 0.05 s for version to be requested 2 times"):
        fake_charon.requested("version", 2)
    with pytest.raises(TimeoutError, match="waited 0.05 s for 1 open connections"):
        fake_charon.connected(1)


def test_handlers_may_use_the_daemon_but_not_wait(fake_charon: BlockingFakeCharon) -> None:
    def answer(message: object) -> dict[str, object]:
        fake_charon.emit("log", {"msg": "meanwhile"})
        with pytest.raises(RuntimeError, match="cannot call methods that wait"):
            fake_charon.drain()
        return {"daemon": "charon"}

    fake_charon.on("version", answer)
    with Session(fake_charon.address) as session, session.listen("log", timeout=10) as listener:
        assert session.version() == {"daemon": "charon"}
        assert next(listener) == ("log", {"msg": "meanwhile"})


def test_complete_interface(fake_charon: BlockingFakeCharon) -> None:
    fake_charon.on("list-sas", {}, stream=[("list-sa", {"gw": {}})] * 3)
    fake_charon.chunk, fake_charon.delay = 1, 0.001
    assert (fake_charon.chunk, fake_charon.delay) == (1, 0.001)
    with Session(fake_charon.address, timeout=0.2) as session, session.listen("log", timeout=10) as listener:
        assert fake_charon.registrations("log") == 1
        assert len(list(session.list_sas())) == 3
        assert fake_charon.requested("list-sas") == {}
        fake_charon.send(b"")
        fake_charon.emit("log", b"")
        fake_charon.drain()
        assert next(listener) == ("log", {})
        fake_charon.pause_reading()
        with pytest.raises(RequestTimeout):
            session.version()
        fake_charon.resume_reading()
        fake_charon.connected(0)
        assert fake_charon.abrupt_closes == 1
        session.connect()
        fake_charon.cut("list-sas", after=1)
        with pytest.raises(ConnectionError):
            list(session.list_sas())
        fake_charon.stop()
        with pytest.raises(ConnectionError, match="No such file|refused"):
            session.connect()
        fake_charon.start()
        fake_charon.on("stats", {})
        fake_charon.mute("stats")
        with pytest.raises(RequestTimeout):
            session.connect().stats()
    assert ("list-sas", {}) in fake_charon.requests and (3, "log") in fake_charon.packets


def test_a_full_backlog() -> None:
    with BlockingFakeCharon(FakeCharon(backlog=1)) as charon, ThreadPoolExecutor() as pool:
        charon.on("version", {})
        charon.pause_accepting()
        connecting = [pool.submit(Session(charon.address).connect) for _ in range(4)]
        with pytest.raises(TimeoutError):
            [one.result(0.05) for one in connecting]
        charon.resume_accepting()
        for one in connecting:
            with one.result() as session:
                assert session.version() == {}
        charon.drop()


def test_an_old_charon(fake_charon: BlockingFakeCharon) -> None:
    fake_charon.events.discard("alert")
    with Session(fake_charon.address) as session:
        listener = session.listen("alert", "log")
        with pytest.raises(UnknownEvent, match="alert"):
            listener.ready()
        assert fake_charon.registrations("log") == 1


def test_a_charon_that_cannot_start(tmp_path: Path) -> None:
    charon = BlockingFakeCharon(FakeCharon(tmp_path / "missing" / "charon.vici"))
    with pytest.raises(OSError), charon:
        pass
