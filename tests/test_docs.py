"""What the README and the pages under docs show is what happens."""

from __future__ import annotations

import asyncio
import doctest
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pages import ADDRESS, NATS, PAGES, ROOT, Block, blocks, each, recorded_charon, tell_events

from vicifast.errors import ConnectionClosed
from vicifast.follow import BaseFollower

PROGRAMS = [block for block in blocks("python") if ">>> " not in block.text and NATS not in block.text]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_prompt_examples(page: Path) -> None:
    tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert not tried.failed


# The module that compat stands in for has no way to close a session, and programs for it leave that to their end.
@pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
@each(PROGRAMS)
def test_program(block: Block, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with recorded_charon() as charon:
            telling = asyncio.create_task(tell_events(charon))
            source = block.text.replace(ADDRESS, charon.address)
            monkeypatch.setattr("vicifast.address.DEFAULT_ADDRESS", charon.address)
            # a follower would go on for ever
            monkeypatch.setitem(BaseFollower.__init__.__kwdefaults__, "timeout", 0.5)
            with suppress(ConnectionClosed):  # a program that follows events ends with the daemon
                await asyncio.to_thread(exec, compile(source, block.where, "exec"), {"__name__": "__main__"})
            telling.cancel()

    asyncio.run(asyncio.wait_for(run(), 15))
    printed = capsys.readouterr().out
    assert printed or "print" not in block.text
    if block.prints is not None:
        assert printed == block.prints


@each(list(blocks("toml")))
def test_configuration(block: Block, tmp_path: Path) -> None:
    config = pytest.importorskip("vicibridge.configfile", reason="needs the bridge extra")
    (tmp_path / "bridge.toml").write_text(block.text)
    assert config.load(tmp_path / "bridge.toml").gateway


def lines_of_command() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours: in console examples after the prompt, in prose between backticks."""
    lines = [(b.where, line) for b in blocks("console") for line in b.text.replace("\\\n", " ").splitlines()]
    found = [(where, line.removeprefix("$ ")) for where, line in lines]
    for page in PAGES:
        for line in re.findall(r"`((?:vicifast|vicibridge) [a-z][^`\n]*)`", page.read_text("utf-8")):
            found.append((str(page.relative_to(ROOT)), line))
    for where, line in found:
        words = shlex.split(line, comments=True)
        if words and words[0] in ("vicifast", "vicibridge"):
            yield where, words


LINES = list(lines_of_command())


@pytest.mark.parametrize("words", [words for _, words in LINES], ids=[where for where, _ in LINES])
def test_command_line_is_one(words: list[str]) -> None:
    """That such a command is there, with these options."""
    click = pytest.importorskip("click", reason="needs the cli extra")
    from vicibridge.cli import cli

    from vicifast.cli import main

    group = {"vicifast": main, "vicibridge": cli}[words[0]]
    command = group.get_command(click.Context(group), words[1])
    assert command, f"{words[0]} has no command {words[1]}"
    command.make_context(words[1], words[2:])


def test_tests_that_are_named_exist() -> None:
    there = {
        f"{path.stem}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+::test_\w+)`", page.read_text("utf-8"))}
    assert named and named <= there, named - there
