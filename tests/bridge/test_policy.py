"""Allowed commands: by group, by name, and by argument."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from vicibridge.commands.policy import Policy, may_block
from vicibridge.commands.request import RequestError
from vicibridge.config.model import CommandsConfig

from vicifast.commands import COMMANDS, Danger

GROUPS = [f"@{danger}" for danger in Danger]
EVERY_SET_OF_GROUPS = [list(some) for size in range(len(GROUPS) + 1) for some in itertools.combinations(GROUPS, size)]


def refusal(policy: Policy, command: str, arguments: dict[str, Any] | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        policy.admit(command)
        policy.judge(command, arguments or {}, 10)
    return caught.value


@pytest.mark.parametrize("allow", EVERY_SET_OF_GROUPS, ids=" ".join)
def test_every_command_with_every_set_of_groups(allow: list[str]) -> None:
    policy = Policy(CommandsConfig(allow=allow))
    for command, known in COMMANDS.items():
        if f"@{known.danger}" in allow:
            policy.admit(command)
            assert command in policy.allowed
            continue
        denied = refusal(policy, command)
        assert denied.code == 403 and command not in policy.allowed
        assert f'add "{command}" or "@{known.danger}" to allow in [commands]' in denied.text


@pytest.mark.parametrize("command", COMMANDS)
def test_named_command_is_the_only_one_allowed(command: str) -> None:
    policy = Policy(CommandsConfig(allow=[command]))
    policy.admit(command)
    assert policy.allowed == [command]
    assert {refusal(policy, other).code for other in COMMANDS if other != command} == {403}


def test_only_read_commands_by_default() -> None:
    assert {COMMANDS[name].danger for name in Policy(CommandsConfig()).allowed} == {Danger.READ}


@pytest.mark.parametrize(
    "command", ["", "no-such", "Version", "version ", "@read", "LIST-SAS", "vici.gw1", "\udcff", "*"]
)
def test_unknown_commands_must_be_named(command: str) -> None:
    denied = refusal(Policy(CommandsConfig(allow=GROUPS)), command)
    assert denied.code == 404 and "must be named in allow in [commands]" in denied.text
    if not command.startswith("@"):
        policy = Policy(CommandsConfig(allow=["@read", command]))
        policy.admit(command)
        assert policy.judge(command, {"any": {"thing": ["1"]}}, 10) == {"any": {"thing": ["1"]}}
        assert may_block(command, {})


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({}, (9000, 1)),
        ({"timeout": "500", "loglevel": "2"}, (500, 2)),
        ({"timeout": "-1", "loglevel": "-1"}, (-1, -1)),
        ({"timeout": "0"}, (9000, 1)),  # charon's value for no limit
        ({"timeout": "9001", "loglevel": "4"}, (9000, 2)),
        ({"timeout": "999999999999999", "loglevel": "9"}, (9000, 2)),
        ({"timeout": "010"}, (10, 1)),  # charon would read it as 8
    ],
)
@pytest.mark.parametrize("command", [name for name in COMMANDS if COMMANDS[name].blocks])
def test_timeout_and_loglevel_are_capped(command: str, arguments: dict[str, Any], sent: tuple[int, int]) -> None:
    judged = Policy(CommandsConfig()).judge(command, {"ike": "gw", **arguments}, 10)
    assert judged == {"ike": "gw", "timeout": sent[0], "loglevel": sent[1]}
    assert may_block(command, judged) is (sent[0] != -1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("timeout", value) for value in ("-2", "0x10", "yes", "", "-", "1e3", " 5", "9" * 16, {}, ["1"])],
        *[("loglevel", value) for value in ("-2", "", "high", {})],
    ],
)
def test_invalid_number_is_refused_and_named(key: str, value: object) -> None:
    denied = refusal(Policy(CommandsConfig(allow=["terminate"])), "terminate", {key: value})
    assert denied.code == 400 and denied.text.startswith(f"{key} must be ")


CONN = {"version": "2", "local": {"auth": "psk"}, "children": {"net": {"local_ts": ["10.0.0.0/8"]}}}


@pytest.mark.parametrize(
    "conn",
    [
        {"children": {"net": {"updown": "/bin/sh"}}},
        {"children": {"net": {"UpDown": "/bin/sh"}}},
        {"children": {"net": {"updown": ""}}},
        {"children": {"net": {"updown": ["/bin/sh"]}}},
        {"CHILDREN": {"a": {}, "b": {"updown": "x"}}},
        {"updown": "x"},
        {"deep": {"er": {"and": {"deeper": {"updown": "x"}}}}},
    ],
)
def test_updown_scripts_require_allow_updown(conn: dict[str, Any]) -> None:
    arguments = {"fine": CONN, "gw": {**CONN, **conn}}
    for switches in ({}, {"allow_files": True}):
        denied = refusal(Policy(CommandsConfig(allow=["@configure"], **switches)), "load-conn", arguments)
        assert denied.code == 403 and "set allow_updown = true in [commands]" in denied.text
    assert Policy(CommandsConfig(allow_updown=True)).judge("load-conn", arguments, 10) == arguments


@pytest.mark.parametrize(
    "conn",
    [
        {"local": {"cert": {"file": "/etc/shadow"}}},
        {"LOCAL-1": {"Cert-x": {"FILE": "/etc/shadow"}}},
        {"remote7": {"cacert2": {"handle": "00"}}},
        {"remote": {"CACERT": {"module": "evil.so"}}},
        {"local": {"cert": {"slot": "1"}}},
        {"file": "x"},
        {"local": {"certs": ["x"], "cert": {"file": ["/etc/shadow"]}}},
    ],
)
def test_files_of_connections_require_allow_files(conn: dict[str, Any]) -> None:
    arguments = {"gw": {**CONN, **conn}}
    for switches in ({}, {"allow_updown": True}):
        denied = refusal(Policy(CommandsConfig(allow=["@configure"], **switches)), "load-conn", arguments)
        assert denied.code == 403 and "set allow_files = true in [commands]" in denied.text
    assert Policy(CommandsConfig(allow_files=True)).judge("load-conn", arguments, 10) == arguments


@pytest.mark.parametrize(
    "authority",
    [
        {"file": "/etc/shadow"},
        {"Handle": "00", "module": "x"},
        {"cacert": "x", "crl_uris": ["http://fine", " FILE:///etc/shadow"]},
        {"cacert": "x", "ocsp_uris": ["file:/etc/shadow"]},
        {"cacert": "x", "cert_uri_base": "file:///"},
    ],
)
def test_files_of_authorities_require_allow_files(authority: dict[str, Any]) -> None:
    arguments = {"ca": {"cacert": "PEM", "crl_uris": ["http://crl"]}, "other": authority}
    denied = refusal(Policy(CommandsConfig(allow=["load-authority"])), "load-authority", arguments)
    assert denied.code == 403 and "set allow_files = true in [commands]" in denied.text
    assert Policy(CommandsConfig(allow_files=True)).judge("load-authority", arguments, 10) == arguments


def test_any_names_of_connections_and_children() -> None:
    arguments = {"updown": {**CONN, "children": {"updown": {}, "file": {}}}, "file": CONN, "handle": CONN}
    assert Policy(CommandsConfig()).judge("load-conn", arguments, 10) == arguments


def test_load_token_may_name_a_token() -> None:
    arguments = {"handle": "00", "slot": "1", "module": "hsm", "pin": "1234"}
    policy = Policy(CommandsConfig(allow=["@secrets"]))
    policy.admit("load-token")
    assert policy.judge("load-token", arguments, 10) == arguments
