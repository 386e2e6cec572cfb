"""Compares the codec with its peers, on the same data in the format of each peer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path as FilePath

import msgpack

from . import contest, memory
from .contestants import Function, Operation, operations
from .corpus import Traffic, plain, traffics
from .measure import MEMORY_IS_KNOWN, Settings, Table, interleave

Files = dict[str, list[FilePath]]  # for each contestant one of each traffic


def tables(settings: Settings) -> Iterator[Table]:
    corpora = traffics()
    notes = [traffic.describe() for traffic in corpora]
    for operation in operations():
        for traffic in corpora:
            verify(operation, traffic)
    with tempfile.TemporaryDirectory() as directory:
        for operation in operations():
            files = {c.name: [_file(FilePath(directory), t, c.takes) for t in corpora] for c in operation.contestants}
            yield _timed(operation, corpora, files, settings, notes)
            if operation.name == "decode-keep":
                yield _kept_memory(operation, corpora, files, settings)
            notes = []


def _file(directory: FilePath, traffic: Traffic, form: str) -> FilePath:
    file = directory / f"{traffic.name}.{form}"
    if not file.exists():
        contest.store(file, getattr(traffic, form))
    return file


def _timed(operation: Operation, corpora: list[Traffic], files: Files, settings: Settings, notes: list[str]) -> Table:
    table = Table(operation.name, operation.title, "µs CPU per message", notes=notes)
    with contest.processes(operation.name, files) as processes:
        for case, traffic in enumerate(corpora):
            settings.report(f"{operation.title}, {traffic.name}")
            runs = {name: partial(process.run, case) for name, process in processes.items()}
            samples = interleave(5 if settings.quick else 51, runs)
            table.add(traffic.name, samples, 1e6 / len(traffic.messages))
    return table


def _kept_memory(operation: Operation, corpora: list[Traffic], files: Files, settings: Settings) -> Table:
    table = Table("decode-memory", "memory of decoded messages that are kept", "kB of RSS per message")
    if not MEMORY_IS_KNOWN:
        table.notes = ["not measured: requires /proc of Linux"]
        return table
    for case, traffic in enumerate(corpora):
        settings.report(f"{table.title}, {traffic.name}")
        runs = {name: partial(memory.measured, name, of_it[case]) for name, of_it in files.items()}
        samples = interleave(1 if settings.quick else 3, runs)
        table.add(traffic.name, samples, 1e-3 / len(traffic.messages))
    return table


def verify(operation: Operation, traffic: Traffic) -> None:
    """Check that all contestants give the same result; AssertionError names the first that does not."""
    for contestant in operation.contestants:
        function, read, form = contestant.make(), *_READ[contestant.gives]
        inputs, expected = getattr(traffic, contestant.takes), getattr(traffic, form)
        for number, (item, wanted) in enumerate(zip(inputs, expected, strict=True)):
            if read(function(item)) != wanted:
                where = f"{operation.title}, {traffic.name} message {number}"
                raise AssertionError(f"{where}: {contestant.name} gives a different result")


# How to compare each form: a function applied to the result, and the form of `Traffic` that it must equal.
_READ: dict[str, tuple[Function, str]] = {
    "messages": (bytes, "messages"),
    "dicts": (plain, "dicts"),
    "jsonables": (lambda given: given, "jsonables"),
    "msgpack": (msgpack.unpackb, "dicts"),
    "json": (json.loads, "jsonables"),
    "fields": (plain, "fields"),
}
