"""Tables generated from the code: commands, events, subjects, configuration and command lines.

```{from-code} commands
```
"""

from __future__ import annotations

import inspect
import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click
import vicibridge.cli
from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from vicibridge.bus.conditions import CONDITIONS
from vicibridge.config import ENV_PREFIX
from vicibridge.config.model import LIVE, Config
from vicibridge.contract import bucket_values, schema, subjects
from vicibridge.ops.metrics import METRICS

import vicifast.cli
from vicifast.cli.common import Group
from vicifast.commands import ALERTS, COMMANDS, EVENTS, CommandSpec, Danger, Key, Kind, Trigger

EXAMPLE = Path(__file__).parent.parent / "bridge" / "bridge.example.toml"

DANGERS = {
    Danger.READ: "Read-only commands",
    Danger.OPERATE: "Commands that change the running state",
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
    """Return a section for each class of commands, with one for each command."""
    parts = []
    for danger in Danger:
        title = DANGERS[danger]  # each has one, or the build of the documentation fails
        mine = [command for command in COMMANDS.values() if command.danger is danger]
        parts.append(f"## {title}\n\nClass `{danger}`, {len(mine)} commands.\n\n")
        parts += [_command(command) for command in mine]
    return "\n".join(parts)


def _command(command: CommandSpec) -> str:
    method = command.name.replace("-", "_")
    facts = [f"{{py:meth}}`{method}() <vicifast.methods.Commands.{method}>`", f"since {command.since}"]
    if command.event:
        facts.append(f"streams `{command.event}`")
    if command.blocks:
        facts.append("occupies a thread of charon while it waits")
    lines = [
        f"### {command.name}\n",
        ", ".join(facts) + ".\n",
        f"Request: {_request(command)}.",
        f"Reply: {_reply(command)}.",
    ]
    return "\n".join(lines) + (f"\n\n{_plain(command.quirk)}\n" if command.quirk else "\n")


def _request(command: CommandSpec) -> str:
    if command.named:
        blobs = f"; {_list(sorted(command.blob))} may contain any bytes" if command.blob else ""
        return f"one section, named after the loaded item{blobs}"
    return ", ".join(_key(key) for key in command.keys) or "nothing"


def _key(key: Key) -> str:
    notes = [
        note for note in (key.kind if key.kind is not Kind.TEXT else "", "required" if key.required else "") if note
    ]
    return _code(key.name) + (f" ({', '.join(notes)})" if notes else "")


def _reply(command: CommandSpec) -> str:
    own = [name if " " in name else _code(name) for name in command.reply]
    own += ["`success`, and `errmsg` if that is `no`"] if command.result else []
    return ", ".join(own) or ("nothing; the stream has all items" if command.event else "nothing")


def _list(names: Iterable[str]) -> str:
    return ", ".join(_code(name) for name in names)


def _plain(prose: str) -> str:
    return re.sub(r"([*<{\[])", r"\\\1", prose)


def kinds() -> str:
    meaning = {
        Kind.TEXT: "printable ASCII",
        Kind.NUMBER: "a whole number, in decimal",
        Kind.MILLISECONDS: "a whole number; 0 waits without limit, -1 does not wait",
        Kind.SWITCH: "`yes`, or `no`, which is the default",
        Kind.PRESENCE: "present or absent: charon reads even `no` as yes",
        Kind.LIST: "a list of strings",
        Kind.BLOB: "any bytes",
    }
    return _table(("kind", "values"), ((_code(kind), meaning[kind]) for kind in Kind))


def events() -> str:
    rows = []
    for event in EVENTS.values():
        users = [_code(command.name) for command in COMMANDS.values() if command.event == event.name]
        origin = "any time, to registered clients" if event.standalone else f"during {' and '.join(users)}"
        rows.append((_code(event.name), origin, event.since, _list(sorted(event.binary)) or "none"))
    return _table(("event", "sent", "since", "binary values"), rows)


def alerts() -> str:
    causes = {
        Trigger.ANYONE: "anyone, at any time",
        Trigger.UNAUTHENTICATED: "anyone, until the IKE_SA is established",
        Trigger.PEER: "an authenticated peer",
        Trigger.LOCAL: "no peer",
    }
    rows = ((_code(alert.name), alert.meaning, causes[alert.trigger]) for alert in ALERTS.values())
    return _table(("type", "meaning", "who can cause it"), rows)


def event_subjects() -> str:
    """Return the subjects; words in angle brackets are from the message."""
    own = subjects.Subjects("vici", "NODE")
    bridge = own.bridge("KIND").replace("NODE", "<node>").replace("KIND", "<kind>")
    rows = []
    for name, pattern in subjects.patterns("vici").items():
        subject = pattern.replace("{direction}", "|".join(subjects.kinds(name))).replace("{", "<").replace("}", ">")
        rows.append((_code(subject), _code(name), "log" if name == "log" else "state"))
    rows.append((_code(bridge), "the bridge's own events", "state"))
    for subject in own.commands():
        rows.append((_code(subject.replace("NODE", "<node>").replace("*", "<command>")), "requests", ""))
    return _table(("subject", "event", "class"), rows)


def configuration() -> str:
    """Return a section for each table of the file."""
    comments = dict(_comments())
    parts = []
    for name, field in Config.model_fields.items():
        several = get_args(field.annotation)
        model = several[0] if several else field.annotation
        parts += _settings(f"[[{name}]]" if several else f"[{name}]", name, model, comments)
    return "\n\n".join(parts)


def _settings(title: str, path: str, model: Any, comments: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield a section for a table, and for the tables in it."""
    yield f"## {_code(title)}"
    yield _plain(inspect.cleandoc(model.__doc__ or ""))
    inner = []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner.append((f"{path}.{key}", field.annotation))
            continue
        facts = [f"default {default}"] if (default := _default(field)) else []
        facts += [] if title.startswith("[[") else [_code(f"{ENV_PREFIX}{path}__{key}".upper().replace(".", "__"))]
        facts += ["SIGHUP changes it"] * (LIVE in field.metadata)
        yield f"{_code(key)}\n: {_plain(f'{comments[path, key]}. ')}{_sentence(facts)}"
    for deeper, annotation in inner:
        yield from _settings(f"[{deeper}]", deeper, annotation, comments)


def _sentence(facts: Iterable[str]) -> str:
    text = ", ".join(facts)
    return f"{text[:1].upper()}{text[1:]}."


def _comments() -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the comment on each key in the example; a key without one fails the build."""
    section = ""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        if head := re.match(r"\[+([\w.]+)\]+", line):
            section = head[1]
        elif found := re.match(r"(?:# )?(\w+) = .*?\s# (.*)", line):
            yield (section, found[1]), found[2]


def _default(field: FieldInfo) -> str:
    if field.default_factory is socket.gethostname:
        return "the name of the host"
    if field.default_factory is not None:
        return ""  # the comment in the example has it
    value = field.default
    return "none" if value is None else _code(json.dumps(value, default=str))


def vicifast_line() -> str:
    return _command_line(vicifast.cli.main, "vicifast")


def vicibridge_line() -> str:
    return _command_line(vicibridge.cli.cli, "vicibridge")


def _command_line(group: Group, name: str) -> str:
    """Return a section for each command; a table before them has the options that most of them share."""
    context = click.Context(group, info_name=name)
    commands = {word: group.load(word) for word in group.list_commands(context)}
    records = {word: _options(command, context) for word, command in commands.items()}
    users = Counter(record for own in records.values() for record in own)
    common = [record for record, count in users.items() if count > max(2, len(commands) / 2)]
    parts = []
    if common:
        parts = [
            "## Common options",
            "Commands marked with a star have these options.",
            _table(("option", "meaning"), map(_option, common)),
        ]
    for word, command in commands.items():
        star = " \\*" * any(record in common for record in records[word])
        usage = " ".join(command.collect_usage_pieces(click.Context(command)))
        own = [_option(record) for record in records[word] if record not in common]
        parts += [f"## {name} {word}{star}", _fenced(f"{name} {word} {usage}"), _help(command.help or "")]
        parts += [_table(("option", "meaning"), own)] * bool(own)
    return "\n\n".join(parts)


def _options(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    own = click.Context(command, parent=context)
    return [record for param in command.params if (record := param.get_help_record(own)) and record[1]]


def _option(record: tuple[str, str]) -> tuple[str, str]:
    return _code(record[0]), _plain(record[1])


def _help(text: str) -> str:
    """Return the paragraphs of a help text; those that click does not rewrap are fenced."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(_fenced(p.removeprefix("\b\n")) if p.startswith("\b") else _plain(p) for p in paragraphs)


def _fenced(text: str) -> str:
    return f"```text\n{inspect.cleandoc(text)}\n```"


def schemas() -> str:
    """Return the names of the JSON Schemas: those of events, and of values in buckets; commands have two each."""
    published = [name for name in schema.schemas() if f"{name}.data" in schema.schemas()]
    rows = [(_code(name), f"the envelope of `{name}`; its data is {_code(f'{name}.data')}") for name in published]
    rows += [(_code(f"{e.name}.data"), f"a part of the stream `{e.name}`") for e in EVENTS.values() if not e.standalone]
    rows += [(_code(name), f"a value in the bucket `{name}`") for name in bucket_values.BUCKETS]
    rows += [("`COMMAND.request`, `COMMAND.reply`", "the request and the reply of a command, such as `stats.reply`")]
    return _table(("name", "what it describes"), rows)


def schema_of(name: str) -> Callable[[], str]:
    return lambda: f"```json\n{json.dumps(schema.document(name), indent=2)}\n```"


def metrics() -> str:
    rows = ((_code(m.name), m.kind, _list(m.labels) or "none", _plain(m.help)) for m in METRICS)
    return _table(("metric", "kind", "labels", "meaning"), rows)


def conditions() -> str:
    """Return the properties of streams and buckets that break a guarantee."""
    places = {"both": "stream, bucket"}
    facts = {"name": "NAME", "subjects": "...", "age": "AGE", "window": "1h"}
    rows = []
    for condition in CONDITIONS:
        fix = re.sub("run (nats stream edit [^,]*)", r"`\1`", condition.fix.format(**facts))
        reconcile = "yes" if condition.add else "no"
        of = places.get(condition.of, condition.of)
        rows.append((_code(condition.property), of, condition.grade, condition.breaks, fix, reconcile))
    return _table(("property", "of", "grade", "consequence", "correction", "`reconcile` corrects it"), rows)


MAKERS = {
    "conditions": conditions,
    "commands": commands,
    "kinds": kinds,
    "events": events,
    "alerts": alerts,
    "subjects": event_subjects,
    "configuration": configuration,
    "metrics": metrics,
    "schemas": schemas,
    "schema of gap": schema_of("gap"),
    "vicifast": vicifast_line,
    "vicibridge": vicibridge_line,
}


class FromCode(SphinxDirective):
    """Inserts the text that one of MAKERS generates."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(MAKERS[self.arguments[0]](), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("from-code", FromCode)
    for language in ("nats", "strongswan"):  # pygments has none for their configurations
        app.add_lexer(language, TextLexer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
