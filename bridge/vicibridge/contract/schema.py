"""JSON Schemas (2020-12) of every message on the bus, generated from the tables and types that the code itself uses.

`schemas()` names them: `ike-updown` is the envelope of that event, `ike-updown.data` its data; `list-sas.request` and
`list-sas.reply` belong to a command, `list-sa.data` is a part of its stream; `VICI_SA` is a value in that bucket. They
describe JSON. Msgpack has the same structure, with `bin` for `{"$base64": ...}`. Unknown keys are allowed, because
newer daemons add keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeAlias

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import is_typeddict

from vicifast.commands import ALERTS, COMMANDS, EVENTS, TRANSFORMS, CommandSpec, Kind
from vicifast.results import Alert, ChildSa, IkeSa, IkeUpdate, LogLine

from . import bridge_events, bucket_values

Schema: TypeAlias = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE = "#/$defs/"

_NUMBER = {"type": "string", "pattern": "^-?[0-9]+$"}
_TEXT = {
    "description": "A string; in base64 if it is not valid UTF-8.",
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"$base64": {"type": "string"}}, "required": ["$base64"], "maxProperties": 1},
    ],
}


def refer(name: str) -> Schema:
    """Return a schema that refers to the schema of that name."""
    return {"$ref": f"{REFERENCE}{name}"}


_LIST = {"type": "array", "items": refer("text")}
_SWITCHES = {"esn": "1"}  # the others are yes, or absent
# By the annotation of a field in vicifast.results.
_FORMS = {
    "str": refer("text"),
    "int": _NUMBER,
    "timedelta": _NUMBER,
    "tuple[str, ...]": _LIST,
}
_REQUESTS: Mapping[Kind, Schema] = {
    Kind.TEXT: {"type": "string", "pattern": "^[ -~]*$"},
    Kind.NUMBER: {"anyOf": [{"type": "integer"}, _NUMBER]},
    Kind.MILLISECONDS: {
        "anyOf": [{"type": "integer", "minimum": -1}, {"type": "string", "pattern": "^(-1|[0-9]+)$"}],
        "description": "0 waits indefinitely, -1 does not wait.",
    },
    Kind.SWITCH: {"enum": [True, False, "yes", "no"]},
    Kind.PRESENCE: {"enum": [True, "yes"], "description": "Present or absent: charon reads even no as yes."},
    Kind.LIST: _LIST,
    Kind.BLOB: refer("text"),
}


@lru_cache
def schemas() -> Mapping[str, Schema]:
    """Return every schema by name; they refer to each other as `#/$defs/NAME`."""
    return {
        "text": _TEXT,
        "value": {"anyOf": [refer("text"), _LIST, refer("section")]},
        "section": _each(refer("value")),
        "argument": {
            "description": "A value in a request: numbers, true and false may replace their strings.",
            "anyOf": [
                {"type": ["integer", "boolean"]},
                refer("text"),
                {"type": "array", "items": {"anyOf": [{"type": ["integer", "boolean"]}, refer("text")]}},
                _each(refer("argument")),
            ],
        },
        "ike-sa": _sa(IkeSa, {"child-sas": _each(refer("child-sa"))}),
        "child-sa": _sa(ChildSa, {}),
        "proposal": {
            "description": "Algorithms as NAME or NAME_KEYSIZE, such as AES_CBC_128; since strongSwan 6.0.7.",
            **_object(dict.fromkeys(TRANSFORMS, _LIST), []),
        },
        **{f"{name}.data": schema for name, schema in _events().items()},
        **_typed(),
        **{name: _envelope(name) for name in [*_standalone(), *bridge_events.BRIDGE_EVENTS]},
        **{f"{name}.request": _request(command) for name, command in COMMANDS.items()},
        **{f"{name}.reply": _reply(command) for name, command in COMMANDS.items()},
    }


def document(name: str) -> Schema:
    """Return the schema of that name and all schemas that it refers to; raise KeyError for an unknown name."""
    known = schemas()
    needed: dict[str, Schema] = {}
    waiting = list(_references(known[name]))
    while waiting:
        other = waiting.pop()
        if other not in needed:
            needed[other] = known[other]
            waiting += _references(known[other])
    return {"$schema": DIALECT, "title": name, **known[name], "$defs": dict(sorted(needed.items()))}


def _references(schema: Schema) -> Iterator[str]:
    yield from re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema))


def _standalone() -> list[str]:
    return [event.name for event in EVENTS.values() if event.standalone]


def _each(schema: Schema) -> Schema:
    return {"type": "object", "additionalProperties": schema}


def _object(properties: Schema, required: list[str], more: Schema | None = None) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": refer("value") if more is None else more,
    }


def _sa(kind: type, own: Schema) -> Schema:
    """Return the schema of a section that a class in `vicifast.results` parses."""
    properties, required = _fields(kind)
    return _object({**properties, **own}, required)


def _fields(kind: type) -> tuple[Schema, list[str]]:
    """Return the schema of each field of `kind` by key, and the keys that charon always writes."""
    properties: Schema = {}
    required = []
    for field in fields(kind):
        annotation, key = str(field.type), field.name.replace("_", "-")
        form = annotation.removesuffix(" | None")
        if form == "bool":
            properties[key] = {"const": _SWITCHES.get(key, "yes")}
        elif form in _FORMS:
            properties[key] = _FORMS[form]
            if annotation in ("str", "int"):
                required.append(key)
    return properties, required


def _events() -> dict[str, Schema]:
    """Return the schema of the data of each of charon's events, including streamed ones."""
    ike, child = refer("ike-sa"), refer("child-sa")
    one_child = {"properties": {"child-sas": {**_each(child), "minProperties": 1}}, "required": ["child-sas"]}
    rekeyed_child = {"child-sas": _each(_object({"old": child, "new": child}, ["old", "new"]))}
    properties, required = _fields(IkeSa)
    log = _object(*_fields(LogLine))
    update, moved = _fields(IkeUpdate)
    alert, alerted = _fields(Alert)
    alert["type"] = {**alert["type"], "examples": list(ALERTS)}
    return {
        "log": log,
        "ike-updown": _of_connection(ike, up=True),
        "ike-rekey": _of_connection(_object({"old": ike, "new": ike}, ["old", "new"])),
        "ike-update": _of_connection(ike, properties=update, required=moved),
        "child-updown": _of_connection({"allOf": [ike, one_child]}, up=True),
        "child-rekey": _of_connection(_object({**properties, **rekeyed_child}, [*required, "child-sas"])),
        "alert": _object({**alert, "ike-sa": _each(ike)}, alerted),
        "control-log": log,
        "list-sa": _each(ike),
        "list-conn": _each(_conn()),
        **{name: _each(refer("section")) for name in ("list-policy", "list-authority")},
        "list-cert": _object({"data": refer("text"), "type": refer("text")}, ["type"]),
    }


def _conn() -> Schema:
    """Return the schema of a configured connection: keys that every version of charon lists, and newer ones."""
    proposals = _each(refer("proposal"))
    child = {key: _LIST for key in ("local-ts", "remote-ts")}
    properties = {
        **dict.fromkeys(("local_addrs", "remote_addrs"), _LIST),
        **dict.fromkeys(("local_port", "remote_port", "reauth_time", "rekey_time"), _NUMBER),
        **dict.fromkeys(("version", "unique"), refer("text")),
        "proposals": proposals,
        "children": _each(_object({**child, "esp_proposals": proposals, "ah_proposals": proposals}, list(child))),
    }
    return _object(properties, ["local_addrs", "remote_addrs", "version", "children"])


def _of_connection(
    section: Schema, *, up: bool = False, properties: Schema | None = None, required: list[str] | None = None
) -> Schema:
    """Return the schema of a message with a section named like the connection, and other keys.

    If the connection is named `up`, its section hides the key `up`.
    """
    beside = {**(properties or {}), **({"up": {"anyOf": [{"const": "yes"}, section]}} if up else {})}
    more: Schema = {"anyOf": [section, refer("text"), _LIST]}
    # Where all values are texts or lists, the section is missing.
    missing = {"not": {"additionalProperties": {"anyOf": [{"type": "string"}, {"type": "array"}]}}}
    return {**_object(beside, required or [], more), **missing}


def _typed() -> dict[str, Schema]:
    """Return the schemas of the bridge's own events and of the values in buckets."""
    for form in [*vars(bucket_values).values(), *vars(bridge_events).values()]:
        if is_typeddict(form):
            with_config(ConfigDict(use_attribute_docstrings=True))(form)
    forms = {f"{kind}.data": form for kind, form in bridge_events.BRIDGE_EVENTS.items()}
    forms |= {bucket.name: bucket.value for bucket in bucket_values.BUCKETS.values()}
    own, shared = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(form)) for name, form in forms.items()], ref_template=REFERENCE + "{model}"
    )
    return {**shared["$defs"], **{name: own[name, "validation"] for name in forms}}


def _envelope(event: str) -> Schema:
    integer = {"type": "integer", "minimum": 1}
    properties: Schema = {
        "v": {"const": 1},
        "node": {"type": "string", "description": "The gateway."},
        "boot": {"type": "string", "description": "Identifies one run of the bridge; later runs sort later."},
        "seq": {**integer, "description": "The number of the event in its class, counted from 1 in each run."},
        "time": {**integer, "description": "When the event was read, in nanoseconds since the epoch."},
        "event": {"const": event},
        "data": refer(f"{event}.data"),
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": True}


def _request(command: CommandSpec) -> Schema:
    if command.named:
        return {**_each(refer("argument")), "minProperties": 1, "maxProperties": 1}
    properties = {key.name: _REQUESTS[key.kind] for key in command.keys}
    return _object(properties, [key.name for key in command.keys if key.required], refer("argument"))


def _reply(command: CommandSpec) -> Schema:
    properties: Schema = {name: refer("value") for name in command.reply if " " not in name}
    if command.result:
        properties |= {"success": {"enum": ["yes", "no"]}, "errmsg": refer("text")}
    sections = any(" " in name for name in command.reply)
    return _object(properties, ["success"] if command.result else [], refer("section") if sections else None)
