from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vicifast import AsyncSession, Message, _wire, encode
from vicifast.__main__ import main as start
from vicifast.commands import COMMANDS
from vicifast.errors import ConnectionClosed
from vicifast.recording import Recording
from vicifast.testing import FakeCharon

pytest.importorskip("click", reason="the command line needs the extra cli: click is missing")
pytest.importorskip("rich", reason="the command line needs the extra cli: rich is missing")

from click.shell_completion import ShellComplete  # noqa: E402
from click.testing import CliRunner, Result  # noqa: E402

from vicifast.cli import main  # noqa: E402
from vicifast.cli.common import until_interrupted  # noqa: E402
from vicifast.cli.event_lines import event_lines  # noqa: E402

if TYPE_CHECKING:
    from lab import Lab

VERSION = {"daemon": "charon", "version": "6.0.6"}
SAS = [("list-sa", {f"gw{n}": {"uniqueid": str(n)}}) for n in range(3)]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(limited())


class Program:
    """The command line as a separate process, its output so far, and a wait for a piece of it."""

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
        (["record", "FILE", "--command", "stats {"], "the message of stats is not valid JSON"),
        (["record", "FILE", "--command", "stats []"], "must be a JSON object"),
        (["record", "FILE", "--command", 'stats {"a": null}'], "stats: a: "),
        (["record", "FILE", "--uri", "ftp://x", "--event", "log"], "invalid VICI address: 'ftp://x'"),
        (["record", "FILE", "--uri", "tcp://127.0.0.1:0", "--event", "log"], "invalid VICI address"),
        (["record", "FILE", "--event", "log", "--for", "0"], "--for"),
        (["replay", "--listen", "x"], "FILES"),
        (["replay", "FILE"], "--listen"),
        (["replay", "FILE", "--listen", "x", "--speed", "-1"], "--speed"),
    ],
)
def test_wrong_use_is_reported(tmp_path: Path, args: list[str], says: str) -> None:
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
        assert out == f"vicifast, version {installed('strongswan-vicifast')}\n"

    run(scenario)


def test_missing_click_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as caught:
        start()
    assert caught.value.code == 2
    assert 'pip install "strongswan-vicifast[cli]"' in capsys.readouterr().err


@pytest.mark.parametrize("closed", [0, 1, 2])
@pytest.mark.parametrize("command", [["sas"], ["sas", "--json"], ["call", "list-sas", "--raw"], ["load"]])
def test_closed_standard_stream(command: list[str], closed: int, tmp_path: Path) -> None:
    (tmp_path / "swanctl.conf").write_text("connections { gw { } }")

    async def scenario() -> None:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=SAS)
            for name in ("get-keys", "get-shared", "get-authorities", "get-pools", "get-conns"):
                charon.on(name, {})
            charon.on("version", VERSION)
            charon.on("load-conn", {"success": "yes"})
            close = f'exec "$@" {closed}{"<" if closed == 0 else ">"}&-'
            process = await asyncio.create_subprocess_exec(
                *("sh", "-c", close, "sh", sys.executable, "-m", "vicifast", *command, "--uri", charon.address),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "SWANCTL_DIR": str(tmp_path)},
            )
            out, err = await process.communicate()
            assert (process.returncode, err) == (0, b"")
            assert bool(out) == (closed != 1)

    run(scenario)


FULL = "Error: standard output: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--help"], ["sas"], ["sas", "--json"], ["call", "list-sas"], ["log"], ["events"]])
def test_output_that_cannot_be_written_is_one_line(command: list[str], unbuffered: str) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            where = [] if command == ["--help"] else ["--uri", charon.address]
            with open("/dev/full", "w") as full:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "vicifast", *command, *where),
                    stdout=full,
                    stderr=asyncio.subprocess.PIPE,
                    env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                )
            if command in (["log"], ["events"]):
                event = {"log": "log", "events": "ike-updown"}[command[0]]
                await charon.registered(event)
                charon.emit(event, {"group": "IKE", "level": "1", "msg": "x"} if event == "log" else {"up": "yes"})
            _, err = await process.communicate()
            assert (process.returncode, err.decode()) == (1, FULL)

    run(scenario)


def test_closed_pipe_is_silent() -> None:
    async def scenario() -> None:
        async with daemon() as charon, vicifast("log", "--uri", charon.address) as program:
            await charon.registered("log")
            assert program.process.stdout is not None
            program.process.stdout._transport.close()  # type: ignore[attr-defined]
            while program.process.returncode is None:
                charon.emit("log", {"group": "IKE", "level": "1", "msg": "x"})
                await asyncio.sleep(0.01)
            assert program.process.stderr is not None
            assert (program.process.returncode, await program.process.stderr.read()) == (1, b"")

    run(scenario)


def test_no_daemon_is_one_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        for listen in ([], ["--listen", tmp_path / "proxy"]):
            what = listen or ["--event", "log"]
            code, out, err = await outcome("record", tmp_path / "a", "--uri", tmp_path / "vici", *what)
            assert (code, out) == (3, "")
            says = "No such file or directory; start charon, or give the address of its VICI socket with --uri"
            assert err == f"Error: cannot connect to unix://{tmp_path / 'vici'}: {says}\n"
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


def test_failed_commands_are_recorded_and_reported(tmp_path: Path) -> None:
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
def test_signals_cancel_the_work_of_an_event_loop(number: signal.Signals) -> None:
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with until_interrupted():
        asyncio.run(work())
    assert ended == ["cancelled"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_record_events_until_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    async def scenario() -> None:
        file = tmp_path / "a"
        async with daemon() as charon:
            charon.events.discard("alert")
            wanted = ["--event", "log", "--event", "alert", "--event", "ike-updown"]
            async with vicifast("record", file, "--uri", charon.address, *wanted) as program:
                await program.note("'alert'; continuing without it")
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


def test_interrupt_while_charon_does_not_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        for what in (["--event", "log"], ["--listen", tmp_path / "proxy"]):
            async with daemon() as charon:
                charon.mute("version")
                async with vicifast("record", tmp_path / "a", "--uri", charon.address, *what) as program:
                    await charon.requested("version")
                    assert await program.interrupt() == (1, "", "\nAborted!\n")
        assert list(tmp_path.iterdir()) == []

    run(scenario)


def test_missing_permission_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    result = CliRunner().invoke(main, ["sas", "--uri", "/vici"])
    says = "Permission denied; run as root, or as a member of the group that owns the socket"
    assert (result.exit_code, result.stderr) == (3, f"Error: cannot connect to unix:///vici: {says}\n")


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


def test_daemon_that_disconnects_is_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            async with vicifast("record", tmp_path / "a", "--uri", charon.address, "--event", "log") as program:
                await charon.registered("log")
                charon.emit("log", {"msg": "last"})
                await charon.drain()
                await charon.stop()
                code, out, err = await program.end()
            assert code == 3
            assert err == "Error: charon closed the connection\n"
        assert (_wire.EVENT, "log") in names(tmp_path / "a", "server")

    run(scenario)


def test_record_other_clients(tmp_path: Path) -> None:
    async def scenario() -> None:
        proxy = tmp_path / "proxy"
        async with daemon() as charon:
            async with vicifast("record", tmp_path / "a.vici", "--uri", charon.address, "--listen", proxy) as program:
                await program.note("recording clients of")
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 100_000])  # detected when the file is closed, or while it is written
def test_unwritable_recording_is_reported(size: int) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            charon.on("list-conns", {}, stream=[("list-conn", {"a": "x" * 60_000})] * (size // 60_000))
            code, out, err = await outcome("record", "/dev/full", "--uri", charon.address, "--command", "list-conns")
            assert (code, out, err) == (1, "", "Error: /dev/full: No space left on device\n")

    run(scenario)


def test_unwritable_recording_of_other_clients_is_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        file, proxy = tmp_path / "none" / "a.vici", tmp_path / "proxy"
        async with daemon() as charon, vicifast("record", file, "--uri", charon.address, "--listen", proxy) as program:
            await program.note("recording clients of")
            async with AsyncSession(proxy) as session:
                with pytest.raises(ConnectionClosed):
                    await session.call("version")
            assert await program.end() == (1, "", f"Error: {file}: No such file or directory\n")
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
            await program.note("Ctrl-C to stop")
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
        assert (code, err) == (1, f"Error: {file}: not a VICI recording at offset 0\n")
        code, _, err = await outcome("replay", tmp_path / "nowhere", "--listen", tmp_path / "vici")
        assert (code, err) == (1, f"Error: {tmp_path / 'nowhere'}: No such file or directory\n")

    run(scenario)


def test_existing_socket_is_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        there = tmp_path / "vici"
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(str(there))
            async with daemon() as charon:
                what = ["--uri", charon.address, "--listen", there]
                code, _, err = await outcome("record", tmp_path / "a", *what)
                assert (code, err) == (1, f"Error: cannot listen at unix://{there}: Address already in use\n")
                what = ["--uri", charon.address, "--listen", "tcp://192.0.2.1:1"]
                code, _, err = await outcome("record", tmp_path / "a", *what)
                assert (code, err) == (
                    1,
                    "Error: cannot listen at tcp://192.0.2.1:1: Cannot assign requested address\n",
                )
            assert there.exists()

    run(scenario)


@pytest.mark.parametrize("command", [["sas"], ["call", "list-sas"], ["log"]])
def test_names_between_colons_are_not_pictures(command: list[str]) -> None:
    name, host = "gw:key:1", "fd00:a:b::1"

    async def scenario() -> None:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=[("list-sa", {name: {"uniqueid": "1", "remote-host": host}})])
            async with vicifast(*command, "--uri", charon.address) as program:
                if command == ["log"]:
                    await charon.registered("log")
                    charon.emit("log", {"group": "IKE", "level": "1", "msg": f"{name} {host}"})
                    await charon.drain()
                    await charon.stop()
                _, out, _ = await program.end()
        assert name in out and host in out

    run(scenario)


DATA = Path(__file__).parent / "data"
SA = {
    "gw": {
        "uniqueid": "7",
        "state": "ESTABLISHED",
        "local-id": "a.example",
        "local-host": "192.0.2.1",
        "remote-id": "b.example",
        "remote-host": "192.0.2.2",
        "established": "3700",
        "child-sas": {
            "net-9": {
                "name": "net",
                "uniqueid": "9",
                "state": "INSTALLED",
                "bytes-in": "1234",
                "bytes-out": "5",
                "install-time": "59",
                "local-ts": ["10.0.0.0/24"],
                "remote-ts": ["10.1.0.0/24", "10.2.0.0/24"],
            }
        },
    }
}


async def invoke(charon: FakeCharon, *args: object) -> Result:
    """Run the command line in this process, in a separate thread."""
    return await asyncio.to_thread(CliRunner().invoke, main, [*map(str, args), "--uri", charon.address])


def recorded(*names: str) -> FakeCharon:
    return FakeCharon.from_recordings(Recording.load(DATA / f"{name}.recording") for name in names)


@pytest.mark.parametrize(
    ("command", "recording", "rows"),
    [
        (["sas"], "list-sas", ["SA state local remote for in out", "300 IKE_SAs, 300 CHILD_SAs"]),
        (["conns"], "list-conns", ["site-001 IKEv2 10.99.0.2 %any", "21 connections"]),
        (
            ["certs"],
            "list-certs",
            ["PUBKEY yes C=CH, O=Beispiel, CN=Z??rich gateway", "3 certificates and public keys"],
        ),
        (["pools", "--leases"], "get-pools", ["branches 10.3.0.0 65534 17 3", "10.3.0.1 x site-001.example"]),
        (["stats"], "stats", ["uptime:", "workers:", "total: 32"]),
        (["counters"], "get-counters", ["(all) ike-init-in-req 20"]),
        (["counters", "--all"], "get-counters", ["site-020 info-in-req 1"]),
    ],
)
def test_tables_fit_eighty_columns(command: list[str], recording: str, rows: list[str]) -> None:
    async def scenario() -> None:
        async with recorded(recording) as charon:
            result = await invoke(charon, *command)
        assert (result.exit_code, result.stderr) == (0, "")
        lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
        assert all(any(line.startswith(row) for line in lines) for row in rows), result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80 or command == ["stats"]
        assert "\x1b" not in result.stdout

    run(scenario)


def test_long_tables_have_a_line_for_each_row_however_wide() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=[("list-sa", SA)] * 600)
            result = await invoke(charon, "sas")
        head, ike, child, *others, foot = result.stdout.splitlines()
        assert head.split() == ["SA", "state", "local", "remote", "for", "in", "out"]
        assert ike.split() == ["gw", "#7", "ESTABLISHED", "a.example,", "192.0.2.1", "b.example,", "192.0.2.2", "1h1m"]
        assert child.split()[3:] == ["10.0.0.0/24", "10.1.0.0/24,", "10.2.0.0/24", "59s", "1.2", "kB", "5", "B"]
        assert len(head) == len(child) and head.index("local") == child.index("10.0.0.0/24")
        assert others == [ike, child] * 599 and foot == "600 IKE_SAs, 600 CHILD_SAs"

    run(scenario)


def test_sas_with_their_children() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=[("list-sa", SA)])
            result = await invoke(charon, "sas", "--ike", "gw", "--noblock")
            assert charon.requests == [("list-sas", {"ike": "gw", "noblock": "yes"})]
        assert [line.split() for line in result.stdout.splitlines()] == [
            ["SA", "state", "local", "remote", "for", "in", "out"],
            ["gw", "#7", "ESTABLISHED", "a.example", "b.example", "1h1m"],
            ["192.0.2.1", "192.0.2.2"],
            ["net", "#9", "INSTALLED", "10.0.0.0/24", "10.1.0.0/24", "59s", "1.2", "kB", "5", "B"],
            ["10.2.0.0/24"],
            ["1", "IKE_SAs,", "1", "CHILD_SAs"],
        ]

    run(scenario)


def test_policies_of_all_kinds_unless_asked() -> None:
    async def scenario() -> None:
        policy = {"net": {"child": "net", "mode": "TRAP", "local-ts": ["10.0.0.0/8"], "remote-ts": ["::/0"]}}
        async with FakeCharon() as charon:
            charon.on("list-policies", {}, stream=[("list-policy", policy)])
            result = await invoke(charon, "policies")
            await invoke(charon, "policies", "--trap")
            kinds = [set(request) for _, request in charon.requests]
        assert kinds == [{"drop", "pass", "trap"}, {"trap"}]
        assert "net" in result.stdout and "10.0.0.0/8" in result.stdout and "1 policies" in result.stdout

    run(scenario)


@pytest.mark.parametrize("form", ["json", "msgpack", "raw"])
def test_formats_for_programs(form: str) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            result = await invoke(charon, "sas", f"--{form}")
        messages = [Message(_wire.encode(body)) for _, body in SAS]
        expected = {
            "json": b"".join(message.to_json() + b"\n" for message in messages),
            "msgpack": b"".join(message.to_msgpack() for message in messages),
            "raw": b"".join(_wire.packet(_wire.EVENT, "list-sa", message) for message in messages),
        }
        assert (result.exit_code, result.stdout_bytes) == (0, expected[form])

    run(scenario)


def test_call_reads_no_more_of_a_file_than_a_value_holds(tmp_path: Path) -> None:
    file = tmp_path / "huge"
    file.touch()
    os.truncate(file, 1 << 40)  # larger than the memory
    result = CliRunner().invoke(main, ["call", "load-cert", f"data@{file}"])
    assert result.exit_code == 2
    assert f"{file} is larger than 65535 bytes, the limit of a value" in result.stderr


def test_call_accepts_keys_lists_files_and_json(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "ca.der").write_bytes(b"0\x82")
        async with daemon() as charon:
            for command in ("load-shared", "load-cert", "load-pool"):
                charon.on(command, {"success": "yes"})
            await invoke(charon, "call", "load-shared", "type=ike", "data=a=b@c", "owners=x", "owners=y", "owners=@z")
            await invoke(charon, "call", "load-cert", "type=X509", f"data@{tmp_path / 'ca.der'}")
            result = await invoke(charon, "call", "load-pool", '{"p": {"addrs": "10.0.0.0/8", "n": 1}}', "--json")
            assert charon.requests == [
                ("load-shared", {"type": "ike", "data": "a=b@c", "owners": ["x", "y", "@z"]}),
                ("load-cert", {"type": "X509", "data": b"0\x82".decode("utf-8", "surrogateescape")}),
                ("load-pool", {"p": {"addrs": "10.0.0.0/8", "n": "1"}}),
            ]
        assert json.loads(result.stdout) == {"success": "yes"}

    run(scenario)


def test_call_streams_and_shows_bytes_and_control_characters() -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:
            charon.events.add("magic-event")
            charon.on("magic", {"done": "yes"}, stream=[("magic-event", {"s": {"b": b"\xff" * 20, "t": "a\x1b[2Jb"}})])
            result = await invoke(charon, "call", "magic", "--event", "magic-event")
        assert result.stdout.splitlines() == ["s:", f"  b: <20 bytes: {'ff' * 16}...>", "  t: a\\x1b[2Jb", "done: yes"]

    run(scenario)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["call", "magic"], 1, "Error: charon does not know the command 'magic'\n"),
        (["unload", "conn", "x"], 1, "Error: unload-conn: no such thing\n"),
        (["conns", "--ike", "zürich"], 2, "Error: ike: list-conns requires printable ASCII here, not 'zürich'\n"),
        (["stats", "--timeout", "0.05"], 3, "Error: stats: no reply for 0.05 s"),
        (["events", "nonsense"], 1, "Error: charon does not know the event 'nonsense'\n"),
        (["load", "nowhere"], 1, "Error: nowhere: No such file or directory\n"),
    ],
)
def test_failures_are_one_line_and_have_their_code(args: list[str], code: int, says: str) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            charon.on("unload-conn", {"success": "no", "errmsg": "no such thing"})
            charon.on("stats", {})
            charon.mute("stats")
            got, out, err = await outcome(*args, "--uri", charon.address)
        assert (got, out) == (code, "")
        assert err.startswith(says) and err.count("\n") == 1

    run(scenario)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["initiate"], "nothing selected: give --child or --ike"),
        (["terminate"], "nothing selected"),
        (["rekey", "--reauth"], "nothing selected"),
        (["call", "stats", "x"], "'x' is not KEY=VALUE, KEY@FILE"),
        (["call", "stats", "x@/nonexistent/file"], "/nonexistent/file: No such file"),
        (["call", "stats", "{"], "JSON"),
        (["unload", "cert", "x"], "'cert' is not one of"),
        (["sas", "--watch", "0"], "--watch"),
    ],
)
def test_wrong_use_sends_nothing(args: list[str], says: str) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            result = await invoke(charon, *args)
            assert (result.exit_code, result.stdout, charon.requests) == (2, "", [])
        assert says in result.stderr

    run(scenario)


def test_long_commands_print_their_log_and_then_the_reply() -> None:
    async def scenario() -> None:
        said = [("control-log", {"group": "IKE", "level": "1", "ikesa-name": "gw", "ikesa-uniqueid": "1", "msg": "hi"})]
        async with FakeCharon() as charon:
            charon.on("initiate", {"success": "yes"}, stream=said)
            charon.on("terminate", {"success": "yes", "matches": "2", "terminated": "2"}, stream=said)
            charon.on("rekey", {"success": "yes", "matches": "1"})
            up = await invoke(charon, "initiate", "--child", "net", "--timeout", "2")
            down = await invoke(charon, "terminate", "--ike-id", "4", "--force", "--json")
            again = await invoke(charon, "rekey", "--child", "net")
            assert charon.requests == [
                ("initiate", {"child": "net", "timeout": "2000"}),
                ("terminate", {"ike-id": "4", "force": "yes", "timeout": "30000"}),
                ("rekey", {"child": "net"}),
            ]
        assert (up.exit_code, up.stdout, up.stderr) == (0, "initiate: done\n", "[IKE] <gw|1> hi\n")
        assert json.loads(down.stdout) == {"success": "yes", "matches": "2", "terminated": "2"}
        assert again.stdout == "rekey: started (matches 1)\n"

    run(scenario)


OLD, NEW = ({"uniqueid": number, "version": "2", "state": "ESTABLISHED"} for number in "34")
OLD_NET, NEW_NET = ({"name": "net", "uniqueid": number, "state": "INSTALLED"} for number in "78")
OLD_UP = {"gw": {**OLD, "child-sas": {"net-7": OLD_NET, "net-6": {**OLD_NET, "uniqueid": "6", "state": "DELETED"}}}}
STRANGERS: list[tuple[str, dict[str, object]]] = [
    ("ike-updown", {"up": "yes", "hq": {**NEW, "uniqueid": "5"}}),
    ("ike-updown", {"hq": {**OLD, "uniqueid": "2"}}),
    ("child-rekey", {"hq": {**OLD, "child-sas": {"net": {"old": {**OLD_NET, "uniqueid": "1"}, "new": OLD_NET}}}}),
]


@pytest.mark.parametrize(
    ("args", "events", "exit_code", "says"),
    [
        (
            ["--child", "net"],
            [("child-rekey", {"gw": {**OLD, "child-sas": {"net": {"old": OLD_NET, "new": NEW_NET}}}})],
            0,
            "net #7 replaced by #8\n",
        ),
        (["--ike", "gw"], [("ike-rekey", {"gw": {"old": OLD, "new": NEW}})], 0, "gw #3 replaced by #4\n"),
        (
            ["--ike", "gw", "--reauth"],  # since strongSwan 6.0
            [("ike-updown", {"up": "yes", "gw": NEW}), ("ike-updown", {"gw": OLD})],
            0,
            "gw #3 replaced by #4\n",
        ),
        (
            ["--ike", "gw", "--reauth"],  # before
            [("ike-updown", {"gw": OLD}), ("ike-updown", {"up": "yes", "gw": NEW})],
            0,
            "gw #3 replaced by #4\n",
        ),
        (["--ike", "gw"], [("ike-updown", {"gw": OLD})], 1, "Error: rekey: gw #3 was closed\n"),
        (
            ["--child-id", "7"],
            [("child-updown", {"gw": {**OLD, "child-sas": {"net-7": OLD_NET}}})],
            1,
            "Error: rekey: net #7 was closed\n",
        ),
        (["--ike", "gw", "--reauth"], [], 1, "Error: rekey: not replaced within 0.5 seconds: gw #3\n"),
        (["--child-id", "6"], [], 1, "Error: rekey: no SA is established that could be replaced: net #6 is DELETED\n"),
        (["--ike-id", "9"], [], 1, "Error: rekey: no SA is established that could be replaced: gone #9 is DELETING\n"),
        (
            ["--ike", "gw", "--reauth", "--timeout", "0.5"],  # strongSwan 5.9.8, without a CHILD_SA
            [("ike-updown", {"gw": OLD}), ("ike-updown", {"gw": OLD})],
            1,
            "Error: rekey: not replaced within 0.5 seconds: gw #3 (closed, without a new one)\n",
        ),
    ],
)
def test_rekey_waits_until_it_has_happened(
    args: list[str], events: list[tuple[str, dict[str, object]]], exit_code: int, says: str
) -> None:
    async def scenario() -> None:
        async with FakeCharon() as charon:

            def rekey(_: object) -> dict[str, str]:
                for event, message in (*STRANGERS, *events):
                    charon.emit(event, message)
                return {"success": "yes", "matches": "1"}

            listed = {"gone": {**OLD, "uniqueid": "9", "state": "DELETING"}} if "9" in args else OLD_UP
            charon.on("list-sas", {}, stream=[("list-sa", listed)])
            charon.on("rekey", rekey)
            result = await invoke(charon, "rekey", "--wait", "--timeout", "10" if events else "0.5", *args)
        assert (result.exit_code, result.stderr) == (exit_code, says)
        assert result.stdout == ("" if exit_code else "rekey: done (matches 1)\n")

    run(scenario)


def test_failed_initiate_prints_its_log_and_the_reason() -> None:
    async def scenario() -> None:
        said = [("control-log", {"group": "CFG", "msg": "one\ntwo"})]
        async with FakeCharon() as charon:
            charon.on("initiate", {"success": "no", "errmsg": "CHILD_SA config 'x' not found"}, stream=said)
            result = await invoke(charon, "initiate", "--child", "x", "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "[CFG] one\n[CFG] two\nError: initiate: CHILD_SA config 'x' not found\n"

    run(scenario)


LOG = {"group": "IKE", "level": "1", "thread": "3", "ikesa-name": "gw", "ikesa-uniqueid": "1", "msg": "hi\x1b"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_log_until_interrupted(number: signal.Signals) -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            async with vicifast("log", "--uri", charon.address) as program:
                await charon.registered("log")
                charon.emit("log", LOG)
                assert program.process.stdout is not None
                line = (await program.process.stdout.readline()).decode()
                program.process.send_signal(number)
                code, _, err = await program.end()
            assert line[8:] == " 03[IKE] <gw|1> hi\\x1b\n"
            assert (code, err, charon.abrupt_closes) == (0, "", 0)

    run(scenario)


def test_events_for_programs_have_their_name() -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            charon.events.discard("alert")
            async with vicifast("events", "--json", "--uri", charon.address) as program:
                await program.note("'alert'; continuing without it")
                charon.emit("ike-updown", {"up": "yes", **SA})
                assert program.process.stdout is not None
                line = await program.process.stdout.readline()
                code, _, _ = await program.interrupt()
            assert (code, json.loads(line)) == (0, {"event": "ike-updown", "message": {"up": "yes", **SA}})
            assert charon.abrupt_closes == 0

    run(scenario)


def test_recorded_events_as_text() -> None:
    async def scenario() -> None:
        recording = Recording.load(DATA / "events.recording")
        names = ["ike-updown", "child-updown", "ike-rekey", "child-rekey", "ike-update"]
        async with recorded("events") as charon:
            async with vicifast("events", *names, "--uri", charon.address) as program:
                await charon.registered("ike-update")
                sent = await charon.replay(recording)
                assert program.process.stdout is not None
                lines = [(await program.process.stdout.readline()).decode() for _ in range(sent)]
                code, out, err = await program.interrupt()
        assert (code, out, err) == (0, "", "")
        assert {line.split()[1] for line in lines} == set(names)
        assert any("up site-001 #1 10.99.0.2[hq.example] === 10.99.0.1[site-001.example]" in line for line in lines)

    run(scenario)


def test_watch_refreshes_until_interrupted() -> None:
    async def scenario() -> None:
        async with daemon() as charon:
            async with vicifast("sas", "--watch", "0.01", "--json", "--uri", charon.address) as program:
                await charon.requested("list-sas", 3)
                code, out, err = await program.interrupt()
            assert (code, err) == (0, "")
            assert len(out.splitlines()) >= 6

    run(scenario)


def test_lost_connection_during_load_is_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "swanctl.conf").write_text("connections { gw { } }")
        async with FakeCharon() as charon:
            charon.on("get-conns", {})

            def lose(_: object) -> dict[str, str]:
                charon.drop()
                return {}

            charon.on("load-conn", lose)
            result = await invoke(charon, "load", tmp_path / "swanctl.conf", "--conns")
        says = "Error: charon closed the connection; only a part may be loaded: run the command again\n"
        assert (result.exit_code, result.stdout, result.stderr) == (3, "", says)

    run(scenario)


def test_load_names_a_file_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "swanctl.conf").touch()
        (tmp_path / "x509").mkdir()
        (tmp_path / "x509" / os.fsdecode(b"a\xff.pem")).write_text("no certificate")
        async with FakeCharon() as charon:
            for command in ("get-keys", "get-shared"):
                charon.on(command, {})
            charon.on("version", VERSION)
            charon.on("load-cert", {"success": "no", "errmsg": "not today"})
            result = await invoke(charon, "load", tmp_path / "swanctl.conf", "--creds")
        assert (result.exit_code, result.stderr) == (1, f"failed: certificate {tmp_path}/x509/a\\xff.pem: not today\n")

    run(scenario)


def test_lines_of_events_are_readable_with_bytes_that_are_not_utf_8() -> None:
    line = {"group": "IKE", "level": "1", "thread": "7", "msg": b"a\xff\x1bb"}
    assert event_lines("log", Message(encode(line))) == ["07[IKE] a\\xff\\x1bb"]
    message = {"up": "yes", "gw": {"uniqueid": "1", "state": "ESTABLISHED", "local-id": b"\xfc"}}
    assert "[\\xfc]" in event_lines("ike-updown", Message(encode(message)))[0]


def test_load_reports_and_fails_when_something_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "swanctl.conf"
        file.write_text("connections { good { }\n bad { } }\n")
        async with FakeCharon() as charon:
            charon.on("version", VERSION)
            for command in ("get-keys", "get-shared", "get-authorities", "get-pools"):
                charon.on(command, {})
            charon.on("get-conns", {"conns": ["old"]})
            charon.on("unload-conn", {"success": "yes"})
            refusal = {"success": "no", "errmsg": "not today"}
            charon.on("load-conn", lambda request: refusal if "bad" in request else {"success": "yes"})
            result = await invoke(charon, "load", file)
            document = await invoke(charon, "load", file, "--json")
        assert (result.exit_code, result.stderr) == (1, "failed: connection bad: not today\n")
        assert result.stdout.splitlines() == [
            "loaded connection good",
            "unloaded connection old",
            "1 loaded, 1 unloaded, 0 kept, 0 skipped, 1 failed",
        ]
        assert (document.exit_code, document.stderr) == (1, "")
        assert json.loads(document.stdout) == {
            "loaded": ["connection good"],
            "unloaded": ["connection old"],
            "kept": [],
            "skipped": [],
            "failed": ["connection bad: not today"],
            "warnings": [],
        }

    run(scenario)


KEY = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAc
-----END ENCRYPTED PRIVATE KEY-----
"""


@asynccontextmanager
async def loading(directory: Path) -> AsyncIterator[tuple[FakeCharon, Path]]:
    """A daemon with one item of each kind, and a configuration with a connection and a key that cannot be decrypted."""
    (directory / "private").mkdir()
    (directory / "private" / "k.pem").write_text(KEY)
    file = directory / "swanctl.conf"
    file.write_text("connections { c { } }\n")
    async with FakeCharon() as charon:
        charon.on("version", VERSION)
        for command in ("get-keys", "get-shared"):
            charon.on(command, {"keys": ["old"]})
        charon.on("get-conns", {"conns": ["old"]})
        charon.on("get-authorities", {"authorities": ["old"]})
        charon.on("get-pools", {"old": {}})
        for command in ("load-conn", "load-key", "clear-creds"):
            charon.on(command, {"success": "yes", "id": "new"})
        for what in ("conn", "shared", "authority", "pool", "key"):
            charon.on(f"unload-{what}", {"success": "yes"})
        yield charon, file


@pytest.mark.parametrize(
    ("options", "code", "unloaded"),
    [
        ([], 1, ["unload-shared", "unload-authority", "unload-pool", "unload-conn"]),
        (["--lenient"], 0, ["unload-shared", "unload-authority", "unload-pool", "unload-conn"]),
        (["--creds"], 1, ["unload-shared"]),
        (["--creds", "--clear", "--noprompt"], 1, ["unload-shared"]),
        (["--conns"], 0, ["unload-conn"]),
        (["--pools"], 0, ["unload-pool"]),
        (["--authorities", "--conns"], 0, ["unload-authority", "unload-conn"]),
    ],
)
def test_load_of_a_part(options: list[str], code: int, unloaded: list[str], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with loading(tmp_path) as (charon, file):
            result = await invoke(charon, "load", file, *options)
            commands = [command for command, _ in charon.requests]
        assert result.exit_code == code
        assert [command for command in commands if "unload" in command] == unloaded
        assert "clear-creds" not in commands and "load-key" not in commands
        assert ("load-conn" in commands) == ("unload-conn" in unloaded)
        kept = "kept private key old: not every private key could be read\n"
        assert (kept in result.stdout) == ("unload-shared" in unloaded)

    run(scenario)


@pytest.mark.parametrize(("refused", "code"), [("unload-shared", 0), ("load-conn", 1)])
def test_lenient_exits_as_swanctl(refused: str, code: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with loading(tmp_path) as (charon, file):
            charon.on(refused, {"success": "no", "errmsg": "not today"})
            result = await invoke(charon, "load", file, "--lenient")
        assert result.exit_code == code and "not today" in result.stderr

    run(scenario)


@pytest.mark.parametrize("version", ["5.9.8", "6.0.7", "6.1.0", "6.2", "7.0dr1"])
def test_load_warns_of_ikev1(version: str, tmp_path: Path) -> None:
    """Since 6.1.0 charon accepts such connections silently."""
    text = """
        new { version = 2 }
        old { version = 1 }
        plain { }
        either { version = 0 }
        aggressive { aggressive = yes }
        xauth { local { auth = psk }
                local-2 { auth = xauth } }
    """
    needing = "old, aggressive, xauth"
    warnings = [
        f"strongSwan {version} has no IKEv1 unless it was built with it, but these connections need it: {needing}",
        f"strongSwan {version} uses connections without a version for IKEv2 only, unless it was built with IKEv1: "
        "plain, either",
    ]

    async def scenario() -> None:
        async with loading(tmp_path) as (charon, file):
            file.write_text(f"connections {{ {text} }}\n")
            charon.on("version", {"version": version})
            result = await invoke(charon, "load", file, "--conns")
            document = await invoke(charon, "load", file, "--conns", "--json")
        expected = warnings if version >= "6.1" else []
        assert (result.exit_code, result.stderr.splitlines()) == (0, [f"warning: {line}" for line in expected])
        assert (json.loads(document.stdout)["warnings"], document.stderr) == (expected, "")

    run(scenario)


def test_clear_needs_credentials(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with loading(tmp_path) as (charon, file):
            result = await invoke(charon, "load", file, "--conns", "--clear")
            assert (result.exit_code, charon.requests) == (2, [])
        assert "add --creds" in result.stderr

    run(scenario)


def at_terminal(*argv: object, prompt: bytes, answer: bytes) -> tuple[int, bytes]:
    """Run a program in a pseudo-terminal and answer its prompt; return its exit code and its output."""
    controller, terminal = os.openpty()
    start = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", start, *map(str, argv)], stdin=terminal) as process:
        os.close(terminal)
        shown, answered = b"", False
        with open(controller, "rb", buffering=0) as screen, suppress(OSError):  # EIO: the program has ended
            while chunk := screen.read(4096):
                shown += chunk
                if prompt in shown and not answered:
                    answered = True
                    os.write(controller, answer + b"\n")
        return process.wait(30), shown


@pytest.mark.skipif(not hasattr(os, "login_tty"), reason="there are no terminals here")
@pytest.mark.parametrize("program", ["vicifast", "swanctl"])
def test_load_asks_for_a_passphrase_at_a_terminal(program: str, tmp_path: Path) -> None:
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    form = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    if program == "swanctl" and shutil.which("swanctl") is None:
        pytest.skip("there is no swanctl on PATH")
    start = {"vicifast": [sys.executable, "-m", "vicifast", "load"], "swanctl": ["swanctl", "--load-creds", "--file"]}
    option = {"vicifast": ["--creds"], "swanctl": []}
    key = ec.generate_private_key(ec.SECP256R1())
    locked = form.BestAvailableEncryption(b"open sesame")
    opened = key.private_bytes(form.Encoding.DER, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption())

    async def scenario() -> None:
        async with loading(tmp_path) as (charon, file):
            pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked)
            (tmp_path / "private" / "k.pem").write_bytes(pem)
            argv = (*start[program], file, *option[program], "--uri", charon.address)
            prompt = b"Password for private file 'k.pem': "
            code, shown = await asyncio.to_thread(at_terminal, *argv, prompt=prompt, answer=b"open sesame")
            sent = [message for command, message in charon.requests if command == "load-key"]
        assert code == 0, shown
        assert b"open sesame" not in shown
        assert sent == [{"type": "ECDSA", "data": opened.decode("utf-8", "surrogateescape")}]

    run(scenario)


def test_the_shell_completes_commands_and_charons_commands() -> None:
    complete = ShellComplete(main, {}, "vicifast", "_VICIFAST_COMPLETE")
    assert [item.value for item in complete.get_completions(["call"], "list-s")] == ["list-sas"]
    assert len(complete.get_completions(["call"], "")) == len(COMMANDS)
    assert [item.value for item in complete.get_completions(["events"], "al")] == ["alert"]
    assert [item.value for item in complete.get_completions([], "term")] == ["terminate"]


def test_help_describes_exit_codes_and_completion() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert "3  no connection" in text
    assert "_VICIFAST_COMPLETE=bash_source vicifast" in text


REAL = """
connections {{
  gw {{
    version = 2
    local_port = 14500
    remote_port = 14500
    local_addrs = {here}
    remote_addrs = {there}
    local {{ auth = psk
      id = {me} }}
    remote {{ auth = psk
      id = {peer} }}
    children {{ net {{ local_ts = {inside}
      remote_ts = {beyond}
      }} }}
  }}
}}
pools {{ branches {{ addrs = 10.3.0.0/24 }} }}
secrets {{ ike-gw {{ secret = swordfish }} }}
"""


@pytest.mark.lab(nats=True)
def test_on_a_real_charon(lab: Lab) -> None:
    left = {"here": "10.99.0.1", "me": "left", "inside": "10.1.0.1/32"}
    right = {"here": "10.99.0.2", "me": "right", "inside": "10.128.0.1/32"}

    def written(name: str, own: dict[str, str], other: dict[str, str]) -> Path:
        file = lab.directory / name / "swanctl.conf"
        file.parent.mkdir(exist_ok=True)
        ends = {"there": other["here"], "peer": other["me"], "beyond": other["inside"]}
        file.write_text(REAL.format(**own, **ends))
        return file

    def cli(*args: object, uri: str = lab.left.address) -> Result:
        result = CliRunner().invoke(main, [*map(str, args), "--uri", uri])
        assert "Traceback" not in result.stderr
        return result

    loaded = cli("load", written("conf-left", left, right))
    assert loaded.stdout.splitlines()[-1] == "3 loaded, 0 unloaded, 0 kept, 0 skipped, 0 failed", loaded.output
    assert cli("load", written("conf-right", right, left), uri=lab.right.address).exit_code == 0
    up = cli("initiate", "--child", "net", "--timeout", 10)
    assert (up.exit_code, up.stdout) == (0, "initiate: done\n"), up.stderr
    assert "IKE_SA gw[1] established" in up.stderr
    [sa] = map(json.loads, cli("sas", "--json").stdout.splitlines())
    assert sa["gw"]["state"] == "ESTABLISHED"
    assert "1 IKE_SAs, 1 CHILD_SAs" in cli("sas").stdout
    assert "pre-shared" in cli("conns").stdout
    assert "branches" in cli("pools").stdout
    assert "ike-init-out-req" in cli("counters").stdout
    again = cli("rekey", "--ike", "gw", "--reauth", "--wait")
    assert (again.stdout, again.stderr) == ("rekey: done (matches 1)\n", "gw #1 replaced by #2\n")
    assert cli("rekey", "--ike", "gw", "--wait").stderr == "gw #2 replaced by #3\n"
    assert cli("rekey", "--child", "net", "--wait").stderr == "net #2 replaced by #3\n"
    assert cli("rekey", "--child", "net").stdout.startswith("rekey: started (matches ")
    down = cli("terminate", "--ike", "gw")
    assert (down.exit_code, down.stdout) == (0, "terminate: done (matches 1, terminated 1)\n")
    again = cli("terminate", "--ike", "gw")
    assert (again.exit_code, again.stdout) == (1, "")
    assert cli("unload", "pool", "branches").exit_code == 0
    assert cli("policies", "--json").stdout == ""
    assert [cli(*command).exit_code for command in (["certs"], ["stats"], ["call", "version"])] == [0, 0, 0]


@pytest.mark.faults  # charon retries after 6 to 15 seconds
@pytest.mark.lab(nats=True)
def test_reauthentication_that_charon_delays(lab: Lab) -> None:
    """While a rekeyed CHILD_SA is still listed, for some seconds."""
    from lab import sas  # needs the extra bridge

    [name] = asyncio.run(sas.up(lab, 1))

    def rekey(*args: str) -> Result:
        return CliRunner().invoke(main, ["rekey", *args, "--wait", "--timeout", "60", "--uri", lab.left.address])

    assert rekey("--child", f"{name}-lan").stderr == f"{name}-lan #1 replaced by #2\n"
    began = time.monotonic()
    reauthenticated = rekey("--ike", name, "--reauth")
    assert (reauthenticated.exit_code, reauthenticated.stderr) == (0, f"{name} #1 replaced by #2\n")
    assert time.monotonic() - began > 4  # without --wait the command ends at once
