# Framer: splits a byte stream into packets.

@cython.final
cdef class Framer:
    """Splits the byte stream from a daemon, in reads of any size, into packets; messages are read in place.

    `default` reads the messages of responses and events; `events` maps event names to readers that replace it.
    Pass bytes to `feed`, or avoid a copy: the framer is itself a writable buffer of at least 64 KiB; call `received`
    with the number of bytes written into it. `error` is None, or the `ProtocolError` that ended the stream.
    """

    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t first
    cdef Py_ssize_t last
    cdef int views
    cdef bint busy
    cdef Reader default
    cdef dict events
    cdef str event
    cdef Reader event_reader
    cdef readonly object error

    def __cinit__(self):
        self.default = Raw.__new__(Raw)
        self.events = {}
        self.size = BUFFER_SIZE
        self.data = <uint8_t*>malloc(self.size)
        if not self.data:
            raise MemoryError

    def __init__(self, Reader default not None, events=()):
        self.default = default
        self.events = dict(events)
        for name, reader in self.events.items():
            if not isinstance(reader, Reader):
                raise TypeError(f"the reader of {name} must be a Reader, not {type(reader).__name__}")

    def __dealloc__(self):
        free(self.data)

    @cython.critical_section
    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.views:
            raise BufferError("the free space of the framer is in use")
        self.make_room(READ_SIZE)
        PyBuffer_FillInfo(view, self, self.data + self.last, self.size - self.last, 0, flags)
        self.views += 1

    @cython.critical_section
    def __releasebuffer__(self, Py_buffer* view):
        self.views -= 1

    @property
    def pending(self):
        """Number of buffered bytes of an incomplete packet; 0 between two packets."""
        return self.last - self.first

    @cython.critical_section
    def received(self, Py_ssize_t count):
        """Accept `count` bytes that were written into the framer's buffer."""
        if not 0 <= count <= self.size - self.last:
            raise ValueError(f"count is {count}, but the buffer has room for {self.size - self.last} bytes")
        self.last += count

    @cython.critical_section
    def feed(self, data, /):
        """Copy `data`, a bytes-like object, into the buffer; ignored after an `error`."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.views:  # checked here, as `data` may be the framer itself
                raise BufferError("the free space of the framer is in use")
            if self.error is not None:
                return
            self.make_room(view.len)
            memcpy(self.data + self.last, view.buf, view.len)
            self.last += view.len
        finally:
            PyBuffer_Release(&view)

    @cython.critical_section
    def packets(self):
        """Return all complete packets in order of arrival, as (type, name or None, message).

        The message is what the reader returned, None for a type without a message, or a `DecodeError` when it is
        malformed, which leaves the stream intact. An invalid packet ends the list and sets `error`: one over 512 KiB
        (vici.h), or one that no daemon sends, after which the stream cannot be parsed.
        """
        cdef list found = []
        # Reading a message can run the garbage collector, which can run any code: the buffer must not move meanwhile.
        if self.busy:
            raise RuntimeError("packets() was called while it was already running")
        self.busy = True
        self.views += 1
        try:
            self.cut_all(found)
        finally:
            self.views -= 1
            self.busy = False
        return found

    cdef int cut_all(self, list found) except -1:
        cdef uint32_t length
        cdef const uint8_t* head
        while self.error is None and self.last - self.first >= 4:
            head = self.data + self.first
            length = <uint32_t>head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3]
            if length == 0 or length > MAX_PACKET:
                self.error = ProtocolError(f"a packet of {length} bytes, but the length must be 1 to {MAX_PACKET}")
                break
            if self.last - self.first - 4 < <Py_ssize_t>length:
                break
            try:
                packet = self.cut(head + 4, length)
                if packet is not None:
                    found.append(packet)
            except ProtocolError as error:
                self.error = error
                break
            self.first += 4 + length
        return 0

    cdef tuple cut(self, const uint8_t* data, Py_ssize_t size):
        cdef int kind = data[0]
        cdef Py_ssize_t name_size
        if kind == EVENT:
            name_size = data[1] if size > 1 else 0
            if size < 2 or size - 2 < name_size:
                raise ProtocolError("an event whose name is longer than its packet")
            self.recall(data + 2, name_size)
            message = self.message(self.event_reader, data + 2 + name_size, size - 2 - name_size)
            return None if message is None else (kind, self.event, message)
        if kind == CMD_RESPONSE:
            return (kind, None, self.message(self.default, data + 1, size - 1))
        if kind != CMD_UNKNOWN and kind != EVENT_CONFIRM and kind != EVENT_UNKNOWN:
            raise ProtocolError(f"a packet of type {kind}, which no daemon sends")
        if size != 1:
            raise ProtocolError(f"{size - 1} bytes after a packet of type {kind}, which has no content")
        return (kind, None, None)

    cdef int recall(self, const uint8_t* name, Py_ssize_t size) except -1:
        """Set `event` and its reader for `name`; usually both are still set from the previous event."""
        if self.event is not None and same_text(<PyObject*>self.event, name, size):
            return 0
        if not is_printable(name, size):
            raise ProtocolError("an event whose name is not printable ASCII")
        self.event = name[:size].decode("ascii")
        self.event_reader = self.events.get(self.event, self.default)
        return 0

    cdef object message(self, Reader reader, const uint8_t* data, Py_ssize_t size):
        try:
            return reader.read(data, size)
        except DecodeError as error:
            return error

    cdef int make_room(self, Py_ssize_t wanted) except -1:
        """Make room for `wanted` more bytes: move a partial packet to the front, and grow the buffer if needed."""
        cdef Py_ssize_t kept = self.last - self.first
        cdef uint8_t* data
        if kept and self.size - self.last >= wanted:
            return 0
        if kept and self.first:
            memmove(self.data, self.data + self.first, kept)
        self.first = 0
        self.last = kept
        if self.size - kept < wanted:
            data = <uint8_t*>realloc(self.data, kept + wanted + BUFFER_SIZE)
            if not data:
                raise MemoryError
            self.data = data
            self.size = kept + wanted + BUFFER_SIZE
        return 0
