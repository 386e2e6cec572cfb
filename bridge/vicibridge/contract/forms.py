"""Checks that JSON or msgpack from the bus has the form of one of the TypedDicts of this package."""

from __future__ import annotations

import math
import types
from functools import lru_cache
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

_LEAST, _MOST = -(2**63), 2**64 - 1  # the integers of msgpack


def check(value: object, form: Any, where: str = "") -> None:
    """Raise ValueError, with the place and the reason, unless `value` has `form`.

    A form is built of TypedDicts, `dict` and `list` with their arguments, unions, literals, `str`, `int`, `float`,
    `bool` and `Any`, which stands for charon's strings, lists of strings and sections. Unknown keys are allowed.
    """
    kind = get_origin(form)
    if kind in (Union, types.UnionType):
        _check_union(value, get_args(form), where)
    elif kind is Literal:
        if not any(value == known and type(value) is type(known) for known in get_args(form)):
            raise _wrong(where, f"is not {' or '.join(map(repr, get_args(form)))}")
    elif is_typeddict(form):
        items = _section(value, where)
        for key, hint in hints(form).items():
            if key in items:
                check(items[key], hint, _below(where, key))
            elif key in required(form):
                raise _wrong(_below(where, key), "is missing")
    elif kind is dict:
        for key, item in _section(value, where).items():
            check(item, get_args(form)[1], _below(where, key))
    elif kind is list:
        if not isinstance(value, list):
            raise _wrong(where, "is not a list")
        for item in value:
            check(item, get_args(form)[0], where)
    elif form is Any:
        check_text(value, where)
    elif not _is(value, form):
        raise _wrong(where, _WANTED[form])


def check_text(value: object, where: str = "") -> None:
    """Raise ValueError unless `value` is what charon sends: a string, a list of strings, or a section of these."""
    if isinstance(value, dict):
        for key, item in _section(value, where).items():
            check_text(item, _below(where, key))
    elif not all(_is(one, str) for one in (value if isinstance(value, list) else [value])):
        raise _wrong(where, "is not a string, a list of strings, or an object")


def check_plain(value: object, where: str = "") -> None:
    """Raise ValueError unless JSON can hold `value`, with numbers of at most 64 bits."""
    if isinstance(value, dict):
        for key, item in _section(value, where).items():
            if not (type(item) is str and item.isascii()):  # the most frequent, quickly
                check_plain(item, _below(where, key))
    elif isinstance(value, list):
        for item in value:
            check_plain(item, where)
    elif not (value is None or isinstance(value, bool) or _is(value, str) or _is(value, float)):
        raise _wrong(where, "is not JSON")


@lru_cache
def required(form: Any) -> frozenset[str]:
    """Return the keys that a TypedDict requires."""
    annotations = get_type_hints(form, include_extras=True)
    return frozenset(key for key in form.__required_keys__ if get_origin(annotations[key]) is not NotRequired)


@lru_cache
def hints(form: Any) -> dict[str, Any]:
    """Return the form of each key of a TypedDict."""
    return get_type_hints(form)


_WANTED = {
    str: "is not a string",
    int: "is not an integer of 64 bits",
    float: "is not a number",
    bool: "is not true or false",
    type(None): "is not null",
}


def _is(value: object, form: Any) -> bool:
    if form is float and isinstance(value, float):
        return math.isfinite(value)
    if form in (int, float):
        return type(value) is int and _LEAST <= value <= _MOST
    if form is str:
        return isinstance(value, str) and _is_text(value)
    return isinstance(value, form)


def _is_text(text: str) -> bool:
    """Whether a string is UTF-8 or, with `surrogateescape`, any bytes; JSON can hold other lone surrogates."""
    try:
        return text.isascii() or bool(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def _check_union(value: object, forms: tuple[Any, ...], where: str) -> None:
    problem = ValueError()
    for form in forms:
        try:
            return check(value, form, where)
        except ValueError as error:
            problem = error if not problem.args else problem
    raise problem


def _section(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not all([type(key) is str and _is_text(key) for key in value]):
        raise _wrong(where, "is not an object")
    return value


def _below(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _wrong(where: str, what: str) -> ValueError:
    return ValueError(f"{where or 'the value'} {what}")
