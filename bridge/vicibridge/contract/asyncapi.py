"""The AsyncAPI document: which subjects there are, what is on them, and what the bridge does there.

`send` is what the bridge publishes, `receive` the commands that it takes. Buckets are channels too: the subjects that
NATS keeps their keys under.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias, get_args

from typing_extensions import is_typeddict

from vicifast.commands import COMMANDS, CommandSpec

from . import names
from .bridge_events import BRIDGE_EVENTS
from .bucket_values import CONN, NODE, SA
from .schema import BUCKETS, REFERENCE, refer, schemas
from .subjects import ALL_NODES, Subjects, command_subject, kinds, patterns

Part: TypeAlias = dict[str, Any]

_DESCRIPTION = """\
Events of strongSwan's charon, commands to it, and the state of its SAs, over NATS.

Every word in braces is one token of a subject: a byte outside A-Za-z0-9_- is =XX there, its value in hexadecimal, and
an empty name is =. The schemas describe JSON; msgpack, the default, has the same. A message of class log holds one or
more envelopes, one after the other: msgpack maps, or JSON objects with a newline after each. With codec raw a message
is the VICI message alone, and the rest of the envelope is in headers."""

_WORDS = {
    "node": "The gateway.",
    "ike": "The connection, so the name of an IKE_SA.",
    "child": "The name of a CHILD_SA.",
    "uniqueid": "charon's number of an IKE_SA.",
    "conn": "A connection.",
    "group": "The part of charon that logs, such as IKE.",
    "level": "How much detail, 0 or 1.",
    "type": "What went wrong; a newer charon may have more types.",
    "direction": "Whether the SA is up, is gone, or failed to be established.",
}
_KEYS = {SA: ("ike", "uniqueid"), CONN: ("conn",), NODE: ()}


def document(prefix: str) -> Part:
    """Return the document for subjects that begin with `prefix`."""
    api = _Document()
    for event, address in patterns(prefix).items():
        api.told(event, address, f"charon's event {event}.", kept=event != "log")
    for kind, form in BRIDGE_EVENTS.items():
        address = Subjects(prefix, "NODE").bridge(kind).replace("NODE", "{node}")
        api.told(kind, address, _about(form), kept=True)
    for bucket, form in BUCKETS.items():
        api.bucket(bucket, _about(form))
    for command in COMMANDS.values():
        api.command(command, prefix)
    return api.whole()


def _about(form: Any) -> str:
    """Return the first paragraph that is said of a type, or of the first of several."""
    first = form if is_typeddict(form) else get_args(form)[0]
    return (inspect.getdoc(first) or "").partition("\n\n")[0]


class _Document:
    """A document that grows; keys are the same in channels, messages and operations as far as they can be."""

    def __init__(self) -> None:
        self._channels: dict[str, Part] = {}
        self._operations: dict[str, Part] = {}
        self._messages: dict[str, Part] = {}

    def told(self, event: str, address: str, summary: str, *, kept: bool) -> None:
        """Add what the bridge publishes about an event."""
        self._messages[event] = _message(summary, event, _event_headers(kept))
        note = (
            "In the JetStream stream as well: acknowledged, in order."
            if kept
            else "One or more envelopes a message. Not kept; drops are told as a gap."
        )
        self._channels[event] = _channel(address, [event], note, kinds(event))
        self._operations[f"tell-{event}"] = _operation("send", event, [event], summary)

    def bucket(self, bucket: str, summary: str) -> None:
        """Add a key-value bucket."""
        own = "".join(f".{{{word}}}" for word in _KEYS[bucket])
        self._messages[bucket] = _message(summary, bucket, None) | {"contentType": "application/json"}
        note = f"The key-value bucket {bucket}; a key is what follows $KV.{bucket}, and is deleted with what it is of."
        self._channels[bucket] = _channel(f"$KV.{bucket}.{{node}}{own}", [bucket], note)
        self._operations[f"mirror-{bucket}"] = _operation("send", bucket, [bucket], summary)

    def command(self, command: CommandSpec, prefix: str) -> None:
        """Add a command: its requests, and the answers to them."""
        name, channel = command.name, f"{command.name}.request"
        self._messages[channel] = _message(f"A request for {name}.", channel, _request_headers())
        replies = self._stream(command, command.event) if command.event else [f"{name}.reply"]
        if f"{name}.reply" in replies:
            marked = (names.PART_HEADER,) if command.event else ()
            self._messages[f"{name}.reply"] = _message(
                f"What charon says to {name}.", f"{name}.reply", _reply_headers(*marked)
            )
        address = command_subject(prefix, "NODE", name).replace("NODE", "{node}")
        self._channels[channel] = _channel(address, [channel], f"With {ALL_NODES} for {{node}} it asks every gateway.")
        self._channels[f"{name}.reply"] = _channel(None, [*replies, "error"], "The inbox that the request names.")
        operation = _operation("receive", channel, [channel], f"charon's command {name}.")
        reply = _operation("", f"{name}.reply", [*replies, "error"], "")
        operation["reply"] = {"channel": reply["channel"], "messages": reply["messages"]}
        if command.quirk:
            operation["description"] = command.quirk
        self._operations[name] = operation | {"tags": [{"name": f"@{command.danger}"}]}

    def _stream(self, command: CommandSpec, event: str) -> list[str]:
        """Add the messages of a stream, and return what may come after a request."""
        part, gathered = f"{event}.part", f"{event}.list"
        self._messages[part] = _message(f"A part of the stream {event}.", f"{event}.data", _reply_headers())
        self._messages[gathered] = _message(
            f"The whole stream in one message, if {names.COLLECT_HEADER} asks for it.",
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
            "An error: an empty message.", None, _reply_headers(*names.ERROR_HEADERS, names.COUNT_HEADER)
        )
        document = {
            "asyncapi": "3.0.0",
            "info": {"title": "vicibridge", "version": version("strongswan-vicifast"), "description": _DESCRIPTION},
            "defaultContentType": "application/msgpack",
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
        channel["parameters"] = {word: {"description": _WORDS[word]} for word in words}
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
            names.CODEC_HEADER: "json or msgpack: the codec of the reply; as the request without.",
            names.COLLECT_HEADER: "true: all parts in one reply, a list.",
            names.TIMEOUT_HEADER: "Seconds.",
            names.USER_HEADER: "For the audit: who asks.",
            names.REQUEST_ID_HEADER: "For the audit: a name of the request.",
        }
    )


def _reply_headers(*more: str) -> Part:
    meaning = {
        names.NODE_HEADER: "Who answers.",
        names.PART_HEADER: "response: this is no part, but what charon says at the end of the stream.",
        names.COUNT_HEADER: "How many parts there were.",
        "Status": "200, or the code of an error as in HTTP.",
        "Description": "What went wrong.",
        names.ERROR_CODE_HEADER: "The code of the error, as in HTTP.",
        names.ERROR_HEADER: "What went wrong.",
    }
    return _headers({name: meaning[name] for name in (names.NODE_HEADER, *more)})
