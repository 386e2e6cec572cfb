"""Standard output that names itself in its errors, so that a full disk there is not taken for one elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "standard output"


@contextmanager
def naming_errors(name: str = NAME) -> Iterator[None]:
    """Give `name` as the file name to an OSError."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise


class StandardOutput(io.TextIOWrapper):
    """Replaces the text layer of standard output.

    The layers below stay those of CPython: one in Python could be interrupted between a write and the note that it was
    done, and the buffer would write the same line again.
    """

    def __init__(self, before: io.TextIOWrapper) -> None:
        before.flush()
        self._before = before  # which would close the file
        super().__init__(
            before.buffer,
            before.encoding,
            before.errors,
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )

    def write(self, text: str, /) -> int:
        with naming_errors():
            return super().write(text)

    def flush(self) -> None:
        with naming_errors():
            super().flush()


def write_bytes(data: bytes) -> None:
    """Write to standard output and flush."""
    with naming_errors():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
