"""The spool: stores unacknowledged events in an SQLite file, one for each node.

All methods block; `Backlog` calls them in a separate thread. A row is a batch of events of one boot. It is written in
one transaction with the removal of acknowledged rows and with the note that records the progress of this boot.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgpack

from .losses import Loss

FULL = "the spool is full"
OLD = "too old for the spool"
DAMAGED = "the spool was damaged"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT, first INTEGER, last INTEGER, count INTEGER,
    time REAL, size INTEGER, crc INTEGER, data BLOB);
CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT);
"""
_ROW = 100  # overhead of a row beyond its data, in bytes
_STEP = 60.0  # seconds; a larger difference means that the clock was set
_EVENT = 200  # overhead of an event in memory beyond its payload, in bytes
_REASONS = {
    "SQLITE_BUSY": "another bridge uses this file",
    "SQLITE_FULL": "the disk is full",
    "SQLITE_READONLY": "not writable",
    "SQLITE_CANTOPEN": "cannot be opened",
}


class SpoolError(Exception):
    """The spool cannot be used at present; the text gives the reason. With `damaged`, the file must be replaced."""

    def __init__(self, reason: str, damaged: bool = False) -> None:
        super().__init__(reason)
        self.damaged = damaged


@dataclass(slots=True, eq=False)
class SpooledEvent:
    """One envelope in transit to JetStream, and its state."""

    boot: str
    seq: int
    subject: str
    payload: bytes
    report_loss: bool = True  # False for gap envelopes, whose loss must not cause another gap
    number: int = 0  # its place in the order of sending; 0 if it is not queued in memory
    row: Row | None = None  # its row on disk
    done: bool = False  # published or dropped
    refusals: int = 0

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.payload) + _EVENT


@dataclass(slots=True, eq=False)
class Row:
    """A batch on disk whose events are also in memory."""

    id: int
    size: int
    events: list[SpooledEvent]
    left: int = 0  # events that are neither published nor dropped
    loss: Loss | None = None  # replaces events that cannot be read


@dataclass(slots=True)
class Note:
    """The progress of a boot: every event up to `seq` is acknowledged, on disk, or among the `losses`."""

    boot: str
    seq: int = 0
    clean: bool = False
    losses: list[Loss] = field(default_factory=list)  # not yet reported by a gap envelope


@dataclass(slots=True)
class Found:
    """The state of the file when it is opened: the last note, the number of events, and the moved damaged file."""

    note: Note | None
    count: int
    last_row: int
    damaged: Path | None


@dataclass(slots=True)
class StoredEvent:
    """The rows of the batches that were stored, and the rows that were dropped for them as (id, loss)."""

    rows: list[Row]
    dropped: list[tuple[int, Loss]]


class Spool:
    """The file of one node; drops the oldest events beyond `max_bytes`, and those older than `max_age` seconds.

    With a `max_age` of 0, events are kept indefinitely.
    """

    def __init__(self, path: Path, max_bytes: int, max_age: float) -> None:
        self.path = path
        self.size = 0
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._database: sqlite3.Connection | None = None
        self._last_found = 0  # later rows were written by this process
        self._clock = 0.0  # difference between the clock and the monotonic time, in seconds

    def open(self) -> Found:
        """Open the file, and move it aside if it is damaged; raise SpoolError if that fails."""
        self.close()
        self._check_directory()
        damaged = None
        try:
            found = self._look()
        except SpoolError as error:
            if not error.damaged:
                raise
            damaged = self.set_aside()
            found = self._look()
        found.damaged = damaged
        return found

    def store(self, batches: Iterable[Sequence[SpooledEvent]], finished: Sequence[Row], note: Note) -> StoredEvent:
        """Add batches, each of one boot, remove rows, and write `note`, all in one transaction."""
        with self._transaction(durable=bool(batches)) as database:
            size = self.size - sum(row.size for row in finished)
            database.executemany("DELETE FROM batch WHERE id = ?", [(row.id,) for row in finished])
            clock = self._follow_clock(database)
            rows = [self._insert(database, batch) for batch in batches]
            size += sum(row.size for row in rows)
            dropped = list(self._old_rows(database)) if self._max_age else []
            if size - sum(each[1] for each in dropped) > self._max_bytes:
                dropped = self._oldest_rows(database, size)
            database.executemany("DELETE FROM batch WHERE id = ?", [each[:1] for each in dropped])
            losses = [(id, loss) for id, _, loss in dropped]
            note.losses = note.losses + [loss for _, loss in losses]
            database.execute("INSERT OR REPLACE INTO note VALUES (1, ?)", (json.dumps(asdict(note)),))
        self._clock = clock
        before, self.size = self.size, size - sum(each[1] for each in dropped)
        if before and not self.size:
            self._shrink()
        if not self.size:
            self._release_memory()
        return StoredEvent(rows, losses)

    def read(self, after: int, limit: int) -> list[Row]:
        """Return the rows that follow row `after`: up to `limit` bytes in memory, but at least one."""
        rows: list[Row] = []
        query = "SELECT id, boot, first, last, count, size, crc, data FROM batch WHERE id > ? ORDER BY id"
        with self._guard() as database:
            for id, boot, first, last, count, size, crc, data in database.execute(query, (after,)):
                limit -= size + count * _EVENT
                if rows and limit < 0:
                    break
                row = Row(id, size, [])
                if zlib.crc32(data) == crc:
                    row.events = [SpooledEvent(boot, *fields) for fields in msgpack.unpackb(data)]
                else:
                    row.loss = Loss(DAMAGED, count, first, last, boot)
                rows.append(row)
        return rows

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def set_aside(self) -> Path:
        """Rename the file for inspection and return its new path; files renamed earlier are deleted."""
        self.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns() // 1_000_000:x}")
        with _explained(self.path):
            for former in self.path.parent.glob(f"{self.path.name}.damaged-*"):
                former.unlink()
            self.path.replace(aside)
            for suffix in ("-wal", "-shm", "-journal"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return aside

    def _check_directory(self) -> None:
        directory = self.path.parent
        with _explained(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.stat()
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SpoolError(f"{directory} is writable by other users: run chmod go-w {directory}")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise SpoolError(f"{directory} is not writable")

    def _look(self) -> Found:
        with _explained(self.path):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        with _explained(self.path):
            self._database = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            # Only one process uses the file, so WAL needs no shared memory.
            for pragma in ("locking_mode=EXCLUSIVE", "auto_vacuum=INCREMENTAL", "journal_mode=WAL"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute("PRAGMA journal_size_limit=4194304")
            self._database.executescript(_SCHEMA)
            query = "SELECT coalesce(sum(count), 0), coalesce(sum(size), 0), coalesce(max(id), 0) FROM batch"
            count, self.size, last_row = self._database.execute(query).fetchone()
            note = self._database.execute("SELECT text FROM note").fetchone()
        self._last_found, self._clock = last_row, time.time() - time.monotonic()
        return Found(_note(note[0]) if note else None, count, last_row, None)

    @contextmanager
    def _guard(self) -> Iterator[sqlite3.Connection]:
        if self._database is None:
            raise SpoolError("the spool is not open")
        with _explained(self.path):
            yield self._database

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[sqlite3.Connection]:
        """Commit on exit; with `durable` the data survives power loss, otherwise only the end of the process."""
        with self._guard() as database:
            database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def _shrink(self) -> None:
        """Return free pages to the file system, which SQLite would keep."""
        with suppress(SpoolError), self._guard() as database:
            database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    def _release_memory(self) -> None:
        """Free SQLite's cache, more than half of the memory of an idle spool."""
        with suppress(SpoolError), self._guard() as database:
            database.execute("PRAGMA shrink_memory")

    def _insert(self, database: sqlite3.Connection, batch: Sequence[SpooledEvent]) -> Row:
        data = msgpack.packb([(event.seq, event.subject, event.payload, event.report_loss) for event in batch])
        row = (batch[0].boot, batch[0].seq, batch[-1].seq, len(batch), time.time(), len(data) + _ROW, zlib.crc32(data))
        query = "INSERT INTO batch (boot, first, last, count, time, size, crc, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        id = database.execute(query, (*row, data)).lastrowid
        assert id is not None
        return Row(id, len(data) + _ROW, list(batch))

    def _follow_clock(self, database: sqlite3.Connection) -> float:
        """Adjust the times of this process's rows if the clock was set: some machines start in 1970."""
        clock = time.time() - time.monotonic()
        if abs(clock - self._clock) < _STEP:
            return self._clock
        database.execute("UPDATE batch SET time = time + ? WHERE id > ?", (clock - self._clock, self._last_found))
        return clock

    def _old_rows(self, database: sqlite3.Connection) -> Iterator[tuple[int, int, Loss]]:
        for id, size, time_, *loss in _rows(database):
            if time_ >= time.time() - self._max_age:
                return
            yield id, size, Loss(OLD, *loss)

    def _oldest_rows(self, database: sqlite3.Connection, size: int) -> list[tuple[int, int, Loss]]:
        """Return enough rows to free a sixteenth of the space, so that this query is rare."""
        rows = []
        for id, bytes_, _, *loss in _rows(database):
            if size <= self._max_bytes * 15 // 16:
                break
            size -= bytes_
            rows.append((id, bytes_, Loss(FULL, *loss)))
        return rows


def _rows(database: sqlite3.Connection) -> sqlite3.Cursor:
    return database.execute("SELECT id, size, time, count, first, last, boot FROM batch ORDER BY id")


def _note(text: str) -> Note:
    values = json.loads(text)
    values["losses"] = [Loss(**loss) for loss in values["losses"]]
    return Note(**values)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn exceptions into SpoolError with a reason for an administrator."""
    try:
        yield
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SpoolError(f"{path} has unknown content: {error}", damaged=True) from None
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        damaged = name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
        reason = next((text for code, text in _REASONS.items() if name.startswith(code)), str(error))
        raise SpoolError(f"{path}: {reason}", damaged) from None
