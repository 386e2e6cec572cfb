"""`vicibridge call`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from vicifast._wire import Message
from vicifast.cli.common import NO_DAEMON
from vicifast.cli.output import FORMATS, Output, ReceivedMessage, escaped, lines, shown
from vicifast.cli.queries import complete_command, parse_arguments
from vicifast.commands import COMMANDS

from ..contract.subjects import ALL_NODES
from .common import EPILOG, Reach, code_of, reaches

if TYPE_CHECKING:
    from ..client import Answer, Fleet


def formats(function: click.decorators.FC) -> click.decorators.FC:
    for name, form in reversed(FORMATS.items()):
        function = click.option(f"--{name}", "form", flag_value=name, default=None, help=form.help)(function)
    return function


@click.command(epilog=EPILOG)
@click.argument("node")
@click.argument("command", shell_complete=complete_command)
@click.argument("request", nargs=-1, metavar="[KEY=VALUE | KEY@FILE | JSON]...", callback=parse_arguments)
@click.option(
    "--stall",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With NODE all: maximum wait for the next reply.",
)
@formats
@reaches
def call(reach: Reach, node: str, command: str, request: dict[str, object], stall: float, form: str | None) -> None:
    """Run a command on one gateway, or on every gateway with NODE `all`.

    Prints the messages that the command streams, then its reply. A repeated KEY makes a list; KEY@FILE takes the
    contents of a file. A JSON object can replace all KEY=VALUE arguments.

    \b
    vicibridge call gw1 list-sas ike=site-001
    vicibridge call gw1 initiate child=lan
    vicibridge call all version --json
    """
    output = Output(form)
    if node != ALL_NODES:
        reach.run(lambda fleet: call_one(fleet, output, node, command, request))
    elif form in (None, "json"):
        sys.exit(reach.run(lambda fleet: call_all(fleet, output, command, request, stall)))
    else:
        raise click.UsageError(f"--{form} works with one node only; use --json with all")


async def call_one(fleet: Fleet, output: Output, node: str, command: str, request: Mapping[str, object]) -> None:
    """Write the messages and the reply of one gateway as they arrive."""
    from vicifast.cli.event_lines import log_lines
    from vicifast.results import LogLine

    session = fleet.node(node, values=Message)
    known = COMMANDS.get(command)
    if known is None or known.event is None:
        output.message(ReceivedMessage(await session.call(command, request)))
        return
    stream = session.stream(command, request)
    async for message in stream:
        if output.for_people and known.event == "control-log":
            for line in log_lines(LogLine.from_message(message)):
                output.text(line)
        else:
            output.message(ReceivedMessage(message, known.event))
    if stream.response:
        output.message(ReceivedMessage(stream.response))


async def call_all(fleet: Fleet, output: Output, command: str, request: Mapping[str, object], stall: float) -> int:
    """Write each gateway's reply once it is complete; return the exit code of the last error, or 0."""
    code = 0
    answers = fleet.everyone(stall=stall, values=Message).call(command, request)
    async for answer in answers:
        write_answer(output, answer)
        code = code_of(answer.error) if answer.error is not None else code
    for node in answers.missing:
        if output.for_people:
            click.echo(f"{shown(node)}: no answer", err=True)
        else:
            click.echo(json.dumps({"node": node, "error": "no answer"}))
    if answers.missing or not answers.answered:
        code = code or NO_DAEMON
    if not answers.missing and not answers.answered:
        click.echo("Error: no bridge answers", err=True)
    return code


def write_answer(output: Output, answer: Answer[Message]) -> None:
    if not output.for_people:
        click.echo(as_json(answer))
        return
    if answer.error is not None:
        click.echo(escaped(str(answer.error)), err=True)
        return
    output.text(f"{shown(answer.node)}:")
    for message in (*answer.parts, answer.response):
        for line in lines(message.to_dict() if message else {}, "  "):
            output.text(line)


def as_json(answer: Answer[Message]) -> str:
    parts = ",".join(part.to_json().decode() for part in answer.parts)
    response = "null" if answer.response is None else answer.response.to_json().decode()
    error = json.dumps(None if answer.error is None else str(answer.error))
    return f'{{"node":{json.dumps(answer.node)},"error":{error},"parts":[{parts}],"response":{response}}}'
