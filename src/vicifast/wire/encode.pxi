# Encodes Python objects to messages and packets: encode() and packet().

cdef struct Frame:
    # A section being written, and its name in the enclosing section; both are owned.
    PyObject* section
    PyObject* name
    Py_ssize_t position


cdef struct Place:
    # The encoder's position in the message, also for error texts. Both objects are owned, as a mapping's own code may
    # remove them from the message at any time.
    PyObject* name
    PyObject* value
    Py_ssize_t index


cdef int refuse(str reason) except -1:
    raise EncodeError(reason)


cdef inline int add_name(Writer* out, int kind, const uint8_t* text, Py_ssize_t size) except -1:
    """Write the type of an element and its checked name."""
    reserve(out, size + 2)
    add_byte(out, <uint8_t>kind)
    add_byte(out, <uint8_t>size)
    add_bytes(out, text, size)
    return 0


cdef inline uint8_t* plain_name(Writer* out, int kind, object name, Py_ssize_t more) except? NULL:
    """Write the type of an element and its name, a plain str, and return the position after it, not yet in `out.used`.

    NULL when the name is not plain or too long: the slow path reports errors. `more` bytes are reserved after it.
    """
    if unlikely(not is_plain(name)):
        return NULL
    cdef Py_ssize_t size = PyUnicode_GET_LENGTH(<PyObject*>name)
    if unlikely(size > MAX_NAME):
        return NULL
    reserve(out, size + 2 + CHUNK + more)
    cdef uint8_t* to = out.data + out.used
    to[0] = <uint8_t>kind
    to[1] = <uint8_t>size
    return to + 2 + size if copy_name(to + 2, plain_text(name), size) else NULL


cdef inline int put_name(Writer* out, int kind, object name) except -1:
    cdef uint8_t* after = plain_name(out, kind, name, 0)
    if not after:
        return put_odd_name(out, kind, name)
    out.used = after - out.data
    return 0


cdef int put_odd_name(Writer* out, int kind, object name) except -1:
    cdef Py_ssize_t size
    cdef const uint8_t* text
    if not PyUnicode_Check(name):
        return refuse(f"a name must be str, not {type(name).__name__}")
    if PyUnicode_IS_COMPACT_ASCII(<PyObject*>name):
        text = <const uint8_t*>PyUnicode_DATA(<PyObject*>name)
        size = PyUnicode_GET_LENGTH(<PyObject*>name)
    else:
        encoded = PyUnicode_AsEncodedString(name, b"utf-8", b"surrogatepass")  # a subclass may override encode()
        text = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>encoded)
        size = PyBytes_GET_SIZE(<PyObject*>encoded)
    if not is_printable(text, size):
        return refuse("a name must be printable ASCII")
    if size > MAX_NAME:
        return refuse(f"a name of {size} bytes is longer than {MAX_NAME}")
    return add_name(out, kind, text, size)


cdef inline int put_bytes(Writer* out, const void* data, Py_ssize_t size) except -1:
    if size > MAX_VALUE:
        return refuse(f"a value of {size} bytes is longer than {MAX_VALUE}")
    reserve(out, size + 2)
    add_u16(out, size)
    add_bytes(out, data, size)
    return 0


cdef int put_buffer(Writer* out, object value) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    try:
        return put_bytes(out, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef int put_integer(Writer* out, object value) except -1:
    cdef int overflow = 0
    cdef Py_ssize_t start
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        try:
            return put_buffer(out, int.__repr__(value).encode())
        except ValueError:
            return refuse("an int has too many digits")
    reserve(out, 24)
    add_byte(out, 0)
    out.used += 1
    start = out.used
    if number < 0:
        add_byte(out, c'-')
    add_decimal(out, <uint64_t>number if number >= 0 else -<uint64_t>number)
    out.data[start - 1] = <uint8_t>(out.used - start)
    return 0


cdef int put_other(Writer* out, object value) except -1:
    """Write a scalar that is neither a plain ASCII str nor bytes."""
    if PyUnicode_Check(value):
        try:
            return put_buffer(out, PyUnicode_AsEncodedString(value, b"utf-8", b"surrogateescape"))
        except UnicodeEncodeError:
            return refuse("a str contains a surrogate that does not represent a byte")
    if value is True:
        return put_bytes(out, b"yes", 3)
    if value is False:
        return put_bytes(out, b"no", 2)
    if PyLong_Check(value):
        return put_integer(out, value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return put_buffer(out, PyBytes_FromObject(value))  # a memoryview may have gaps
    if isinstance(value, Refused):
        return refuse((<Refused>value).reason)
    return refuse(f"{type(value).__name__} is not a VICI value")


cdef inline int put_value(Writer* out, object value) except -1:
    if is_plain(value):
        return put_bytes(out, PyUnicode_DATA(<PyObject*>value), PyUnicode_GET_LENGTH(<PyObject*>value))
    if PyBytes_CheckExact(value):
        return put_bytes(out, PyBytes_AS_STRING(<PyObject*>value), PyBytes_GET_SIZE(<PyObject*>value))
    return put_other(out, value)


cdef inline bint put_plain(Writer* out, object name, object value) except -1:
    """Write a key and value when both are plain str within the limits; else nothing: the slow path reports errors."""
    if unlikely(not is_plain(value)):
        return False
    cdef Py_ssize_t size = PyUnicode_GET_LENGTH(<PyObject*>value)
    if unlikely(size > MAX_VALUE):
        return False
    cdef uint8_t* to = plain_name(out, KEY_VALUE, name, size + 2)
    if unlikely(not to):
        return False
    to[0] = <uint8_t>(size >> 8)
    to[1] = <uint8_t>size
    copy_text(to + 2, plain_text(value), size)
    out.used = to + 2 + size - out.data
    return True


cdef inline bint put_plain_list(Writer* out, object name, object items, Py_ssize_t limit) except -1:
    """Write a list when all its items are plain str within the limits; else nothing, as `put_plain`."""
    cdef Py_ssize_t start = out.used
    cdef Py_ssize_t i, size
    cdef PyObject* item
    cdef uint8_t* after = plain_name(out, LIST_START, name, 0)
    if unlikely(not after):
        return False
    out.used = after - out.data
    with cython.critical_section(items):
        for i in range(PyList_GET_SIZE(items)):
            item = PyList_GET_ITEM(items, i)
            size = PyUnicode_GET_LENGTH(item) if is_plain(<object>item) else MAX_VALUE + 1
            if size > MAX_VALUE or out.used > limit:
                out.used = start
                return False
            reserve(out, size + 3 + CHUNK)
            add_byte(out, LIST_ITEM)
            add_u16(out, size)
            copy_text(out.data + out.used, plain_text(<object>item), size)
            out.used += size
    reserve(out, 1)
    add_byte(out, LIST_END)
    return True


cdef inline bint is_scalar(object value) noexcept:
    return PyUnicode_Check(value) or PyBytes_CheckExact(value) or PyLong_Check(value)


cdef int put_list(Writer* out, object name, object items, Place* place, Py_ssize_t limit) except -1:
    put_name(out, LIST_START, name)
    place.index = 0
    for item in items:
        reserve(out, 1)
        add_byte(out, LIST_ITEM)
        put_value(out, item)
        if out.used > limit:
            too_long()
        place.index += 1
    place.index = -1
    reserve(out, 1)
    add_byte(out, LIST_END)
    return 0


cdef int too_long() except -1:
    return refuse(f"the message is longer than {MAX_PACKET} bytes, the maximum of VICI")


cdef int open_frame(Frame* frame, object section, object name) except -1:
    # A mapping that is not exactly a dict is copied: its own code could change it during iteration.
    if not PyDict_CheckExact(section):
        section = dict(section)
    Py_INCREF(section)
    Py_INCREF(name)
    frame.section = <PyObject*>section
    frame.name = <PyObject*>name
    frame.position = 0
    return 0


cdef void close_frame(Frame* frame) noexcept:
    Py_DECREF(<object>frame.section)
    Py_DECREF(<object>frame.name)


cdef int put_plain_items(Writer* out, Frame* frame, Place* place, Py_ssize_t limit) except -1:
    """Write the items of a section up to the first that is not plain, which `place` then owns; 0 at the end."""
    cdef PyObject* name
    cdef PyObject* value
    cdef bint is_written
    replace(&place.name, NULL)
    replace(&place.value, NULL)
    # Nothing in this block runs other code, so that names and values can be borrowed.
    with cython.critical_section(<object>frame.section):
        while PyDict_Next(frame.section, &frame.position, &name, &value):
            if PyList_CheckExact(<object>value):
                is_written = put_plain_list(out, <object>name, <object>value, limit)
            else:
                is_written = put_plain(out, <object>name, <object>value)
            if not is_written:
                Py_INCREF(<object>name)
                Py_INCREF(<object>value)
                place.name = name
                place.value = value
                return 1
            if out.used > limit:
                too_long()
    return 0


cdef int put_sections(Writer* out, Frame* frames, int* depth, Place* place, Py_ssize_t limit) except -1:
    """Write the sections of `frames` until all are closed and `depth` is -1."""
    while True:
        if put_plain_items(out, &frames[depth[0]], place, limit):
            put_item(out, frames, depth, place, limit)
        else:
            close_frame(&frames[depth[0]])
            depth[0] -= 1
            if depth[0] < 0:
                return 0
            reserve(out, 1)
            add_byte(out, SECTION_END)
        if out.used > limit:
            too_long()


cdef int put_item(Writer* out, Frame* frames, int* depth, Place* place, Py_ssize_t limit) except -1:
    name = <object>place.name
    value = <object>place.value
    if not PyDict_CheckExact(value):
        if isinstance(value, (list, tuple)):
            return put_list(out, name, value, place, limit)
        if is_scalar(value):
            put_name(out, KEY_VALUE, name)
            return put_value(out, value)
        if isinstance(value, Message):
            return put_section(out, name, value, depth[0])
    if PyDict_CheckExact(value) or isinstance(value, Mapping):
        if depth[0] == MAX_DEPTH:
            refuse(f"sections nested deeper than {MAX_DEPTH}")
        put_name(out, SECTION_START, name)
        open_frame(&frames[depth[0] + 1], value, name)
        depth[0] += 1
        return 0
    put_name(out, KEY_VALUE, name)
    return put_other(out, value)


cdef int put_section(Writer* out, object name, Message section, int depth) except -1:
    """Write a section that is already valid, including its duplicate names."""
    if depth + 1 + section.nested() > MAX_DEPTH:
        return refuse(f"sections nested deeper than {MAX_DEPTH}")
    put_name(out, SECTION_START, name)
    put_whole(out, section)
    reserve(out, 1)
    add_byte(out, SECTION_END)
    return 0


cdef int put_whole(Writer* out, Message message) except -1:
    reserve(out, message.end - message.first)
    add_bytes(out, message.at(message.first), message.end - message.first)
    return 0


cdef str path_of(Frame* frames, int depth, Place* place):
    cdef int i
    names = [<object>frames[i].name for i in range(1, depth + 1)]
    if place.name:
        names.append(<object>place.name)
    path = ".".join([name if isinstance(name, str) else repr(name) for name in names])
    if len(path) > 200:
        path = f"{path[:100]}...{path[len(path) - 100:]}"
    return f"{path}[{place.index}]" if place.index >= 0 else path


cdef int put_message(Writer* out, object message, Py_ssize_t limit) except -1:
    cdef Frame[MAX_DEPTH + 1] frames
    cdef Place place = Place(NULL, NULL, -1)
    cdef int depth = -1
    if not PyDict_CheckExact(message):
        if isinstance(message, Message):
            put_whole(out, message)
            return too_long() if out.used > limit else 0
        if isinstance(message, Refused):
            return refuse((<Refused>message).reason)
        if not isinstance(message, Mapping):
            return refuse(f"a message must be a mapping, not {type(message).__name__}")
    try:
        open_frame(&frames[0], message, None)
        depth = 0
        put_sections(out, frames, &depth, &place, limit)
    except EncodeError as error:
        path = path_of(frames, depth, &place)
        raise EncodeError(f"{path}: {error}" if path else str(error)) from None
    finally:
        replace(&place.name, NULL)
        replace(&place.value, NULL)
        while depth >= 0:
            close_frame(&frames[depth])
            depth -= 1
    return 0


def encode(message, /):
    """Return a message, a mapping, as the bytes of a VICI message.

    A mapping becomes a section, a list or tuple a list, anything else a value: str (UTF-8, surrogateescape), bytes,
    bytearray, memoryview, bool (yes or no) or int (decimal). Names are printable ASCII. The limits are 255 bytes for a
    name, 65535 bytes for a value, 512 KiB for the message and 64 nested sections. Raises `EncodeError` with the path;
    nothing is truncated.
    """
    cdef uint8_t[LENT_SIZE] lent
    cdef Writer out
    lend(&out, &lent[0])
    try:
        put_message(&out, message, MAX_PACKET)
        return <bytes>out.data[:out.used]
    finally:
        free_writer(&out)


def packet(kind, name=None, message=None):
    """Return a whole packet with its length prefix; `kind` is one of `CMD_REQUEST` to `EVENT`.

    Requests, registrations and events have a name (printable ASCII, at most 255 bytes); requests, responses and events
    have a message, empty when it is None. Raises `EncodeError` for any other combination, and above 512 KiB.
    """
    cdef uint8_t[LENT_SIZE] lent
    cdef Writer out
    cdef int type_ = kind
    lend(&out, &lent[0])
    if not CMD_REQUEST <= type_ <= EVENT:
        refuse(f"unknown packet type {kind}")
    if (name is not None) != (type_ in (CMD_REQUEST, EVENT_REGISTER, EVENT_UNREGISTER, EVENT)):
        refuse(f"a packet of type {kind} {'has no' if name is not None else 'needs a'} name")
    if message is not None and type_ not in (CMD_REQUEST, CMD_RESPONSE, EVENT):
        refuse(f"a packet of type {kind} has no message")
    try:
        reserve(&out, 5)
        out.used = 4
        if name is None:
            add_byte(&out, <uint8_t>type_)
        else:
            put_name(&out, type_, name)
        if message is not None:
            put_message(&out, message, MAX_PACKET + 4)
        write_length(out.data, <uint32_t>(out.used - 4))
        return <bytes>out.data[:out.used]
    finally:
        free_writer(&out)


cdef void write_length(uint8_t* data, uint32_t length) noexcept:
    data[0] = <uint8_t>(length >> 24)
    data[1] = <uint8_t>(length >> 16)
    data[2] = <uint8_t>(length >> 8)
    data[3] = <uint8_t>length
