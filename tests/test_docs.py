"""The examples of the README and of the pages under docs work as shown."""

from __future__ import annotations

import asyncio
import doctest
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pages import ADDRESS, NATS, PAGES, ROOT, Block, all_blocks, blocks, each, recorded_charon, send_events
from test_imports import RANKS

from vicifast.commands import COMMANDS, EVENTS, TESTED, Danger, release
from vicifast.errors import ConnectionClosed
from vicifast.follow.base import BaseFollower
from vicifast.swanctl.settings import Settings

PROGRAMS = [block for block in blocks("python") if ">>> " not in block.text and NATS not in block.text]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_prompt_examples(page: Path) -> None:
    tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert not tried.failed


# Sessions of the module that compat replaces have no close(), so programs for it leave their sockets open.
@pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
@each(PROGRAMS)
def test_program(block: Block, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with recorded_charon() as charon:
            sending = asyncio.create_task(send_events(charon))
            source = block.text.replace(ADDRESS, charon.address)
            monkeypatch.setattr("vicifast.address.DEFAULT_ADDRESS", charon.address)
            # a follower would run indefinitely
            monkeypatch.setitem(BaseFollower.__init__.__kwdefaults__, "timeout", 0.5)
            with suppress(ConnectionClosed):  # a program that follows events ends with the daemon
                await asyncio.to_thread(exec, compile(source, block.where, "exec"), {"__name__": "__main__"})
            sending.cancel()

    asyncio.run(asyncio.wait_for(run(), 15))
    printed = capsys.readouterr().out
    assert printed or "print" not in block.text
    if block.prints is not None:
        assert printed == block.prints


def test_versions_of_strongswan() -> None:
    """Every range or list of versions in a text names the versions that the tests ran on."""
    texts = [*PAGES, *sorted((ROOT / "src").rglob("*.py")), ROOT / "bridge" / "vicibridge" / "contract" / "schema.py"]
    ranges = {
        found
        for path in texts
        for found in re.findall(r"strongSwan (5\.[\d.]*\d to [\d.]*\d)", path.read_text("utf-8"))
    }
    assert ranges == {f"{TESTED[0]} to {TESTED[-1]}"}
    assert f"passed on strongSwan {', '.join(TESTED[:-1])} and {TESTED[-1]}" in (ROOT / "README.md").read_text("utf-8")


def test_number_of_commands() -> None:
    texts = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "src").rglob("*.py")), *(ROOT / "docs").rglob("*.rst")]
    numbers = {(path.name, n) for path in texts for n in re.findall(r"\b(\d+) commands", path.read_text("utf-8"))}
    assert numbers and {(name, n) for name, n in numbers if int(n) != len(COMMANDS)} == set()


@pytest.mark.parametrize("file", ["README.md", "bridge/bridge.example.toml"])
def test_every_group_of_commands_is_named(file: str) -> None:
    groups = {f"@{danger}" for danger in Danger}
    assert set(re.findall(r"@[a-z]+\b", (ROOT / file).read_text("utf-8"))) == groups


def test_subjects_in_the_readme() -> None:
    """Its table has every subject, with the class of its events, and the kinds of the bridge's own events."""
    subjects = pytest.importorskip("vicibridge.contract.subjects", reason="needs the bridge extra")
    bridge_events = pytest.importorskip("vicibridge.contract.bridge_events", reason="needs the bridge extra")
    published = {}
    for event, pattern in subjects.patterns("vici").items():
        subject = pattern.replace("{direction}", "|".join(subjects.kinds(event)))
        published[re.sub(r"{(\w+)}", r"<\1>", subject)] = "log" if event == "log" else "state"
    own = subjects.Subjects("vici", "NODE")
    published[own.bridge("<kind>")] = "state"
    published |= {subject.replace("*", "<command>"): "" for subject in own.commands()}
    published = {subject.replace("NODE", "<node>"): kind for subject, kind in published.items()}
    _, _, table = (ROOT / "README.md").read_text("utf-8").partition("| subject | payload | class |\n|---|---|---|\n")
    rows = [re.split(r"(?<!\\)\|", row) for row in table.partition("\n\n")[0].splitlines()]
    shown = {s.replace("\\|", "|"): row[3].strip() for row in rows for s in re.findall(r"`([^`]+)`", row[1])}
    assert shown == published
    [kinds] = [row[2] for row in rows if "<kind>" in row[1]]
    assert re.findall(r"`(\w+)`", kinds) == list(bridge_events.BRIDGE_EVENTS)
    assert f"strongSwan {EVENTS['alert'].since} or newer" in table


def test_codecs_of_replies() -> None:
    codecs = pytest.importorskip("vicibridge.contract.codecs", reason="needs the bridge extra")
    page = (ROOT / "docs" / "reference" / "requests.md").read_text("utf-8")
    [choice] = re.findall(r"^\| `Vici-Codec` \| (.*): ", page, re.MULTILINE)
    assert re.findall(r"`(\w+)`", choice) == sorted(codecs.CODECS)


def test_payloads_are_described_in_every_codec() -> None:
    codecs = pytest.importorskip("vicibridge.contract.codecs", reason="needs the bridge extra")
    asyncapi = pytest.importorskip("vicibridge.contract.asyncapi", reason="needs the bridge extra")
    _, _, payloads = (ROOT / "README.md").read_text("utf-8").partition("A payload is one or more")
    pages = {
        "README.md": payloads.partition("\n")[0],
        "docs/reference/subjects.md": (ROOT / "docs" / "reference" / "subjects.md").read_text("utf-8"),
        "docs/start/microservice.md": (ROOT / "docs" / "start" / "microservice.md").read_text("utf-8"),
        "AsyncAPI": asyncapi.document("vici")["info"]["description"],
    }
    missing = [(page, codec) for page, text in pages.items() for codec in codecs.CODECS if codec not in text.lower()]
    assert missing == []


def terms(page: str) -> list[str]:
    """Return the names in the definition lists of a page of the reference."""
    found = re.findall(r"^(`.*`)\n: ", (ROOT / "docs" / "reference" / page).read_text("utf-8"), re.MULTILINE)
    return [name for line in found for name in re.findall(r"`([^`]+)`", line)]


def test_every_event_is_explained() -> None:
    assert sorted(terms("events.md")) == sorted(EVENTS)


def test_every_event_of_the_bridge_is_explained() -> None:
    bridge_events = pytest.importorskip("vicibridge.contract.bridge_events", reason="needs the bridge extra")
    page = (ROOT / "docs" / "reference" / "subjects.md").read_text("utf-8")
    _, _, table = page.partition("| kind | content |\n|---|---|\n")
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(bridge_events.BRIDGE_EVENTS)


def test_events_since_a_supported_version_are_in_the_table_of_versions() -> None:
    page = (ROOT / "docs" / "explanation" / "vici.md").read_text("utf-8")
    new = {(event.since, event.name) for event in EVENTS.values() if release(event.since) > release(TESTED[0])}
    assert set(re.findall(r"^\| ([\d.]+) \| the event `([\w-]+)`", page, re.MULTILINE)) == new


@each(list(blocks("toml")))
def test_configuration(block: Block, tmp_path: Path) -> None:
    config = pytest.importorskip("vicibridge.config.file", reason="needs the bridge extra")
    (tmp_path / "bridge.toml").write_text(block.text)
    assert config.load(tmp_path / "bridge.toml").gateway


def lines_of_command() -> Iterator[tuple[str, str, list[str]]]:
    """Yield every command line: in console examples, and those of ours in backticks in prose."""
    lines = [(b.where, line) for b in blocks("console") for line in b.text.replace("\\\n", " ").splitlines()]
    found = [(where, line.removeprefix("$ ").removeprefix("# ")) for where, line in lines]
    for page in PAGES:
        for line in re.findall(r"`((?:vicifast|vicibridge|make) [a-z][^`\n]*)`", page.read_text("utf-8")):
            found.append((str(page.relative_to(ROOT)), line))
    for where, line in found:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            del words[0]
        if words:
            yield where, Path(words[0]).name, words


LINES = list(lines_of_command())

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))

UNTRIED = {
    "python3": "makes a virtual environment on the machine",
    "source": "is a builtin of the shell",
    "podman": "needs a container engine",
    "install": "changes the machine",
    "useradd": "changes the machine",
    "systemctl": "changes the machine",
}


def each_line(*programs: str) -> pytest.MarkDecorator:
    found = [line for line in LINES if line[1] in programs]
    return pytest.mark.parametrize("words", [line[2] for line in found], ids=[line[0] for line in found])


def test_every_kind_of_example_has_a_test() -> None:
    tried = {"vicifast", "vicibridge", "make", "nats", "pip", "python"}
    assert {program for _, program, _ in LINES} == tried | UNTRIED.keys()
    others = {block.language for block in all_blocks() if not block.language.startswith("{")}
    # YAML and INI are for Prometheus, Grafana and systemd; blocks without a language are drawings or expressions.
    assert others == {"python", "console", "toml", "text", "json", "strongswan", "yaml", "ini", ""}


@each_line("make")
def test_make_target_exists(words: list[str]) -> None:
    targets = {word for word in words[1:] if "=" not in word}
    assert targets and targets <= TARGETS
    variables = [word.partition("=")[0] for word in words[1:] if "=" in word]
    assert [variable for variable in variables if f"$({variable})" not in MAKEFILE] == []


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="the workflows are not in the sdist")
def test_workflows_use_existing_targets_and_files() -> None:
    text = "".join(path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").iterdir())
    targets = set(re.findall(r"^ *(?:- )?(?:run: )?make ([\w-]+)", text, re.MULTILINE))
    assert {"test", "dist"} <= targets <= TARGETS
    files = re.findall(r"@(tests/[\w./]+)", text)
    assert files and all((ROOT / file).is_file() for file in files)


@each_line("nats")
def test_nats_subjects_and_buckets_exist(words: list[str]) -> None:
    """Check the command lines of NATS's own `nats`, which is not installed."""
    bucket_values = pytest.importorskip("vicibridge.contract.bucket_values", reason="needs the bridge extra")
    if "req" in words:
        subject, payload = words[words.index("req") + 1 :][:2]
        command = re.fullmatch(r"vici\.gw1\.cmd\.([\w-]+)", subject)
        assert command and command[1] in COMMANDS
        assert json.loads(payload).keys() <= {key.name for key in COMMANDS[command[1]].keys}
    elif "kv" in words:
        assert words[-1] in bucket_values.BUCKETS
    else:
        assert "sub" in words and words[-1].startswith("vici.*.")


@each_line("pip")
def test_extra_exists(words: list[str]) -> None:
    """Check the names only: tests/versions.py installs with each."""
    what = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[-1])
    assert words[1] == "install" and what
    there = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set((what[1] or "cli").split(",")) <= there.keys()


@each_line("python")
def test_python_file_exists(words: list[str]) -> None:
    named = [word for word in words[1:] if word.endswith(".py")]
    assert named and all((ROOT / word).is_file() for word in named)


@each(list(blocks("strongswan")))
def test_strongswan_conf(block: Block, tmp_path: Path) -> None:
    """charon reads it with the grammar of swanctl.conf."""
    (tmp_path / "strongswan.conf").write_text(block.text)
    settings = Settings.read(tmp_path / "strongswan.conf")
    assert settings.sections("charon") or settings.values("charon")


@each(list(blocks("json")))
def test_envelope(block: Block) -> None:
    schema = pytest.importorskip("vicibridge.contract.schema", reason="needs the bridge extra")
    jsonschema = pytest.importorskip("jsonschema")
    envelope = json.loads(block.text)
    jsonschema.Draft202012Validator(schema.document(envelope["event"])).validate(envelope)


@each_line("vicifast", "vicibridge")
def test_command_line_is_valid(words: list[str]) -> None:
    """The command exists and has these options."""
    pytest.importorskip("click", reason="needs the cli extra")
    from vicibridge.cli import cli

    from vicifast.cli import main

    group = {"vicifast": main, "vicibridge": cli}[Path(words[0]).name]
    assert words[1] in group.commands, f"{words[0]} has no command {words[1]}"
    group.load(words[1]).make_context(words[1], words[2:])


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_to_files(page: Path) -> None:
    """Sphinx checks the links of the pages under docs."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_tests_that_are_named_exist() -> None:
    there = {
        f"{path.stem}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+::test_\w+)`", page.read_text("utf-8"))}
    assert named and named <= there, named - there


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")


def test_architecture_names_files_that_exist() -> None:
    below = {"vicifast": ROOT / "src" / "vicifast", "vicibridge": ROOT / "bridge" / "vicibridge"}
    drawn = set(re.findall(r"\b((?:[a-z]+/)?_?[a-z_]+\.(?:pxi|py))\b(?!`)", "".join(ARCHITECTURE.split("```")[1:4:2])))
    assert [name for name in drawn if not any((root / name).is_file() for root in below.values())] == []
    named = re.findall(r"`((?:src|bridge|tests|docs)/[\w./]*\w)`", ARCHITECTURE)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
    prose = re.findall(r"`([a-z_/]+\.(?:py|pxi))`", ARCHITECTURE)
    roots = (ROOT, *below.values(), below["vicifast"] / "wire")
    assert prose and [name for name in prose if not any((root / name).is_file() for root in roots)] == []
    for symbol, file in re.findall(r"`([A-Z]\w+)` in `([\w./]+)`", ARCHITECTURE):
        assert re.search(rf"^(?:class )?{symbol}\b", (ROOT / file).read_text("utf-8"), re.MULTILINE), symbol


@pytest.mark.parametrize("package", RANKS)
def test_architecture_has_the_ranks_of_imports(package: str) -> None:
    _, _, table = ARCHITECTURE.partition(f"| `{package}` | holds |\n|---|---|\n")
    rows = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table.partition("\n\n")[0].splitlines()]
    assert rows == [set(parts) for parts in RANKS[package] if parts != {"__main__"}]
