"""list-sas of a real charon: a pair in the tests' lab with SAs between them, or a running one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from vicifast import Session
from vicifast.address import Unix, parse_address
from vicifast.errors import ViciError

from .measure import Settings, Table, interleave
from .stream import run_client

CLIENTS = ["vicifast Session", "vicifast AsyncSession", "python vici"]


def tables(settings: Settings) -> Iterator[Table]:
    """CPU of the client and wall time; each client warms up with one stream and is measured on the next."""
    table = Table("charon", "list-sas from a real charon", "µs per SA, of the client")
    try:
        with _charon(settings) as address:
            _measure(table, settings, address)
    except (_Missing, ViciError) as reason:
        table.notes.append(f"not measured: {reason}")
    yield table


class _Missing(Exception):
    """A missing requirement."""


def _measure(table: Table, settings: Settings, address: str) -> None:
    target = parse_address(address)
    if not isinstance(target, Unix):
        raise _Missing(f"{address} is not a Unix socket")
    with Session(address) as session:
        daemon = session.version()
        count = sum(1 for _ in session.list_sas())
    if not count:
        raise _Missing(f"the charon at {address} has no SAs")
    table.notes.append(f"{count} SAs of {daemon['daemon']} {daemon['version']}")
    settings.report(f"{table.title}, {count} SAs")
    runs = {name: run_client(name, target.path, count) for name in CLIENTS}
    results = interleave(2 if settings.quick else 3, runs)
    for clock in ("CPU", "wall"):
        samples = {name: [run[clock] for run in of_one] for name, of_one in results.items()}
        table.add(clock, samples, 1e6 / count)


@contextlib.contextmanager
def _charon(settings: Settings) -> Iterator[str]:
    """Yield the address of a charon with SAs."""
    if settings.charon is not None:
        yield settings.charon
        return
    from tests.lab import Lab, missing, sas

    if lacking := missing():
        raise _Missing(lacking)
    count = 100 if settings.quick else settings.sas
    settings.report(f"establishing {count} SAs")
    with Lab() as lab:
        asyncio.run(sas.up(lab, count, one_responder=True))
        yield lab.left.address
