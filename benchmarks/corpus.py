"""Three kinds of traffic, each in the forms that the contestants accept.

python vici, msgpack and json create the forms, so that our results are checked against other implementations.
"""

from __future__ import annotations

import base64
import json
import random
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import msgpack
from vici.protocol import FiniteStream  # type: ignore[import-untyped]
from vici.protocol import Message as PythonVici

import vicifast

DATA = FilePath(__file__).parents[1] / "tests" / "data"
SEED = 20
UNIFORM_COUNT = 600
ADVERSARIAL_COUNT = 300

Path = tuple[str, ...]
ABSENT: Path = ("no-such-field",)


@dataclass(frozen=True)
class Traffic:
    """Messages in the order in which a client receives them."""

    name: str
    origin: str
    messages: list[bytes]

    @cached_property
    def dicts(self) -> list[dict[str, Any]]:
        """Values are str, or bytes where they are not UTF-8."""
        return [plain(PythonVici.deserialize(FiniteStream(message))) for message in self.messages]

    @cached_property
    def jsonables(self) -> list[dict[str, Any]]:
        return [without_bytes(message) for message in self.dicts]

    @cached_property
    def msgpack(self) -> list[bytes]:
        return [msgpack.packb(message) for message in self.dicts]

    @cached_property
    def json(self) -> list[bytes]:
        return [json.dumps(m, ensure_ascii=False, separators=(",", ":")).encode() for m in self.jsonables]

    @cached_property
    def lookups(self) -> list[tuple[bytes | Path, ...]]:
        """Each message with the paths of five values, from its first to its last; fewer values, absent paths."""
        return [(m, *_five(tree)) for m, tree in zip(self.messages, self.dicts, strict=True)]

    @cached_property
    def fields(self) -> list[list[Any]]:
        return [[follow(tree, path) for path in _five(tree)] for tree in self.dicts]

    def describe(self) -> str:
        size = sum(map(len, self.messages)) / len(self.messages)
        values = sum(len(list(_leaves(tree))) for tree in self.dicts) / len(self.messages)
        return (
            f"{self.name}: {self.origin}; {len(self.messages)} messages, on average {size:.0f} bytes and "
            f"{values:.0f} values, {self._repeated():.0%} of them the same as the value that the key had before"
        )

    def _repeated(self) -> float:
        last: dict[str, object] = {}
        same = total = 0
        for tree in self.dicts:
            for path, value in _leaves(tree):
                total += 1
                same += last.get(path[-1]) == value
                last[path[-1]] = value
        return same / total


def traffics() -> list[Traffic]:
    """The three kinds, the same in every run."""
    return [
        Traffic("uniform", "300 recorded list-sa events, then variations of them", _uniform(UNIFORM_COUNT)),
        Traffic("mixed", "every message of tests/data that a daemon sent, in order", recorded("*")),
        Traffic("adversarial", "no name and no value occurs twice, no value is ASCII", _adversarial(ADVERSARIAL_COUNT)),
    ]


def plain(value: Any) -> Any:
    """The result of any decoder as dict, list, str, and bytes where it is not UTF-8.

    Equal names are one object, as literal names in a program are.
    """
    if isinstance(value, dict):
        return {sys.intern(name): plain(child) for name, child in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def without_bytes(value: Any) -> Any:
    """A JSON-compatible copy, with bytes as vicifast writes them."""
    if isinstance(value, dict):
        return {name: without_bytes(child) for name, child in value.items()}
    if isinstance(value, list):
        return [without_bytes(item) for item in value]
    return {"$base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def follow(tree: Any, path: Path) -> Any:
    """The value at a path, or None."""
    for name in path:
        tree = tree.get(name)
    return tree


def _leaves(tree: dict[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _five(tree: dict[str, Any]) -> list[Path]:
    paths = [path for path, value in _leaves(tree) if not isinstance(value, list)]
    if len(paths) < 5:
        return paths + [ABSENT] * (5 - len(paths))
    return [paths[(len(paths) - 1) * quarter // 4] for quarter in range(5)]


def recorded(pattern: str, event: str | None = None) -> list[bytes]:
    """The messages in the recordings with this name, or those of one event."""
    from vicifast.recording import Recording

    files = sorted(DATA.glob(f"{pattern}.recording"))
    packets = [packet for file in files for packet in Recording.load(file).packets("server")]
    return [p.message for p in packets if p.message is not None and event in (None, p.name)]


def _uniform(count: int) -> list[bytes]:
    messages = recorded("list-sas", "list-sa")
    rng = random.Random(SEED)
    made = messages[:count]
    while len(made) < count:
        tree = plain(vicifast.decode(messages[len(made) % len(messages)]))
        made.append(vicifast.encode(_varied(tree, len(made), rng)))
    return made


def _varied(tree: dict[str, Any], number: int, rng: random.Random) -> dict[str, Any]:
    """The SA of another site at a later time, varied like the SAs of a busy gateway."""
    site, ike = f"site-{number:04}", next(iter(tree.values()))
    child = next(iter(ike["child-sas"].values()))
    ike |= {
        "uniqueid": str(number),
        "remote-host": f"10.99.{number >> 8}.{number & 255}",
        "remote-id": f"{site}.example",
    }
    ike |= {"initiator-spi": rng.randbytes(8).hex(), "responder-spi": rng.randbytes(8).hex()}
    ike |= {"established": str(rng.randrange(14000)), "rekey-time": str(rng.randrange(14000))}
    ike["remote-vips"] = [f"10.3.{number >> 8}.{number & 255}"]
    child |= {"name": f"{site}-lan", "uniqueid": str(number), "reqid": str(number)}
    child |= {"spi-in": rng.randbytes(4).hex(), "spi-out": rng.randbytes(4).hex()}
    for way in ("in", "out"):
        packets = rng.randrange(1_000_000)
        child |= {f"bytes-{way}": str(packets * rng.randrange(60, 1400)), f"packets-{way}": str(packets)}
        child[f"use-{way}"] = str(rng.randrange(60))
    for name in ("rekey-time", "life-time", "install-time"):
        child[name] = str(rng.randrange(4000))
    child["remote-ts"] = [f"10.{1 + (number >> 8)}.{number & 255}.0/24"]
    ike["child-sas"] = {f"{site}-lan-{number}": child}
    return {site: ike}


class _Unique:
    """Unique names and values; values with two, three and four bytes per character in turn."""

    ALPHABETS = ("äöüéèñßøåçğžšł", "日本語中文字漢東京北한국어", "𝄞😀🚀🎉𐍈🧪🌍🔒")

    def __init__(self) -> None:
        self.rng = random.Random(SEED)
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return "".join(self.rng.choices(string.ascii_lowercase + "-", k=self.rng.randrange(4, 12))) + str(self.count)

    def value(self) -> str:
        self.count += 1
        alphabet = self.ALPHABETS[self.count % 3]
        return "".join(self.rng.choices(alphabet, k=self.rng.randrange(2, 6))) + str(self.count)

    def section(self, values: int, lists: int) -> dict[str, Any]:
        made: dict[str, Any] = {self.name(): self.value() for _ in range(values)}
        return made | {self.name(): [self.value()] for _ in range(lists)}


def _adversarial(count: int) -> list[bytes]:
    """In the form of a list-sa event."""
    unique, made = _Unique(), []
    for _ in range(count):
        ike, child = unique.section(20, 1), unique.section(20, 2)
        made.append(vicifast.encode({unique.name(): ike | {unique.name(): {unique.name(): child}}}))
    return made
