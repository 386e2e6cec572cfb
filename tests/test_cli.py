from __future__ import annotations

import asyncio
import runpy
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vicifast import AsyncSession, _wire
from vicifast.recording import Recording
from vicifast.testing import FakeCharon

pytest.importorskip("click", reason="the command line needs the extra cli: click is missing")
pytest.importorskip("rich", reason="the command line needs the extra cli: rich is missing")

VERSION = {"daemon": "charon", "version": "6.0.6"}
SAS = [("list-sa", {f"gw{n}": {"uniqueid": str(n)}}) for n in range(3)]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(limited())


class Program:
    """The command line as a process of its own, its output so far, and a wait for a piece of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def note(self, text: str) -> str:
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            if text in line:
                return line
        raise AssertionError(f"ended without saying {text!r}")

    async def end(self) -> tuple[int | None, str, str]:
        out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()

    async def interrupt(self) -> tuple[int | None, str, str]:
        self.process.send_signal(signal.SIGINT)
        return await self.end()


@asynccontextmanager
async def vicifast(*args: object) -> AsyncIterator[Program]:
    command = [sys.executable, "-m", "vicifast", *map(str, args)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdout=pipe, stderr=pipe, env={"COLUMNS": "200", "PYTHONWARNINGS": "error"}
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def outcome(*args: object) -> tuple[int | None, str, str]:
    async with vicifast(*args) as program:
        return await program.end()


@asynccontextmanager
async def daemon() -> AsyncIterator[FakeCharon]:
    async with FakeCharon() as charon:
        charon.on("version", VERSION)
        charon.on("list-sas", {}, stream=SAS)
        yield charon


def names(file: Path, side: str) -> list[tuple[int, str | None]]:
    recording = Recording.load(file)
    return [(p.kind, p.name) for p in recording.packets("client" if side == "client" else "server")]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["record", "FILE"], "nothing to record"),
        (["record", "FILE", "--listen", "x", "--event", "log"], "--listen records other clients"),
        (["record", "FILE", "--command", "stats {"], "the message of stats is no JSON"),
        (["record", "FILE", "--command", "stats []"], "must be a JSON object"),
        (["record", "FILE", "--command", 'stats {"a": null}'], "stats: a: "),
        (["record", "FILE", "--uri", "ftp://x", "--event", "log"], "no VICI address: 'ftp://x'"),
        (["record", "FILE", "--uri", "tcp://127.0.0.1:0", "--event", "log"], "no VICI address"),
        (["record", "FILE", "--event", "log", "--for", "0"], "--for"),
        (["replay", "--listen", "x"], "FILES"),
        (["replay", "FILE"], "--listen"),
        (["replay", "FILE", "--listen", "x", "--speed", "-1"], "--speed"),
    ],
)
def test_wrong_use_is_told(tmp_path: Path, args: list[str], says: str) -> None:
    async def scenario() -> None:
        code, _, err = await outcome(*(tmp_path / "a" if arg == "FILE" else arg for arg in args))
        assert code == 2
        assert says in err
        assert "Traceback" not in err
        assert not (tmp_path / "a").exists()

    run(scenario)


def test_version() -> None:
    async def scenario() -> None:
        code, out, _ = await outcome("--version")
        assert code == 0
        assert out.startswith("vicifast, version ")

    run(scenario)


def test_without_click_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "vicifast.__main__", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("vicifast", run_name="__main__")
    assert caught.value.code == 2
    assert 'pip install "vicifast[cli]"' in capsys.readouterr().err


def test_no_daemon_is_one_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        for listen in ([], ["--listen", tmp_path / "proxy"]):
            what = listen or ["--event", "log"]
            code, out, err = await outcome("record", tmp_path / "a", "--uri", tmp_path / "vici", *what)
            assert (code, out) == (1, "")
            assert err == f"Error: cannot connect to unix://{tmp_path / 'vici'}: No such file or directory\n"
            assert list(tmp_path.iterdir()) == []

    run(scenario)


def test_record_commands(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "a.vici"
        async with daemon() as charon:
            charon.on("get-pools", {"success": "yes"})
            wanted = ["--command", "list-sas", "--command", 'get-pools {"name": "p", "leases": true}']
            code, out, err = await outcome("record", file, "--uri", charon.address, *wanted)
            assert (code, err) == (0, "")
            assert charon.requests[-1] == ("get-pools", {"name": "p", "leases": "yes"})
        assert Recording.load(file).metadata == {
            "made": "vicifast record: command list-sas, command get-pools",
            "daemon": "charon 6.0.6",
        }
        commands = [name for kind, name in names(file, "client") if kind == _wire.CMD_REQUEST]
        assert commands == ["list-sas", "get-pools"]
        assert names(file, "server").count((_wire.EVENT, "list-sa")) == 3
        assert "charon 6.0.6" in out
        assert [line.split()[:4] for line in out.splitlines() if "list-sa " in line and "event" in line]

    run(scenario)


def test_failed_commands_are_recorded_and_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "a"
        async with daemon() as charon:
            charon.on("unload-conn", {"success": "no", "errmsg": "no such thing"})
            wanted = ["--command", "unload-conn", "--command", "magic", "--command", "version"]
            code, _, err = await outcome("record", file, "--uri", charon.address, *wanted)
        assert code == 1
        assert err == "unload-conn: no such thing\ncharon does not know the command 'magic'\n"
        kinds = [kind for kind, _ in names(file, "server")]
        assert kinds == [_wire.CMD_RESPONSE, _wire.CMD_UNKNOWN, _wire.CMD_RESPONSE]

    run(scenario)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_record_events_until_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    async def scenario() -> None:
        file = tmp_path / "a"
        async with daemon() as charon:
            charon.events.discard("alert")
            wanted = ["--event", "log", "--event", "alert", "--event", "ike-updown"]
            async with vicifast("record", file, "--uri", charon.address, *wanted) as program:
                await program.note("'alert'; going on without")
                for _ in range(100):
                    charon.emit("log", {"msg": "m"})
                charon.emit("ike-updown", {"gw": {}})
                await charon.drain()
                program.process.send_signal(number)
                code, out, err = await program.end()
            await charon.connected(0)
            assert (code, err, charon.abrupt_closes) == (0, "", 0)
        received = names(file, "server")
        assert received.count((_wire.EVENT, "log")) == 100
        assert received.count((_wire.EVENT, "ike-updown")) == 1
        assert (_wire.EVENT_UNREGISTER, "log") in names(file, "client")
        assert "100" in out

    run(scenario)


def test_record_for_some_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            wanted = ["--event", "log", "--for", "0.05"]
            code, _, err = await outcome("record", tmp_path / "a", "--uri", charon.address, *wanted)
            assert (code, err, charon.abrupt_closes) == (0, "", 0)

    run(scenario)


def test_second_interrupt_cuts_a_running_command(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            charon.on("initiate", {})
            charon.mute("initiate")
            wanted = ["--command", "initiate", "--command", "version"]
            async with vicifast("record", tmp_path / "a", "--uri", charon.address, *wanted) as program:
                await charon.requested("initiate")
                program.process.send_signal(signal.SIGINT)
                program.process.send_signal(signal.SIGTERM)
                code, out, err = await program.end()
            assert (code, err) == (1, "Aborted!\n")
            assert "initiate" in out
        assert [name for kind, name in names(tmp_path / "a", "client") if kind == _wire.CMD_REQUEST] == ["initiate"]

    run(scenario)


def test_daemon_that_goes_away_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            async with vicifast("record", tmp_path / "a", "--uri", charon.address, "--event", "log") as program:
                await charon.registered("log")
                charon.emit("log", {"msg": "last"})
                await charon.drain()
                await charon.stop()
                code, out, err = await program.end()
            assert code == 1
            assert err == "Error: charon closed the connection\n"
        assert (_wire.EVENT, "log") in names(tmp_path / "a", "server")

    run(scenario)


def test_record_other_clients(tmp_path: Path) -> None:
    async def scenario() -> None:
        proxy = tmp_path / "proxy"
        async with daemon() as charon:
            async with vicifast(
                "record", tmp_path / "a.vici", "--uri", charon.address, "--listen", proxy
            ) as program:
                await program.note("recording the clients of")
                async with AsyncSession(proxy) as session:
                    assert await session.call("version") == VERSION
                async with AsyncSession(proxy) as session:
                    assert len([sa async for sa in session.stream("list-sas")]) == 3
                await charon.connected(0)
                code, out, err = await program.interrupt()
            assert (code, err) == (0, "")
        assert names(tmp_path / "a.vici", "client") == [(_wire.CMD_REQUEST, "version")]
        assert (_wire.CMD_REQUEST, "list-sas") in names(tmp_path / "a-2.vici", "client")
        assert f"{tmp_path / 'a-2.vici'}: " in out
        assert not proxy.exists()

    run(scenario)


def test_replay_serves_what_was_recorded(tmp_path: Path) -> None:
    async def scenario() -> None:
        file, address = tmp_path / "a", tmp_path / "vici"
        async with daemon() as charon:
            wanted = ["--command", "list-sas", "--event", "log"]
            async with vicifast("record", file, "--uri", charon.address, *wanted) as program:
                await charon.requested("list-sas")
                charon.emit("log", {"msg": "one"})
                charon.emit("log", {"msg": "two"})
                await charon.drain()
                await program.interrupt()
        async with vicifast("replay", file, "--listen", address, "--speed", "1000") as program:
            await program.note("Ctrl-C ends")
            async with AsyncSession(address) as session:
                assert [sa async for sa in session.stream("list-sas")] == [body for _, body in SAS]
                listener, events = session.listen("log"), []
                while len(events) < 2:
                    events += await listener.batch()
                assert events == [("log", {"msg": "one"}), ("log", {"msg": "two"})]
            code, out, err = await program.interrupt()
        assert (code, out, err) == (0, "commands: 1, events sent: 2\n", "")
        assert not address.exists()

    run(scenario)


def test_replay_again_and_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "a"
        async with daemon() as charon:
            async with vicifast("record", file, "--uri", charon.address, "--event", "log") as program:
                await charon.registered("log")
                charon.emit("log", {"msg": "one"})
                await charon.drain()
                await program.interrupt()
        async with vicifast("replay", file, "--loop", "--listen", "tcp://127.0.0.1:0") as program:
            address = next(w for w in (await program.note("Ctrl-C")).split() if w.startswith("tcp:")).strip(";")
            for _ in range(2):
                async with AsyncSession(address) as session:
                    listener, count = session.listen("log"), 0
                    while count < 1000:
                        count += len(await listener.batch())
            code, _, err = await program.interrupt()
            assert (code, err) == (0, "")

    run(scenario)


def test_replay_of_a_bad_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "a"
        file.write_bytes(b"GIF89a")
        code, _, err = await outcome("replay", file, "--listen", tmp_path / "vici")
        assert (code, err) == (1, f"Error: {file}: not a recording of VICI at offset 0\n")
        code, _, err = await outcome("replay", tmp_path / "nowhere", "--listen", tmp_path / "vici")
        assert (code, err) == (1, f"Error: {tmp_path / 'nowhere'}: No such file or directory\n")

    run(scenario)


def test_a_socket_that_is_there_is_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        there = tmp_path / "vici"
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(str(there))
            async with daemon() as charon:
                what = ["--uri", charon.address, "--listen", there]
                code, _, err = await outcome("record", tmp_path / "a", *what)
            assert (code, err) == (1, f"Error: cannot listen at unix://{there}: Address already in use\n")
            assert there.exists()

    run(scenario)
