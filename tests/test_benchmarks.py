"""The benchmarks run, have all their rows, and judge them correctly; the measurements are not tested."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine
from benchmarks.__main__ import ON_REQUEST
from benchmarks.instructions import compare, regressions
from benchmarks.measure import Table, interleave
from benchmarks.start import COMMANDS, FLEET
from benchmarks.subscriber import CONTESTANTS
from benchmarks.subscribers import WAYS
from benchmarks.targets import TARGETS, Target, judge

ROOT = Path(__file__).parents[1]
ABSENT = machine.missing()
TRAFFICS = {"uniform", "mixed", "adversarial"}
DECODERS = {
    *("vicifast Decoder", "vicifast decode", "python vici"),
    *("msgspec.msgpack", "ormsgpack", "msgpack", "msgspec.json", "orjson"),
}
CODEC = {
    "decode-drop": DECODERS,
    "decode-keep": DECODERS,
    "encode": DECODERS - {"vicifast Decoder", "vicifast decode"} | {"vicifast encode"},
    "lazy": {"vicifast Message", "vicifast Decoder, dict.get", "python vici"},
    "to-msgpack": {"vicifast Transcoder", "vicifast to_msgpack", "vicifast Decoder, msgspec.msgpack"}
    | {"python vici, msgpack"},
    "to-json": {"vicifast Transcoder", "vicifast to_json", "python vici, orjson"},
    "from-msgpack": {"vicifast from_msgpack", "vicifast encode, msgspec.msgpack", "python vici, msgpack"},
    "from-json": {
        "vicifast from_json",
        "vicifast encode, msgspec.json",
        "vicifast encode, orjson",
        "python vici, orjson",
    },
}


@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (the group bench)")
def test_every_row_is_measured() -> None:
    command = [sys.executable, "-W", "error", "-m", "benchmarks", "--quick", "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tables = {table["name"]: table["rows"] for table in report["tables"]}
    rows = {name: {(row["contestant"], row["case"]) for row in measured} for name, measured in tables.items()}

    for operation, contestants in CODEC.items():
        assert rows[operation] == {(name, traffic) for name in contestants for traffic in TRAFFICS}
    if sys.platform == "linux":
        assert rows["decode-memory"] == rows["decode-keep"]
    assert {"vicifast AsyncSession", "python vici"} <= {name for name, _ in rows["stream"]}
    assert {case for _, case in rows["stream"]} == {"packets, CPU", "packets, wall", "blast, CPU", "blast, wall"}
    assert {"vicifast", "vicifast.aio", "python vici"} <= {name for name, _ in rows["import"]}
    assert rows["start-vicifast"] == {("vicifast", case) for case in COMMANDS}
    assert rows.get("start-vicibridge") in (None, {("vicibridge", case) for case in FLEET})
    assert all(row["minimum"] <= row["median"] for measured in tables.values() for row in measured)
    assert all(row["minimum"] > 0 for operation in CODEC for row in tables[operation])
    assert len(report["targets"]) == sum(target.table.partition("-")[0] not in ON_REQUEST for target in TARGETS)
    assert report["machine"]["peers"].startswith("vici ")


def run_charon(*options: str) -> Any:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "benchmarks",
        "--quick",
        "--only",
        "charon",
        "--json",
        "-",
        *options,
    ]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.lab
@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (the group bench)")
def test_a_real_charon_is_measured() -> None:
    report, _ = run_charon()
    [table] = report["tables"]
    clients = {"vicifast Session", "vicifast AsyncSession", "python vici"}
    assert {(row["contestant"], row["case"]) for row in table["rows"]} == {
        (client, clock) for client in clients for clock in ("CPU", "wall")
    }
    assert table["notes"][0].startswith("100 SAs of charon ")


@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (the group bench)")
def test_without_a_charon_it_says_so(tmp_path: Path) -> None:
    report, output = run_charon("--charon", f"unix://{tmp_path}/none.vici")
    assert report["tables"][0]["rows"] == [] and not any(target["reached"] for target in report["targets"])
    assert "not measured: cannot connect to" in output


@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (the group bench)")
def test_a_bridge_of_many_gateways_is_measured() -> None:
    command = [sys.executable, "-W", "error", "-m", "benchmarks", "--quick", "--only", "gateways", "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = {
        (table["name"], row["contestant"], row["case"]): row["minimum"]
        for table in json.loads(done.stdout)["tables"]
        for row in table["rows"]
    }
    memory = ("one gateway", "each further gateway")
    assert rows.keys() == {
        *(("gateways-memory", "vicibridge", case) for case in memory),
        ("gateways-present", "vicibridge", "wall"),
        ("gateways-idle", "vicibridge", "CPU"),
    }
    assert all(value > 0 for value in rows.values())


@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (the group bench)")
def test_subscribers_are_measured() -> None:
    command = [sys.executable, "-W", "error", "-m", "benchmarks", "--quick", "--only", "subscribe", "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tables = {table["name"]: table["rows"] for table in json.loads(done.stdout)["tables"]}
    assert tables.keys() == {f"subscribe-{way.name}" for way in WAYS}
    for rows in tables.values():
        assert {(row["contestant"], row["case"]) for row in rows} == {
            (name, clock) for name in CONTESTANTS for clock in ("CPU", "wall")
        }
        assert all(row["minimum"] > 0 for row in rows)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed (group bench)")
def test_a_chart_is_svg_with_its_words_as_text(tmp_path: Path) -> None:
    from benchmarks.chart import draw

    table = Table("demo", "a demonstration", "µs")
    table.add("first", {"vicifast this": [1.0], "peer": [7.5]})
    text = draw(table, tmp_path).read_text()
    assert text.startswith("<?xml") and "<svg" in text
    assert "a demonstration: µs (times ours)" in text and "vicifast this" in text and "7.5  (7.5x)" in text


def test_rounds_are_interleaved() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return len(order)

    samples = interleave(2, {"a": lambda: run("a"), "b": lambda: run("b")})
    assert order == ["a", "b", "a", "b"]
    assert samples == {"a": [1, 3], "b": [2, 4]}


def test_ratios_are_of_the_minima_to_our_first_row() -> None:
    table = Table("demo", "", "")
    table.add("case", {"peer": [9.0, 6.0, 7.0], "vicifast one": [3.0, 2.0], "vicifast two": [4.0]}, scale=10)
    assert table.rows["peer"]["case"] == (60.0, 70.0)
    assert table.reference == "vicifast one"
    assert table.ratio("peer", table.reference, "case") == 3.0
    assert table.ratio("peer", table.reference, "another case") is None
    assert table.ratio("absent", table.reference, "case") is None


def test_targets_are_judged_by_measured_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("demo", "", "")
    table.add("case", {"vicifast": [2.0], "peer": [30.0]})
    targets = [
        Target("reached", "demo", "case", "vicifast", "peer", at_least=15),
        Target("missed", "demo", "case", "vicifast", "peer", at_least=15.1),
        Target("below", "demo", "case", "vicifast", at_most=2),
        Target("above", "demo", "case", "vicifast", at_most=1.9),
        Target("no such row", "demo", "case", "vicifast Other", "peer", at_least=1),
        Target("no such table", "other", "case", "vicifast", "peer", at_least=1),
    ]
    monkeypatch.setattr("benchmarks.targets.TARGETS", targets)
    judged = [(verdict.target.what, verdict.value, verdict.reached) for verdict in judge([table])]
    assert judged == [
        ("reached", 15.0, True),
        ("missed", 15.0, False),
        ("below", 2.0, True),
        ("above", 2.0, False),
        ("no such row", None, False),
    ]


def test_only_instructions_that_grew_by_more_than_the_tolerance_are_regressions() -> None:
    before = {"same": 1000, "a little more": 1000, "more": 1000, "less": 1000}
    after = {"same": 1000, "a little more": 1020, "more": 1021, "less": 500, "new": 7}
    changes = compare(before, after)
    assert [change.name for change in regressions(changes)] == ["more"]
    assert {change.name: change.growth for change in changes}["new"] is None
