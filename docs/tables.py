"""Tables that are made from the code: commands, events, subjects, configuration and command lines.

```{from-code} commands
```
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
import vicibridge.cli
from docutils import nodes
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from vicibridge import subjects
from vicibridge.config import ENV_PREFIX, Config
from vicibridge.metrics import METRICS

import vicifast.cli
from vicifast.commands import COMMANDS, EVENTS, Command, Danger, Key, Kind

EXAMPLE = Path(__file__).parent.parent / "bridge" / "bridge.example.toml"

DANGERS = {
    Danger.READ: "Commands that read",
    Danger.OPERATE: "Commands that change what runs",
    Danger.CONFIGURE: "Commands that change the configuration",
    Danger.SECRETS: "Commands that carry secrets",
}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _code(text: object) -> str:
    return f"`{text}`"


def commands() -> str:
    """A section for each class of danger, in it one for each command."""
    parts = []
    for danger, title in DANGERS.items():
        mine = [command for command in COMMANDS.values() if command.danger is danger]
        parts.append(f"## {title}\n\nClass `{danger}`, {len(mine)} commands.\n\n")
        parts += [_command(command) for command in mine]
    return "\n".join(parts)


def _command(command: Command) -> str:
    method = command.name.replace("-", "_")
    facts = [f"{{py:meth}}`{method}() <vicifast.methods.Commands.{method}>`", f"since {command.since}"]
    if command.event:
        facts.append(f"streams `{command.event}`")
    if command.blocks:
        facts.append("holds a thread of charon while it waits")
    lines = [
        f"### {command.name}\n",
        ", ".join(facts) + ".\n",
        f"Request: {_request(command)}.",
        f"Reply: {_reply(command)}.",
    ]
    return "\n".join(lines) + (f"\n\n{_plain(command.quirk)}\n" if command.quirk else "\n")


def _request(command: Command) -> str:
    if command.named:
        blobs = f"; {_list(sorted(command.blob))} may hold any bytes" if command.blob else ""
        return f"one section, under the name of what is loaded{blobs}"
    return ", ".join(_key(key) for key in command.keys) or "nothing"


def _key(key: Key) -> str:
    notes = [
        note for note in (key.kind if key.kind is not Kind.TEXT else "", "required" if key.required else "") if note
    ]
    return _code(key.name) + (f" ({', '.join(notes)})" if notes else "")


def _reply(command: Command) -> str:
    own = [name if " " in name else _code(name) for name in command.reply]
    own += ["`success` and, when that is no, `errmsg`"] if command.result else []
    return ", ".join(own) or ("nothing; all is in the stream" if command.event else "nothing")


def _list(names: Iterable[str]) -> str:
    return ", ".join(_code(name) for name in names)


def _plain(prose: str) -> str:
    return prose.replace("*", "\\*")


def kinds() -> str:
    meaning = {
        Kind.TEXT: "printable ASCII",
        Kind.NUMBER: "a whole number, in decimal",
        Kind.MILLISECONDS: "a whole number; 0 is for ever, -1 means not to wait",
        Kind.SWITCH: "`yes` or `no`; what is absent is no",
        Kind.PRESENCE: "there or not there: charon takes even `no` for yes",
        Kind.LIST: "a list of texts",
        Kind.BLOB: "any bytes",
    }
    return _table(("kind", "what charon takes"), ((_code(kind), meaning[kind]) for kind in Kind))


def events() -> str:
    rows = []
    for event in EVENTS.values():
        users = [_code(command.name) for command in COMMANDS.values() if command.event == event.name]
        comes = "by itself, once registered" if event.standalone else f"within {' and '.join(users)}"
        rows.append((_code(event.name), comes, event.since, _list(sorted(event.binary)) or "none"))
    return _table(("event", "comes", "since", "binary values"), rows)


def event_subjects() -> str:
    """The subjects of events; words in angle brackets come from the message."""
    own = subjects.Subjects("vici", "NODE")
    rows = []
    for name, (fixed, tokens) in subjects._EVENTS.items():
        words = ".".join(_word(token) for token in tokens)
        rows.append((_code(f"vici.<node>.{fixed}.{words}"), _code(name), "log" if name == "log" else "state"))
    for subject in own.commands():
        rows.append((_code(subject.replace("NODE", "<node>").replace("*", "<command>")), "requests", ""))
    return _table(("subject", "event", "class"), rows)


def _word(token: Callable[..., str]) -> str:
    """What a token of a subject is called here."""
    if token is subjects._direction:
        return "up|down"
    names = {subjects._ike: "ike", subjects._child: "child"}
    if token in names:
        return f"<{names[token]}>"
    (key,) = (cell.cell_contents for cell in token.__closure__ or ())
    return f"<{key}>"


def configuration() -> str:
    """A section for each table of the file."""
    comments = dict(_comments())
    parts = []
    for name, field in Config.model_fields.items():
        inner = get_args(field.annotation)
        model: type[BaseModel] = inner[0] if inner else field.annotation  # type: ignore[assignment]
        parts.append(f"## {_code(f'[[{name}]]' if inner else f'[{name}]')}\n\n{_plain(model.__doc__ or '').strip()}\n")
        rows = []
        for key, item in model.model_fields.items():
            text = _plain(item.description or comments.get((name, key), ""))
            variable = "" if inner else _code(f"{ENV_PREFIX}{name}__{key}".upper())
            rows.append((_code(key), _default(item), text, variable))
        parts.append(_table(("key", "default", "meaning", "variable"), rows))
    return "\n".join(parts)


def _comments() -> Iterator[tuple[tuple[str, str], str]]:
    """What the example says of each key."""
    section = ""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        if head := re.match(r"\[+(\w+)\]+", line):
            section = head[1]
        elif found := re.match(r"(?:# )?(\w+) = .*?\s# (.*)", line):
            yield (section, found[1]), found[2]


def _default(field: Any) -> str:
    value = field.default
    if field.is_required():
        return "needed"
    if value is PydanticUndefined:
        value = field.get_default(call_default_factory=True)
        return "made when the bridge starts" if field.default_factory.__module__ != "socket" else "the host's name"
    if value is None:
        return "none"
    return _code(json.dumps(value, default=str) if not isinstance(value, SecretStr) else "hidden")


def vicifast_line() -> str:
    return _command_line(vicifast.cli.main, "vicifast")


def vicibridge_line() -> str:
    return _command_line(vicibridge.cli.cli, "vicibridge")


def _command_line(group: click.Group, name: str) -> str:
    context = click.Context(group, info_name=name)
    parts = []
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if command is None or command.hidden:
            continue
        own = click.Context(command, parent=context, info_name=word)
        parts.append(_one_command(command, own))
    return "\n".join(parts)


def _one_command(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = re.sub(r"\x08\n", "", command.help or "")
    rows = [record for param in command.get_params(context) if (record := param.get_help_record(context))]
    options = _table(("option", "meaning"), ((_code(option), _plain(help)) for option, help in rows))
    return f"## {context.command_path}\n\n```text\n{usage}\n```\n\n{_plain(inspect.cleandoc(text))}\n\n{options}"


def metrics() -> str:
    rows = ((_code(m.name), m.kind, _list(m.labels) or "none", _plain(m.help)) for m in METRICS)
    return _table(("metric", "kind", "labels", "meaning"), rows)


MAKERS = {
    "commands": commands,
    "kinds": kinds,
    "events": events,
    "subjects": event_subjects,
    "configuration": configuration,
    "metrics": metrics,
    "vicifast": vicifast_line,
    "vicibridge": vicibridge_line,
}


class FromCode(SphinxDirective):
    """Puts in what one of the makers makes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(MAKERS[self.arguments[0]](), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("from-code", FromCode)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
