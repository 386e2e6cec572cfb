"""The bridge between a flooding daemon and a nats-server on this host, compared with a simple bridge."""

from __future__ import annotations

import contextlib
import json
import marshal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .corpus import recorded
from .measure import Settings, Table, interleave
from .revision import python_of

OURS = ["vicibridge, msgpack", "vicibridge, json"]
NAIVE = "python vici, msgpack, nats-py"
PARTS = ["vicifast, reading and coding", "vicifast, reading alone"]
NAIVE_COUNT = 20_000


class Flood(NamedTuple):
    """What charon sends to each contestant: `rate` events per second, as fast as it can if that is less."""

    table: str
    title: str
    event: str
    rate: int
    contestants: Sequence[str]


FLOODS = [
    Flood("bridge-log", "class log", "log", 200_000, [*OURS, *PARTS, NAIVE]),
    Flood("bridge-state", "class state", "ike-updown", 60_000, [*OURS, NAIVE]),
    Flood("bridge-state-flood", "class state, more than NATS takes", "ike-updown", 100_000, OURS),
]


def tables(settings: Settings) -> Iterator[Table]:
    """CPU of the bridge and wall time, for each class of events."""
    if settings.against:
        settings.report(f"building {settings.against}")
        python_of(settings.against)
    for flood in FLOODS:
        table = Table(flood.table, f"from charon's socket to NATS, {flood.title}", "µs per event, of the bridge")
        settings.report(table.title)
        with tempfile.TemporaryDirectory() as directory:
            with nats_server(Path(directory)) as url:
                _measure(table, settings, flood, url, Path(directory))
        yield table


def _measure(table: Table, settings: Settings, flood: Flood, url: str, directory: Path) -> None:
    corpus = directory / "messages"
    corpus.write_bytes(marshal.dumps(recorded("events", flood.event)))
    count = int(flood.rate * (0.3 if settings.quick else settings.flood))
    contestants = {name: (name, sys.executable) for name in flood.contestants}
    if settings.against and NAIVE in flood.contestants:
        contestants[f"{OURS[0]} of {settings.against}"] = OURS[0], str(python_of(settings.against))
    runs = {}
    for number, (title, (name, python)) in enumerate(contestants.items()):
        of_it = min(count, NAIVE_COUNT) if name == NAIVE else count
        runs[title] = _run(python, name, of_it, flood, url, directory / str(number), corpus)
    results = interleave(1 if settings.quick else 3, runs)
    for clock in ("CPU", "wall"):
        table.add(clock, {name: [run[clock] for run in of_one] for name, of_one in results.items()}, 1e6)
    wall = table.rows[OURS[0]]["wall"]
    memory = max(run["peak"] for run in results[OURS[0]])
    table.notes.append(f"{count:,} events, {1e6 / wall.minimum:,.0f} a second, all published; peak {memory:.0f} MB RSS")
    table.notes.append("source, bridge and nats-server share this machine")


def _run(
    python: str, name: str, count: int, flood: Flood, url: str, directory: Path, corpus: Path
) -> Callable[[], dict[str, float]]:
    """Return a function that runs a bridge through one flood and returns its time per event."""
    directory.mkdir()

    def run() -> dict[str, float]:
        path = directory / "vici"
        path.unlink(missing_ok=True)
        source = ["bridge_source", str(path), flood.event, str(count), str(flood.rate), str(corpus)]
        client = ["bridge_client", name, str(path), url, flood.event, str(count), str(directory)]
        with process(sys.executable, source) as daemon, process(python, client) as bridge:
            daemon.stdin.write(b"go\n")
            daemon.stdin.flush()
            answer: dict[str, Any] = json.loads(bridge.stdout.readline() or "null")
            if answer is None:
                raise RuntimeError(f"{name} did not publish all events")
        return {"CPU": answer["CPU"] / count, "wall": answer["wall"] / count, "peak": answer["peak"]}

    return run


@contextlib.contextmanager
def nats_server(directory: Path) -> Iterator[str]:
    """Run a nats-server with JetStream in a directory, and yield its address."""
    try:
        from vicibridge.bus.nats_server import NatsServer
    except ModuleNotFoundError as error:
        raise SystemExit(f'not installed: {error.name}; run: pip install "strongswan-vicifast[demo]"') from None
    server = NatsServer(directory)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


@contextlib.contextmanager
def process(python: str, arguments: list[str]) -> Iterator[Any]:
    """Run a module of this package that prints a line when it is ready."""
    command = [python, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            if not child.stdout.readline():
                raise RuntimeError(f"{arguments[0]} {arguments[1]} did not start")
            yield child
        finally:
            child.kill()
