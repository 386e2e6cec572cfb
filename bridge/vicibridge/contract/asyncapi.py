"""The AsyncAPI document: the bridge's subjects, the messages on them, and whether the bridge sends or receives them.

`send` operations are messages that the bridge publishes, `receive` operations commands that it accepts. Buckets are
channels too: the subjects under which NATS keeps their keys.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, get_args

from typing_extensions import is_typeddict

from vicifast.commands import COMMANDS, CommandSpec
from vicifast.version import VERSION

from . import names
from .bridge_events import BRIDGE_EVENTS
from .bucket_values import BUCKETS, BucketSpec
from .codecs import CODECS
from .schema import REFERENCE, refer, schemas
from .subjects import ALL_NODES, WORDS, Subjects, command_subject, kinds, patterns

Part: TypeAlias = dict[str, Any]

_DESCRIPTION = """\
Events of strongSwan's charon, commands to it, and the state of its SAs, over NATS.

Every word in braces is one token of a subject. A byte outside A-Za-z0-9_- is written =XX, its value in hexadecimal; an
empty name is written =. The schemas describe JSON; msgpack, the default, has the same structure. A message of class log
holds one or more envelopes in sequence: msgpack maps, or JSON objects with a newline after each. With codec raw the
payload is the VICI message alone, and the rest of the envelope is in headers."""


def document(prefix: str) -> Part:
    """Return the document for subjects that begin with `prefix`."""
    api = _Document()
    for event, address in patterns(prefix).items():
        api.event(event, address, f"charon's event {event}.", kept=event != "log")
    for kind, form in BRIDGE_EVENTS.items():
        address = Subjects(prefix, "NODE").bridge(kind).replace("NODE", "{node}")
        api.event(kind, address, _about(form), kept=True)
    for bucket in BUCKETS.values():
        api.bucket(bucket)
    for command in COMMANDS.values():
        api.command(command, prefix)
    return api.whole()


def _about(form: Any) -> str:
    """Return the first paragraph of the docstring of a type, or of the first type of a union."""
    first = form if is_typeddict(form) else get_args(form)[0]
    return (inspect.getdoc(first) or "").partition("\n\n")[0]


class _Document:
    """A document under construction; channels, messages and operations use the same keys where possible."""

    def __init__(self) -> None:
        self._channels: dict[str, Part] = {}
        self._operations: dict[str, Part] = {}
        self._messages: dict[str, Part] = {}

    def event(self, event: str, address: str, summary: str, *, kept: bool) -> None:
        """Add an event that the bridge publishes; `kept` if the JetStream stream stores it."""
        self._messages[event] = _message(summary, event, _event_headers(kept))
        note = (
            "Also stored in the JetStream stream: acknowledged, in order."
            if kept
            else "One or more envelopes per message. Not stored; dropped events are reported as a gap."
        )
        self._channels[event] = _channel(address, [event], note, kinds(event))
        self._operations[f"publish-{event}"] = _operation("send", event, [event], summary)

    def bucket(self, bucket: BucketSpec) -> None:
        """Add a key-value bucket."""
        name, summary = bucket.name, _about(bucket.value)
        own = "".join(f".{{{word}}}" for word in bucket.words)
        self._messages[name] = _message(summary, name, None) | {"contentType": CODECS["json"].media_type}
        note = f"The key-value bucket {name}; a key is what follows $KV.{name}, and is deleted with its object."
        self._channels[name] = _channel(f"$KV.{name}.{{node}}{own}", [name], note)
        self._operations[f"mirror-{name}"] = _operation("send", name, [name], summary)

    def command(self, command: CommandSpec, prefix: str) -> None:
        """Add a command: its requests and replies."""
        name, channel = command.name, f"{command.name}.request"
        self._messages[channel] = _message(f"A request for {name}.", channel, _request_headers())
        replies = self._stream(command, command.event) if command.event else [f"{name}.reply"]
        if f"{name}.reply" in replies:
            marked = (names.PART_HEADER,) if command.event else ()
            self._messages[f"{name}.reply"] = _message(
                f"charon's response to {name}.", f"{name}.reply", _reply_headers(*marked)
            )
        address = command_subject(prefix, "NODE", name).replace("NODE", "{node}")
        self._channels[channel] = _channel(address, [channel], f"With {ALL_NODES} for {{node}}, every gateway replies.")
        self._channels[f"{name}.reply"] = _channel(None, [*replies, "error"], "The reply subject of the request.")
        operation = _operation("receive", channel, [channel], f"charon's command {name}.")
        reply = _operation("", f"{name}.reply", [*replies, "error"], "")
        operation["reply"] = {"channel": reply["channel"], "messages": reply["messages"]}
        if command.quirk:
            operation["description"] = command.quirk
        self._operations[name] = operation | {"tags": [{"name": f"@{command.danger}"}]}

    def _stream(self, command: CommandSpec, event: str) -> list[str]:
        """Add the messages of a stream, and return the names of the possible replies."""
        part, gathered = f"{event}.part", f"{event}.list"
        self._messages[part] = _message(f"A part of the stream {event}.", f"{event}.data", _reply_headers())
        self._messages[gathered] = _message(
            f"The whole stream in one message, if the request sets {names.COLLECT_HEADER}.",
            None,
            _reply_headers(names.COUNT_HEADER),
        ) | {"payload": {"type": "array", "items": refer(f"{event}.data")}}
        return [part, *([f"{command.name}.reply"] if command.reply else []), "end", gathered]

    def whole(self) -> Part:
        """Return the document."""
        self._messages["end"] = _message(
            "The empty message after the last part.", None, _reply_headers(names.COUNT_HEADER, "Status")
        )
        self._messages["error"] = _message(
            "An error: a message without payload.", None, _reply_headers(*names.ERROR_HEADERS, names.COUNT_HEADER)
        )
        document = {
            "asyncapi": "3.0.0",
            "info": {"title": "vicibridge", "version": VERSION, "description": _DESCRIPTION},
            "defaultContentType": CODECS["msgpack"].media_type,
            "channels": self._channels,
            "operations": self._operations,
            "components": {"messages": self._messages, "schemas": schemas()},
        }
        moved: Part = json.loads(json.dumps(document).replace(f'"{REFERENCE}', '"#/components/schemas/'))
        return moved


def _channel(address: str | None, messages: Iterable[str], description: str, kinds: Sequence[str] = ()) -> Part:
    refs = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    words = [part[1:-1] for part in (address or "").split(".") if part.startswith("{")]
    channel: Part = {"address": address, "description": description, "messages": refs}
    if words:
        channel["parameters"] = {word: {"description": WORDS[word]} for word in words}
    if kinds:
        channel["parameters"][words[-1]]["enum" if words[-1] == "direction" else "examples"] = list(kinds)
    return channel


def _operation(action: str, channel: str, messages: Iterable[str], summary: str) -> Part:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }


def _message(summary: str, schema: str | None, headers: Part | None) -> Part:
    message: Part = {"summary": summary}
    if schema is not None:
        message["payload"] = refer(schema)
    return message if headers is None else {**message, "headers": headers}


def _headers(described: dict[str, str]) -> Part:
    properties = {name: {"type": "string", "description": text} for name, text in described.items()}
    return {"type": "object", "properties": properties}


def _event_headers(kept: bool) -> Part:
    own = {"Nats-Msg-Id": "<node>.<boot>.<seq>, so that JetStream stores it once."} if kept else {}
    headers = (names.NODE_HEADER, names.BOOT_HEADER, names.SEQ_HEADER, names.TIME_HEADER, names.EVENT_HEADER)
    return _headers(own | {name: "Of codec raw only." for name in headers})


def _request_headers() -> Part:
    return _headers(
        {
            names.CODEC_HEADER: f"{' or '.join(sorted(CODECS))}: the codec of the reply; by default the request's.",
            names.COLLECT_HEADER: "true: one reply with a list of all parts.",
            names.TIMEOUT_HEADER: "Seconds.",
            names.USER_HEADER: "Recorded in the audit: the requester.",
            names.REQUEST_ID_HEADER: "Recorded in the audit: an identifier of the request.",
        }
    )


def _reply_headers(*more: str) -> Part:
    meaning = {
        names.NODE_HEADER: "The gateway that replies.",
        names.PART_HEADER: "response: not a part, but charon's response at the end of the stream.",
        names.COUNT_HEADER: "The number of parts.",
        "Status": "200, or an error code as in HTTP.",
        "Description": "The error message.",
        names.ERROR_CODE_HEADER: "The error code, as in HTTP.",
        names.ERROR_HEADER: "The error message.",
    }
    return _headers({name: meaning[name] for name in (names.NODE_HEADER, *more)})
