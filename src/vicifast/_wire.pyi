from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias, final

from _typeshed import ReadableBuffer

from .errors import DecodeError, ProtocolError

_Scalar: TypeAlias = str | bytes
_Section: TypeAlias = dict[str, "_Scalar | list[_Scalar] | _Section"]
_Body: TypeAlias = "_Section | bytes | DecodeError | None"

MAX_PACKET: Final = 524288
MAX_NAME: Final = 255
MAX_VALUE: Final = 65535
MAX_DEPTH: Final = 64

CMD_REQUEST: Final = 0
CMD_RESPONSE: Final = 1
CMD_UNKNOWN: Final = 2
EVENT_REGISTER: Final = 3
EVENT_UNREGISTER: Final = 4
EVENT_CONFIRM: Final = 5
EVENT_UNKNOWN: Final = 6
EVENT: Final = 7

def decode(data: ReadableBuffer, *, values: type[str] | type[bytes] = ..., binary: Iterable[str] = ...) -> _Section: ...
def encode(message: Mapping[str, object]) -> bytes: ...
def to_msgpack(data: ReadableBuffer, *, binary: Iterable[str] = ...) -> bytes: ...
def to_json(data: ReadableBuffer, *, binary: Iterable[str] = ...) -> bytes: ...
def packet(kind: int, name: str | None = ..., message: Mapping[str, object] | None = ...) -> bytes: ...

class Reader:
    def __init__(self) -> None: ...

@final
class Raw(Reader): ...

@final
class Decoder(Reader):
    def __init__(self, *, values: type[str] | type[bytes] = ..., binary: Iterable[str] = ...) -> None: ...
    def decode(self, data: ReadableBuffer) -> _Section: ...

@final
class Transcoder(Reader):
    def __init__(self, format: Literal["msgpack", "json"], *, binary: Iterable[str] = ...) -> None: ...
    def transcode(self, data: ReadableBuffer) -> bytes: ...

@final
class Framer:
    error: ProtocolError | None
    def __init__(self, default: Reader, events: Mapping[str, Reader] = ...) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def received(self, count: int) -> None: ...
    def feed(self, data: ReadableBuffer) -> None: ...
    def packets(self) -> list[tuple[int, str | None, _Body]]: ...
    @property
    def pending(self) -> int: ...
