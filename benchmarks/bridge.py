"""The bridge between a flooding daemon and a nats-server on this host, compared with a simple bridge."""

from __future__ import annotations

import contextlib
import json
import marshal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .corpus import recorded
from .measure import Settings, Table, interleave

OURS = ["vicibridge, msgpack", "vicibridge, json"]
NAIVE = "python vici, msgpack, nats-py"
PARTS = ["vicifast, reading and coding", "vicifast, reading alone"]
# Events per second.
RATES = {"log": 200_000, "ike-updown": 20_000}
NAIVE_COUNT = 20_000


def tables(settings: Settings) -> Iterator[Table]:
    """CPU of the bridge and wall time, for each class of events."""
    try:
        from vicibridge.bus.nats_server import NatsServer
    except ModuleNotFoundError as error:
        raise SystemExit(f'not installed: {error.name}; run: pip install "strongswan-vicifast[demo]"') from None
    for event, rate in RATES.items():
        count = int(rate * (0.3 if settings.quick else settings.flood))
        kind = "log" if event == "log" else "state"
        title = f"from charon's socket to NATS, class {kind}"
        table = Table(f"bridge-{kind}", title, "µs per event, of the bridge")
        settings.report(title)
        with tempfile.TemporaryDirectory() as directory:
            server = NatsServer(Path(directory))
            server.start()
            try:
                _measure(table, settings, event, count, server.url, Path(directory))
            finally:
                server.kill()
        yield table


def _measure(table: Table, settings: Settings, event: str, count: int, url: str, directory: Path) -> None:
    contestants = [*OURS, *PARTS, NAIVE] if event == "log" else OURS
    corpus = directory / "messages"
    corpus.write_bytes(marshal.dumps(recorded("events", event)))
    runs = {}
    for number, name in enumerate(contestants):
        of_it = min(count, NAIVE_COUNT) if name == NAIVE else count
        runs[name] = _run(name, of_it, event, url, directory / f"{event}-{number}", corpus)
    results = interleave(1 if settings.quick else 3, runs)
    for clock in ("CPU", "wall"):
        table.add(clock, {name: [run[clock] for run in of_one] for name, of_one in results.items()}, 1e6)
    wall = table.rows[OURS[0]]["wall"]
    memory = max(run["peak"] for run in results[OURS[0]])
    table.notes.append(f"{count:,} events, {1e6 / wall.minimum:,.0f} a second, all published; peak {memory:.0f} MB RSS")
    table.notes.append("source, bridge and nats-server share this machine")


def _run(name: str, count: int, event: str, url: str, directory: Path, corpus: Path) -> Callable[[], dict[str, float]]:
    """Return a function that runs a bridge through one flood and returns its time per event."""
    directory.mkdir()

    def run() -> dict[str, float]:
        path = directory / "vici"
        path.unlink(missing_ok=True)
        source = ["bridge_source", str(path), event, str(count), str(RATES[event]), str(corpus)]
        client = ["bridge_client", name, str(path), url, event, str(count), str(directory)]
        with _process(source) as daemon, _process(client) as bridge:
            daemon.stdin.write(b"go\n")
            daemon.stdin.flush()
            answer: dict[str, Any] = json.loads(bridge.stdout.readline() or "null")
            if answer is None:
                raise RuntimeError(f"{name} did not publish all events")
        return {"CPU": answer["CPU"] / count, "wall": answer["wall"] / count, "peak": answer["peak"]}

    return run


@contextlib.contextmanager
def _process(arguments: list[str]) -> Iterator[Any]:
    """Run a module of this package that prints a line when it is ready."""
    command = [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"{arguments[0]} {arguments[1]} did not start")
            yield process
        finally:
            process.kill()
