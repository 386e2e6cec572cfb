# EnvelopeWriter and Transcoder, and to_msgpack() and to_json(), which use a Transcoder once.

cdef void add_u64(Writer* out, uint64_t number) noexcept:
    cdef int shift = 56
    while shift >= 0:
        add_byte(out, <uint8_t>(number >> shift))
        shift -= 8


cdef void add_decimal(Writer* out, uint64_t number) noexcept:
    cdef uint8_t[24] digits
    cdef int at = 24
    while True:
        at -= 1
        digits[at] = <uint8_t>(c'0' + number % 10)
        number //= 10
        if not number:
            break
    add_bytes(out, &digits[at], 24 - at)


cdef void add_string(Writer* out, bint json, bytes text) noexcept:
    cdef uint8_t* to = out.data + out.used
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(<PyObject*>text)
    out.used = (json_text(to, data, size) if json else msgpack_text(to, data, size)) - out.data


cdef bint is_json(format) except -1:
    if format not in ("msgpack", "json"):
        raise ValueError(f'format must be "msgpack" or "json", not {format!r}')
    return format == "json"


cdef uint64_t whole(number) except? 0:
    if not PyLong_Check(number):
        raise TypeError(f"seq and time must be int, not {type(number).__name__}")
    return number


@cython.final
cdef class EnvelopeWriter:
    """The map that a `Transcoder` wraps around messages: `v` (1), `node`, `boot`, `seq`, `time`, `event`, `data`.

    `seq` is the number of the last envelope, starting at 1; `time` is written into the next ones, in nanoseconds since
    the epoch. Both are unsigned 64-bit integers, always 8 bytes in msgpack. A JSON envelope ends with a newline.
    """

    cdef uint64_t last
    cdef uint64_t now
    cdef bint json
    cdef Writer head

    def __init__(self, format, node, boot):
        if self.head.data:
            raise TypeError("an EnvelopeWriter cannot be initialized twice")
        self.json = is_json(format)
        node = text_of(node, "node")
        boot = text_of(boot, "boot")
        reserve(&self.head, 6 * (len(node) + len(boot)) + 64)
        add_bytes(&self.head, b'{"v":1,"node":' if self.json else b"\x87\xa1v\x01\xa4node", 14 if self.json else 9)
        add_string(&self.head, self.json, node)
        add_bytes(&self.head, b',"boot":' if self.json else b"\xa4boot", 8 if self.json else 5)
        add_string(&self.head, self.json, boot)
        add_bytes(&self.head, b',"seq":' if self.json else b"\xa3seq\xcf", 7 if self.json else 5)

    def __dealloc__(self):
        free(self.head.data)

    @property
    def seq(self):
        """The number of the last envelope."""
        return self.last

    @seq.setter
    def seq(self, number):
        self.last = whole(number)

    @property
    def time(self):
        """Nanoseconds since the epoch."""
        return self.now

    @time.setter
    def time(self, number):
        self.now = whole(number)

    cdef int begin(self, Writer* out, bytes event) except -1:
        """Write everything before the data, with the next number; `end` increments it."""
        if self.last + 1 == 0:
            raise OverflowError("the envelope's seq does not fit in 64 bits")
        reserve(out, self.head.used + 6 * PyBytes_GET_SIZE(<PyObject*>event) + 96)
        add_bytes(out, self.head.data, self.head.used)
        if self.json:
            add_decimal(out, self.last + 1)
            add_bytes(out, b',"time":', 8)
            add_decimal(out, self.now)
            add_bytes(out, b',"event":', 9)
        else:
            add_u64(out, self.last + 1)
            add_bytes(out, b"\xa4time\xcf", 6)
            add_u64(out, self.now)
            add_bytes(out, b"\xa5event", 6)
        add_string(out, self.json, event)
        add_bytes(out, b',"data":' if self.json else b"\xa4data", 8 if self.json else 5)
        return 0

    cdef int end(self, Writer* out) except -1:
        if self.json:
            reserve(out, 2)
            add_bytes(out, b"}\n", 2)
        self.last += 1
        return 0


@cython.final
cdef class Transcoder(Reader):
    """Rewrites messages as msgpack or JSON in one pass, without intermediate Python objects.

    `format` is "msgpack" or "json"; `binary` names root keys whose values are always msgpack `bin` or base64.
    Text is UTF-8; other values become msgpack `bin` or, in JSON, `{"$base64": "..."}`. Duplicate keys of a section
    are all kept, in order. With an `envelope` of the same format, each message becomes the `data` of an envelope whose
    event is `event`; a malformed message does not use up a number.
    """

    cdef Writer out
    cdef bint json
    cdef tuple binary
    cdef EnvelopeWriter envelope
    cdef bytes event

    def __init__(self, format, *, binary=(), EnvelopeWriter envelope=None, event=""):
        json, names, text = is_json(format), root_names(binary), text_of(event, "event")
        if envelope is not None and envelope.json != json:
            raise ValueError("the envelope and the transcoder must have the same format")
        self.json = json
        self.binary = names
        self.envelope = envelope
        self.event = text

    def __dealloc__(self):
        free(self.out.data)

    def transcode(self, data, /):
        """Return the message in `data`, a bytes-like object, in the other format. Raises `DecodeError`."""
        return read_buffer(self, data)

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        # Both locks at once: waiting for a nested critical section would release the outer one.
        with cython.critical_section(self, self if self.envelope is None else self.envelope):
            return self.write(data, size)

    cdef bytes write(self, const uint8_t* data, Py_ssize_t size):
        self.out.used = 0
        if self.envelope is not None:
            self.envelope.begin(&self.out, self.event)
        if self.json:
            write_json(&self.out, data, size, self.binary)
        else:
            write_msgpack(&self.out, data, size, self.binary)
        if self.envelope is not None:
            self.envelope.end(&self.out)
        result = self.out.data[:self.out.used]
        if self.out.size > BUFFER_SIZE:
            free(self.out.data)
            self.out.data = NULL
            self.out.size = 0
        return result


def to_msgpack(data, *, binary=()):
    """Return the message in `data`, a bytes-like object, as msgpack, as `packb(decode(data))` would.

    Values that are not UTF-8, and those of the root keys named in `binary`, are `bin`. Raises `DecodeError`.
    """
    return read_buffer(Transcoder("msgpack", binary=binary), data)


def to_json(data, *, binary=()):
    """Return the message in `data`, a bytes-like object, as compact UTF-8 JSON, as `json.dumps` would.

    Values that are not UTF-8, and those of the root keys named in `binary`, are `{"$base64": "..."}`.
    Raises `DecodeError`.
    """
    return read_buffer(Transcoder("json", binary=binary), data)
