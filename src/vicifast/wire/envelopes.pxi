# Envelope, and envelopes(), which finds them in a payload: the reverse of EnvelopeWriter.

cdef enum:
    MOST_63 = 0x7FFFFFFFFFFFFFFF


@cython.final
cdef class Envelope:
    """One event of a gateway: charon's, or the bridge's own (`status`, `gap`, `resync`, ...).

    `time` is when the bridge read it, in nanoseconds since the epoch. `seq` counts the events of a class, `kind`, since
    the start `boot` of the bridge. `data` is the VICI message as a session returns it: texts with `surrogateescape`. It
    is decoded when it is first used; until then an envelope keeps the whole payload that it arrived in.
    """

    cdef readonly str node
    cdef readonly str boot
    cdef readonly int64_t seq
    cdef readonly int64_t time
    cdef readonly str event
    cdef readonly str subject
    cdef object content  # the data, or the payload
    cdef Py_ssize_t start  # of the items of the data, in the payload
    cdef Py_ssize_t count  # of these items; -1 in JSON

    def __init__(
        self,
        str node not None,
        str boot not None,
        int64_t seq,
        int64_t time,
        str event not None,
        dict data not None,
        str subject not None,
    ):
        self.node = node
        self.boot = boot
        self.seq = seq
        self.time = time
        self.event = event
        self.content = data
        self.subject = subject

    @property
    def data(self):
        with cython.critical_section(self):
            return self.decoded()

    @property
    def kind(self):
        return "log" if self.event == "log" else "state"

    cdef dict decoded(self):
        cdef const uint8_t* at
        content = self.content
        if PyBytes_CheckExact(content):
            at = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>content)
            made = take_plain(&at, self.start, PyBytes_GET_SIZE(<PyObject*>content), self.count)
            if self.content is content:  # creating objects can run the garbage collector, and that any code
                self.content = made
                PyObject_GC_Track(<PyObject*>self)
        return self.content

    def to_dict(self):
        """Return all fields by name."""
        return {
            "node": self.node,
            "boot": self.boot,
            "seq": self.seq,
            "time": self.time,
            "event": self.event,
            "data": self.data,
            "subject": self.subject,
        }

    def __eq__(self, other):
        return self.to_dict() == (<Envelope>other).to_dict() if isinstance(other, Envelope) else NotImplemented

    def __repr__(self):
        return f"Envelope({', '.join([f'{name}={value!r}' for name, value in self.to_dict().items()])})"

    def __reduce__(self):
        return Envelope, (self.node, self.boot, self.seq, self.time, self.event, self.data, self.subject)


cdef inline const uint8_t* value_after(
    const uint8_t* at, const uint8_t* end, bint json, Token* value
) noexcept:
    """Read the value of the key before `at`."""
    return json_after(at, end, c':', value) if json else msgpack_token(at, end, value)


cdef const uint8_t* skip_plain(
    const uint8_t* at, const uint8_t* end, Py_ssize_t count, bint is_map, int depth
) noexcept:
    """Move past the items of a map or array of texts, binary data and such containers; NULL for anything else."""
    cdef Token item
    cdef bint json = count < 0
    if depth > PLAIN_DEPTH:
        return NULL
    while True:
        at = next_item(at, end, count, c'}' if is_map else c']', &item)
        if not at or item.kind == PLAIN_END:
            return at
        count -= 1
        if is_map:
            if item.kind != PLAIN_STRING or json and item.size == 7 and not memcmp(item.text, b"$base64", 7):
                return NULL
            at = value_after(at, end, json, &item)
            if not at:
                return NULL
        if item.kind < PLAIN_STRING:
            at = skip_plain(at, end, item.size, item.kind == PLAIN_MAP, depth + 1)
            if not at:
                return NULL
        elif item.kind == PLAIN_BYTES and (json or item.text + item.size != at):
            return NULL  # a number or a bool


cdef dict take_plain(const uint8_t** at, Py_ssize_t start, Py_ssize_t size, Py_ssize_t count):
    """Return the map whose items begin at `start`; `skip_plain` has checked them."""
    cdef const uint8_t* end = at[0] + size
    at[0] += start
    return take_items(at, end, count, True)


cdef object take_items(const uint8_t** at, const uint8_t* end, Py_ssize_t count, bint is_map):
    cdef Token item
    cdef bint json = count < 0
    cdef dict section = {} if is_map else None
    cdef list items = None if is_map else []
    name = None
    while True:
        at[0] = next_item(at[0], end, count, c'}' if is_map else c']', &item)
        if item.kind == PLAIN_END:
            return section if is_map else items
        count -= 1
        if is_map:
            name = text_at(item.text, item.size)
            at[0] = value_after(at[0], end, json, &item)
        if item.kind < PLAIN_STRING:
            value = take_items(at, end, item.size, item.kind == PLAIN_MAP)
        else:
            value = text_at(item.text, item.size)
        if is_map:
            section[name] = value
        else:
            items.append(value)


cdef inline str text_or(str known, Token* last, Token* token):
    """The text of a token: `known`, unless None, if it is that of `last`."""
    if known is not None and token.size == last.size and is_same(token.text, last.text, token.size):
        return known
    return text_at(token.text, token.size)


cdef struct Sealed:
    # An envelope in a payload: `data` is where the items of its data begin.
    Token node
    Token boot
    uint64_t seq
    uint64_t time
    Token event
    const uint8_t* data
    Py_ssize_t count


cdef inline bint skip_token(Cursor* cursor, bint json, Token* token) noexcept:
    """Move past a text or a container header."""
    cdef const uint8_t* after
    after = json_token(cursor.pos, cursor.end, token) if json else msgpack_token(cursor.pos, cursor.end, token)
    if not after:
        return False
    cursor.pos = after
    return True


cdef inline bint skip_field(Cursor* cursor, bint json, const char* key, Py_ssize_t size, Token* text) noexcept:
    """Move past a key and a text."""
    return skip_text(cursor, key, size) and skip_token(cursor, json, text) and text.kind == PLAIN_STRING


cdef inline bint skip_u64(Cursor* cursor, uint64_t* number) noexcept:
    cdef int i
    if cursor.end - cursor.pos < 8:
        return False
    number[0] = 0
    for i in range(8):
        number[0] = number[0] << 8 | cursor.pos[i]
    cursor.pos += 8
    return True


cdef bint skip_sealed(Cursor* cursor, bint json, Sealed* found) noexcept:
    """Move past an envelope in the form that `EnvelopeWriter` writes."""
    cdef Token data
    cdef const uint8_t* after
    if json:
        if not skip_field(cursor, True, b'{"v":1,"node":', 14, &found.node):
            return False
        if not skip_field(cursor, True, b',"boot":', 8, &found.boot):
            return False
        if not skip_text(cursor, b',"seq":', 7) or not skip_number(cursor, &found.seq):
            return False
        if not skip_text(cursor, b',"time":', 8) or not skip_number(cursor, &found.time):
            return False
        if not skip_field(cursor, True, b',"event":', 9, &found.event) or not skip_text(cursor, b',"data":', 8):
            return False
    else:
        if not skip_field(cursor, False, b"\x87\xa1v\x01\xa4node", 9, &found.node):
            return False
        if not skip_field(cursor, False, b"\xa4boot", 5, &found.boot):
            return False
        if not skip_text(cursor, b"\xa3seq\xcf", 5) or not skip_u64(cursor, &found.seq):
            return False
        if not skip_text(cursor, b"\xa4time\xcf", 6) or not skip_u64(cursor, &found.time):
            return False
        if not skip_field(cursor, False, b"\xa5event", 6, &found.event) or not skip_text(cursor, b"\xa4data", 5):
            return False
    if found.seq > MOST_63 or found.time > MOST_63:
        return False
    if not skip_token(cursor, json, &data) or data.kind != PLAIN_MAP:
        return False
    found.data = cursor.pos
    found.count = data.size
    after = skip_plain(cursor.pos, cursor.end, data.size, True, 0)
    if not after:
        return False
    cursor.pos = after
    if not json:
        return True
    # Lines are read one by one, so that white space in the data may not end one.
    if memchr(found.data, c"\n", after - found.data) or memchr(found.data, c"\r", after - found.data):
        return False
    return skip_text(cursor, b"}", 1) and (cursor.pos == cursor.end or skip_text(cursor, b"\n", 1))


cdef bint is_typed(Token* event) noexcept:
    """Whether the data of this event must have a form of its own, which is not checked here."""
    if event.size == 3:
        return not memcmp(event.text, b"gap", 3)
    return event.size == 6 and not memcmp(event.text, b"status", 6)


def envelopes(bytes payload not None, str subject not None, str node not None, /):
    """Return the envelopes of a node in a payload, msgpack or lines of JSON, with this subject.

    Return None unless all are of this node and as `EnvelopeWriter` writes them, with data that has only texts, lists
    and sections, and in JSON no escapes; and for the events `gap` and `status`, whose data has a form that the caller
    must check.
    """
    cdef Cursor cursor
    cdef Sealed found, last
    cdef Envelope made
    cdef str known = None, boot = None, event = None
    cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>payload)
    cdef list all_made = []
    cdef bint json
    memset(&last, 0, sizeof(last))  # not read before it is set, but the compiler cannot know
    cursor.start = cursor.pos = start
    cursor.end = start + PyBytes_GET_SIZE(<PyObject*>payload)
    json = cursor.pos < cursor.end and cursor.pos[0] == c"{"
    while cursor.pos < cursor.end:
        if not skip_sealed(&cursor, json, &found) or is_typed(&found.event):
            return None
        made = Envelope.__new__(Envelope)
        known = text_or(known, &last.node, &found.node)
        if known != node:
            return None
        made.node = node
        made.boot = boot = text_or(boot, &last.boot, &found.boot)
        made.event = event = text_or(event, &last.event, &found.event)
        PyObject_GC_UnTrack(<PyObject*>made)  # until it has data: it cannot be part of a cycle
        made.seq = found.seq
        made.time = found.time
        made.subject = subject
        made.content = payload
        made.start = found.data - start
        made.count = found.count
        all_made.append(made)
        last = found
    return all_made
