"""A parser for strongSwan's settings format, used by swanctl.conf and strongswan.conf.

It accepts the syntax of strongSwan 5.9.8 to 6.1.0 (`settings_lexer.l`, `settings_parser.y`, `settings.c` and
strongswan.conf(5)): nested sections, references to other sections, merging of repeated sections, `key =` to unset an
inherited value, strings with escapes, includes with wildcards. Unlike strongSwan, which ignores these or crashes, it
rejects an included file or directory that cannot be read, an included device or pipe, and circular includes and
references. No error contains any part of a value, as values may be secrets.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from .. import _wire
from ..errors import ConfigError

_MAX_FILE = 64 * 1024**2

_SPACE = re.compile(r"(?:[\t\r\n ]|#[^\n]*)+")
_INCLUDE = re.compile(r"include[\t ]+(?=[^=])")
_NAME = re.compile(r'[^#{}:.,="\r\n\t ]+')
_REFERENCE = re.compile(rf"{_NAME.pattern}(?:\.{_NAME.pattern})*")
_BLANK = re.compile(r"[\t\r ]*")
_WORD = re.compile(r'[^#}"\r\n\t ]+')
_STRING = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(\r?\n|.)|\r", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\n": "", "\r\n": "", None: ""}
_PATTERN_PART = re.compile(r'\\(["#} ])|(\\|[^"\\#}\r\n\t ]+)|\r')


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return the content of a file. Raises `ConfigError` if it is longer than `limit` bytes, and OSError."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ConfigError(f"{os.fspath(path)} is larger than {limit // 1024} KiB")
    return data


class _ConfigSection:
    __slots__ = ("values", "sections", "references")

    def __init__(self) -> None:
        self.values: dict[str, str | None] = {}
        self.sections: dict[str, _ConfigSection] = {}
        self.references: dict[str, str] = {}  # absolute name -> position of the reference


class Settings:
    """A settings file with its includes; a path is the names of nested sections, outermost first."""

    def __init__(self, root: _ConfigSection) -> None:
        self._root = root
        self._resolved: dict[str, list[_ConfigSection]] = {}
        self._resolving: list[str] = []

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file. Raises `ConfigError`, which names the file and line of the error."""
        return cls(_parse(os.fspath(path)))

    def values(self, *path: str) -> dict[str, str]:
        """Return the values of a section and those it inherits through references; empty if it does not exist.

        Bytes that are not UTF-8 become surrogates. Raises `ConfigError` for circular references.
        """
        found: dict[str, str | None] = {}
        for section in self._find(path):
            for key, value in section.values.items():
                found.setdefault(key, value)
        return {key: value for key, value in found.items() if value is not None}

    def sections(self, *path: str) -> list[str]:
        """Return the names of the sections in a section and of those it inherits through references."""
        return list(dict.fromkeys(name for section in self._find(path) for name in section.sections))

    def _find(self, path: Sequence[str]) -> list[_ConfigSection]:
        if len(path) > _wire.MAX_DEPTH:  # a section that refers to an enclosing one nests infinitely
            raise ConfigError(f"{'.'.join(path[:4])}...: sections nested deeper than {_wire.MAX_DEPTH}")
        found: list[_ConfigSection] = []
        self._collect(self._root, path, found, follow=True)
        return found

    def _collect(
        self, section: _ConfigSection, path: Sequence[str], found: list[_ConfigSection], *, follow: bool
    ) -> None:
        """Add the section at `path` and those it inherits from, nearest first.

        If a section on the path has references, the rest of the path is also looked up in the sections they name;
        `follow` is false for these, as their own references have already been resolved.
        """
        inner = section.sections.get(path[0])
        if inner is not None and len(path) > 1:
            self._collect(inner, path[1:], found, follow=True)
        elif inner is not None and inner not in found:
            found.append(inner)
            for reference in inner.references:
                self._collect(self._root, reference.split("."), found, follow=True)
        if follow:
            for reference, where in section.references.items():
                for referred in self._resolve(reference, where):
                    self._collect(referred, path, found, follow=False)

    def _resolve(self, reference: str, where: str) -> list[_ConfigSection]:
        if reference in self._resolving:
            raise ConfigError(f"{where}: circular reference to {reference}")
        if reference not in self._resolved:
            self._resolving.append(reference)
            try:
                self._resolved[reference] = self._find(reference.split("."))
            finally:
                self._resolving.pop()
        return self._resolved[reference]


class _Lexeme(NamedTuple):
    kind: str  # "name", "value", or one of the marks { } : . , =
    text: str | None
    where: str


class _File:
    """A file being read: its text and the position in it."""

    def __init__(self, path: str, within: tuple[str, ...]) -> None:
        self.path = path
        self.within = (*within, os.path.realpath(path))
        self.line = 1
        self._position = 0
        try:
            self._text = read_bounded(path, _MAX_FILE).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Consume and return the match of `pattern` at the current position."""
        match = pattern.match(self._text, self._position)
        if match is not None:
            self.line += match[0].count("\n")
            self._position = match.end()
        return match

    def at(self, mark: str) -> bool:
        return self._text.startswith(mark, self._position)

    def mark(self) -> str:
        """Consume and return one character; empty at the end."""
        self._position += 1
        return self._text[self._position - 1 : self._position]


def _parse(path: str) -> _ConfigSection:
    """Parse a file with its includes, which the grammar treats as one text."""
    root = _ConfigSection()
    opened: list[tuple[_ConfigSection, str]] = [(root, "")]
    tokens = _tokens(_File(path, ()))
    for token in tokens:
        section, where = opened[-1]
        if token.kind == "}" and where:
            opened.pop()
        elif token.kind != "name":
            raise ConfigError(f"{token.where}: expected a name, not {token.kind}")
        elif _is_section(section, token, tokens):
            opened.append((section.sections[token.text or ""], token.where))
            if len(opened) > _wire.MAX_DEPTH:
                raise ConfigError(f"{token.where}: sections nested deeper than {_wire.MAX_DEPTH}")
    if len(opened) > 1:
        raise ConfigError(f"{opened[-1][1]}: the section that begins here is not closed")
    return root


def _is_section(parent: _ConfigSection, name: _Lexeme, tokens: Iterator[_Lexeme]) -> bool:
    """Add the value or section that begins with `name` to `parent`; return whether it is a section."""
    assert name.text is not None
    token = next(tokens, None)
    if token is not None and token.kind == "=":
        parent.values[name.text] = next(tokens).text
        return False
    if token is None or token.kind not in "{:":
        raise ConfigError(f"{name.where}: expected '=', '{{' or ':' after a name")
    section = parent.sections.setdefault(name.text, _ConfigSection())
    while token is not None and token.kind != "{":
        reference, token = next(tokens, None), next(tokens, None)
        if reference is None or reference.text is None or token is None or token.kind not in "{,":
            raise ConfigError(f"{name.where}: expected comma-separated section names and '{{' after ':'")
        section.references.setdefault(reference.text, reference.where)
    return True


def _tokens(file: _File) -> Iterator[_Lexeme]:
    name = _NAME
    while True:
        file.take(_SPACE)
        where = file.where
        if name is _NAME and file.take(_INCLUDE):
            for included in _included(file, _pattern(file)):
                yield from _tokens(included)
        elif match := file.take(name):
            yield _Lexeme("name", match[0], where)
        elif file.at('"'):
            raise ConfigError(f"{where}: expected a name, not a string")
        elif mark := file.mark():
            yield _Lexeme(mark, None, where)
            if mark == "=":
                yield _Lexeme("value", _value(file), where)
            if mark != ",":  # names in a list of references are absolute and contain dots
                name = _REFERENCE if mark == ":" else _NAME
        else:
            return


def _value(file: _File) -> str | None:
    """Return the words and strings up to the end of the line, joined with spaces; None if there are none."""
    parts = []
    while True:
        file.take(_BLANK)
        if file.at('"'):
            parts.append(_string(file))
        elif word := file.take(_WORD):
            parts.append(word[0])
        else:
            return " ".join(parts) if parts else None


def _string(file: _File) -> str:
    where = file.where
    match = file.take(_STRING)
    if match is None:
        raise ConfigError(f"{where}: the string that begins here is not closed")
    return _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), match[1])


def _pattern(file: _File) -> str:
    parts = []
    while match := file.take(_PATTERN_PART):
        parts.append(match[1] or match[2] or "")
    if file.at('"'):
        parts.append(_string(file))
    return "".join(parts)


def _included(file: _File, pattern: str) -> Iterator[_File]:
    """Yield the files that match, ordered by name; patterns are relative to the including file."""
    where = file.where
    # glob(3) escapes a character with a backslash, Python's glob only with brackets
    pattern = re.sub(r"\\(.)", lambda quoted: glob.escape(quoted[1]), pattern)
    if not pattern:
        return
    try:
        for path in _matches(os.path.join(glob.escape(os.path.dirname(file.path)), pattern)):
            if os.path.realpath(path) in file.within:
                raise ConfigError(f"{where}: {path} includes itself")
            mode = os.stat(path).st_mode
            if stat.S_ISREG(mode):
                yield _File(path, file.within)
            elif not stat.S_ISDIR(mode):  # strongSwan ignores it, and vicifast would unload what it was to hold
                raise ConfigError(f"{where}: {path} is not a regular file")
    except OSError as error:
        raise ConfigError(f"{where}: {error.filename}: {error.strerror}") from None


def _matches(pattern: str) -> list[str]:
    """Return the matches of `glob`, but raise OSError for an unreadable file or directory, which `glob` ignores."""
    parent, name = os.path.split(pattern)
    wildcard = glob.escape(name) != name
    for directory in _matches(parent) if parent not in ("", pattern) else [parent or os.curdir]:
        path = directory if wildcard else os.path.join(directory, name)
        try:
            if wildcard:
                os.scandir(path).close()
            else:
                os.stat(path)
        except NotADirectoryError:
            pass
        except FileNotFoundError:
            if os.path.islink(path):
                raise
    return sorted(glob.glob(pattern))
