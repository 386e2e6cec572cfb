# BlockWriter, AckReader and BlockReader: messages to and from a server, in the protocol of NATS clients.

cpdef enum:
    MAX_SUBJECTS = 3500  # bytes of subject and reply subject; nats-server limits their line to 4096 (max_control_line)
    MAX_HEADERS = 16384  # bytes of headers that a client reads; limits the time that it takes

cdef enum:
    MAX_MESSAGE = 0x7FFFFFFF  # more than any server sends
    NUMBER = 20  # digits of a 64-bit number
    LINE = 128  # more than the rest of a line: operation, blanks, reply number, two sizes


cdef inline bint is_subject(const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether one can publish there: printable ASCII, no empty token, no wildcard."""
    cdef Py_ssize_t i
    cdef uint8_t byte, before = c"."
    cdef bint ends
    for i in range(size):
        byte = text[i]
        if byte <= c" " or byte > c"~" or (byte == c"." and before == c"."):
            return False
        ends = i + 1 == size or text[i + 1] == c"."
        if (byte == c"*" or byte == c">") and before == c"." and ends:
            return False
        before = byte
    return before != c"."


cdef inline bint are_headers(const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether this is empty or whole lines `Name: value`, without control characters."""
    cdef Py_ssize_t i = 0, start
    while i < size:
        start = i
        while i < size and text[i] > c" " and text[i] <= c"~" and text[i] != c":":
            i += 1
        if i == start or size - i < 4 or text[i] != c":" or text[i + 1] != c" ":
            return False
        i += 2
        while i < size and text[i] >= c" " and text[i] != 0x7F:
            i += 1
        if size - i < 2 or text[i] != c"\r" or text[i + 1] != c"\n":
            return False
        i += 2
    return True


@cython.final
cdef class BlockWriter:
    """Writes messages to publish with acknowledgement as one block of bytes, to be sent in one piece.

    The reply subject of each is `inbox`, a dot and its number. `max_payload` is the server's limit for the payload and
    headers of a message, in bytes.
    """

    cdef Writer out
    cdef bytes inbox
    cdef public Py_ssize_t max_payload

    def __init__(self, str inbox not None, Py_ssize_t max_payload):
        encoded = str.encode(inbox, "utf-8")
        if not is_subject(<const uint8_t*>PyBytes_AS_STRING(<PyObject*>encoded), len(encoded)):
            raise ValueError(f"cannot publish with the reply subject {inbox!r}")
        self.inbox = encoded
        self.max_payload = max_payload

    def __dealloc__(self):
        free(self.out.data)

    @cython.critical_section
    def add(self, uint64_t number, str subject not None, bytes payload not None, bytes headers not None=b""):
        """Add a message and return the size of the block in bytes; `headers` are whole lines, each with its CRLF.

        Raises ValueError for a subject or headers that are malformed, OverflowError for a message that the server would
        reject as too large.
        """
        cdef PyObject* text = <PyObject*>subject
        cdef const uint8_t* name = <const uint8_t*>PyUnicode_DATA(text)
        cdef Py_ssize_t name_size = PyUnicode_GET_LENGTH(text)
        cdef Py_ssize_t inbox_size = PyBytes_GET_SIZE(<PyObject*>self.inbox)
        cdef Py_ssize_t lines = PyBytes_GET_SIZE(<PyObject*>headers)
        cdef Py_ssize_t head = lines + 12 if lines else 0  # with NATS/1.0 and the empty line
        cdef Py_ssize_t size = PyBytes_GET_SIZE(<PyObject*>payload)
        cdef Writer* out = &self.out
        if not PyUnicode_IS_COMPACT_ASCII(text) or not is_subject(name, name_size):
            raise ValueError(f"cannot publish to the subject {subject!r}")
        if not are_headers(<const uint8_t*>PyBytes_AS_STRING(<PyObject*>headers), lines):
            raise ValueError(f"malformed headers: {headers!r}")
        if head + size > self.max_payload:
            raise OverflowError(f"{head + size} bytes; the server's limit is {self.max_payload}")
        if name_size + inbox_size + 1 + NUMBER > MAX_SUBJECTS:
            raise OverflowError(f"a subject of {name_size} bytes; the server's limit is about {MAX_SUBJECTS}")
        reserve(out, name_size + inbox_size + head + size + LINE)
        add_bytes(out, b"HPUB " if lines else b"PUB ", 5 if lines else 4)
        add_bytes(out, name, name_size)
        add_byte(out, c" ")
        add_bytes(out, PyBytes_AS_STRING(<PyObject*>self.inbox), inbox_size)
        add_byte(out, c".")
        add_decimal(out, number)
        add_byte(out, c" ")
        if lines:
            add_decimal(out, head)
            add_byte(out, c" ")
        add_decimal(out, head + size)
        add_bytes(out, b"\r\n", 2)
        if lines:
            add_bytes(out, b"NATS/1.0\r\n", 10)
            add_bytes(out, PyBytes_AS_STRING(<PyObject*>headers), lines)
            add_bytes(out, b"\r\n", 2)
        add_bytes(out, PyBytes_AS_STRING(<PyObject*>payload), size)
        add_bytes(out, b"\r\n", 2)
        return out.used

    @cython.critical_section
    def take(self):
        """Return the block, and begin an empty one."""
        block = self.out.data[:self.out.used]
        self.out.used = 0
        if self.out.size > BUFFER_SIZE:
            free(self.out.data)
            self.out.data = NULL
            self.out.size = 0
        return block


cdef struct Ack:
    # One acknowledgement, and the position after it.
    uint64_t sid
    const uint8_t* inbox
    Py_ssize_t inbox_size
    uint64_t number
    uint64_t seq


cdef inline bint skip_text(Cursor* cursor, const char* text, Py_ssize_t size) noexcept:
    """Move past `text`, if it is next."""
    if cursor.end - cursor.pos < size or memcmp(cursor.pos, text, size):
        return False
    cursor.pos += size
    return True


cdef inline bint skip_number(Cursor* cursor, uint64_t* number) noexcept:
    """Move past a decimal number without leading zeros that fits, if it is next."""
    cdef const uint8_t* start = cursor.pos
    number[0] = 0
    while cursor.pos < cursor.end and c"0" <= cursor.pos[0] <= c"9" and cursor.pos - start < NUMBER - 1:
        number[0] = 10 * number[0] + (cursor.pos[0] - c"0")
        cursor.pos += 1
    return cursor.pos > start and (start[0] != c"0" or cursor.pos == start + 1)


cdef inline bint skip_name(Cursor* cursor) noexcept:
    """Move past the rest of a string in JSON without escapes, and its quotation mark."""
    while cursor.pos < cursor.end and cursor.pos[0] != c'"':
        if cursor.pos[0] == c"\\" or cursor.pos[0] < c" ":
            return False
        cursor.pos += 1
    return skip_text(cursor, b'"', 1)


cdef struct Delivery:
    # A message in the protocol: where its parts are.
    uint64_t sid
    const uint8_t* subject
    Py_ssize_t subject_size
    const uint8_t* reply
    Py_ssize_t reply_size
    const uint8_t* headers
    Py_ssize_t headers_size  # 0 without headers
    const uint8_t* payload
    Py_ssize_t payload_size


cdef inline const uint8_t* skip_printable(Cursor* cursor) noexcept:
    """Move past printable ASCII and the blank after it, and return the position of the blank; NULL without both."""
    cdef const uint8_t* start = cursor.pos
    while cursor.pos < cursor.end and c" " < cursor.pos[0] <= c"~":
        cursor.pos += 1
    if cursor.pos == start or cursor.pos == cursor.end or cursor.pos[0] != c" ":
        return NULL
    cursor.pos += 1
    return cursor.pos - 1


cdef bint skip_line(Cursor* cursor, Delivery* found, uint64_t* head, uint64_t* size) noexcept:
    """Move past the line before a message: `[H]MSG subject sid [reply] [bytes of headers] bytes`."""
    cdef bint has_headers = skip_text(cursor, b"HMSG ", 5)
    cdef const uint8_t* after
    cdef Cursor before
    head[0] = 0
    if not has_headers and not skip_text(cursor, b"MSG ", 4):
        return False
    found.subject = cursor.pos
    after = skip_printable(cursor)
    if not after:
        return False
    found.subject_size = after - found.subject
    if not skip_number(cursor, &found.sid) or not skip_text(cursor, b" ", 1):
        return False
    # A reply may be a number too: the count of fields decides.
    found.reply = cursor.pos
    found.reply_size = 0
    before = cursor[0]
    if skip_sizes(cursor, has_headers, head, size):
        return True
    cursor[0] = before
    after = skip_printable(cursor)
    if not after:
        return False
    found.reply_size = after - found.reply
    return skip_sizes(cursor, has_headers, head, size)


cdef inline bint skip_sizes(Cursor* cursor, bint has_headers, uint64_t* head, uint64_t* size) noexcept:
    """Move past the last fields of the line and its end."""
    if has_headers and not (skip_number(cursor, head) and skip_text(cursor, b" ", 1)):
        return False
    return skip_number(cursor, size) and skip_text(cursor, b"\r\n", 2) and head[0] <= size[0] < MAX_MESSAGE


cdef bint skip_ack(Cursor* cursor, Ack* ack) noexcept:
    """Move past a message that is an acknowledgement; otherwise the position is undefined.

    `MSG <inbox>.<number> <sid> <size>` and `{"stream":"S","seq":1}`, perhaps with a domain and the note that it is a
    duplicate, is all that nats-server sends for a message that it stored.
    """
    cdef uint64_t head, size
    cdef Delivery line
    cdef Cursor answer
    if cursor.pos == cursor.end or cursor.pos[0] != c"M":  # not HMSG
        return False
    if not skip_line(cursor, &line, &head, &size) or line.reply_size or <uint64_t>(cursor.end - cursor.pos) < size:
        return False
    answer.end = answer.pos = line.subject + line.subject_size
    while answer.pos > line.subject and (answer.pos - 1)[0] != c".":
        answer.pos -= 1
    if answer.pos == line.subject:
        return False
    ack.sid = line.sid
    ack.inbox = line.subject
    ack.inbox_size = answer.pos - 1 - line.subject
    if not skip_number(&answer, &ack.number) or answer.pos != answer.end:
        return False
    answer.pos = cursor.pos
    answer.end = cursor.pos = cursor.pos + size
    if not skip_text(&answer, b'{"stream":"', 11) or answer.pos == answer.end or not skip_name(&answer):
        return False
    if skip_text(&answer, b',"domain":"', 11) and not skip_name(&answer):
        return False
    if not skip_text(&answer, b',"seq":', 7) or not skip_number(&answer, &ack.seq) or not ack.seq:
        return False
    skip_text(&answer, b',"duplicate": true', 18)
    return skip_text(&answer, b"}", 1) and answer.pos == answer.end and skip_text(cursor, b"\r\n", 2)


@cython.final
cdef class AckReader:
    """Reads the acknowledgements that JetStream sends to subscriptions of `<inbox>.*`.

    Only those of stored messages: everything else, such as a refusal, is left to the client.
    """

    cdef dict watched
    cdef dict found
    cdef uint64_t sid
    cdef bytes inbox  # of `sid`
    cdef dict acks  # of `sid`, also in `found`

    def __cinit__(self):
        self.watched = {}
        self.found = {}

    @cython.critical_section
    def watch(self, uint64_t sid, str inbox not None):
        """Read the acknowledgements that the subscription numbered `sid` receives."""
        self.watched[sid] = str.encode(inbox, "utf-8")

    @cython.critical_section
    def read(self, data, /):
        """Read the acknowledgements at the beginning of `data`, a bytes-like object that begins with a message.

        Return the number of bytes that they fill; the next byte belongs to something else, or to an incomplete message.
        """
        cdef Py_buffer view
        if not self.watched:
            return 0
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.read_all(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t read_all(self, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Cursor cursor
        cdef Ack ack
        cdef Py_ssize_t used = 0
        cdef dict acks
        cursor.pos = data
        cursor.end = data + size
        while skip_ack(&cursor, &ack):
            acks = self.acks_of(&ack)
            if acks is None:
                break
            acks[ack.number] = ack.seq
            used = cursor.pos - data
        return used

    cdef dict acks_of(self, Ack* ack):
        """Return where to put an acknowledgement; None if its subscription and inbox are not watched."""
        cdef dict none_yet
        if self.acks is None or ack.sid != self.sid:
            sid, none_yet = ack.sid, {}
            inbox = self.watched.get(sid)
            if inbox is None or not same_bytes(<PyObject*>inbox, ack.inbox, ack.inbox_size):
                return None
            self.acks = self.found.setdefault(sid, none_yet)
            self.inbox = inbox
            self.sid = ack.sid
        return self.acks if same_bytes(<PyObject*>self.inbox, ack.inbox, ack.inbox_size) else None

    @cython.critical_section
    def take(self):
        """Return the acknowledgements since the last call, by subscription: the sequence in the stream by number."""
        found = self.found
        self.found = {}
        self.acks = None
        return found


@cython.final
cdef class Received:
    """A message of a subscription. `headers` is None without headers."""

    cdef readonly str subject
    cdef readonly str reply
    cdef readonly bytes data
    cdef object lines  # the headers: bytes, a dict, or None

    def __init__(self, str subject not None, str reply not None, bytes data not None, dict headers=None):
        self.subject = subject
        self.reply = reply
        self.data = data
        self.lines = headers

    @property
    def headers(self):
        lines = self.lines
        if not PyBytes_CheckExact(lines):
            return lines
        found = {}
        for line in lines.split(b"\r\n"):
            name, mark, value = line.partition(b":")
            if mark:
                found[name.decode("ascii")] = value.strip().decode("utf-8", "replace")
        return found


cdef enum:
    OTHER = 0  # a message that is left to the client, or something else
    PART = 1  # the beginning of a message
    WHOLE = 2


cdef inline bint are_plain_headers(const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether this is `NATS/1.0`, lines of headers and an empty line, without a status."""
    if not 12 < size <= MAX_HEADERS or memcmp(text, b"NATS/1.0\r\n", 10) or memcmp(text + size - 2, b"\r\n", 2):
        return False
    return are_headers(text + 10, size - 12)


@cython.final
cdef class BlockReader:
    """Reads the messages that some subscriptions receive, without an object of the client for each.

    Messages with a status instead of headers, or with malformed or unusual headers or subjects, are left to the client,
    which passes them to `add` to keep their order.
    """

    cdef set watched
    cdef list runs  # tuples of a subscription and its messages that arrived one after the other
    cdef uint64_t sid
    cdef list messages  # of the last run, whose subscription is `sid`
    cdef readonly bint incomplete
    """Whether the next message is one to be read, but has not arrived as a whole."""

    def __cinit__(self):
        self.watched = set()
        self.runs = []

    @cython.critical_section
    def watch(self, uint64_t sid):
        """Read the messages of the subscription numbered `sid`."""
        self.watched.add(sid)

    @cython.critical_section
    def forget(self, uint64_t sid):
        """Leave the messages of a subscription to the client again."""
        self.watched.discard(sid)
        self.messages = None

    @cython.critical_section
    def read(self, data, /):
        """Read the messages at the beginning of `data`, a bytes-like object that begins with a message.

        Return the number of bytes that they fill; the next byte belongs to something else, or to an incomplete message.
        """
        cdef Py_buffer view
        self.incomplete = False
        if not self.watched:
            return 0
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.read_all(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t read_all(self, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Cursor cursor
        cdef Delivery found
        cdef Py_ssize_t used = 0
        cdef int kind
        cursor.pos = data
        cursor.end = data + size
        while True:
            kind = self.skip(&cursor, &found)
            if kind != WHOLE:
                self.incomplete = kind == PART
                return used
            self.append(found.sid, received(&found))
            used = cursor.pos - data

    cdef int skip(self, Cursor* cursor, Delivery* found) except -1:
        """Move past a message of a watched subscription."""
        cdef uint64_t head, size
        if not skip_line(cursor, found, &head, &size) or not self.is_watched(found.sid):
            return OTHER
        if <uint64_t>(cursor.end - cursor.pos) < size + 2:
            return PART
        found.headers = cursor.pos
        found.headers_size = head
        if head and not are_plain_headers(found.headers, head):
            return OTHER
        found.payload = cursor.pos + head
        found.payload_size = size - head
        cursor.pos += size
        return WHOLE if skip_text(cursor, b"\r\n", 2) else OTHER

    cdef bint is_watched(self, uint64_t sid) except -1:
        return self.messages is not None and sid == self.sid or sid in self.watched

    cdef int append(self, uint64_t sid, Received message) except -1:
        if self.messages is None or sid != self.sid:
            messages = []
            run = (sid, messages)
            self.runs.append(run)  # after creating objects, which can run any code
            self.messages = messages
            self.sid = sid
        self.messages.append(message)
        return 0

    @cython.critical_section
    def add(self, uint64_t sid, Received message not None):
        """Add a message that was left to the client."""
        self.append(sid, message)

    @cython.critical_section
    def take(self):
        """Return the messages since the last call, in the order of arrival, as runs of one subscription."""
        cdef list none_yet = []
        runs = self.runs
        self.runs = none_yet
        self.messages = None
        return runs


cdef Received received(Delivery* found):
    cdef Received made = Received.__new__(Received)
    made.subject = text_at(found.subject, found.subject_size)
    made.reply = text_at(found.reply, found.reply_size)
    made.data = found.payload[:found.payload_size]
    if found.headers_size:
        made.lines = (found.headers + 10)[:found.headers_size - 12]
    return made
