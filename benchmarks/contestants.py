"""The contestants of the codec tables: vicifast and its peers, each on the format that it reads or writes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import msgspec
import orjson
import ormsgpack
from vici.protocol import FiniteStream  # type: ignore[import-untyped]
from vici.protocol import Message as PythonVici

import vicifast

from .corpus import follow

Function = Callable[[Any], Any]


class Contestant(NamedTuple):
    """`make` returns a new function from the form `takes` to the form `gives`, both attributes of `Traffic`."""

    name: str
    make: Callable[[], Function]
    takes: str
    gives: str


class Operation(NamedTuple):
    name: str
    title: str
    contestants: list[Contestant]


def operations() -> list[Operation]:
    """All operations. The name of a contestant that uses more than vicifast contains a comma."""
    return [
        Operation("decode-drop", "decode, each result dropped", _decoders()),
        Operation("decode-keep", "decode, all results kept", _decoders()),
        Operation("encode", "encode", _encoders()),
        Operation("lazy", "five fields of each message", _lazy()),
        Operation("to-msgpack", "VICI to msgpack", _to_msgpack()),
        Operation("to-json", "VICI to JSON", _to_json()),
        Operation("from-msgpack", "msgpack to VICI", _from_msgpack()),
        Operation("from-json", "JSON to VICI", _from_json()),
    ]


def contestant_of(operation: str, name: str) -> Contestant:
    contestants = next(one.contestants for one in operations() if one.name == operation)
    return next(one for one in contestants if one.name == name)


def _python_vici_decode(message: bytes) -> Any:
    return PythonVici.deserialize(FiniteStream(message))


def _decoders() -> list[Contestant]:
    return [
        Contestant("vicifast Decoder", lambda: vicifast.Decoder().decode, "messages", "dicts"),
        Contestant("vicifast decode", lambda: vicifast.decode, "messages", "dicts"),
        Contestant("python vici", lambda: _python_vici_decode, "messages", "dicts"),
        Contestant("msgspec.msgpack", lambda: msgspec.msgpack.Decoder().decode, "msgpack", "dicts"),
        Contestant("ormsgpack", lambda: ormsgpack.unpackb, "msgpack", "dicts"),
        Contestant("msgpack", lambda: msgpack.unpackb, "msgpack", "dicts"),
        Contestant("msgspec.json", lambda: msgspec.json.Decoder().decode, "json", "jsonables"),
        Contestant("orjson", lambda: orjson.loads, "json", "jsonables"),
    ]


def _encoders() -> list[Contestant]:
    return [
        Contestant("vicifast encode", lambda: vicifast.encode, "dicts", "messages"),
        Contestant("python vici", lambda: PythonVici.serialize, "dicts", "messages"),
        Contestant("ormsgpack", lambda: ormsgpack.packb, "dicts", "msgpack"),
        Contestant("msgspec.msgpack", lambda: msgspec.msgpack.Encoder().encode, "dicts", "msgpack"),
        Contestant("msgpack", lambda: msgpack.packb, "dicts", "msgpack"),
        Contestant("msgspec.json", lambda: msgspec.json.Encoder().encode, "jsonables", "json"),
        Contestant("orjson", lambda: orjson.dumps, "jsonables", "json"),
    ]


def _lazy() -> list[Contestant]:
    def message_and_fields(lookup: Any) -> list[Any]:
        data, a, b, c, d, e = lookup
        get = vicifast.Message(data).get
        return [get(*a), get(*b), get(*c), get(*d), get(*e)]

    def decode_and_fields(decode: Function) -> Function:
        def decoded_fields(lookup: Any) -> list[Any]:
            data, a, b, c, d, e = lookup
            tree = decode(data)
            return [follow(tree, a), follow(tree, b), follow(tree, c), follow(tree, d), follow(tree, e)]

        return decoded_fields

    def decoder_and_fields() -> Function:
        return decode_and_fields(vicifast.Decoder().decode)

    return [
        Contestant("vicifast Message", lambda: message_and_fields, "lookups", "fields"),
        Contestant("vicifast Decoder, dict.get", decoder_and_fields, "lookups", "fields"),
        Contestant("python vici", lambda: decode_and_fields(_python_vici_decode), "lookups", "fields"),
    ]


def _to_msgpack() -> list[Contestant]:
    def transcoder() -> Function:
        return vicifast.Transcoder("msgpack").transcode

    def decoder_and_msgspec() -> Function:
        decode, encode = vicifast.Decoder(binary=("data",)).decode, msgspec.msgpack.Encoder().encode
        return lambda message: encode(decode(message))

    return [
        Contestant("vicifast Transcoder", transcoder, "messages", "msgpack"),
        Contestant("vicifast to_msgpack", lambda: vicifast.to_msgpack, "messages", "msgpack"),
        Contestant("vicifast Decoder, msgspec.msgpack", decoder_and_msgspec, "messages", "msgpack"),
        Contestant("python vici, msgpack", lambda: _python_vici_to_msgpack, "messages", "msgpack"),
    ]


def _to_json() -> list[Contestant]:
    return [
        Contestant("vicifast Transcoder", lambda: vicifast.Transcoder("json").transcode, "messages", "json"),
        Contestant("vicifast to_json", lambda: vicifast.to_json, "messages", "json"),
        Contestant("python vici, orjson", lambda: _python_vici_to_json, "messages", "json"),
    ]


def _from_msgpack() -> list[Contestant]:
    def msgspec_and_encode() -> Function:
        decode, encode = msgspec.msgpack.Decoder().decode, vicifast.encode
        return lambda data: encode(decode(data))

    return [
        Contestant("vicifast from_msgpack", lambda: vicifast.from_msgpack, "msgpack", "messages"),
        Contestant("vicifast encode, msgspec.msgpack", msgspec_and_encode, "msgpack", "messages"),
        Contestant("python vici, msgpack", lambda: _msgpack_to_python_vici, "msgpack", "messages"),
    ]


def _from_json() -> list[Contestant]:
    def msgspec_and_encode() -> Function:
        decode = msgspec.json.Decoder().decode
        return lambda data: vicifast.encode(_with_binary(decode(data)))

    return [
        Contestant("vicifast from_json", lambda: vicifast.from_json, "json", "messages"),
        Contestant("vicifast encode, msgspec.json", msgspec_and_encode, "json", "messages"),
        Contestant("vicifast encode, orjson", lambda: _json_to_vicifast, "json", "messages"),
        Contestant("python vici, orjson", lambda: _json_to_python_vici, "json", "messages"),
    ]


def _as_text(section: Any) -> Any:
    """Convert the bytes values of python vici to text in place; only binary values stay bytes."""
    for name, value in section.items():
        if type(value) is bytes:
            try:
                section[name] = value.decode()
            except UnicodeDecodeError:
                pass
        elif type(value) is list:
            section[name] = [item.decode() for item in value]
        else:
            _as_text(value)
    return section


def _python_vici_to_msgpack(message: bytes) -> bytes:
    return msgpack.packb(_as_text(_python_vici_decode(message)))  # type: ignore[no-any-return]


def _python_vici_to_json(message: bytes) -> bytes:
    section = _as_text(_python_vici_decode(message))
    if type(section.get("data")) is bytes:  # list-cert, the only binary value
        section["data"] = {"$base64": base64.b64encode(section["data"]).decode()}
    return orjson.dumps(section)


def _msgpack_to_python_vici(data: bytes) -> bytes:
    return PythonVici.serialize(msgpack.unpackb(data))  # type: ignore[no-any-return]


def _with_binary(section: Any) -> Any:
    """Decode the binary value of list-cert in place."""
    if type(section.get("data")) is dict:
        section["data"] = base64.b64decode(section["data"]["$base64"])
    return section


def _json_to_vicifast(data: bytes) -> bytes:
    return vicifast.encode(_with_binary(orjson.loads(data)))


def _json_to_python_vici(data: bytes) -> bytes:
    return PythonVici.serialize(_with_binary(orjson.loads(data)))  # type: ignore[no-any-return]
