"""Bucket values: conversion to JSON and back."""

from __future__ import annotations

import json

import pytest
from vicibridge.contract.bucket_values import dump, load
from vicibridge.contract.subjects import Subjects


def test_text_and_other_bytes_round_trip() -> None:
    value = {
        "ike": "zürich",
        "sa": {"remote-id": "a\udcff", "vips": ["10.0.0.1", "\udc80"]},
        "since": 2**63,
        "up": None,
    }
    written = dump(value)
    assert json.loads(written) == {
        "ike": "zürich",
        "sa": {"remote-id": {"$base64": "Yf8="}, "vips": ["10.0.0.1", {"$base64": "gA=="}]},
        "since": 2**63,
        "up": None,
    }
    assert load(written) == value


def test_plain_values_are_compact() -> None:
    assert dump({"a": {"b": ["ü"]}}) == '{"a":{"b":["ü"]}}'.encode()


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a": {"$base64": "?"}}'])
def test_invalid_values(data: bytes) -> None:
    with pytest.raises(ValueError):
        load(data)


def test_names_in_keys_are_escaped() -> None:
    subjects = Subjects("vici", "gw.1")
    assert subjects.key() == "gw=2E1"
    assert subjects.key("site a", "7") == "gw=2E1.site=20a.7"
    assert subjects.key("") == "gw=2E1.="
