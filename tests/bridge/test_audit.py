"""The arguments in the audit."""

from __future__ import annotations

import pytest
from vicibridge.commands import audit

from vicifast.commands import COMMANDS, Danger


@pytest.mark.parametrize("group", Danger)
@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.secret])
def test_arguments_of_a_secret_command_are_hidden_in_every_group(
    monkeypatch: pytest.MonkeyPatch, command: str, group: Danger
) -> None:
    moved = {**COMMANDS, command: COMMANDS[command]._replace(danger=group)}
    monkeypatch.setattr(audit, "COMMANDS", moved)
    arguments = {key.name: "tr0ub4dor" for key in moved[command].keys}
    assert audit.show(command, arguments) == dict.fromkeys(arguments, audit.HIDDEN)
    assert audit.scrub("cannot take tr0ub4dor", command, arguments) == f"cannot take {audit.HIDDEN}"
