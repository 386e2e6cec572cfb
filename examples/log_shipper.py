"""Writes charon's log of the whole fleet to one file per gateway and to an SQLite table.

    python examples/log_shipper.py nats://127.0.0.1:4222 /var/log/fleet
    sqlite3 /var/log/fleet/log.db "select node, msg from log where grp = 'IKE'"

Gateway names are escaped in file names as in subjects.
"""

import asyncio
import sqlite3
import sys
from pathlib import Path

from vicibridge.client import Envelope, Fleet, SlowConsumer
from vicibridge.contract.subjects import escape


def row(envelope: Envelope) -> tuple[object, ...]:
    texts = (str(envelope.data.get(key, "")) for key in ("group", "level", "msg"))
    clean = (text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts)
    return (envelope.node, envelope.boot, envelope.seq, envelope.time, *clean)


def store(directory: Path, database: sqlite3.Connection, batch: list[Envelope]) -> None:
    rows = [row(envelope) for envelope in batch]
    for node in {envelope.node for envelope in batch}:
        with (directory / f"{escape(node)}.log").open("a", encoding="utf-8") as file:
            file.writelines(f"{r[3]} [{r[4]}] {r[6]}\n" for r in rows if r[0] == node)
    with database:
        database.executemany("insert or ignore into log values (?, ?, ?, ?, ?, ?, ?)", rows)


async def main(url: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(directory / "log.db")
    database.execute(
        "create table if not exists log (node, boot, seq, time, grp, level, msg, primary key (node, boot, seq))"
    )
    async with Fleet(url) as fleet, fleet.subscribe(events=["log"]) as events:
        while True:
            try:
                store(directory, database, await events.batch())
            except SlowConsumer as error:
                print(error, file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
