"""The table of commands, the methods made from it, and one of every command on a real charon."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import pytest
from every_command import Script
from lab import Lab
from onloop import Loop

from vicifast import AsyncSession, Session
from vicifast.commands import COMMANDS, EVENTS, CommandSpec, Danger, Kind
from vicifast.methods import DEFAULT, Commands

NOT_DONE = {"load-token"}  # it has no effect without a token


class Asked(Commands[tuple[str, Any, float | None], tuple[str, Any, float | None]]):
    """Records the request of a method."""

    timeout: float | None = 30.0

    def call(
        self, command: str, message: Mapping[str, object] | None = None, *, timeout: float | None = DEFAULT
    ) -> tuple[str, Any, float | None]:
        assert COMMANDS[command].event is None
        return command, message, timeout

    def stream(
        self,
        command: str,
        message: Mapping[str, object] | None = None,
        event: str | None = None,
        *,
        timeout: float | None = DEFAULT,
    ) -> tuple[str, Any, float | None]:
        assert COMMANDS[command].event is not None and event is None
        return command, message, timeout


def method(command: CommandSpec) -> Any:
    return getattr(Asked(), command.name.replace("-", "_"))


def some_value(kind: Kind) -> object:
    values = {Kind.NUMBER: 7, Kind.MILLISECONDS: 1.5, Kind.LIST: ["a", "b"], Kind.BLOB: b"\xff"}
    return values.get(kind, True if kind in (Kind.SWITCH, Kind.PRESENCE) else "text")


every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)


def test_the_table_is_whole() -> None:
    assert all(command.event in EVENTS for command in COMMANDS.values() if command.event)
    assert {command.name for command in COMMANDS.values() if command.blocks} == {"initiate", "terminate"}
    assert not {command.danger for command in COMMANDS.values()} - set(Danger)


@every_command
def test_methods_are_as_the_table_says(command: CommandSpec) -> None:
    signature = inspect.signature(method(command))
    parameters = [name.rstrip("_").replace("_", "-") for name in signature.parameters]
    keys = ["name", "config"] if command.named else [key.name for key in command.keys]
    assert sorted(parameters) == sorted({*keys, "timeout"})
    assert signature.parameters["timeout"].kind is inspect.Parameter.KEYWORD_ONLY
    required = {"name", "config"} if command.named else {key.name for key in command.keys if key.required}
    for name, parameter in zip(parameters, signature.parameters.values(), strict=True):
        assert (parameter.default in (None, False, DEFAULT)) == (name not in required)
    switches = {key.name for key in command.keys if key.kind in (Kind.SWITCH, Kind.PRESENCE)}
    bools = {
        name
        for name, parameter in zip(parameters, signature.parameters.values(), strict=True)
        if not parameter.default and parameter.default is not None
    }
    assert bools == switches
    blobs = {key.name for key in command.keys if key.kind is Kind.BLOB}
    assert command.named or blobs == command.blob


def test_secret_commands_stay_secret_in_any_group() -> None:
    """Their arguments are hidden by `secret`, so that moving a command to another group cannot show them."""
    assert {name for name, command in COMMANDS.items() if command.secret} == {"load-key", "load-shared", "load-token"}
    assert all(command.secret for command in COMMANDS.values() if command.danger is Danger.SECRETS)


@every_command
def test_methods_are_documented(command: CommandSpec) -> None:
    text = inspect.getdoc(getattr(Commands, command.name.replace("-", "_"))) or ""
    assert text.split("\n\n")[0].replace("\n", " ").rstrip().endswith((".", "`."))
    since = tuple(map(int, command.since.split(".")))
    assert (f"Since {command.since}" in text) == (since > (5, 2, 0))


@every_command
def test_every_key_is_sent_as_charon_spells_it(command: CommandSpec) -> None:
    if command.named:
        assert method(command)("gw", {"a": ["b"]}) == (command.name, {"gw": {"a": ["b"]}}, DEFAULT)
        return
    values = {key.name: some_value(key.kind) for key in command.keys}
    names = {"pass": "pass_"}
    arguments = {names.get(name, name.replace("-", "_")): value for name, value in values.items()}
    asked, message, _ = method(command)(**arguments)
    sent = {name: 1500 if name == "timeout" else value for name, value in values.items()}
    assert (asked, message or {}) == (command.name, sent)


@every_command
def test_omitted_keys_are_not_sent(command: CommandSpec) -> None:
    if command.named:
        return
    required = {key.name: some_value(key.kind) for key in command.keys if key.required}
    _, message, timeout = method(command)(**required)
    sent = dict(message or {})
    if command.blocks:
        assert (sent.pop("timeout"), timeout) == (30_000, 35.0)
    else:
        assert timeout is DEFAULT
    assert sent == required


@every_command
def test_timeouts_are_handed_on(command: CommandSpec) -> None:
    values: dict[str, Any] = {"name": "gw", "config": {}} if command.named else {}
    values |= {key.name: some_value(key.kind) for key in command.keys if key.required}
    _, _, timeout = method(command)(**values, timeout=2.5)
    assert timeout == (7.5 if command.blocks else 2.5)


@pytest.mark.parametrize("session_timeout", [30.0, None, 2])
@pytest.mark.parametrize(
    "timeout, sent, wait",
    [(None, 0, None), (0, -1, 5.0), (0.0001, 1, 5.0001), (1.5, 1500, 6.5), (math.inf, 2**31 - 1, math.inf)],
)
def test_the_timeout_that_charon_gets(
    session_timeout: float | None, timeout: float | None, sent: int, wait: float | None
) -> None:
    asked = Asked()
    asked.timeout = session_timeout
    for name, message, ours in (asked.initiate(timeout=timeout), asked.terminate(timeout=timeout)):
        assert (message["timeout"], ours) == (sent, wait), name


def test_the_session_s_timeout_is_sent_too() -> None:
    asked = Asked()
    asked.timeout = None
    assert asked.initiate(child="net") == ("initiate", {"child": "net", "timeout": 0}, None)
    asked.timeout = 10
    assert asked.initiate(child="net") == ("initiate", {"child": "net", "timeout": 10_000}, 15)


@pytest.mark.parametrize("timeout", [-1, -1.0, math.nan])
def test_invalid_timeouts(timeout: float) -> None:
    """strongSwan's module takes -1 for "do not wait"; here that is 0."""
    with pytest.raises(ValueError, match="must be 0 or more seconds"):
        Asked().initiate(child="net", timeout=timeout)


@pytest.mark.lab
def test_every_command_on_a_real_charon_with_equal_results() -> None:
    with Lab() as lab:
        blocking = Script(lab, Session)
        blocking.run()
    with Lab() as lab, Loop() as loop:
        awaited = Script(lab, lambda address: loop.blocking(AsyncSession(address)))
        awaited.run()
    assert blocking.effects.keys() == COMMANDS.keys() - NOT_DONE
    assert blocking.refusals.keys() == COMMANDS.keys()
    for script in (blocking, awaited):  # how many messages charon has exchanged by then depends on its timing
        counters = script.effects["get-counters"]["counters"]
        script.effects["get-counters"] = {name: set(values) for name, values in counters.items()}
    assert awaited.effects == blocking.effects
    assert awaited.refusals == blocking.refusals
    assert {text.split(":")[0] for text in blocking.refusals.values()} == {"CommandError", "EncodeError"}
