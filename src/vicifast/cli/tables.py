"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from .output import ReceivedMessage, lines, shown

if TYPE_CHECKING:
    from datetime import timedelta

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

    from ..results import ChildSa, IkeSa

Row: TypeAlias = tuple[object, ...]
_NUMBERS = frozenset(("in", "out", "size", "online", "offline", "count"))
_FITTED = 1000  # above this number, rows are not fitted to the terminal, which takes a millisecond per row
View: TypeAlias = Callable[[list[ReceivedMessage]], "Listing | str"]


def sas(messages: list[ReceivedMessage]) -> Listing:
    """IKE_SAs with addresses and identities, each followed by its CHILD_SAs with traffic selectors and byte counts."""
    from ..results import IkeSa

    return ike_sas([IkeSa.from_message(received.message) for received in messages])


def ike_sas(found: list[IkeSa]) -> Listing:
    """The same table for SAs that do not come from charon itself."""
    rows = (row for sa in found for row in (_ike(sa), *map(_child, sa.children)))
    return _table(("SA", "state", "local", "remote", "for", "in", "out"), rows, _sums(found))


def _ike(sa: IkeSa) -> Row:
    local, remote = (sa.local_id, sa.local_host), (sa.remote_id, sa.remote_host)
    return f"{sa.name} #{sa.uniqueid}", sa.state, local, remote, _since(sa.established), "", ""


def _child(sa: ChildSa) -> Row:
    traffic = _size(sa.bytes_in), _size(sa.bytes_out)
    return f"  {sa.name} #{sa.uniqueid}", sa.state, sa.local_ts, sa.remote_ts, _since(sa.install_time), *traffic


def _sums(found: list[IkeSa]) -> str:
    return f"{len(found)} IKE_SAs, {sum(len(sa.children) for sa in found)} CHILD_SAs"


def _size(count: int | None) -> str:
    from rich.filesize import decimal

    return "" if count is None else decimal(count).replace("bytes", "B").replace("byte", "B")


def _since(time: timedelta | None) -> str:
    if time is None:
        return ""
    return since(int(time.total_seconds()))


def since(seconds: int) -> str:
    """A duration in its two largest units."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join([f"{number}{unit}" for number, unit in parts if number][:2]) or "0s"


def conns(messages: list[ReceivedMessage]) -> Listing:
    """Connections with both ends and their authentication, each followed by its children."""
    found = list(_all(messages))
    rows = (row for name, conn in found for row in _conn(name, conn))
    return _table(("connection", "mode", "local", "remote"), rows, f"{len(found)} connections")


def _conn(name: str, conn: Mapping[str, Any]) -> Iterator[Row]:
    yield name, conn.get("version"), conn.get("local_addrs"), conn.get("remote_addrs")
    rounds = [{key: value for key, value in conn.items() if key.startswith(side)} for side in ("local-", "remote-")]
    yield "", "", *("; ".join(map(_auth, side.values())) for side in rounds)
    for child, values in conn.get("children", {}).items():
        yield f"  {child}", values.get("mode"), values.get("local-ts"), values.get("remote-ts")


def _auth(round: Mapping[str, Any]) -> str:
    names = (shown(round.get(key)) for key in ("id", "eap-id", "xauth-id"))
    return f"{', '.join(filter(None, names)) or '%any'} ({shown(round.get('class'))})"


def certs(messages: list[ReceivedMessage]) -> Listing:
    """Certificates with the first bytes of their SHA-256, as charon reports a subject only for bare keys."""
    rows = (_cert(received.message.to_dict()) for received in messages)
    return _table(
        ("type", "flag", "key", "subject", "until", "SHA-256"), rows, f"{len(messages)} certificates and public keys"
    )


def _cert(cert: Mapping[str, Any]) -> Row:
    import hashlib

    data = cert.get("data", b"")
    digest = hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()[:16]
    key = "yes" if cert.get("has_privkey") == "yes" else ""
    return cert.get("type"), cert.get("flag"), key, cert.get("subject"), cert.get("not-after"), digest


def pools(messages: list[ReceivedMessage]) -> Listing:
    """Pools with their usage, each followed by its leases if requested."""
    rows = (
        row
        for received in messages
        for name, pool in _sections(received.message.to_dict())
        for row in _pool(name, pool)
    )
    return _table(("pool", "base", "size", "online", "offline", "identity"), rows)


def _pool(name: str, pool: Mapping[str, Any]) -> Iterator[Row]:
    yield name, pool.get("base"), pool.get("size"), pool.get("online"), pool.get("offline"), ""
    for lease in pool.get("leases", {}).values():
        online = lease.get("status") == "online"
        yield "", f"  {lease.get('address')}", "", *(("x", "") if online else ("", "x")), lease.get("identity")


def counters(messages: list[ReceivedMessage]) -> Listing:
    """The nonzero counters of each connection."""
    sections = [item for received in messages for item in _sections(received.message.to_dict().get("counters"))]
    rows = ((name or "(all)", key, count) for name, values in sections for key, count in values.items() if count != "0")
    return _table(("connection", "counter", "count"), rows, "counters not listed are 0")


def policies(messages: list[ReceivedMessage]) -> Listing:
    """Trap, pass and drop policies."""
    found = list(_all(messages))
    rows = ((name, policy.get("mode"), policy.get("local-ts"), policy.get("remote-ts")) for name, policy in found)
    return _table(("policy", "mode", "local", "remote"), rows, f"{len(found)} policies")


def plain(messages: list[ReceivedMessage]) -> str:
    """Messages as indented lines."""
    return "\n".join(line for received in messages for line in lines(received.message.to_dict()))


def _all(messages: list[ReceivedMessage]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for received in messages:
        yield from _sections(received.message.to_dict())


def _sections(section: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(section, Mapping):
        yield from ((name, value) for name, value in section.items() if isinstance(value, Mapping))


def _table(columns: tuple[str, ...], rows: Iterable[Row], foot: str = "") -> Listing:
    return Listing(columns, list(rows), foot)


class Listing:
    """A table and its summary. Fitting rows is slow: a live view fits only visible rows, and long tables are plain."""

    def __init__(self, columns: tuple[str, ...], rows: list[Row], foot: str) -> None:
        self._columns = columns
        self._rows = rows
        self._foot = foot

    def top(self, height: int) -> RenderableType:
        """The part that fits on a screen of that height, beginning with the summary."""
        from rich.console import Group

        return Group(self._foot, self._filled(self._rows[:height]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        yield self._filled(self._rows) if len(self._rows) <= _FITTED else Segment(self._plain())
        if self._foot:
            yield self._foot

    def _plain(self) -> str:
        """One unwrapped line per row."""
        from rich.cells import cell_len

        cells = [self._columns, *([shown(value) for value in row] for row in self._rows)]
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]

        def padded(text: str, width: int, column: str) -> str:
            padding = " " * (width - cell_len(text))
            return padding + text if column in _NUMBERS else text + padding

        return "".join("  ".join(map(padded, row, widths, self._columns)).rstrip() + "\n" for row in cells)

    def _filled(self, rows: list[Row]) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in self._columns:
            number = column in _NUMBERS
            table.add_column(column, overflow="fold", justify="right" if number else "left", no_wrap=number)
        for row in rows:
            table.add_row(*map(_cell, row))
        return table


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):  # one per line, for narrow terminals
        return "\n".join(map(shown, value))
    return shown(value)
