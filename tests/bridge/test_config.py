"""The configuration: defaults, file, environment, and errors that name the key and the fix."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner
from vicibridge import __main__
from vicibridge.cli import cli
from vicibridge.config.file import SettingsProblem, load, render
from vicibridge.config.model import Config, hide
from vicibridge.contract.names import EventCodec

from vicifast.commands import Danger

EXAMPLE = Path(__file__).parents[2] / "bridge" / "bridge.example.toml"


@pytest.fixture(autouse=True)
def _defaults(_no_http: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VICIBRIDGE_HTTP__LISTEN")


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "bridge.toml"
    path.write_text(text)
    return load(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsProblem) as caught:
        loaded(tmp_path, text)
    return caught.value.problems


def test_defaults() -> None:
    config = load(None)
    assert config.nats.servers is None and config.nats.urls == ["nats://127.0.0.1:4222"]
    assert config.nats.prefix == "vici"
    [gateway] = config.gateway
    assert (gateway.node, gateway.vici) == (socket.gethostname(), "unix:///var/run/charon.vici")
    assert (config.events.codec, config.log.codec) == ("msgpack", "msgpack")
    assert (config.log.linger_ms, config.log.max_bytes) == (20, 64 * 1024 * 1024)
    assert config.commands.allow == ["@read"]


def test_environment_overrides_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICIBRIDGE_NATS__USER", "bridge")
    monkeypatch.setenv("VICIBRIDGE_NATS__PASSWORD", "hunter2")
    monkeypatch.setenv("VICIBRIDGE_LOG__LINGER_MS", "5")
    config = loaded(
        tmp_path,
        """
        [nats]
        servers = ["nats://a:4222", "tls://b:4222"]
        [[gateway]]
        node = "gw1"
        [[gateway]]
        node = "gw2"
        vici = "tcp://127.0.0.1:4502"
        [events]
        codec = "json"
        [log]
        linger_ms = 100
        """,
    )
    assert [gateway.node for gateway in config.gateway] == ["gw1", "gw2"]
    assert config.log.linger_ms == 5
    assert config.nats.servers == ["nats://a:4222", "tls://b:4222"]
    assert config.nats.password and config.nats.password.get_secret_value() == "hunter2"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[log]\nlingerms = 3", "log.lingerms: unknown key; did you mean linger_ms?"),
        (
            "[foo]\nx = 1",
            "foo: unknown key; known keys: nats, gateway, events, log, mirror, spool, commands, http, logging",
        ),
        ("[htttp]\nx = 1", "htttp: unknown key; did you mean http?"),
        ('[http]\nlisten = "9273"', "http.listen: invalid listen address '9273': use host:port"),
        ('[[gateway]]\nnod = "a"', "gateway.0.nod: unknown key; did you mean node?"),
        ('[events]\ncodec = "xml"', "events.codec: Input should be 'msgpack', 'json' or 'raw'"),
        ('[nats]\nservers = ["ws://h"]', "nats.servers.0: invalid server address 'ws://h': use nats://"),
        ('[nats]\nservers = ["h:x"]', "nats.servers.0: invalid server address 'nats://h:x': use nats://"),
        ("[nats]\nservers = []", "nats.servers: List should have at least 1 item"),
        ('[nats]\nprefix = "a..b"', "nats.prefix: invalid subject prefix 'a..b'"),
        ('[nats]\ncreds = "/nowhere"', "nats.creds: '/nowhere' is missing or not readable"),
        ('[nats]\ntls_ca = "/etc/hostname"', "nats: tls_ca requires servers: the embedded server is on loopback"),
        (
            '[nats]\nservers = ["nats://h"]\n[nats.leaf]\nremotes = ["tls://h"]',
            "nats: leaf is only for the embedded server: remove servers or leaf",
        ),
        ('[nats.leaf]\nremotes = ["h"]', "nats.leaf.remotes.0: invalid hub address 'h'"),
        ("[nats.embedded]\nprot = 1", "nats.embedded.prot: unknown key; did you mean port?"),
        ('[nats]\nprovision = "make"', "nats.provision: Input should be 'bind', 'create' or 'reconcile'"),
        ('[nats]\npassword = "s3cret"', "nats: password requires user"),
        ('[nats]\nuser = "a"\ntoken = "s3cret"', "nats: user and token are mutually exclusive: keep one"),
        ('[nats]\ntoken = ["s3cret"]', "nats.token: Input should be a valid string"),
        ('[[gateway]]\nnode = "all"', "gateway.0.node: invalid node name 'all'"),
        ('[[gateway]]\nnode = "a"\n[[gateway]]\nnode = "a"', "gateway: every gateway requires a different node"),
        ('[[gateway]]\nvici = "http://x"', "gateway.0.vici: invalid VICI address: 'http://x'"),
        ('[[gateway]]\nvici = "tcp://x"', "gateway.0.vici: invalid VICI address: 'tcp://x'"),
        ('[[gateway]]\nvici = "tcp://x:0"', "gateway.0.vici: invalid VICI address: 'tcp://x:0'"),
        ('[[gateway]]\nvici = "unix://"', "gateway.0.vici: invalid VICI address: 'unix://'"),
        ('[[gateway]]\nvici = ""', "gateway.0.vici: invalid VICI address: ''"),
        (
            '[commands]\nallow = ["@all"]',
            f"commands.allow.0: unknown group '@all': use {', '.join(f'@{group}' for group in Danger)}",
        ),
        ('[commands]\naudit = "none"', "commands.audit: Input should be 'all', 'changes' or 'denied'"),
        ("[log]\nlinger_ms = -1", "log.linger_ms: Input should be greater than or equal to 0"),
    ],
)
def test_each_problem_is_one_line_with_key_and_fix(tmp_path: Path, text: str, problem: str) -> None:
    [line] = problems(tmp_path, text)
    assert line.startswith(f"{tmp_path / 'bridge.toml'}: {problem}")
    assert "\n" not in line and "s3cret" not in line


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    assert len(problems(tmp_path, '[log]\nx = 1\ny = 2\n[events]\ncodec = "no"')) == 3


def test_invalid_toml_missing_file_and_unknown_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "invalid TOML" in problems(tmp_path, "[nats")[0]
    with pytest.raises(SettingsProblem, match="No such file"):
        load(tmp_path / "missing.toml")
    monkeypatch.setenv("VICIBRIDGE_LGO__CODEC", "json")
    with pytest.raises(SettingsProblem, match="VICIBRIDGE_LGO__CODEC: unknown variable"):
        load(None)
    monkeypatch.delenv("VICIBRIDGE_LGO__CODEC")
    monkeypatch.setenv("VICIBRIDGE_NATS", "s3cret")
    with pytest.raises(SettingsProblem) as caught:
        load(None)
    assert caught.value.problems == ["VICIBRIDGE_NATS: not JSON; use VICIBRIDGE_NATS__KEY to set a single key"]
    monkeypatch.delenv("VICIBRIDGE_NATS")
    monkeypatch.setenv("VICIBRIDGE_NATS__SERVERS", "nats://s3cret@h:1")
    with pytest.raises(SettingsProblem) as caught:
        load(None)
    assert (
        "nats" in str(caught.value) and "write lists as JSON" in str(caught.value) and "s3cret" not in str(caught.value)
    )
    monkeypatch.delenv("VICIBRIDGE_NATS__SERVERS")
    monkeypatch.setenv("VICIBRIDGE_NATS", '{"user": 1}')
    with pytest.raises(SettingsProblem, match="^environment: nats.user: Input should be a valid string$"):
        load(None)


def test_rendered_configuration_hides_secrets_and_is_valid(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        '[nats]\nservers = ["nats://joe:s3cret@h:1"]\nuser = "u"\npassword = "s3cret"\n[[gateway]]\nnode = "x"',
    )
    text = render(config)
    assert "s3cret" not in text and "s3cret" not in repr(config.nats.password)
    again = loaded(tmp_path, text)
    assert again.gateway == config.gateway and again.log == config.log and again.nats.user == "u"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://h:1", "nats://h:1"),
        ("tls://a:b@h:1", "tls://**********@h:1"),
        ("t@h", "**********@h"),
        ("nats://s3cret://s3cret@h:1", "nats://**********@h:1"),
        ("nats://a:s3@cret@h", "nats://**********@h"),
    ],
)
def test_hide(url: str, shown: str) -> None:
    assert hide(url) == shown


def test_check_prints_the_example(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["check", "--config", str(EXAMPLE)])
    assert result.exit_code == 0, result.output
    assert '[[gateway]]\nnode = "gw1"' in result.output
    shown = tmp_path / "shown.toml"
    shown.write_text(result.output)
    assert load(shown) == load(EXAMPLE)


def test_example_names_every_codec() -> None:
    """In the comments on `codec` of `[events]` and `[log]`."""
    comments = re.findall(r"^codec = .*# (.*)$", EXAMPLE.read_text("utf-8"), re.MULTILINE)
    assert [set(re.findall(r'"(\w+)"', comment)) for comment in comments] == [set(get_args(EventCodec))] * 2


def test_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/vicibridge")
    example, defaults = load(EXAMPLE), load(None)
    nats = example.nats.model_copy(update={"servers": None})
    assert example.model_copy(update={"nats": nats, "gateway": defaults.gateway}) == defaults


def test_check_and_run_reject_an_invalid_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('[nats]\nuser = 1\ntoken = "s3cret"\nsevers = []')
    for command in ("check", "run"):
        result = CliRunner().invoke(cli, [command, "--config", str(path)])
        assert result.exit_code == 1
        assert "nats.severs: unknown key; did you mean servers?" in result.output
        assert "s3cret" not in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("command", [["click", "--help"], ["msgpack", "run"], ["nats", "run"], ["pydantic", "run"]])
def test_missing_extra_is_named(command: list[str]) -> None:
    code = "import sys; sys.modules[sys.argv.pop(1)] = None; from vicibridge.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    assert 'pip install "strongswan-vicifast[bridge]"' in result.stderr


def test_each_package_of_the_extra_is_named_when_it_is_missing() -> None:
    import_names = {"nats-py": "nats", "typing-extensions": None}
    project = tomllib.loads((EXAMPLE.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    packages = {re.split(r"[\[<>=]", text)[0] for text in project["optional-dependencies"]["bridge"]}
    needed = {import_names.get(package, package.replace("-", "_")) for package in packages}
    assert __main__._NEEDS == needed - {None} | {"nkeys"}


def test_image_uses_existing_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    containerfile = EXAMPLE.with_name("Containerfile").read_text("utf-8")
    for name, value in re.findall(r"(\w+)=(/\S+|[\d.:]+)(?: \\)?$", containerfile, re.MULTILINE):
        monkeypatch.setenv(name, value)
    config = load(None)
    assert (config.http.listen, str(config.spool.path)) == ("0.0.0.0:9273", "/var/lib/vicibridge")
    assert "EXPOSE 9273" in containerfile and "127.0.0.1:9273/healthz" in containerfile
