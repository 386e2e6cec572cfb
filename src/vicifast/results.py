"""Typed classes for charon's messages about SAs; sessions themselves return plain messages.

    for message in session.list_sas():
        sa = IkeSa.from_message(message)
        print(sa.name, sa.remote_host, sa.established, [child.bytes_in for child in sa.children])

    for name, message in session.listen("ike-updown", "child-updown", "log"):
        match parse_event(name, message):
            case IkeUpDown(ike, "up"):
                print(ike.name, "is up")
            case IkeUpDown(ike, "failed"):
                print(ike.name, "was not established")

A field has the name of its key, with `_` for `-` (strongSwan 5.9.8 to 6.1.0, vici_query.c and vici_logger.c). Numbers
are int, times timedelta, lists tuples; hexadecimal numbers (SPIs, CPIs, marks, interface ids, labels) remain text as
charon writes them. A key that charon omitted is None, False or (). Anything else, such as the keys of a newer charon,
is in `extra`, so that `to_message()` restores everything that `from_message()` read.

Messages may be dicts of str or bytes, or `Message`. The section of an SA has the name of its connection; if that is
`up`, only a `Message` can distinguish it from the key `up`: a session with `values=Message` works for every name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, cast, get_args

from ._wire import Message, encode
from .commands import UNESTABLISHED

SectionName: TypeAlias = str
Extra: TypeAlias = dict[str, Any]


class _Form(NamedTuple):
    """The encoding of a value in a message; `read` returns None for a value in another form."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _seconds(value: Any) -> timedelta | None:
    number = _number(value)
    try:
        return None if number is None else timedelta(seconds=number)
    except OverflowError:
        return None


def _strings(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) else None


def _switch(on: str) -> _Form:
    return _Form(lambda value: value == on or None, lambda _: on)


_TEXT = _Form(_same, _same)
_NUMBER = _Form(_number, str)
_FORMS = {
    "str": _TEXT,
    "str | None": _TEXT,
    "int": _NUMBER,
    "int | None": _NUMBER,
    "timedelta | None": _Form(_seconds, lambda value: str(value // timedelta(seconds=1))),
    "tuple[str, ...]": _Form(_strings, list),
    "bool": _switch("yes"),
}
_UNLIKE = {"esn": _switch("1")}


class _ParsedSection:
    """Reads and writes the fields of a dataclass whose annotations are in `_FORMS`; the class handles the others."""

    __slots__ = ()

    extra: Extra

    @classmethod
    def _read(cls, section: Mapping[str, Any], /, **own: Any) -> Self:
        extra = dict(section)
        for item, key, form in _wire_fields(cls):
            value = form.read(section.get(key))
            if value is not None and value != item.default and form.write(value) == section[key]:
                own[item.name] = value
                del extra[key]
        return cls(**own, extra=extra)  # type: ignore[call-arg]

    def _write(self) -> dict[str, Any]:
        written = {}
        for item, key, form in _wire_fields(type(self)):
            value = getattr(self, item.name)
            if value is not None and value != item.default:
                written[key] = form.write(value)
        return {**written, **self.extra}


def _wire_fields(kind: type) -> Iterable[tuple[Field[Any], str, _Form]]:
    if kind not in _KNOWN:
        forms = ((item, _UNLIKE.get(item.name) or _FORMS.get(cast(str, item.type))) for item in fields(kind))
        _KNOWN[kind] = [(item, item.name.replace("_", "-"), form) for item, form in forms if form is not None]
    return _KNOWN[kind]


_KNOWN: dict[type, list[tuple[Field[Any], str, _Form]]] = {}


def _extra() -> Any:
    return field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSa(_ParsedSection):
    """A CHILD_SA. `use_in`, `use_out` and `install_time` are times elapsed, `rekey_time` and `life_time` times left.

    The counters restart with each rekeying: the event child-rekey has the final ones of the old SA. `section` is the
    name of its section: since 5.8.2 the name of the child with the unique id, before that only the name.
    """

    section: SectionName
    name: str = ""
    uniqueid: int = 0
    reqid: int | None = None
    state: str = ""
    mode: str = ""
    label: str | None = None
    protocol: str | None = None
    encap: bool = False
    spi_in: str | None = None
    spi_out: str | None = None
    cpi_in: str | None = None
    cpi_out: str | None = None
    mark_in: str | None = None
    mark_mask_in: str | None = None
    mark_out: str | None = None
    mark_mask_out: str | None = None
    if_id_in: str | None = None
    if_id_out: str | None = None
    per_cpu_sas: str | None = None
    cpu: int | None = None
    encr_alg: str | None = None
    encr_keysize: int | None = None
    integ_alg: str | None = None
    integ_keysize: int | None = None
    prf_alg: str | None = None
    dh_group: str | None = None
    ake1: str | None = None
    ake2: str | None = None
    ake3: str | None = None
    ake4: str | None = None
    ake5: str | None = None
    ake6: str | None = None
    ake7: str | None = None
    esn: bool = False
    bytes_in: int | None = None
    packets_in: int | None = None
    use_in: timedelta | None = None
    bytes_out: int | None = None
    packets_out: int | None = None
    use_out: timedelta | None = None
    rekey_time: timedelta | None = None
    life_time: timedelta | None = None
    install_time: timedelta | None = None
    local_ts: tuple[str, ...] = ()
    remote_ts: tuple[str, ...] = ()
    extra: Extra = _extra()

    @classmethod
    def from_section(cls, section: str, values: Mapping[str, Any]) -> Self:
        """Read the section with that name in `child-sas`; before 5.8.2 only its name identifies the child."""
        return cls._read({"name": section, **_plain(values)}, section=section)

    def to_section(self) -> dict[str, Any]:
        """Return the section that `from_section` reads."""
        return self._write()


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSa(_ParsedSection):
    """An IKE_SA and its CHILD_SAs. `established` is a time elapsed, `rekey_time` and `reauth_time` are times left.

    `name` is that of its connection, which several SAs may share; `uniqueid` is unique until charon restarts.
    """

    name: SectionName
    uniqueid: int = 0
    version: int | None = None
    state: str = ""
    local_host: str = ""
    local_port: int | None = None
    local_id: str = ""
    remote_host: str = ""
    remote_port: int | None = None
    remote_id: str = ""
    remote_xauth_id: str | None = None
    remote_eap_id: str | None = None
    initiator: bool = False
    initiator_spi: str | None = None
    responder_spi: str | None = None
    nat_local: bool = False
    nat_remote: bool = False
    nat_fake: bool = False
    nat_any: bool = False
    if_id_in: str | None = None
    if_id_out: str | None = None
    encr_alg: str | None = None
    encr_keysize: int | None = None
    integ_alg: str | None = None
    integ_keysize: int | None = None
    prf_alg: str | None = None
    dh_group: str | None = None
    ake1: str | None = None
    ake2: str | None = None
    ake3: str | None = None
    ake4: str | None = None
    ake5: str | None = None
    ake6: str | None = None
    ake7: str | None = None
    ppk: bool = False
    established: timedelta | None = None
    rekey_time: timedelta | None = None
    reauth_time: timedelta | None = None
    local_vips: tuple[str, ...] = ()
    remote_vips: tuple[str, ...] = ()
    tasks_queued: tuple[str, ...] = ()
    tasks_active: tuple[str, ...] = ()
    tasks_passive: tuple[str, ...] = ()
    children: tuple[ChildSa, ...] = ()
    extra: Extra = _extra()

    @classmethod
    def from_message(cls, message: Mapping[str, Any] | Message) -> Self:
        """Read a message of `list_sas()`. Raises ValueError if it contains no SA."""
        return cls.from_section(*_only_section(_items(message), "list-sa"))

    @classmethod
    def from_section(cls, name: str, values: Mapping[str, Any]) -> Self:
        """Read the section with that name."""
        plain = _plain(values)
        children = plain.pop("child-sas", None)
        if isinstance(children, dict) and all(isinstance(child, dict) for child in children.values()):
            own = tuple(ChildSa.from_section(*child) for child in children.items())
            return cls._read(plain, name=name, children=own)
        return cls._read(plain if children is None else {**plain, "child-sas": children}, name=name)

    def to_message(self) -> Message:
        """Return a message like one of `list_sas()`."""
        return _message({self.name: {**self._write(), "child-sas": self._children()}})

    def to_section(self) -> dict[str, Any]:
        """Return the section that `from_section` reads."""
        return {**self._write(), "child-sas": self._children()} if self.children else self._write()

    def _children(self) -> dict[str, Any]:
        return {child.section: child.to_section() for child in self.children}


@dataclass(frozen=True, slots=True, kw_only=True)
class _UpDown(_ParsedSection):
    event: ClassVar[str]

    ike: IkeSa
    up: bool = False
    extra: Extra = _extra()

    @classmethod
    def from_message(cls, message: Mapping[str, Any] | Message) -> Self:
        """Read a message of this event."""
        root = _Root(message, cls.event)
        return cls._read(root.values, ike=IkeSa.from_section(root.name, root.section))

    def to_message(self) -> Message:
        """Return the message as charon sends it."""
        return _message(self._write(), {self.ike.name: self.ike.to_section()})


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeUpDown(_UpDown):
    """An IKE_SA was established (`up`), was closed, or failed to be established; `ike` has no children here."""

    event: ClassVar[str] = "ike-updown"
    __match_args__ = ("ike", "direction")

    @property
    def direction(self) -> Literal["up", "down", "failed"]:
        """`failed` means that the negotiation failed; with an unknown peer the SA has the name `(unnamed)`."""
        if self.up:
            return "up"
        return "failed" if self.ike.state in UNESTABLISHED else "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildUpDown(_UpDown):
    """A CHILD_SA was established (`up`) or closed, with its final counters; it is the only one in `ike`."""

    event: ClassVar[str] = "child-updown"
    __match_args__ = ("ike", "child", "direction")

    def __post_init__(self) -> None:
        if not self.ike.children:
            raise ValueError(f"{self.event} message without a CHILD_SA")

    @property
    def child(self) -> ChildSa:
        """The CHILD_SA."""
        return self.ike.children[0]

    @property
    def direction(self) -> Literal["up", "down"]:
        """Whether it was established or closed; charon sends no event for a CHILD_SA that it could not install."""
        return "up" if self.up else "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeRekey(_ParsedSection):
    """The IKE_SA `new` has replaced `old`."""

    event: ClassVar[str] = "ike-rekey"
    __match_args__ = ("old", "new")

    old: IkeSa
    new: IkeSa
    extra: Extra = _extra()

    @classmethod
    def from_message(cls, message: Mapping[str, Any] | Message) -> Self:
        """Read a message of this event."""
        root = _Root(message, cls.event)
        old, new = _old_and_new(root.section, cls.event)
        return cls._read(root.values, old=IkeSa.from_section(root.name, old), new=IkeSa.from_section(root.name, new))

    def to_message(self) -> Message:
        """Return the message as charon sends it."""
        pair = {"old": self.old.to_section(), "new": self.new.to_section()}
        return _message(self._write(), {self.old.name: pair})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRekey(_ParsedSection):
    """The CHILD_SA `new` has replaced `old`, which has its final counters; `ike` has no children here."""

    event: ClassVar[str] = "child-rekey"
    __match_args__ = ("ike", "old", "new")

    ike: IkeSa
    old: ChildSa
    new: ChildSa
    extra: Extra = _extra()

    @classmethod
    def from_message(cls, message: Mapping[str, Any] | Message) -> Self:
        """Read a message of this event."""
        root = _Root(message, cls.event)
        ike = _plain(root.section)
        children = ike.pop("child-sas", None)
        name, pair = _only_section(children.items() if isinstance(children, dict) else (), cls.event)
        old, new = (ChildSa.from_section(name, child) for child in _old_and_new(pair, cls.event))
        return cls._read(root.values, ike=IkeSa.from_section(root.name, ike), old=old, new=new)

    def to_message(self) -> Message:
        """Return the message as charon sends it."""
        pair = {"old": self.old.to_section(), "new": self.new.to_section()}
        return _message(
            self._write(), {self.ike.name: {**self.ike.to_section(), "child-sas": {self.old.section: pair}}}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeUpdate(_ParsedSection):
    """The addresses of an IKE_SA are about to change to these; `ike` has the old ones."""

    event: ClassVar[str] = "ike-update"
    __match_args__ = ("ike",)

    ike: IkeSa
    local_host: str = ""
    local_port: int | None = None
    remote_host: str = ""
    remote_port: int | None = None
    extra: Extra = _extra()

    @classmethod
    def from_message(cls, message: Mapping[str, Any] | Message) -> Self:
        """Read a message of this event."""
        root = _Root(message, cls.event)
        return cls._read(root.values, ike=IkeSa.from_section(root.name, root.section))

    def to_message(self) -> Message:
        """Return the message as charon sends it."""
        return _message(self._write(), {self.ike.name: self.ike.to_section()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert(_ParsedSection):
    """An alert of this `type`, with the SA that it concerns, if any. Since 6.0.3.

    `vicifast.commands.ALERTS` lists the types.
    """

    event: ClassVar[str] = "alert"
    __match_args__ = ("type", "ike")

    type: str = ""
    ike: IkeSa | None = None
    extra: Extra = _extra()

    @classmethod
    def from_message(cls, message: Mapping[str, Any] | Message) -> Self:
        """Read a message of this event."""
        values = {key: _text(value) for key, value in _items(message)}
        sa = values.pop("ike-sa", None)
        ike = IkeSa.from_section(*_only_section(sa.items(), cls.event)) if isinstance(sa, dict) else None
        return cls._read(values, ike=ike)

    def to_message(self) -> Message:
        """Return the message as charon sends it."""
        ike = {} if self.ike is None else {"ike-sa": {self.ike.name: self.ike.to_section()}}
        return _message({**self._write(), **ike})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine(_ParsedSection):
    """A message of charon's log, or of `initiate` and `terminate` (`control-log`), which have no thread."""

    event: ClassVar[str] = "log"
    __match_args__ = ("group", "level", "msg")

    group: str = ""
    level: int | None = None
    thread: int | None = None
    ikesa_name: str | None = None
    ikesa_uniqueid: int | None = None
    msg: str = ""
    extra: Extra = _extra()

    @classmethod
    def from_message(cls, message: Mapping[str, Any] | Message) -> Self:
        """Read a message of this event."""
        return cls._read({key: _text(value) for key, value in _items(message)})

    def to_message(self) -> Message:
        """Return the message as charon sends it."""
        return _message(self._write())


ParsedEvent: TypeAlias = IkeUpDown | ChildUpDown | IkeRekey | ChildRekey | IkeUpdate | Alert | LogLine
_EVENTS: dict[str, type[ParsedEvent]] = {kind.event: kind for kind in get_args(ParsedEvent)}
_EVENTS["control-log"] = LogLine


def parse_event(name: str, message: Mapping[str, Any] | Message) -> ParsedEvent:
    """Return an event as a typed object; its class has the name as `event`, and `to_message()` reverses this.

    Raises ValueError for an event without a class here, or without the SA that it concerns.
    """
    kind = _EVENTS.get(name)
    if kind is None:
        raise ValueError(f"no class for the event {name!r}; there are classes for {', '.join(_EVENTS)}")
    return kind.from_message(message)


class _Root:
    """A message about one SA: its only section, and the `values` next to it."""

    def __init__(self, message: Mapping[str, Any] | Message, event: str) -> None:
        items = _items(message)
        self.name, self.section = _only_section(items, event)
        self.values = {key: _text(value) for key, value in items if not isinstance(value, Mapping)}


def _only_section(items: Iterable[tuple[str, Any]], event: str) -> tuple[str, Mapping[str, Any]]:
    for name, value in items:
        if isinstance(value, Mapping):
            return name, value
    raise ValueError(f"{event} message without the section of an SA")


def _old_and_new(pair: Mapping[str, Any], event: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    old, new = pair.get("old"), pair.get("new")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        raise ValueError(f"{event} message without the old or the new SA")
    return old, new


def _items(message: Mapping[str, Any] | Message) -> list[tuple[str, Any]]:
    if isinstance(message, Message):  # its items keep a section and a key with the same name
        return [(key, value.to_dict() if isinstance(value, Message) else value) for key, value in message.items()]
    return list(message.items())


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _text(value) for key, value in section.items()}


def _text(value: Any) -> Any:
    """Return a value as a session with `values=str` would."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_text(item) for item in value]
    return _plain(value) if isinstance(value, Mapping) else value


def _message(*parts: Mapping[str, Any]) -> Message:
    """A message of all parts, which may contain a name twice."""
    return Message(b"".join(encode(part) for part in parts))
