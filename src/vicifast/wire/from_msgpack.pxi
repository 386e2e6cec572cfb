# Converts msgpack to messages. The form that the bridge itself writes, in either format, takes the one-pass path of
# from_plain().

cdef int fail_at(Cursor* cursor, str reason) except -1:
    return fail(cursor, cursor.pos, reason)


cdef uint64_t take_number(Cursor* cursor, int size) except? 0xFFFFFFFF:
    cdef const uint8_t* data = take(cursor, size, b"a msgpack number")
    cdef uint64_t number = 0
    cdef int i
    for i in range(size):
        number = number << 8 | data[i]
    return number


cdef object take_text(Cursor* cursor, Py_ssize_t size):
    return text_at(take(cursor, size, b"a msgpack string"), size)


cdef object take_integer(Cursor* cursor, int kind):
    cdef int size = 1 << (kind & 3)
    cdef uint64_t number = take_number(cursor, size)
    if kind < MP_INT8:
        return number
    return <long long>(number << (64 - 8 * size)) >> (64 - 8 * size)


cdef object take_scalar(Cursor* cursor, int kind):
    """Read the rest of an object other than a map or an array; `kind` is its first byte."""
    if kind <= MP_FIXINT_LAST:
        return kind
    if kind >= MP_NEGATIVE_FIXINT:
        return kind - 256
    if MP_FIXSTR <= kind <= MP_FIXSTR_LAST:
        return take_text(cursor, kind & 31)
    if MP_STR8 <= kind <= MP_STR32:
        return take_text(cursor, take_number(cursor, 1 << (kind - MP_STR8)))
    if MP_BIN8 <= kind <= MP_BIN32:
        size = take_number(cursor, 1 << (kind - MP_BIN8))
        return take(cursor, size, b"msgpack binary data")[:<Py_ssize_t>size]
    if MP_UINT8 <= kind <= MP_INT64:
        return take_integer(cursor, kind)
    if kind == MP_FALSE or kind == MP_TRUE:
        return kind == MP_TRUE
    if kind == MP_NIL:
        return None
    cursor.pos -= 1
    is_float = kind in (MP_FLOAT32, MP_FLOAT64)
    fail_at(cursor, "VICI cannot carry a float" if is_float else f"VICI cannot carry msgpack type 0x{kind:02x}")


cdef object take_key(Cursor* cursor, dict section):
    cdef const uint8_t* start = cursor.pos
    cdef int kind = take(cursor, 1, b"a key")[0]
    if not (MP_FIXSTR <= kind <= MP_FIXSTR_LAST or MP_STR8 <= kind <= MP_STR32):
        cursor.pos = start
        fail_at(cursor, "a key that is not a string")
    key = take_scalar(cursor, kind)
    if key in section:
        cursor.pos = start
        fail_at(cursor, f"duplicate key {key[:MAX_NAME]!r}")
    return key


@cython.wraparound(True)
cdef object unpack(Cursor* cursor):
    """Read one msgpack object; iterative, and allocates nothing for a count before its items are there."""
    cdef list containers = [], lefts = [], keys = []
    cdef const uint8_t* first
    while True:
        if containers and isinstance(containers[-1], dict) and lefts[-1]:
            keys[-1] = take_key(cursor, containers[-1])
        if not containers or lefts[-1]:
            first = cursor.pos
            made, left = unpack_one(cursor)
            if left >= 0:
                if len(containers) > MAX_DEPTH + 1:
                    fail(cursor, first, f"maps and arrays nested deeper than {MAX_DEPTH}")
                containers.append(made)
                lefts.append(left)
                keys.append(None)
                continue
        else:
            made = containers.pop()
            lefts.pop()
            keys.pop()
        if not containers:
            return made
        if isinstance(containers[-1], dict):
            containers[-1][keys[-1]] = made
        else:
            containers[-1].append(made)
        lefts[-1] -= 1


cdef tuple unpack_one(Cursor* cursor):
    """Read a scalar or a container header: (object, number of items that follow; -1 for a scalar)."""
    cdef int kind = take(cursor, 1, b"a msgpack value")[0]
    if MP_FIXMAP <= kind <= MP_FIXMAP_LAST:
        return {}, kind & 15
    if MP_FIXARRAY <= kind <= MP_FIXARRAY_LAST:
        return [], kind & 15
    if kind == MP_MAP16 or kind == MP_MAP32:
        return {}, take_number(cursor, 2 << (kind - MP_MAP16))
    if kind == MP_ARRAY16 or kind == MP_ARRAY32:
        return [], take_number(cursor, 2 << (kind - MP_ARRAY16))
    return take_scalar(cursor, kind), -1


cdef struct Token:
    # A scalar with its text, or the start of a container. `size` is the length of the text, the number of items of a
    # msgpack container, or -1 for a JSON container.
    int kind
    const uint8_t* text
    Py_ssize_t size


cdef enum:
    PLAIN_END = 0  # of a map or an array
    PLAIN_MAP = 1
    PLAIN_ARRAY = 2
    PLAIN_STRING = 3
    PLAIN_BYTES = 4  # binary data, and the value of a bool or of a JSON number
    PLAIN_NAMES = 64  # most names in a map; a power of two
    PLAIN_DEPTH = 8


cdef const uint8_t* msgpack_token(const uint8_t* at, const uint8_t* end, Token* token) noexcept:
    """Read a string, binary data, a bool or a container header; NULL for anything else, or if bytes are missing."""
    cdef int kind
    cdef Py_ssize_t wide = 0
    if at == end:
        return NULL
    kind = at[0]
    at += 1
    token.size = 0
    token.kind = PLAIN_STRING
    if MP_FIXSTR <= kind <= MP_FIXSTR_LAST:
        token.size = kind & 31
    elif MP_FIXMAP <= kind <= MP_FIXARRAY_LAST:
        token.kind = PLAIN_MAP if kind < MP_FIXARRAY else PLAIN_ARRAY
        token.size = kind & 15
        return at
    elif kind == MP_FALSE or kind == MP_TRUE:
        token.kind = PLAIN_BYTES
        token.text = b"yes" if kind == MP_TRUE else b"no"
        token.size = 3 if kind == MP_TRUE else 2
        return at
    elif kind == MP_STR8 or kind == MP_STR16:
        wide = 1 << (kind - MP_STR8)
    elif kind == MP_BIN8 or kind == MP_BIN16:
        token.kind = PLAIN_BYTES
        wide = 1 << (kind - MP_BIN8)
    elif kind == MP_MAP16 or kind == MP_ARRAY16:
        token.kind = PLAIN_MAP if kind == MP_MAP16 else PLAIN_ARRAY
        wide = 2
    else:
        return NULL
    if end - at < wide:
        return NULL
    if wide:
        token.size = at[0] if wide == 1 else at[0] << 8 | at[1]
        at += wide
    if token.kind < PLAIN_STRING:
        return at
    if end - at < token.size:
        return NULL
    token.text = at
    return at + token.size


cdef inline const uint8_t* next_item(
    const uint8_t* at, const uint8_t* end, Py_ssize_t left, uint8_t bracket, Token* item
) noexcept:
    """Read the next item of a map or array. `left` is the number of items left; in JSON it counts down from -1."""
    if left > 0:
        return msgpack_token(at, end, item)
    item.kind = PLAIN_END
    if not left:
        return at
    at = skip_space(at, end)
    if at < end and at[0] == bracket:
        return at + 1
    return json_token(at, end, item) if left == -1 else json_after(at, end, c',', item)


cdef inline bint is_new_name(uint64_t* seen, Token* name) noexcept:
    """Record a name; False when it, or one with the same hash, was recorded before."""
    cdef uint64_t mixed = hash_name(name.text, name.size) | 1
    cdef uint64_t place = mixed >> 32
    while seen[place % (2 * PLAIN_NAMES)]:
        if seen[place % (2 * PLAIN_NAMES)] == mixed:
            return False
        place += 1
    seen[place % (2 * PLAIN_NAMES)] = mixed
    return True


cdef const uint8_t* put_plain_array(Writer* out, const uint8_t* at, const uint8_t* end, Py_ssize_t count) except? NULL:
    """Write the items of an array as a list."""
    cdef Token item
    while True:
        at = next_item(at, end, count, c']', &item)
        if not at or 0 < item.kind < PLAIN_STRING or out.used > MAX_PACKET:
            return NULL
        if item.kind == PLAIN_END:
            reserve(out, 1)
            add_byte(out, LIST_END)
            return at
        if item.size > MAX_VALUE:
            return NULL
        reserve(out, 1)
        add_byte(out, LIST_ITEM)
        put_bytes(out, item.text, item.size)
        count -= 1


cdef const uint8_t* put_plain_map(
    Writer* out, const uint8_t* at, const uint8_t* end, Py_ssize_t count, int depth
) except? NULL:
    """Write the items of a map when all are plain and within the limits; else NULL: the slow path reports errors."""
    cdef Token name, value
    cdef uint64_t[2 * PLAIN_NAMES] seen
    cdef bint json = count < 0
    if count > PLAIN_NAMES or depth > PLAIN_DEPTH:
        return NULL
    memset(seen, 0, sizeof(seen))
    while True:
        at = next_item(at, end, count, c'}', &name)
        if not at or name.kind == PLAIN_END:
            return at
        if name.kind != PLAIN_STRING or not 0 < name.size <= MAX_NAME or out.used > MAX_PACKET:
            return NULL
        if not is_printable(name.text, name.size) or not is_new_name(seen, &name):
            return NULL
        count -= 1
        if json and (count < -PLAIN_NAMES or name.size == 7 and not memcmp(name.text, b"$base64", 7)):
            return NULL
        at = json_after(at, end, c':', &value) if json else msgpack_token(at, end, &value)
        if not at:
            return NULL
        if value.kind >= PLAIN_STRING:
            if value.size > MAX_VALUE:
                return NULL
            add_name(out, KEY_VALUE, name.text, name.size)
            put_bytes(out, value.text, value.size)
        elif value.kind == PLAIN_ARRAY:
            add_name(out, LIST_START, name.text, name.size)
            at = put_plain_array(out, at, end, value.size)
        else:
            add_name(out, SECTION_START, name.text, name.size)
            at = put_plain_map(out, at, end, value.size, depth + 1)
            reserve(out, 1)
            add_byte(out, SECTION_END)
        if not at:
            return NULL


cdef bytes from_plain(bytes data, bint json):
    """Convert msgpack or JSON in one pass when it has the form that this module writes; else return None."""
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>data)
    cdef const uint8_t* end = at + PyBytes_GET_SIZE(<PyObject*>data)
    cdef uint8_t[LENT_SIZE] lent
    cdef Writer out
    cdef Token root
    lend(&out, &lent[0])
    try:
        at = json_token(skip_space(at, end), end, &root) if json else msgpack_token(at, end, &root)
        if not at or root.kind != PLAIN_MAP:
            return None
        at = put_plain_map(&out, at, end, root.size, 0)
        if at and json:
            at = skip_space(at, end)
        return <bytes>out.data[:out.used] if at == end and out.used <= MAX_PACKET else None
    finally:
        free_writer(&out)


def from_msgpack(data, /):
    """Return the VICI bytes of a msgpack message: map = section, array = list, other objects as in `encode`.

    `from_msgpack(to_msgpack(x)) == x` for every message without duplicate names. Raises `DecodeError` with the offset
    for invalid msgpack, a float, an extension, and a key that is not a string or is a duplicate, and `EncodeError` with
    the path for content that VICI cannot carry.
    """
    cdef Cursor cursor
    held = bytes_of(data)
    cursor.start = cursor.pos = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>held)
    cursor.end = cursor.start + PyBytes_GET_SIZE(<PyObject*>held)
    cursor.depth = cursor.in_list = 0
    cdef bytes plain = from_plain(held, False)
    if plain is not None:
        return plain
    message = unpack(&cursor)
    if cursor.pos != cursor.end:
        fail_at(&cursor, "trailing bytes after the message")
    return encode(message)
