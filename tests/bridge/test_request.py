"""Requests: read strictly, refused without internals."""

from __future__ import annotations

import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vicibridge.commands.request import (
    RequestError,
    decode_request,
    encode_section,
    read_options,
)
from vicibridge.contract.codecs import CODECS, codec_of


def refusal(payload: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_request(payload)
    assert caught.value.code == 400
    return caught.value


@pytest.mark.parametrize(
    ("payload", "codec", "arguments"),
    [
        (b"", "json", {}),
        (b"{}", "json", {}),
        (b' \n{"ike": "gw", "n": 1, "l": ["a"], "s": {"b": true}}', "json",
         {"ike": "gw", "n": "1", "l": ["a"], "s": {"b": "yes"}}),
        (b'{"data": {"$base64": "AP8="}}', "json", {"data": "\x00\udcff"}),
        (msgpack.packb({}), "msgpack", {}),
        (msgpack.packb({"ike": "gw", "raw": b"\xff"}), "msgpack", {"ike": "gw", "raw": "\udcff"}),
    ],
)  # fmt: skip
def test_requests_of_both_codecs(payload: bytes, codec: str, arguments: dict[str, object]) -> None:
    assert codec_of(payload) == codec
    assert decode_request(payload) == arguments


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'{"a": 1, "a": 2}', "duplicate name 'a'"),
        (b'{"s": {"a": 1, "a": 2}}', "s: duplicate name 'a'"),
        (b"\x82\xa1a\x01\xa1a\x02", "duplicate key 'a'"),
        (b"\x81\xc4\x01a\x01", "a key that is not a string at offset 1"),
        (b"\x81\x01\x02", "a key that is not a string at offset 1"),
        (b"\x81\xa1a", "at offset 3"),
        (b"\x81\xa1a\x01\x01", "trailing bytes after the message at offset 4"),
        (b"\x81\xa1\xff\x01", "a name must be printable ASCII"),
        (b'{"a"', "invalid JSON: Expecting ':' delimiter at offset 4"),
        (b'{"a": "' + b"\xff" + b'"}', "invalid UTF-8 at offset 7"),
        (b"\x93\x01\x02\x03", "must be a mapping, not list"),
        (b"hello", "trailing bytes after the message at offset 1"),
        (b"\xc1", "msgpack type 0xc1"),
        (b'{"s": {"d": 1.5}}', "s.d: float is not a VICI value"),
        (b'{"d": null}', "d: NoneType is not a VICI value"),
        (b'{"d": {"$base64": "?"}}', "d: invalid base64"),
        (b'{"d": {"$base64": 7}}', "d: invalid base64"),
        (b'{"$base64": "AA=="}', "must be a mapping, not bytes"),
        (b"{" + b'"a":{' * 100_000, "nested deeper than 64"),
        (b"\x81\xa1a" * 100_000, "nested deeper than 64"),
        (b"\xdf\xff\xff\xff\xff", "at offset 5"),
        (b"{" + b" " * 524288, "524289 bytes"),
    ],
)
def test_bad_requests(payload: bytes, text: str) -> None:
    assert text in refusal(payload).text


@pytest.mark.parametrize(
    "payload",
    [
        b'{"secret": s3cret}',
        b'{"secret": "s3cret" s3cret}',
        b'{"secret": "\\s3cret"}',
        b'{"secret": ["s3cret", ["s3cret"]]}',
        b'{"secret": "' + b"s3cret" * 20_000 + b'"}',
        b'{"secret": {"$base64": "s3cret!"}}',
        b'{"secret": "s3cret", "secret": "s3cret"}',
        b"\x81\xa6secret\x92\xa6s3cret\x91\xa6s3cret",
        b"\x81\xa6secret\xa7s3cret",
        b"\x81\xa6secret\xa6s3crets3cret",
    ],
)
def test_refusal_shows_no_value(payload: bytes) -> None:
    assert "s3cret" not in refusal(payload).text


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_a_request_or_refused(payload: bytes) -> None:
    try:
        assert isinstance(decode_request(payload), dict)
    except RequestError as error:
        assert error.code == 400


def test_headers_of_a_refusal_are_valid() -> None:
    headers = RequestError(409, "two\r\nlines ü " + "x" * 1000).headers()
    assert headers["Nats-Service-Error-Code"] == headers["Status"] == "409"
    assert headers["Nats-Service-Error"].startswith("two lines \\xfc xxx")
    assert len(headers["Description"]) == 500


def test_replies() -> None:
    section = {"a": "1", "l": ["x", "\udcff"], "s": {"": ""}}
    assert json.loads(encode_section("json", section)) == {"a": "1", "l": ["x", {"$base64": "/w=="}], "s": {"": ""}}
    assert msgpack.unpackb(encode_section("msgpack", section)) == {"a": "1", "l": ["x", b"\xff"], "s": {"": ""}}
    assert json.loads(CODECS["json"].join([b'{"a":1}', b"{}"])) == [{"a": 1}, {}]
    assert msgpack.unpackb(CODECS["msgpack"].join([msgpack.packb({"a": 1})] * 70000)) == [{"a": 1}] * 70000
    assert CODECS["json"].join([]) == b"[]"


@pytest.mark.parametrize(
    ("headers", "options"),
    [
        ({}, ("json", False, 30)),
        ({"Vici-Timeout": "2.5", "Vici-Collect": "True"}, ("json", True, 2.5)),
        ({"Vici-Timeout": "1e9", "Vici-Codec": "msgpack", "Vici-Collect": "false"}, ("msgpack", False, 30)),
        ({"Vici-Timeout": "inf", "Vici-Codec": "json"}, ("json", False, 30)),
    ],
)
def test_headers_of_a_request(headers: dict[str, str], options: tuple[object, ...]) -> None:
    assert read_options(b"{}", headers, 30) == options


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *[("Vici-Timeout", text) for text in ("", "0", "-1", "nan", "-inf", "soon", "1,5", "0x10")],
        *[("Vici-Codec", text) for text in ("", "raw", "JSON")],
        *[("Vici-Collect", text) for text in ("", "yes", "1")],
    ],
)
def test_invalid_headers_are_refused_and_named(header: str, value: str) -> None:
    with pytest.raises(RequestError, match=header) as caught:
        read_options(b"{}", {header: value}, 30)
    assert caught.value.code == 400
