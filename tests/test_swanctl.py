"""swanctl.conf is read and loaded as by the real swanctl."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from vicifast import Message, _wire, decode
from vicifast.address import Unix
from vicifast.aio import AsyncSession, connect_unix
from vicifast.blocking import Session
from vicifast.errors import CommandError, ConfigError, ConnectionClosed, EncodeError, UnknownCommand
from vicifast.recording import Recording, RecordingWriter, listen_at, proxy
from vicifast.swanctl import read_config
from vicifast.swanctl.load_plan import PARTS, Part, Plan, Report, Step
from vicifast.swanctl.settings import Settings
from vicifast.testing import FakeCharon

if TYPE_CHECKING:
    from lab import Lab

DATA = Path(__file__).parent / "data" / "swanctl"
CASES = sorted(path.name for path in DATA.iterdir())
Request = tuple[str, dict[str, Any]]

needs_swanctl = pytest.mark.skipif(shutil.which("swanctl") is None, reason="there is no swanctl on PATH")
needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None or find_spec("cryptography") is None,
    reason="there is no openssl on PATH, or no package cryptography",
)


def run(test: Coroutine[Any, Any, Any], timeout: float = 60.0) -> Any:
    return asyncio.run(asyncio.wait_for(test, timeout))


# The connections of a configuration; the order of keys matters.
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("", {}),
    "a word, and words": ("connections { c { a = b\n d = e  f\tg\n } }", {"c": {"a": "b", "d": "e f g"}}),
    "all in a line": ("connections{c{d{}a=b}}", {"c": {"a": "b", "d": {}}}),
    "lines between": ("connections\n\n{ # c {\n\tc # c\r\n{\na # c\n=b\n}}", {"c": {"a": "b"}}),
    "end in a comment": ("connections { c { } } # no newline", {"c": {}}),
    "characters of values": ("connections { c { a = b=c{d:e,f.g'h\\ \n } }", {"c": {"a": "b=c{d:e,f.g'h\\"}}),
    "a comment after a value": ("connections { c { a = b#c\n d = # e\n } }", {"c": {"a": "b"}}),
    "strings": ('connections { c { a = "b  #}{= c"\n d = e"f"g\n } }', {"c": {"a": "b  #}{= c", "d": "e f g"}}),
    "an empty string is a value": ('connections { c { a = ""\n b =\n } }', {"c": {"a": ""}}),
    "escapes": (r'connections { c { a = "\"\\\n\t\r\x"' + "\n } }", {"c": {"a": '"\\\n\t\rx'}}),
    "strings over lines": ('connections { c { a = "b\\\nc\nd\\\r\n e"\n } }', {"c": {"a": "bc\nd e"}}),
    "carriage returns": ('connections {\r\n c {\r\n a = b\r\n d = "e\r\nf"\r\n}\r\n}', {"c": {"a": "b", "d": "e\nf"}}),
    "names": ("connections { c-1 { %a/b'c(d)@_ = 1\n } }", {"c-1": {"%a/b'c(d)@_": "1"}}),
    "include as a name": (
        "connections { c { include = 1\n include= 2\n includes=3\n} }",
        {"c": {"include": "2", "includes": "3"}},
    ),
    "again": (
        "connections { c { a = 1\n b = 2\n d { e = 1\n } } }\n"
        "connections { f { } c { b = 3\n g = 4\n d { h = 5\n } a=\n } }",
        {"c": {"b": "3", "g": "4", "d": {"e": "1", "h": "5"}}, "f": {}},
    ),
    "a reference": (
        "r { a = 1\n b { c = 2\n } } connections { c : r { d = 3\n } }",
        {"c": {"d": "3", "a": "1", "b": {"c": "2"}}},
    ),
    "what is referred to comes later": ("connections { c : r { } } r { a = 1\n }", {"c": {"a": "1"}}),
    "nearer wins": ("r { a = 1\n b = 1\n } connections { c : r { b = 2\n } }", {"c": {"b": "2", "a": "1"}}),
    "left wins": ("r { a = 1\n } s { a = 2\n b = 2\n } connections { c : r, s { } }", {"c": {"a": "1", "b": "2"}}),
    "unset what is referred to": (
        "r { a = 1\n b = 1\n } connections { c : r { a =\n } d : connections.c { } }",
        {"c": {"b": "1"}, "d": {"b": "1"}},
    ),
    "references within references": (
        "q { a = 1\n x { y = 1\n } } r : q { b = 2\n x { z = 2\n } } connections { c : r { x { w = 3\n } } }",
        {"c": {"b": "2", "a": "1", "x": {"w": "3", "z": "2", "y": "1"}}},
    ),
    "names with dots": (
        "r { s { t { a = 1\n } } } connections { c\n:\nr.s.t # c\n,\nr.s\n{ } }",
        {"c": {"a": "1", "t": {"a": "1"}}},
    ),
    "no such section": ("connections { c : nothing, no.thing { a = 1\n } }", {"c": {"a": "1"}}),
    "to itself": ("connections { c : connections.c { a = 1\n } }", {"c": {"a": "1"}}),
    "to each other": ("r : s { a = 1\n } s : r { b = 1\n } connections { c : s { } }", {"c": {"b": "1", "a": "1"}}),
    "connections that refer": ("connections : r { } r { c { a = 1\n } }", {"c": {"a": "1"}}),
    "references are added": (
        "r { a = 1\n } s { b = 1\n } connections { c : r { } c : s { } }",
        {"c": {"a": "1", "b": "1"}},
    ),
    "lists": (
        'connections { c { vips = 1, 2,3 4 ,,5,\n LOCAL_ADDRS = " \'a, b\' , \\"c\\"d , \'e"\n'
        " pools = ,\n groups = \"''\"\n } }",
        {"c": {"vips": ["1", "2", "3 4", "5"], "LOCAL_ADDRS": ["a, b", "c", "d", "'e"], "pools": [], "groups": [""]}},
    ),
    "no lists": ("connections { c { id = a, b\n crl_uris = a, b\n } }", {"c": {"id": "a, b", "crl_uris": "a, b"}}),
    "files as digits": (
        "connections { c { certs = 0x0102, 0SAAEC, 0xF\n } }",
        {"c": {"certs": ["\1\2", "\0\1\2", "\x0f"]}},
    ),
}

REFUSED: dict[str, tuple[str, str]] = {
    "a name alone": ("\nhunter2", "t.conf:2: expected '=', '{' or ':' after a name"),
    "two names": ("a\nhunter2 b", "t.conf:1: expected '=', '{' or ':' after a name"),
    "a value over two lines": ("a = hunter1\nhunter2\n}", "t.conf:2: expected '=', '{' or ':' after a name"),
    "a string without =": ('a "hunter2"', "t.conf:1: expected a name, not a string"),
    "a string": ('\n\n"hunter2" = a', "t.conf:3: expected a name, not a string"),
    "an open string": ('a = b\nc = "hunter2\n\n}', "t.conf:2: the string that begins here is not closed"),
    "a string that ends in a backslash": ('c = "hunter2\\', "t.conf:1: the string that begins here is not closed"),
    "an open section": ("a {\nb {\n}\nc = hunter2", "t.conf:1: the section that begins here is not closed"),
    "one } too many": ("a {\n}\n}", "t.conf:3: expected a name, not }"),
    "a dot in a name": ("a.b = hunter2", "t.conf:1: expected '=', '{' or ':' after a name"),
    "a dot in the name of a section": ("a.b { }", "t.conf:1: expected '=', '{' or ':' after a name"),
    "a comma": ("a, b { }", "t.conf:1: expected '=', '{' or ':' after a name"),
    "no name": ("= hunter2", "t.conf:1: expected a name, not ="),
    "no name of a section": ("{ }", "t.conf:1: expected a name, not {"),
    "no reference": ("a : { }", "t.conf:1: expected comma-separated section names"),
    "a comma too many": ("a : b, { }", "t.conf:1: expected comma-separated section names"),
    "a comma too few": ("a : b c { }", "t.conf:1: expected comma-separated section names"),
    "nothing after references": ("a : b", "t.conf:1: expected comma-separated section names"),
    "dots in a reference": ("a : b..c { }", "t.conf:1: expected comma-separated section names"),
    "a value as a reference": ("a : b = hunter2", "t.conf:1: expected comma-separated section names"),
    "include with two spaces before =": ("include  = hunter2", "t.conf:1: expected a name, not ="),
}


def written(directory: Path, text: str) -> Path:
    path = directory / "t.conf"
    path.write_bytes(text.encode())
    return path


def connections(plan: Plan) -> dict[str, Any]:
    assert not [step.problem for step in plan.connections if step.problem]
    return {name: section for step in plan.connections for name, section in step.message.items()}


def ordered(message: object) -> str:
    """A text that is equal for equal messages with their keys in the same order; bytes are as text of the same."""
    return json.dumps(message, default=lambda data: data.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("row", READ)
def test_reads(row: str, tmp_path: Path) -> None:
    text, expected = READ[row]
    assert ordered(connections(read_config(written(tmp_path, text)))) == ordered(expected)


@pytest.mark.parametrize("row", REFUSED)
def test_refuses_and_shows_no_value(row: str, tmp_path: Path) -> None:
    text, expected = REFUSED[row]
    with pytest.raises(ConfigError) as refusal:
        read_config(written(tmp_path, text))
    assert str(refusal.value).startswith(f"{tmp_path}/{expected}")
    assert "hunter" not in repr(refusal.value)


LISTS = {"get-keys": "keys", "get-shared": "keys", "get-authorities": "authorities", "get-conns": "conns"}
LOADS = "cert key shared token authority pool conn".split()


def scripted(charon: FakeCharon, loaded: dict[str, list[str]] | None = None) -> None:
    """Make `charon` accept everything; `loaded` is its list of loaded items."""
    for command, key in LISTS.items():
        charon.on(command, {key: (loaded or {}).get(command, [])})
    charon.on("get-pools", {name: {} for name in (loaded or {}).get("get-pools", [])})
    charon.on("clear-creds", {"success": "yes"})
    for what in LOADS:
        charon.on(f"load-{what}", {"success": "yes", "id": f"id of a {what}"})
        charon.on(f"unload-{what}", {"success": "yes"})


async def swanctl(path: Path | None, address: str, *command: str) -> tuple[int | None, str]:
    """Run the real swanctl, by default `--load-all`; return its exit status and its errors."""
    file = ("--file", str(path)) if path else ()
    process = await asyncio.create_subprocess_exec(
        *("swanctl", *(command or LOAD_ALL), *file, "--uri", address),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SWANCTL_DIR": str(path.parent)} if path else None,
    )
    try:
        complaint = (await process.communicate())[1].decode()
        return process.returncode, complaint
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


LOAD_ALL = ("--load-all", "--noprompt")
# The options of the real swanctl that load a part of the configuration.
LOAD: dict[Part, tuple[str, ...]] = {
    "credentials": ("--load-creds", "--noprompt"),
    "authorities": ("--load-authorities",),
    "pools": ("--load-pools",),
    "connections": ("--load-conns",),
}


class Compared(NamedTuple):
    theirs: list[Any]
    ours: list[Any]
    status: int | None
    report: Report


def compared(
    path: Path | None,
    *command: str,
    parts: Collection[Part] = PARTS,
    clear: bool = False,
    ask: Callable[[str], str] | None = None,
    prepare: Callable[[FakeCharon], None] = scripted,
) -> Compared:
    """Return the requests of the real swanctl, its exit status, the requests of a plan, and its report."""

    async def test() -> Compared:
        async with FakeCharon() as charon:
            prepare(charon)
            status, _ = await swanctl(path, charon.address, *command)
            theirs = list(charon.requests)
            charon.requests.clear()
            async with AsyncSession(charon.address) as session:
                report = await read_config(path, parts=parts, ask=ask).load_async(session, clear=clear)
            return Compared(theirs, charon.requests, status, report)

    found: Compared = run(test())
    return found


@needs_swanctl
@pytest.mark.parametrize("row", [*READ, *REFUSED])
def test_the_real_swanctl_reads_the_same(row: str, tmp_path: Path) -> None:
    async def test() -> tuple[dict[str, Any], str]:
        async with FakeCharon() as charon:
            scripted(charon)
            _, complaint = await swanctl(path, charon.address)
            loaded = [message for command, message in charon.requests if command == "load-conn"]
            return {name: section for message in loaded for name, section in message.items()}, complaint

    path = written(tmp_path, READ[row][0] if row in READ else REFUSED[row][0])
    found, complaint = run(test())
    if row in READ:
        assert ordered(found) == ordered(READ[row][1])
    assert ("invalid config file" in complaint) == (row in REFUSED)


def test_includes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    files = {
        "t.conf": "s { include sub/*.conf\n last = 1\n}\ninclude nothing-*.conf\ninclude\tsub # a directory\nt = 1\n",
        "sub/b.conf": "b = 1\nboth = b\ninclude deep.inc\n",
        "sub/a.conf": 'a = 1\nboth = a\ninclude "with space.inc"\ninclude with\\ space.inc\ninclude q\\[1\\]\n',
        "sub/deep.inc": "x { include deeper.inc }\n",
        "sub/deeper.inc": "y = 1",
        "sub/with space.inc": "spaces = 1\n",
        "sub/q[1]": "brackets = 1\n",
        "sub/.hidden.conf": "hidden = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    settings = Settings.read(tmp_path / "t.conf")
    expected = {"a": "1", "both": "b", "spaces": "1", "brackets": "1", "b": "1", "last": "1"}
    assert settings.values("s") == expected and list(settings.values("s")) == list(expected)
    assert settings.values("s", "x") == {"y": "1"}


def test_included_files_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "open").write_text("s {\na = 1\nt")
    (tmp_path / "close").write_text("}\nu = 1")
    settings = Settings.read(written(tmp_path, "include open\n{ b = 2\n }\ninclude close\nv = 2"))
    assert (settings.values("s"), settings.values("s", "t")) == ({"a": "1"}, {"b": "2"})


def test_errors_in_includes(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("a = 1\nb\n")
    (tmp_path / "loop").write_text("\ninclude loop2")
    (tmp_path / "loop2").symlink_to("loop")
    for text, expected in (
        ("\ninclude broken", f"{tmp_path}/broken:2: expected '=', '{{' or ':' after a name"),
        ("include t.conf", f"{tmp_path}/t.conf:1: {tmp_path}/t.conf includes itself"),
        ("include loop", f"{tmp_path}/loop:2: {tmp_path}/loop2 includes itself"),
    ):
        with pytest.raises(ConfigError) as refusal:
            Settings.read(written(tmp_path, text))
        assert str(refusal.value).startswith(expected)


@pytest.mark.parametrize("include", ["pipe.conf", "*.conf", "link.conf"])
def test_included_pipe_is_an_error(include: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.conf")
    (tmp_path / "link.conf").symlink_to("pipe.conf")
    settings = written(tmp_path, f"\ninclude {include}\n").rename(tmp_path / "t")
    with pytest.raises(ConfigError, match=r"t:2: .*(pipe|link)\.conf is not a regular file"):
        Settings.read(settings)


@pytest.mark.parametrize("include", ["conf.d/*.conf", "conf.d/a.conf", "*/a.conf", "loop/*", "loop/a.conf", "gone/*"])
def test_unreadable_include_is_an_error(include: str, tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.conf").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nothing")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/t.conf:2: {tmp_path}/(conf.d|loop|gone)"):
        Settings.read(written(tmp_path, f"\ninclude {include}\n"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none.conf: No such file or directory$"):
        read_config(tmp_path / "none.conf")
    with pytest.raises(ConfigError, match=f"^{tmp_path}: Is a directory$"):
        read_config(tmp_path)


def test_the_default_is_the_directory_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swanctl.conf").write_text("connections { c { } }")
    monkeypatch.setenv("SWANCTL_DIR", str(tmp_path))
    assert connections(read_config()) == {"c": {}}


@needs_swanctl
def test_an_empty_swanctl_dir_is_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x509").mkdir()
    (tmp_path / "x509" / "a.pem").write_text("a")
    (tmp_path / "swanctl.conf").write_text("connections { c { local { certs = a.pem\n } } }")
    monkeypatch.setenv("SWANCTL_DIR", "")
    monkeypatch.chdir(tmp_path)
    theirs, ours, _, report = compared(None)
    assert ordered(ours) == ordered(theirs)
    assert report.loaded == ["certificate x509/a.pem", "connection c"]


@needs_swanctl
def test_files_under_names_in_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x509/a.pem", "b.pem", "pubkey/c.pem", "d.pem"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    text = "certs = a.pem\n CERTS = b.pem\n Certs = 0x01\n pubkeys = c.pem\n PubKeys = d.pem, d.pem\n"
    theirs, ours, _, report = compared(written(tmp_path, f"connections {{ c {{ local {{ {text} }} }} }}"))
    assert ordered(ours) == ordered(theirs)
    assert report.failed == []


def test_references_without_end(tmp_path: Path) -> None:
    settings = Settings.read(written(tmp_path, "a : b.x {\n}\nb : a.y {\n}\n"))
    with pytest.raises(ConfigError, match=r"t\.conf:\d: circular reference to (b\.x|a\.y)$"):
        settings.values("a", "z")
    [step] = read_config(written(tmp_path, "connections { c : connections {\n} }")).connections
    assert "sections nested deeper than 64" in step.problem
    with pytest.raises(ConfigError, match="t.conf:1: sections nested deeper than 64"):
        Settings.read(written(tmp_path, "a {" * 100_000))


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "t.conf"
    path.write_bytes(b"secrets { ike-1 { secret = \xff\xfe\n } }")
    [step] = read_config(path).credentials
    assert step.message["data"] == b"\xff\xfe"


def secret_of(tmp_path: Path, value: str) -> Step:
    [step] = read_config(written(tmp_path, f"secrets {{ ike-1 {{ secret = {value}\n }} }}")).credentials
    return step


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("word", b"word"),
        ('"0y12"', b"0y12"),
        ("0x0102fF", b"\x01\x02\xff"),
        ("0X1", b"\x01"),
        ("0x1:02", b"\x01\x02"),
        ("0x0x12", b"\x12"),
        ("0sAAEC", b"\0\1\2"),
        ("0SAA==", b"\0"),
        ("0s-_-_", b"\xfb\xff\xbf"),
        ('" 0x12"', b" 0x12"),
    ],
)
def test_secrets(value: str, data: bytes, tmp_path: Path) -> None:
    step = secret_of(tmp_path, value)
    assert step.message == {"id": "ike-1", "type": "ike", "data": data, "owners": []}
    assert "message" not in repr(step)


def test_no_secret_is_in_a_repr() -> None:
    path = DATA / "psk" / "swanctl.conf"
    plan, settings = read_config(path), Settings.read(path)
    shown = repr(plan) + repr(settings) + repr(carried_out(plan, existing))
    assert "ike-hex" in shown
    for name in settings.sections("secrets"):
        assert settings.values("secrets", name)["secret"] not in shown


@pytest.mark.parametrize("value", ["0xhunter2", "0x12 34", "0shunter2", "0sAAE", "0s!hunter", "0s=hunter2AAA"])
def test_secrets_that_mean_nothing(value: str, tmp_path: Path) -> None:
    step = secret_of(tmp_path, value)
    assert step.problem in (
        "the value after 0x is not hexadecimal",
        "the value after 0s is not Base64",
    )
    assert not step.message and "hunter" not in repr(step)


def test_sections_of_secrets(tmp_path: Path) -> None:
    text = """secrets {
        eap-1 { id = a
            id-2 = b
            identity = c
            secret = s
            not-id = d
        }
        token-1 { handle = 01
            pin = 1234
        }
        ike-none { id = a
        }
        bogus { secret = hunter2
        }
        rsa-unused { file = none.pem
            secret = hunter2
        }
        IKE { secret = hunter2
        }
    }"""
    steps = read_config(written(tmp_path, text)).credentials
    assert [(step.what, step.problem.split(" one of")[0]) for step in steps] == [
        ("token token-1", ""),
        ("eap secret eap-1", ""),
        ("ike secret ike-none", "the section has no secret"),
        ("secret bogus", "the name must begin with"),
        ("secret IKE", "the name must begin with"),
    ]
    assert (steps[0].command, steps[0].message) == ("load-token", {"handle": "01", "pin": "1234"})
    assert steps[1].message == {"id": "eap-1", "type": "eap", "data": b"s", "owners": ["a", "b", "c"]}


def test_unsendable_credentials_are_reported(tmp_path: Path) -> None:
    text = """
        connections {
            nofile { local { certs = none.pem
            } }
            good { }
        }
        authorities { ca { cacert = /nowhere/ca.pem
        } }"""
    (tmp_path / "x509").mkdir()
    (tmp_path / "x509" / "empty.pem").touch()
    (tmp_path / "x509" / "dangling.pem").symlink_to("nothing")
    plan = read_config(written(tmp_path, text))
    assert [step.problem for step in (*plan.credentials, *plan.authorities, *plan.connections)] == [
        "No such file or directory",
        "",
        "/nowhere/ca.pem: No such file or directory",
        f"{tmp_path}/x509/none.pem: No such file or directory",
        "",
    ]
    assert [step.skipped for step in plan.credentials] == ["", "the file is empty"]


@needs_swanctl
def test_every_directory_and_token_as_the_real_swanctl(tmp_path: Path) -> None:
    directories = "x509 x509ca x509ocsp x509aa x509ac x509crl pubkey private rsa ecdsa bliss pkcs8 unknown".split()
    for name in directories:
        (tmp_path / name / "directory").mkdir(parents=True)
        (tmp_path / name / "a file").write_text(f"in {name}")
    text = "secrets { token-1 { handle = 01\n slot = 2\n module = m\n pin = 1234\n } token { handle = 02\n } }"
    theirs, ours, _, report = compared(written(tmp_path, text))
    assert ordered(ours) == ordered(theirs)
    assert report.failed == [] and len(report.loaded) == len(directories) - 1 + 2


WHOLE = """
    connections { c { } }
    pools { p { addrs = 10.0.0.0/24
    } }
    authorities { a { handle = 00
    } }
    secrets { ike-1 { secret = s
    } }
"""
LOADED = {
    "get-keys": ["key"],
    **{name: ["gone"] for name in ("get-shared", "get-authorities", "get-pools", "get-conns")},
}


@needs_swanctl
@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_as_the_real_swanctl(part: Part, tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE)
    theirs, ours, _, report = compared(path, *LOAD[part], parts=[part], prepare=lambda charon: scripted(charon, LOADED))
    assert ordered(ours) == ordered(theirs)
    assert {command.rpartition("-")[2] for command, _ in ours} & {"conn", "pool", "authority"} == (
        set() if part == "credentials" else {{"connections": "conn", "pools": "pool", "authorities": "authority"}[part]}
    )
    assert len(report.loaded) == 1 and report.unloaded and not report.failed


def test_files_of_other_parts_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "k.pem").symlink_to("nothing")
    plan = read_config(written(tmp_path, "connections { c { local { certs = none.pem\n } } }"), parts=["pools"])
    assert plan == Plan(parts=frozenset(["pools"]))


@needs_swanctl
def test_a_refused_clear_does_not_end_the_load(tmp_path: Path) -> None:
    def prepare(charon: FakeCharon) -> None:
        scripted(charon, LOADED)
        charon.on("clear-creds", {"success": "no", "errmsg": "no mood"})

    path = written(tmp_path, WHOLE)
    theirs, ours, status, report = compared(path, *LOAD_ALL, "--clear", clear=True, prepare=prepare)
    assert ordered(ours) == ordered(theirs) and ours[0] == ("clear-creds", {})
    assert report.failed == ["clearing all credentials: no mood"]
    assert (status, report.incomplete) == (0, False)


# Items that a daemon refuses, and whether the exit status of the real swanctl shows it.
REFUSALS = {
    "load-cert": False,
    "load-key": False,
    "load-shared": False,
    "unload-key": False,
    "unload-conn": False,
    "load-authority": True,
    "load-pool": True,
    "load-conn": True,
}


@needs_swanctl
@pytest.mark.parametrize("command", REFUSALS)
def test_a_load_is_incomplete_where_the_real_swanctl_ends_with_an_error(command: str, tmp_path: Path) -> None:
    def prepare(charon: FakeCharon) -> None:
        scripted(charon, LOADED)
        charon.on(command, {"success": "no", "errmsg": "no mood"})

    for name in ("x509", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("data")
    _, _, status, report = compared(written(tmp_path, WHOLE), prepare=prepare)
    assert "no mood" in report.failed[0]
    assert (status != 0, report.incomplete) == (REFUSALS[command], REFUSALS[command])


@needs_swanctl
def test_a_directory_that_cannot_be_read_does_not_end_the_load(tmp_path: Path) -> None:
    for name in ("x509ca", "private", "pkcs12"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "rsa").mkdir()
    (tmp_path / "rsa" / "k.pem").write_text("key")
    theirs, ours, _, report = compared(written(tmp_path, WHOLE))
    assert ordered(ours) == ordered(theirs)
    assert report.failed == [
        f"{what}s in {tmp_path}/{name}: Too many levels of symbolic links"
        for what, name in (("certificate", "x509ca"), ("private key", "private"), ("container", "pkcs12"))
    ]


def test_empty_files_are_no_failure(tmp_path: Path) -> None:
    for name in ("x509", "private", "pkcs12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".gitkeep").touch()
        (tmp_path / name / "empty").touch()
    plan = read_config(written(tmp_path, ""))
    report = carried_out(plan, existing)[1]
    assert (report.failed, report.incomplete) == ([], False)
    assert report.skipped == [
        f"{what} {tmp_path}/{name}/empty: the file is empty"
        for what, name in (("certificate", "x509"), ("private key", "private"), ("container", "pkcs12"))
    ]


def sparse(path: Path) -> Path:
    """A file larger than the memory."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 1 << 40)
    return path


def test_large_files_are_not_read(tmp_path: Path) -> None:
    limit = "is larger than 512 KiB"
    directories = {"x509": "certificate", "x509ca": "certificate", "private": "private key", "pkcs12": "container"}
    files = {sparse(tmp_path / name / "huge"): what for name, what in directories.items()}
    (tmp_path / "private" / "limit").write_bytes(bytes(_wire.MAX_PACKET))
    text = "connections { c { local { certs = huge\n } } } authorities { a { cacert = huge\n } }"
    plan = read_config(written(tmp_path, text))
    commands, report = carried_out(plan, existing, clear=True)
    reason = f"the file {limit}, the limit of a VICI message; split or remove it"
    assert report.skipped == [f"{what} {path}: {reason}" for path, what in files.items()]
    assert report.failed == [
        f"authority a: {tmp_path}/x509ca/huge {limit}",
        "pools and connections: not loaded, because authorities failed",
    ]
    assert plan.connections[0].problem == f"{tmp_path}/x509/huge {limit}"
    assert report.loaded == [f"private key {tmp_path}/private/limit"]
    assert "private key two: not every private key could be read" in report.kept
    assert "all credentials: not every credential could be read" in report.kept
    assert report.unloaded == ["shared secret one", "shared secret two"]
    assert "clear-creds" not in commands


def test_large_configuration(tmp_path: Path) -> None:
    sparse(tmp_path / "huge.conf")
    for path in (tmp_path / "huge.conf", written(tmp_path, "include huge.conf")):
        with pytest.raises(ConfigError, match=f"{tmp_path}/huge.conf is larger than 65536 KiB"):
            read_config(path)


Answer = Callable[[Step], dict[str, Any]]


def carried_out(plan: Plan, answer: Answer, *, clear: bool = False) -> tuple[list[str], Report]:
    """The commands that a plan sends, with what they load, when `answer` replies or raises."""
    steps, sent = plan.steps(clear=clear), []
    try:
        step = next(steps)
        while True:
            sent.append(f"{step.command} {step.message.get('name') or step.message.get('id') or step.name}".strip())
            try:
                reply = answer(step)
            except (CommandError, UnknownCommand, EncodeError) as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        return sent, end.value


def existing(step: Step) -> dict[str, Any]:
    """Return the replies of a daemon with two items of each kind."""
    if step.command == "get-pools":
        return {"one": {}, "two": {}}
    return {LISTS[step.command]: ["one", "two"]} if step.command in LISTS else {"success": "yes", "id": "one"}


def plan_of(names: str) -> Plan:
    kinds = {"authority": "load-authority", "pool": "load-pool", "connection": "load-conn"}
    credentials = (Step("key", "load-key"), *(Step(f"secret {n}", "load-shared", name=n) for n in names.split()))
    return Plan(credentials, *(tuple(Step(f"{k} {n}", c, name=n) for n in names.split()) for k, c in kinds.items()))


def test_removed_items_are_unloaded() -> None:
    sent, report = carried_out(plan_of("one"), existing, clear=True)
    assert sent == [
        "clear-creds", "get-keys", "get-shared", "load-key", "load-shared one", "unload-key two", "unload-shared two",
        "get-authorities", "load-authority one", "unload-authority two",
        "get-pools", "load-pool one", "unload-pool two",
        "get-conns", "load-conn one", "unload-conn two",
    ]  # fmt: skip
    assert report == Report(
        ["key", "secret one", "authority one", "pool one", "connection one"],
        ["private key two", "shared secret two", "authority two", "pool two", "connection two"],
    )
    assert not [command for command in carried_out(plan_of("one two"), existing)[0] if "unload" in command][1:]


def refusing(command: str) -> Answer:
    def answer(step: Step) -> dict[str, Any]:
        if step.command == command:
            raise CommandError(command, "no mood", {})
        return existing(step)

    return answer


def test_failures_are_reported_and_not_unloaded() -> None:
    sent, report = carried_out(plan_of("one three"), refusing("load-conn"))
    assert report.failed == ["connection one: no mood", "connection three: no mood"]
    assert [command for command in sent if command.startswith("unload-conn")] == ["unload-conn two"]
    sent, report = carried_out(plan_of("three"), refusing("unload-pool"))
    assert report.failed == ["unloading pool one: no mood", "unloading pool two: no mood"]
    assert sent[-1] == "unload-conn two" and not report.incomplete


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        ("load-authority", "pools and connections: not loaded, because authorities failed"),
        ("load-pool", "connections: not loaded, because pools failed"),
    ],
)
def test_failure_stops_later_steps(command: str, rest: str) -> None:
    sent, report = carried_out(plan_of("one"), refusing(command))
    assert report.failed == [f"{command.removeprefix('load-')} one: no mood", rest]
    assert sent[-1] == f"un{command} two"
    assert report.incomplete


UNREAD = {"problem": "unreadable", "skipped": "the file is empty"}


@pytest.mark.parametrize("why", UNREAD)
@pytest.mark.parametrize(
    ("command", "what", "field"),
    [
        ("load-key", "private key", "credentials"),
        ("load-shared", "shared secret", "credentials"),
        ("load-authority", "authority", "authorities"),
        ("load-pool", "pool", "pools"),
        ("load-conn", "connection", "connections"),
    ],
)
def test_unreadable_items_are_not_unloaded(command: str, what: str, field: Part, why: str) -> None:
    unread = Step("it", command, **{why: UNREAD[why]})
    sent, report = carried_out(Plan(**{field: (unread,)}, parts=frozenset([field])), existing, clear=True)
    assert report.kept[-2:] == [f"{what} {name}: not every {what} could be read" for name in ("one", "two")]
    other = {"load-key": "shared", "load-shared": "key"}.get(command)
    assert [line for line in sent if "unload" in line] == (
        [f"unload-{other} one", f"unload-{other} two"] if other else []
    )
    assert "clear-creds" not in sent
    assert (report.failed or report.skipped) == [f"it: {UNREAD[why]}"]
    if field == "credentials":
        assert report.kept[0] == "all credentials: not every credential could be read"


@pytest.mark.parametrize("command", ["load-cert", "load-token"])
def test_an_unread_certificate_or_token_clears_nothing(command: str) -> None:
    plan = Plan((Step("it", command, problem="unreadable"),), parts=frozenset(["credentials"]))
    assert "clear-creds" not in carried_out(plan, existing, clear=True)[0]


@pytest.mark.parametrize("command", ["load-key", "load-token"])
def test_refused_key_unloads_no_key(command: str) -> None:
    sent, report = carried_out(Plan((Step("it", command, {"data": b"?"}),)), refusing(command))
    assert report.kept == [f"private key {name}: not every private key could be read" for name in ("one", "two")]
    assert "unload-key one" not in sent and "unload-shared one" in sent


def test_a_secret_of_the_configuration_is_not_unloaded_when_it_is_refused() -> None:
    sent, report = carried_out(plan_of("one"), refusing("load-shared"))
    assert report.failed == ["secret one: no mood"]
    assert "unload-shared one" not in sent and "unload-shared two" in sent


@pytest.mark.parametrize("query", ["get-keys", "get-shared", "get-authorities", "get-pools", "get-conns"])
def test_nothing_is_unloaded_when_the_daemon_cannot_list(query: str) -> None:
    def answer(step: Step) -> dict[str, Any]:
        if step.command == query:
            raise UnknownCommand(query)
        return existing(step)

    sent, report = carried_out(Plan(), answer)
    unload = "un" + query.replace("get", "load").removesuffix("s").replace("authoritie", "authority")
    assert not [command for command in sent if command.startswith(unload)]
    assert len(report.unloaded) == 8 and len(report.failed) == 1 and query in report.failed[0]


def test_a_secret_that_cannot_be_sent_is_not_shown() -> None:
    token = Step("token token-1", "load-token", {"pin": "hünter2"}, "token-1")

    async def test() -> Report:
        async with FakeCharon() as charon, AsyncSession(charon.address) as session:
            scripted(charon)
            return await Plan((token,)).load_async(session)

    assert run(test()).failed == ["token token-1: it contains text that is not printable ASCII, or is over 65535 bytes"]


def test_blocking_and_asyncio_load_alike(tmp_path: Path) -> None:
    shutil.copytree(DATA / "psk", tmp_path, dirs_exist_ok=True)
    plan = read_config(tmp_path / "swanctl.conf")

    async def through(load: Callable[[str], Awaitable[Report]]) -> tuple[Report, list[Any]]:
        async with FakeCharon() as charon:
            scripted(charon, {"get-shared": ["ike-gone", "ike-hex"], "get-pools": ["gone"], "get-conns": ["gone"]})
            charon.on("unload-pool", {"success": "no", "errmsg": "in use"})
            return await load(charon.address), charon.requests

    async def with_asyncio(address: str) -> Report:
        async with AsyncSession(address) as session:
            return await plan.load_async(session, clear=True)

    def blocking(address: str) -> Report:
        with Session(address) as session:
            return plan.load(session, clear=True)

    ours = run(through(with_asyncio))
    assert ours == run(through(lambda address: asyncio.to_thread(blocking, address)))
    assert ours[0].failed == ["unloading pool gone: in use"]
    assert ours[0].unloaded == ["shared secret ike-gone", "connection gone"]
    assert ours[1][0][0] == "clear-creds" and len(ours[0].loaded) == 12


def test_a_connection_that_ends_is_an_error() -> None:
    async def test() -> None:
        async with FakeCharon() as charon, AsyncSession(charon.address) as session:
            await session.close()
            with pytest.raises(ConnectionClosed):
                await Plan().load_async(session)

    run(test())


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


KINDS = {
    "rsa": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "ec": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ed25519": ("-algorithm", "ED25519"),
    "ed448": ("-algorithm", "ED448"),
}


def new_key(kind: str) -> bytes:
    return openssl("genpkey", *KINDS[kind])


def encrypted(key: bytes, passphrase: str = "open sesame", form: str = "PEM") -> bytes:
    return openssl("pkcs8", "-topk8", "-passout", f"pass:{passphrase}", "-outform", form, stdin=key)


@needs_openssl
def test_encrypted_keys(tmp_path: Path) -> None:
    directory = tmp_path / "private"
    directory.mkdir()
    text, expected = "", {}
    for kind in KINDS:
        key = new_key(kind)
        for form in ("PEM", "DER"):
            (directory / f"{kind}.{form}").write_bytes(encrypted(key, form=form))
            text += f"private-{kind}-{form} {{ file = {kind}.{form}\n secret = wrong\n secret-2 = open sesame\n }}\n"
        expected[kind] = openssl("pkey", "-traditional", "-outform", "DER", stdin=key)
    for step in read_config(written(tmp_path, f"secrets {{ {text} }}")).credentials:
        kind = Path(step.what).stem
        algorithm = {"rsa": "RSA", "ec": "ECDSA"}.get(kind, kind.upper())
        assert step.message == {"type": algorithm, "data": expected[kind]}, step


@needs_openssl
def test_keys_that_do_not_open(tmp_path: Path) -> None:
    for name in ("private", "pkcs12"):
        (tmp_path / name).mkdir()
    key = encrypted(new_key("ed25519"))
    camellia = openssl("pkcs8", "-topk8", "-v2", "camellia-256-cbc", "-passout", "pass:hunter2", stdin=new_key("rsa"))
    for name in ("a-bad.pem", "c-none.pem", "e-none.der", "../pkcs12/bad.p12", "../pkcs12/none.p12"):
        (tmp_path / "private" / name).write_bytes(key)
    (tmp_path / "private" / "b-line.pem").write_bytes(encrypted(new_key("ec"), "hunter\n2"))
    (tmp_path / "private" / "d-camellia.pem").write_bytes(camellia)
    (tmp_path / "private" / "e-none.der").write_bytes(encrypted(new_key("ec"), form="DER"))
    (tmp_path / "private" / "f-agreement.pem").write_bytes(encrypted(openssl("genpkey", "-algorithm", "X25519")))
    text = """secrets {
        private-1 { file = a-bad.pem
            secret = hunter2
        }
        private-2 { file = b-line.pem
            secret = "hunter\\n2"
        }
        private-3 { file = d-camellia.pem
            secret = hunter2
        }
        private-4 { file = f-agreement.pem
            secret = open sesame
        }
        pkcs12-1 { file = bad.p12
            secret = hunter2
        }
    }"""
    problems = [step.problem for step in read_config(written(tmp_path, text)).credentials]
    unnamed = "the key is encrypted, and no section secrets.private... has its file name and a secret"
    assert problems == [
        "wrong passphrase",
        "",
        unnamed,
        "unsupported encryption: convert it with `openssl pkcs8 -topk8` or `openssl pkcs12 -export`",
        unnamed,
        "unsupported private key type; charon supports RSA, ECDSA, Ed25519 and Ed448",
        "wrong passphrase",
        "no section secrets.pkcs12... has its file name and a secret",
    ]


@needs_openssl
def test_prompts_for_missing_secrets(tmp_path: Path) -> None:
    for name in ("private", "pkcs12"):
        (tmp_path / name).mkdir()
    key = new_key("ec")
    container = openssl("pkcs12", "-export", "-nocerts", "-passout", "pass:open sesame", stdin=key)
    for name, data in (("a.pem", encrypted(key)), ("b.pem", encrypted(key)), ("c.pem", key), ("d.pem", encrypted(key))):
        (tmp_path / "private" / name).write_bytes(data)
    (tmp_path / "pkcs12" / "e.p12").write_bytes(container)
    text = """secrets {
        private-b { file = b.pem
            secret = wrong
        }
        private-d { file = d.pem
            secret = open sesame
        }
        token-1 { handle = 01
        }
        token-2 { handle = 02
            pin = 1
        }
    }"""
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return "1234" if "PIN" in prompt else "open sesame"

    steps = read_config(written(tmp_path, text), ask=ask).credentials
    assert prompts == [
        "Password for private file 'a.pem'",
        "Password for private file 'b.pem'",
        "Password for pkcs12 file 'e.p12'",
        "PIN for token-1",
    ]
    assert [step.problem for step in steps] == [""] * 7
    assert [step.message["pin"] for step in steps[-2:]] == ["1234", "1"]
    steps = read_config(tmp_path / "t.conf", ask=lambda prompt: "").credentials
    assert [step.problem for step in steps if step.problem] == [
        "encrypted, and no passphrase was given",
        "wrong passphrase",
        "encrypted, and no passphrase was given",
    ]


@needs_openssl
def test_without_the_package_cryptography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("private", "pkcs12"):
        (tmp_path / name).mkdir()
    key = new_key("ec")
    files = {"private/a.pem": encrypted(key), "private/b.pem": key, "pkcs12/c.p12": b"container"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names = (("private-a", "a.pem"), ("private-b", "b.pem"), ("pkcs12", "c.p12"))
    text = "".join(f"{name} {{ file = {file}\n secret = open sesame\n }}\n" for name, file in names)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    first, plain, container = read_config(written(tmp_path, f"secrets {{ {text} }}")).credentials
    wanted = "opening it requires the package cryptography: pip install 'strongswan-vicifast[cli]'"
    assert (first.problem, plain.problem, container.problem) == (wanted, "", wanted)
    assert plain.message == {"type": "any", "data": key}


def test_importing_needs_no_cryptography() -> None:
    script = "import sys; sys.modules['cryptography'] = None; import vicifast.swanctl"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def pkcs8(key: str, *options: str) -> Callable[[dict[str, bytes]], bytes]:
    more = ("-provider", "legacy", "-provider", "default", "-passout", "pass:open sesame")
    return lambda keys: openssl("pkcs8", "-topk8", *options, *more, stdin=keys[key])


def traditional(key: str, *options: str) -> Callable[[dict[str, bytes]], bytes]:
    return lambda keys: openssl("pkey", "-traditional", *options, "-passout", "pass:open sesame", stdin=keys[key])


KINDS_TO_OPEN = {
    **KINDS,
    "rsa-1024": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"),
    "pss": ("-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"),
    "pss-restricted": (
        *("-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_pss_keygen_md:sha256"),
        *("-pkeyopt", "rsa_pss_keygen_mgf1_md:sha256", "-pkeyopt", "rsa_pss_keygen_saltlen:32"),
    ),
    "ec-384": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "ec-521": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"),
    "brainpool": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1"),
}
# Files with a private key that the passphrase decrypts.
TO_OPEN: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    **{f"{kind}.pem": pkcs8(kind) for kind in KINDS_TO_OPEN},
    **{f"{kind}.der": pkcs8(kind, "-outform", "DER") for kind in KINDS_TO_OPEN},
    **{f"v2-{name}.pem": pkcs8("rsa", "-v2", name) for name in ("des3", "aes-128-cbc", "aes-192-cbc", "aes-256-cbc")},
    **{f"prf-{name}.pem": pkcs8("rsa", "-v2prf", f"hmacWith{name}") for name in ("SHA1", "SHA256", "SHA384", "SHA512")},
    **{f"v1-{name}.pem": pkcs8("rsa", "-v1", name) for name in ("PBE-MD5-DES", "PBE-SHA1-3DES", "PBE-SHA1-RC2-40")},
    **{f"rsa-{name}.pem": traditional("rsa", f"-{name}") for name in ("des3", "aes128", "aes192", "aes256")},
    **{f"ec-{name}.pem": traditional("ec", f"-{name}") for name in ("des3", "aes192", "aes256")},
    "lines.pem": lambda keys: traditional("rsa", "-aes192")(keys).replace(b"\n", b"\r\n"),
    "bag.pem": lambda keys: b"Bag Attributes\n    friendlyName: k\n" + encrypted(keys["ec"]),
}


@pytest.mark.lab
@needs_openssl
def test_opens_the_keys_that_the_real_swanctl_opens(tmp_path: Path) -> None:
    from lab import Lab

    (tmp_path / "private").mkdir()
    keys = {kind: openssl("genpkey", *options) for kind, options in KINDS_TO_OPEN.items()}
    text = ""
    for number, (name, make) in enumerate(TO_OPEN.items()):
        (tmp_path / "private" / name).write_bytes(make(keys))
        text += f"private-{number} {{ file = {name}\n secret = open sesame\n }}\n"
    path = written(tmp_path, f"secrets {{ {text} }}")

    async def test(lab: Lab) -> None:
        theirs = await requests(lab.left.address, lab.directory, lambda address: swanctl(path, address))
        asked, report = await ours(path, lab)
        assert comparable(asked) == comparable(theirs)
        assert (len(report.loaded), report.failed) == (len(TO_OPEN), [])
        there = await state(lab.left.address)
        assert await state(lab.right.address) == there
        assert len(there["get-keys"]) == len(KINDS_TO_OPEN)

    with Lab() as lab:
        run(test(lab))


async def both_load(path: Path, lab: Lab) -> Report:
    """Load `path` with the real swanctl on the left and with ours on the right; both charons have the same then."""
    await swanctl(path, lab.left.address)
    _, report = await ours(path, lab)
    assert await state(lab.right.address) == await state(lab.left.address)
    return report


@needs_swanctl
@needs_openssl
def test_plain_keys_are_opened_where_it_may_ask_as_by_the_real_swanctl(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    for kind, options in KINDS_TO_OPEN.items():
        (tmp_path / "private" / f"{kind}.pem").write_bytes(openssl("genpkey", *options))
    (tmp_path / "private" / "not-a-key").write_text("not a key")
    theirs, ours, _, report = compared(written(tmp_path, ""), "--load-all", ask=lambda prompt: "")
    assert comparable(ours) == comparable(theirs)
    assert report.failed == []


@pytest.mark.lab
@needs_openssl
def test_every_key_of_a_container(tmp_path: Path) -> None:
    from lab import Lab

    (tmp_path / "pkcs12").mkdir()
    shutil.copy(DATA.parent / "two-keys.p12", tmp_path / "pkcs12")
    path = written(tmp_path, "secrets { pkcs12 { file = two-keys.p12\n secret = open sesame\n } }")
    with Lab() as lab:
        report = run(both_load(path, lab))
        assert len(run(state(lab.right.address))["get-keys"]) == 2
    assert [line.split()[0] for line in report.loaded] == ["certificate"] * 2 + ["private"] * 2


def certificate(directory: Path, subject: str, key: bytes, *more: str, form: str = "PEM") -> bytes:
    """A certificate of the test's CA, or the CA's own when there is none yet."""
    config, secret = directory / "openssl.cnf", directory / "key.pem"
    config.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    secret.write_bytes(key)
    issuer = directory / "x509ca" / "ca.pem"
    is_ca: list[str | Path] = ["-addext", "basicConstraints=critical,CA:TRUE"]
    signer = ["-CA", issuer, "-CAkey", directory / "ca.key"] if issuer.exists() else is_ca
    options: list[str | Path] = [
        "-config",
        config,
        "-key",
        secret,
        "-subj",
        f"/CN={subject}",
        "-days",
        "30",
        "-outform",
        form,
    ]
    return openssl("req", "-x509", *options, *signer, *more)


def revocation_list(directory: Path) -> bytes:
    (directory / "index.txt").touch()
    config = directory / "ca.cnf"
    config.write_text(f"[ca]\ndefault_ca = d\n[d]\ndatabase = {directory}/index.txt\ndefault_md = sha256\n")
    ca: list[str | Path] = ["-keyfile", directory / "ca.key", "-cert", directory / "x509ca" / "ca.pem"]
    return openssl("ca", "-config", config, "-gencrl", "-crldays", "30", *ca)


def make_credentials(directory: Path) -> None:
    """Fill the directories that tests/data/swanctl/certificates requires."""
    for name in "x509 x509ca x509ocsp x509crl pubkey private rsa ecdsa pkcs8 pkcs12".split():
        (directory / name).mkdir()
    gateway, bundled = new_key("rsa"), new_key("ec")
    (directory / "ca.key").write_bytes(new_key("ec"))
    ca = certificate(directory, "Test CA", (directory / "ca.key").read_bytes())
    files: dict[str, Callable[[], bytes]] = {
        "x509ca/ca.pem": lambda: ca,
        "x509/gateway.pem": lambda: certificate(directory, "gateway", gateway),
        "x509/other.der": lambda: certificate(directory, "other", new_key("ec"), form="DER"),
        "x509ocsp/ocsp.pem": lambda: certificate(
            directory, "ocsp", new_key("ec"), "-addext", "extendedKeyUsage=OCSPSigning"
        ),
        "x509crl/ca.crl": lambda: revocation_list(directory),
        "pubkey/raw.pem": lambda: openssl("pkey", "-pubout", stdin=new_key("ec")),
        "private/gateway.pem": lambda: encrypted(gateway),
        "private/der.der": lambda: encrypted(new_key("ec"), form="DER"),
        "private/plain.pem": lambda: new_key("ed25519"),
        "rsa/legacy.pem": lambda: openssl(
            "pkey", "-traditional", "-aes256", "-passout", "pass:open sesame", stdin=new_key("rsa")
        ),
        "ecdsa/wrong-directory.pem": lambda: encrypted(new_key("rsa")),
        "pkcs8/ed25519.pem": lambda: encrypted(new_key("ed25519"), "öffne dich"),
        "pkcs8/plain.pem": lambda: new_key("rsa"),
        "pkcs12/bundle.p12": lambda: openssl(
            *("pkcs12", "-export", "-passout", "pass:open sesame", "-certfile", directory / "x509ca" / "ca.pem"),
            stdin=bundled + certificate(directory, "bundled", bundled),
        ),
    }
    for name, make in files.items():
        (directory / name).write_bytes(make())


def prepare(case: str, directory: Path) -> None:
    shutil.copytree(DATA / case, directory, dirs_exist_ok=True)
    if case == "certificates":
        make_credentials(directory)
    elif case == "authorities":
        (directory / "x509ca").mkdir()
        (directory / "x509ca" / "ca.pem").write_bytes(certificate(directory, "Test CA", new_key("ec")))


def change(case: str, directory: Path) -> Path:
    """The configuration to be loaded after the first."""
    changed = directory / "changed.conf"
    if case == "certificates":
        changed.write_text((directory / "swanctl.conf").read_text().replace("raw {", "renamed {"))
        for name in ("private/plain.pem", "pkcs8/plain.pem", "x509/other.der"):
            (directory / name).unlink()
    elif not changed.exists():
        changed.touch()
    return changed


async def requests(address: str, directory: Path, work: Callable[[str], Awaitable[object]]) -> list[Request]:
    """Return the requests of `work` to the daemon at `address`, from a recording."""
    files = (directory / f"{number}.recording" for number in count())
    endpoint = directory / "proxy.vici"
    with listen_at(Unix(str(endpoint)), 8) as listener:
        recording = asyncio.create_task(
            proxy(
                listener,
                lambda: connect_unix(address.removeprefix("unix://")),
                lambda: RecordingWriter(next(files), {}),
            )
        )
        await work(f"unix://{endpoint}")
        recording.cancel()
        with suppress(asyncio.CancelledError):
            await recording
    endpoint.unlink()
    packets = Recording.load(directory / "0.recording").packets("client")
    return [(p.name or "", decode(p.message or b"", values=bytes)) for p in packets if p.kind == _wire.CMD_REQUEST]


async def ours(path: Path, lab: Lab) -> tuple[list[Request], Report]:
    """The requests that loading `path` sends to the charon on the right, and their results."""
    reports: list[Report] = []

    async def load(address: str) -> None:
        async with AsyncSession(address) as session:
            reports.append(await read_config(path).load_async(session))

    return await requests(lab.right.address, lab.directory, load), reports[0]


def comparable(asked: list[Request]) -> list[tuple[str, list[str]]]:
    """Runs of one command; sorted where swanctl's order is that of a directory or of a hash table."""
    runs = [(command, [ordered(message) for _, message in run]) for command, run in groupby(asked, lambda r: r[0])]
    unordered = ("load-cert", "load-key", "unload-key", "unload-shared")
    return [(command, sorted(messages) if command in unordered else messages) for command, messages in runs]


async def state(address: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    async with AsyncSession(address, values=bytes) as session:
        for command in ("list-conns", "list-certs", "list-authorities"):
            found[command] = sorted([repr(message) async for message in session.stream(command)])
        for command in ("get-pools", "get-keys", "get-shared"):
            found[command] = sorted(map(repr, _items(await session.call(command))))
    return found


def _items(reply: dict[str, Any]) -> Iterator[object]:
    yield from reply.get("keys", reply.items())


@pytest.mark.lab
@needs_openssl
@pytest.mark.parametrize("case", CASES)
def test_loads_what_the_real_swanctl_loads(case: str, tmp_path: Path) -> None:
    from lab import Lab

    async def loaded(path: Path, lab: Lab) -> dict[str, list[str]]:
        theirs = await requests(lab.left.address, lab.directory, lambda address: swanctl(path, address))
        asked, report = await ours(path, lab)
        assert comparable(asked) == comparable(theirs)
        assert bool(report.failed) == (case == "failing"), report.failed
        there = await state(lab.left.address)
        assert await state(lab.right.address) == there
        return there

    prepare(case, tmp_path)
    with Lab() as lab:
        before = run(loaded(tmp_path / "swanctl.conf", lab))
        assert any(before.values())
        after = run(loaded(change(case, tmp_path), lab))
        assert after != before


def not_opened(directory: Path, key: bytes) -> str:
    (directory / "k.pem").write_bytes(encrypted(key))
    return ""


def wrong_passphrase(directory: Path, key: bytes) -> str:
    (directory / "k.pem").write_bytes(encrypted(key))
    return "private { file = k.pem\n secret = wrong\n }"


def camellia(directory: Path, key: bytes) -> str:
    data = openssl("pkcs8", "-topk8", "-v2", "camellia-256-cbc", "-passout", "pass:open sesame", stdin=key)
    (directory / "k.pem").write_bytes(data)
    return "private { file = k.pem\n secret = open sesame\n }"


def container(directory: Path, key: bytes) -> str:
    (directory / "k.pem").unlink()
    (directory.parent / "pkcs12").mkdir()
    (directory.parent / "pkcs12" / "k.p12").write_bytes(
        openssl("pkcs12", "-export", "-nocerts", "-passout", "pass:open sesame", stdin=key)
    )
    return "pkcs12 { file = k.p12\n secret = wrong\n }"


def cut(directory: Path, key: bytes) -> str:
    (directory / "k.pem").write_bytes(key[: len(key) // 2])
    return ""


def emptied(directory: Path, key: bytes) -> str:
    (directory / "k.pem").write_bytes(b"")
    return ""


def dangling(directory: Path, key: bytes) -> str:
    (directory / "k.pem").unlink()
    (directory / "k.pem").symlink_to("unmounted")
    return ""


def unreadable_directory(directory: Path, key: bytes) -> str:
    shutil.rmtree(directory)
    directory.symlink_to(directory)
    return ""


def unmounted_directory(directory: Path, key: bytes) -> str:
    shutil.rmtree(directory)
    directory.symlink_to("unmounted")
    return ""


def removed(directory: Path, key: bytes) -> str:
    (directory / "k.pem").unlink()
    return ""


# How the file of a loaded key can change; whether the real swanctl opens it, and whether it is unloaded.
CHANGES: dict[Callable[[Path, bytes], str], tuple[bool, bool]] = {
    not_opened: (False, False),
    wrong_passphrase: (False, False),
    camellia: (True, False),
    container: (False, False),
    cut: (False, False),
    emptied: (False, False),
    dangling: (False, False),
    unreadable_directory: (False, False),
    unmounted_directory: (False, False),
    removed: (False, True),
}


@pytest.mark.lab
@needs_openssl
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_key_is_lost_because_it_cannot_be_read(change: Callable[[Path, bytes], str], tmp_path: Path) -> None:
    from lab import Lab

    opened, gone = CHANGES[change]
    key, directory = new_key("rsa"), tmp_path / "private"
    directory.mkdir()
    (directory / "k.pem").write_bytes(key)
    path = written(tmp_path, "secrets { ike-old { secret = s\n } }")
    with Lab() as lab:
        assert run(both_load(path, lab)).failed == []
        before = run(state(lab.right.address))["get-keys"]
        path.write_text(f"secrets {{ {change(directory, key)} }}")
        run(swanctl(path, lab.left.address))
        _, report = run(ours(path, lab))
        after, theirs = run(state(lab.right.address)), run(state(lab.left.address))
    assert len(before) == 1
    assert after["get-keys"] == ([] if gone else before)
    assert theirs["get-keys"] == (before if opened else [])  # the real swanctl unloads what it cannot read
    assert after["get-shared"] == theirs["get-shared"] == []
    assert report.kept == ([] if gone else [f"private key {before[0][2:-1]}: not every private key could be read"])


@pytest.mark.lab
@needs_openssl
def test_every_certificate_of_a_file_but_of_an_end_entity(tmp_path: Path) -> None:
    from lab import Lab

    for name in ("x509", "x509ca", "x509crl", "private"):
        (tmp_path / name).mkdir()
    keys = [new_key("ec") for _ in range(3)]
    cas = [certificate(tmp_path, f"CA {number}", key) for number, key in enumerate(keys)]
    (tmp_path / "x509ca" / "three.pem").write_bytes(b"".join(cas))
    (tmp_path / "x509" / "chain.pem").write_bytes(certificate(tmp_path, "gateway", new_key("ec")) + cas[1])
    (tmp_path / "private" / "three.pem").write_bytes(b"".join(keys))
    connection = "connections { c { remote { auth = pubkey\n cacerts = three.pem\n } } }"
    path = written(tmp_path, f"{connection} authorities {{ a {{ cacert = three.pem\n }} }}")
    with Lab() as lab:
        run(swanctl(path, lab.left.address))
        _, report = run(ours(path, lab))
        theirs, there = run(state(lab.left.address)), run(state(lab.right.address))
    assert (len(theirs["list-certs"]), len(there["list-certs"])) == (2, 4)
    assert (len(theirs["get-keys"]), len(there["get-keys"])) == (1, 3)
    assert theirs["list-conns"] == there["list-conns"] and theirs["list-authorities"] == there["list-authorities"]
    assert report.failed == report.kept == []
    assert f"certificate {tmp_path}/x509ca/three.pem, 3 of 3" in report.loaded
    used = f"using only the first of the 3 PEM blocks in {tmp_path}/x509ca/three.pem"
    assert report.loaded[-2:] == [f"authority a, {used}", f"connection c, {used}"]
    assert report.skipped == [f"{tmp_path}/x509/chain.pem: only the first of its 2 PEM blocks is loaded"]


@pytest.mark.lab
def test_a_name_that_is_a_value_and_a_section(tmp_path: Path) -> None:
    from lab import Lab

    text = "c { local { auth = psk\n } children { net { mode = tunnel\n mode { a = 1\n } } } }"
    bad = "d { version = 2\n version { a = 1\n } }"
    path = written(tmp_path, f"connections {{ {text}\n {bad}\n }}")
    with Lab() as lab:
        report = run(both_load(path, lab))
    assert report.loaded == ["connection c"]
    assert report.failed == ["connection d: invalid section: version"]
    [connection, _] = read_config(path).connections
    net = Message(_wire.encode(connection.message)).get("c", "children", "net")
    assert isinstance(net, Message) and len(net.get_all("mode")) == 2
