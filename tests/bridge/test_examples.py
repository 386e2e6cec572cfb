"""The examples work as described, with a real nats-server and a bridge."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from harness import NatsServer, run
from pages import NATS, Block, blocks, each
from test_client_calls import a_fleet
from test_console import LINE, SITE, SITES, mirrored
from vicibridge.bus.nats_server import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


@asynccontextmanager
async def example(name: str | Path, *args: object) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name) + ".py", *map(str, args)),
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process, emit: Callable[[], object]) -> str:
    """Return the first line of output; `emit` is repeated until the program has received the event."""
    assert process.stdout
    reading = asyncio.create_task(process.stdout.readline())
    while not reading.done():
        emit()
        await asyncio.wait([reading], timeout=0.1)
    return (await reading).decode()


def test_alarm_and_worker(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1") as (_, [charon]):
            async with example("alarm", nats_server.url) as alarm, example("worker", nats_server.url) as worker:
                output = await line(alarm, lambda: charon.emit("child-updown", {"site": SITE}))
                assert output == "ALARM gw1: net of site is down\n"
                assert (await line(worker, lambda: None)).startswith("gw1 ")

    run(test())


def test_log_shipper(nats_server: NatsServer, tmp_path: Path) -> None:
    directory = tmp_path / "new"

    async def test() -> None:
        async with a_fleet(nats_server, "gw 1") as (_, [charon]), example("log_shipper", nats_server.url, directory):
            file = directory / "gw=201.log"
            while not file.exists() or not rows(directory / "log.db"):
                charon.emit("log", LINE)
                await asyncio.sleep(0.1)
            assert file.read_text("utf-8").endswith(" [IKE] retransmit\n")
            assert rows(directory / "log.db")[0] == ("gw 1", "IKE", "1", "retransmit")

    run(test())


def rows(path: Path) -> list[tuple[str, ...]]:
    database = sqlite3.connect(path)
    try:
        return database.execute("select node, grp, level, msg from log").fetchall()
    finally:
        database.close()


def test_inventory_and_reinitiate(nats_server: NatsServer) -> None:
    async def test() -> None:
        allow = {"allow": ["@read", "@operate"]}
        async with a_fleet(nats_server, "gw1", "gw2", commands=allow) as (_, charons):
            charons[0].on("stats", {"uptime": {"running": "2 days"}, "ikesas": {"total": "7"}})
            for charon in charons:
                charon.on("terminate", {"success": "no", "errmsg": "no matching SAs to terminate found"})
                charon.on("initiate", {"success": "yes"})
            charons[0].on("list-sas", {}, stream=SITES)
            charons[1].on("list-sas", {})
            async with example("inventory", nats_server.url) as inventory:
                output = (await inventory.communicate())[0].decode().splitlines()
                assert sorted(output)[0] == "gw1: running 2 days, SAs 7" and sorted(output)[1].startswith(
                    "gw2: charon does"
                )
            async with example("reinitiate", nats_server.url, "net", "gw1", "gw2") as renewing:
                out = (await renewing.communicate())[0].decode()
                assert "gw1: net is up" in out and "stopped: gw2: net is not installed" in out
                assert renewing.returncode == 1

    run(test())


def test_exporter(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicibridge.mirror.worker._SOON", 0.1)  # the first list-conns may come before its answer

    async def test() -> None:
        port = free_port()
        async with a_fleet(nats_server, "gw1", sas=SITES, mirror={"enabled": True}) as (fleet, [charon]):
            charon.on("list-conns", {}, stream=[("list-conn", {"other": {"children": {"lan": {}}}})])
            charon.emit("child-updown", {"up": "yes", "site": SITE})
            await mirrored(fleet)
            async with example("exporter", nats_server.url, port):
                seen: list[str] = []

                def fetch() -> str:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                        return str(answer.read().decode())

                while not any('child="net"' in text and 'conn="other"' in text for text in seen):
                    with suppress(OSError):
                        seen.append(await asyncio.to_thread(fetch))
                    await asyncio.sleep(0.05)
                assert 'tunnel_bytes_total{child="net",conn="site",direction="in",node="gw1"} 2048.0' in seen[-1]
                assert 'tunnel_up{child="net",conn="site",node="gw1"} 1.0' in seen[-1]
                assert 'tunnel_up{child="lan",conn="other",node="gw1"} 0.0' in seen[-1]

    run(test())


PROGRAMS = [block for block in blocks("python") if NATS in block.text]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@each([block for block in PROGRAMS if "stdout" not in block.text])
def test_program_in_the_documentation(block: Block, codec: str, nats_server: NatsServer, tmp_path: Path) -> None:
    a_program(block, codec, nats_server, tmp_path)


@each([block for block in PROGRAMS if "stdout" in block.text])
def test_program_that_forwards_lines(block: Block, nats_server: NatsServer, tmp_path: Path) -> None:
    a_program(block, "json", nats_server, tmp_path)


def a_program(block: Block, codec: str, nats_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(block.text.replace(NATS, nats_server.url))

    async def test() -> None:
        async with a_fleet(nats_server, "gw1", events={"codec": codec}, log={"codec": codec}) as (_, [charon]):
            charon.on("version", {"daemon": "charon"})
            charon.on("stats", {"uptime": {"running": "2 days"}})
            charon.on("list-sas", {}, stream=SITES)

            def emit() -> None:
                charon.emit("child-updown", {"site": SITE})
                charon.emit("log", LINE)

            async with example(tmp_path / "program") as program:
                output = await line(program, emit)
                assert "gw1" in output or "2 days" in output

    run(test())


def test_every_example_has_a_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [path.name for path in EXAMPLES.glob("*.py") if not re.search(rf'"{path.stem}(\.py)?"', tests)] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_without_arguments_prints_its_usage(path: Path) -> None:
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and f"python examples/{path.name} nats://" in done.stderr
