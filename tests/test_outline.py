"""Outliner: the sections and few values of a message, against the same done with a tree."""

from __future__ import annotations

import random
from typing import Any

import pytest
import reference
from generate import RECORDINGS, SEED, exact, mutated, noise, packed, recorded, trees
from hypothesis import given
from hypothesis import strategies as st

from vicifast import encode
from vicifast._wire import Outliner
from vicifast.errors import DecodeError

KEYS = ("up", "state", "a")


def outlined(data: Any) -> bytes:
    return Outliner(KEYS).outline(data)


def test_sections_and_values_of_an_event() -> None:
    child = {"name": "net", "uniqueid": "7", "state": "INSTALLED", "local-ts": ["10.0.0.0/8"]}
    message = {"up": "yes", "gw": {"uniqueid": "1", "state": "ESTABLISHED", "child-sas": {"net-7": child}}}
    shorter = {"up": "yes", "gw": {"state": "ESTABLISHED", "child-sas": {"": {"name": "net"}}}}
    assert outlined(encode(message)) == encode(shorter)


def test_sections_without_a_name_keep_their_own() -> None:
    pair = {"old": {"name": "net", "state": "REKEYED"}, "new": {}}
    assert outlined(encode({"gw": {"child-sas": {"net": pair}}})) == encode({"gw": {"child-sas": {"net": {}}}})


@given(trees | st.tuples(st.just("gw"), trees).map(lambda pair: ((pair[0], (("child-sas", pair[1]),)),)))
def test_any_message_as_the_model(tree: reference.Tree) -> None:
    outliner = Outliner(KEYS)
    for _ in range(2):
        assert reference.parse(outliner.outline(exact(packed(tree)))) == reference.outline(tree, KEYS)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_messages_as_the_model(path: Any) -> None:
    for message in recorded(path):
        assert reference.parse(outlined(message)) == reference.outline(reference.parse(message), KEYS)


def test_any_bytes_are_outlined_or_refused() -> None:
    rng = random.Random(SEED)
    seeds = [encode({"gw": {"state": "a", "child-sas": {"net-1": {"name": "net", "l": ["x"]}}}, "up": "yes"})]
    for number in range(4000):
        data = noise(rng) if number % 2 else mutated(rng, rng.choice(seeds))
        try:
            tree = reference.parse(data)
        except reference.Malformed:
            with pytest.raises(DecodeError):
                outlined(exact(data))
        else:
            assert reference.parse(outlined(exact(data))) == reference.outline(tree, KEYS), f"VICIFAST_SEED={SEED}"


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError):
        Outliner("up")
    with pytest.raises(TypeError):
        outlined("text")
