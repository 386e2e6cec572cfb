"""The fuzzer's properties hold for its seeds and its old findings, and it detects violations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("msgpack", reason="the properties need msgpack, which the extra `bridge` brings")

import checks
from seeds import REGRESSIONS, seeds


def test_seeds() -> None:
    kinds = set()
    for seed in seeds():
        checks.check(seed)
        kinds.add(seed[:1])
    assert kinds == set(checks.CHECKS)


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_regressions(path: Any) -> None:
    checks.check(path.read_bytes())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("decode", lambda data, **options: {"a": "c"}),
        ("to_msgpack", lambda data, **options: b"\x81\xa1a\xa1c"),
        ("to_json", lambda data, **options: b'{"a":"c"}'),
        ("encode", lambda message: b"\x03\x01a\x00\x01c"),
    ],
)
def test_wrong_result_is_detected(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., object]) -> None:
    checks.check(b"m\x03\x01a\x00\x01b")
    monkeypatch.setattr(checks, name, wrong)
    with pytest.raises(AssertionError):
        checks.check(b"m\x03\x01a\x00\x01b")


def test_unexpected_error_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(data: object, **options: object) -> object:
        raise OverflowError

    monkeypatch.setattr(checks, "to_json", fails)
    with pytest.raises(OverflowError):
        checks.check(b"m\x03")
