"""Sets up the bridge's log on stderr: text or JSON, limited in rate."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

from ..config.model import LoggingConfig

_BURST = 30  # lines of one kind
_PERIOD = 10.0  # seconds
_KINDS = 500  # kinds of lines that are counted
_WAITING = 1000  # lines in the queue to stderr; more are dropped
_LAST = 0.5  # seconds to write the queue at exit
_STDERR = 2
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Quiet(logging.Filter):
    """Limits lines with the same template to 30 in 10 seconds; the next line reports how many were suppressed."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # start of the period, count

    def filter(self, record: logging.LogRecord) -> bool:
        template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        kind = (record.name, template)
        now = time.monotonic()
        since, count = self._seen.get(kind, (now, 0))
        if now - since >= _PERIOD:
            if count > _BURST:
                record.suppressed = count - _BURST
            since, count = now, 0
        if kind not in self._seen and len(self._seen) >= _KINDS:
            del self._seen[next(iter(self._seen))]
        self._seen[kind] = since, count + 1
        return count < _BURST


class Text(logging.Formatter):
    """A line of text; under systemd with the priority in front and without the time, which the journal has."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record) + _suppressed(record)
        if not self._journal:
            return text
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


class Json(logging.Formatter):
    """One JSON object on a line: `time` (UTC), `level`, `logger`, `message`, and `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() + _suppressed(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class ThreadHandler(logging.Handler):
    """Writes to stderr in a thread, as a blocked reader of stderr must not block the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(self.format(record))

    def close(self) -> None:
        """Write the queued lines, waiting at most half a second."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_LAST)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            data = f"{line}\n".encode(errors="backslashreplace")
            with suppress(OSError):
                while data:  # not through sys.stderr, whose lock would be held at exit
                    data = data[os.write(_STDERR, data) :]


def set_up(settings: LoggingConfig) -> None:
    """Send the log of this process to stderr as configured; may be called again with new settings."""
    handler = ThreadHandler()
    handler.addFilter(Quiet())
    handler.setFormatter(Json() if settings.format == "json" else Text(journal="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


def _suppressed(record: logging.LogRecord) -> str:
    count = getattr(record, "suppressed", 0)
    return f" ({count} similar lines suppressed before)" if count else ""
