"""Bucket values: conversion to JSON and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from vicibridge.contract.bridge_events import ResyncData
from vicibridge.contract.bucket_values import BUCKETS, NODE, dump, load
from vicibridge.contract.subjects import Subjects
from vicibridge.mirror.model import Mirror


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


ROOT = Path(__file__).parents[2]
# Files that name every bucket and cannot be generated from the table.
BY_HAND = (
    *("README.md", "bridge/bridge.example.toml", "examples/hub.py"),
    *(f"bridge/nats/{user}.conf" for user in ("gateway", "reader", "operator")),
)


@pytest.mark.parametrize("file", BY_HAND)
def test_files_that_name_the_buckets_name_all(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert [bucket for bucket in BUCKETS if bucket not in text] == [], f"add them to {file}"


def test_resync_is_of_every_bucket_with_state_of_charon() -> None:
    assert set(get_args(get_type_hints(ResyncData)["bucket"])) == BUCKETS.keys() - {NODE}


@pytest.mark.parametrize("bucket", ["VICI_OTHER", NODE])
def test_only_buckets_with_state_of_charon_are_restored(bucket: str) -> None:
    mirror = Mirror(Subjects("vici", "gw1"), "gw1", "boot")
    with pytest.raises(KeyError):
        mirror.restore((bucket, "gw1.gw"), b"{}", 1)
    assert not mirror.changed
