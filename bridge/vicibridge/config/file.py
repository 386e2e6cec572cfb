"""Reads the configuration from a TOML file and the environment, and renders it; each problem is one line of text."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings.exceptions import SettingsError

from ..contract.nats_settings import hide
from . import ENV_PREFIX
from .model import LIVE, Config


class SettingsProblem(Exception):
    """An invalid configuration; `problems` has one line for each problem, and shows no secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path | None) -> Config:
    """Return the configuration from the file at `path`, overridden by the environment; raise SettingsProblem."""
    try:
        values = tomllib.loads(path.read_text("utf-8")) if path else {}
    except OSError as error:
        raise SettingsProblem([f"{path}: {error.strerror}"]) from None
    except ValueError as error:
        raise SettingsProblem([f"{path}: invalid TOML: {error}"]) from None
    if wrong := list(_wrong_variables()):
        raise SettingsProblem(wrong)
    try:
        return Config(**values)
    except ValidationError as error:
        raise SettingsProblem([f"{path or 'environment'}: {explain(problem)}" for problem in error.errors()]) from None
    except SettingsError as error:
        raise SettingsProblem([f"environment: {error}; write lists as JSON"]) from None


def adopt(old: Config, new: Config) -> tuple[Config, list[str], list[str]]:
    """Return `old` with the live keys of `new`, the live keys that changed, and those that need a restart.

    A change between configured servers and the embedded one needs a restart, with all of `[nats]`.
    """
    live: list[str] = []
    restart: list[str] = []
    sections = {}
    for section in Config.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        if isinstance(before, BaseModel):
            keys = [key for key in type(before).model_fields if getattr(before, key) != getattr(after, key)]
            changed = [key for key in keys if LIVE in type(before).model_fields[key].metadata]
            if section == "nats" and (old.nats.servers is None) != (new.nats.servers is None):
                changed = []  # credentials for one server are not valid for the other
            live += [f"{section}.{key}" for key in changed]
            restart += [f"{section}.{key}" for key in keys if key not in changed]
            sections[section] = before.model_copy(update={key: getattr(after, key) for key in changed})
        elif before != after:
            restart.append(section)
    return old.model_copy(update=sections), live, restart


def render(config: Config) -> str:
    """Return `config` as TOML with all keys; secrets are hidden."""
    values = config.model_dump(mode="json", exclude_none=True)
    if config.nats.servers:
        values["nats"]["servers"] = [hide(url) for url in config.nats.servers]
    values["nats"]["leaf"]["remotes"] = [hide(url) for url in config.nats.leaf.remotes]
    lines: list[str] = []
    for name, table in values.items():
        tables, header = (table, f"[[{name}]]") if isinstance(table, list) else ([table], f"[{name}]")
        for each in tables:
            lines += _table(header, {key: value for key, value in each.items() if not isinstance(value, dict)})
            for key, value in each.items():
                if isinstance(value, dict):
                    lines += _table(f"[{name}.{key}]", value)
    return "\n".join(lines)


def _table(header: str, values: Mapping[str, object]) -> list[str]:
    # TOML writes strings, numbers, booleans and lists of strings as JSON does.
    return [header, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]


def _wrong_variables() -> Iterator[str]:
    for variable, value in os.environ.items():
        if not variable.upper().startswith(ENV_PREFIX):
            continue
        section, mark, _ = variable.upper().removeprefix(ENV_PREFIX).partition("__")
        if section.lower() not in Config.model_fields:
            known = ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in Config.model_fields)
            yield f"{variable}: unknown variable; known variables start with {known}"
        elif not mark and not _is_json(value):
            yield f"{variable}: not JSON; use {ENV_PREFIX}{section}__KEY to set a single key"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def explain(problem: Mapping[str, Any]) -> str:
    """Return one line that names the key and what to do, without the value, which may be a secret."""
    location = problem["loc"]
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        text = f"unknown key; {hint}"
    if problem["type"] == "list_type":
        text += "; in the environment, write lists as JSON"
    key = ".".join(str(part) for part in location)
    return f"{key}: {text}" if key else text


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for name in location:
        if isinstance(name, str):
            annotation = model.model_fields[name].annotation
            model = (*get_args(annotation), annotation)[0]  # for a list, the type of its elements
    return list(model.model_fields)
