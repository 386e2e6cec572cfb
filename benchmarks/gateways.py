"""A bridge of many gateways: its memory, the time until all are present, and its CPU time while nothing happens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .bridge import nats_server, process
from .measure import MEMORY_IS_KNOWN, Settings, Table, interleave, resident
from .revision import python_of

MANY, FEW = 600, 30
MB = 1 << 20
_SETTLE = 10.0  # seconds from the presence of all gateways until the bridge is idle
_IDLE = 30.0  # seconds; three heartbeats
_LONGEST = 120.0  # seconds for all gateways to be present


class _Run(NamedTuple):
    present: float
    """Seconds from the start of the process until all gateways are present."""
    memory: float
    """RSS after that and the idle time, in bytes."""
    idle: float
    """CPU seconds per second."""


def tables(settings: Settings) -> Iterator[Table]:
    """Memory, start and idle CPU of a bridge of one and of many gateways."""
    if not MEMORY_IS_KNOWN:
        raise SystemExit("this needs /proc/PID/smaps_rollup of Linux")
    many = FEW if settings.quick else MANY
    pythons = {"vicibridge": Path(sys.executable)}
    if settings.against:
        settings.report(f"building {settings.against}")
        pythons[f"vicibridge of {settings.against}"] = python_of(settings.against)
    title = f"a bridge of {many} gateways"
    settings.report(title)
    one, all_ = (
        interleave(
            1 if settings.quick else 3,
            {name: partial(_measure, python, count, settings.quick) for name, python in pythons.items()},
        )
        for count in (1, many)
    )
    memory = Table("gateways-memory", f"{title}: memory", "MB RSS")
    memory.add("one gateway", {name: [run.memory for run in runs] for name, runs in one.items()}, 1 / MB)
    base = {name: min(run.memory for run in runs) for name, runs in one.items()}
    further = {name: [(run.memory - base[name]) / (many - 1) for run in runs] for name, runs in all_.items()}
    memory.add("each further gateway", further, 1 / MB)
    yield memory
    present = Table("gateways-present", f"{title}: time until all are present", "s")
    present.add("wall", {name: [run.present for run in runs] for name, runs in all_.items()})
    present.notes = ["the bridge, its charons and nats-server share this machine"]
    yield present
    idle = Table("gateways-idle", f"{title}: idle", "ms of CPU per second")
    idle.add("CPU", {name: [run.idle for run in runs] for name, runs in all_.items()}, 1e3)
    yield idle


def _measure(python: Path, count: int, quick: bool) -> _Run:
    """Run one bridge of `count` gateways on a new nats-server."""
    with tempfile.TemporaryDirectory() as name:
        directory, source = Path(name), ["gateway_source", name, str(count)]
        with nats_server(directory) as url, process(sys.executable, source):
            return asyncio.run(_observe(python, directory, count, url, quick))


async def _observe(python: Path, directory: Path, count: int, url: str, quick: bool) -> _Run:
    import nats
    from nats.aio.msg import Msg
    from vicibridge.contract.bucket_values import load

    absent, present = {f"gw{number}" for number in range(count)}, asyncio.Event()

    async def take(message: Msg) -> None:
        value = load(message.data)
        if value["charon"] == "up" and value.get("mirror", "complete") == "complete":
            absent.discard(value["node"])
        if not absent:
            present.set()

    client = await nats.connect(url)
    await client.subscribe("$KV.VICI_NODE.>", cb=take)
    await client.flush()
    waiting = asyncio.create_task(present.wait())
    began = time.monotonic()
    command = [python, "-m", "vicibridge", "run", "--config", _config(directory, count, url)]
    log = directory / "bridge.log"
    with log.open("wb") as output, subprocess.Popen(command, cwd=directory, stdout=output, stderr=output) as bridge:
        try:
            while not present.is_set():
                if bridge.poll() is not None or time.monotonic() > began + _LONGEST:
                    raise RuntimeError(f"{len(absent)} of {count} gateways are missing:\n{log.read_text()[-2000:]}")
                await asyncio.wait([waiting], timeout=1.0)
            until = time.monotonic() - began
            await client.close()
            await asyncio.sleep(1.0 if quick else _SETTLE)
            cpu, since = _cpu(bridge.pid), time.monotonic()
            await asyncio.sleep(1.0 if quick else _IDLE)
            idle = (_cpu(bridge.pid) - cpu) / (time.monotonic() - since)
            return _Run(until, resident(bridge.pid), idle)
        finally:
            bridge.kill()


def _config(directory: Path, count: int, url: str) -> Path:
    file = directory / "bridge.toml"
    spool = directory / "spool"
    lines = [f'nats = {{servers = ["{url}"]}}', f'spool = {{path = "{spool}"}}', 'http = {listen = "127.0.0.1:0"}']
    for number in range(count):
        lines += ["[[gateway]]", f'node = "gw{number}"', f'vici = "unix://{directory}/{number}"']
    file.write_text("\n".join(lines) + "\n")
    return file


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a running process: clock_getcpuclockid(3) makes its clock from the id like this."""
    return time.clock_gettime(~pid << 3 | 2)
