"""The examples of the README and of the pages under docs, and the daemon for them."""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from vicifast.recording import Recording
from vicifast.testing import FakeCharon

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]
DATA = ROOT / "tests" / "data"
ADDRESS = "unix:///var/run/charon.vici"
NATS = "nats://127.0.0.1:4222"

# A fence, and its output, if a fence of text follows.
_FENCE = re.compile(r"^```(\S*)(?: \S+)?\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


class Block(NamedTuple):
    where: str
    language: str
    text: str
    prints: str | None


def all_blocks() -> Iterator[Block]:
    """Yield every block of every page. Indented blocks are for a shell, as fences of `console` are."""
    for page in PAGES:
        source = page.read_text("utf-8")
        found = [(fence.start(), fence[1], fence[2], fence[3]) for fence in _FENCE.finditer(source)]
        prose = _FENCE.sub(lambda fence: re.sub(r"[^\n]", "`", fence[0]), source)
        found += [(match.start(), "console", textwrap.dedent(match[0]), None) for match in _INDENTED.finditer(prose)]
        for start, language, text, prints in found:
            line = source.count("\n", 0, start) + 1
            yield Block(f"{page.relative_to(ROOT)}:{line}", language, text, prints)


def blocks(language: str) -> Iterator[Block]:
    return (block for block in all_blocks() if block.language == language)


def each(found: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", found, ids=[block.where for block in found])


@asynccontextmanager
async def recorded_charon() -> AsyncIterator[FakeCharon]:
    """Run a fake daemon with one SA, on which every command succeeds."""
    charon = FakeCharon.from_recordings([Recording.load(path) for path in sorted(DATA.glob("*.recording"))])
    sas = Recording.load(DATA / "list-sas.recording").packets("server")
    (sa,) = [packet.message for packet in sas if packet.message and b"\x08site-001" in packet.message]
    charon.on("list-sas", {}, stream=[("list-sa", sa)])
    charon.on("version", {"daemon": "charon-systemd", "version": "5.9.8"})
    log = {"group": "IKE", "level": "1", "msg": "establishing CHILD_SA site-001-lan"}
    charon.on("initiate", {"success": "yes"}, stream=[("control-log", log)])
    for command in ("terminate", "rekey"):
        charon.on(command, {"success": "yes", "matches": "1"})
    for command, key in (("get-keys", "keys"), ("get-shared", "keys"), ("get-authorities", "authorities")):
        charon.on(command, {key: []})
    charon.on("get-conns", {"conns": ["site-001"]})
    for command in ("load-conn", "unload-conn", "load-shared", "load-pool"):
        charon.on(command, {"success": "yes"})
    async with charon:
        yield charon


async def send_events(charon: FakeCharon) -> None:
    """Send the recorded events to clients that register for them, and then disconnect."""
    waiting = [asyncio.ensure_future(charon.registered(name)) for name in ("ike-updown", "child-updown", "log")]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each_ in waiting:
        each_.cancel()
    await charon.replay(Recording.load(DATA / "events.recording"))
    charon.drop()
