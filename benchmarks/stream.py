"""list-sas over a Unix socket: a server with messages encoded in advance, clients in separate processes."""

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

import vicifast

from .corpus import traffics
from .measure import Settings, Table, interleave

# How the server writes: as charon does, or as fast as a socket takes it.
MODES = {"packets": "two writes a packet, as charon does", "blast": "large writes"}
CLIENTS = ["vicifast Session", "vicifast AsyncSession", "vicifast compat", "python vici", "receive and discard"]


def tables(settings: Settings) -> Iterator[Table]:
    """CPU of the client and wall time; each client warms up with one stream and is measured on the next."""
    messages = next(traffic for traffic in traffics() if traffic.name == "uniform").messages
    messages = messages * (4 if settings.quick else 10)
    clients = [name for name in CLIENTS if name != "vicifast Session" or hasattr(vicifast, "Session")]
    notes = [f"{mode}: {meaning}" for mode, meaning in MODES.items()]
    table = Table("stream", "list-sas from a Unix socket", "µs per message, of the client", notes=notes)
    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory, "messages")
        corpus.write_bytes(marshal.dumps(messages))
        for mode in MODES:
            settings.report(f"{table.title}, {mode}")
            with _server(Path(directory, mode), mode, corpus) as path:
                runs = {name: run_client(name, path, len(messages)) for name in clients}
                results = interleave(2 if settings.quick else 15, runs)
            _same_digests(results)
            for clock in ("CPU", "wall"):
                samples = {name: [run[clock] for run in of_one] for name, of_one in results.items()}
                table.add(f"{mode}, {clock}", samples, 1e6 / len(messages))
    yield table


@contextlib.contextmanager
def _server(path: Path, mode: str, corpus: Path) -> Iterator[Path]:
    command = [sys.executable, "-m", "benchmarks.stream_server", str(path), mode, str(corpus)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise RuntimeError("the server of the stream benchmark did not start")
            yield path
        finally:
            server.terminate()


def run_client(client: str, path: str | Path, count: int) -> Callable[[], dict[str, Any]]:
    """Return a function that runs a client in a separate process and returns its time for `count` messages."""
    command = [sys.executable, "-m", "benchmarks.stream_client", client, str(path), str(count)]

    def run() -> dict[str, Any]:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def _same_digests(results: dict[str, list[dict[str, Any]]]) -> None:
    digests = {name: runs[0]["digest"] for name, runs in results.items() if runs[0]["digest"]}
    if len(set(digests.values())) != 1:
        raise AssertionError(f"the clients did not get the same messages: {digests}")
