# Transcodes messages to msgpack.

cdef struct Container:
    # A map or array being written: the position of its header, and its number of elements so far.
    uint8_t* header
    Py_ssize_t count


cdef inline uint8_t* msgpack_text(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Write a checked text, for which there must be room; return the position after it."""
    if size < 32:
        to[0] = <uint8_t>(MP_FIXSTR | size)
        to += 1
    elif size < 256:
        to[0] = MP_STR8
        to[1] = <uint8_t>size
        to += 2
    else:
        to[0] = MP_STR16
        to[1] = <uint8_t>(size >> 8)
        to[2] = <uint8_t>size
        to += 3
    copy(to, text, size)
    return to + size


cdef inline uint8_t* msgpack_binary(uint8_t* to, const uint8_t* data, Py_ssize_t size) noexcept:
    if size < 256:
        to[0] = MP_BIN8
        to[1] = <uint8_t>size
        to += 2
    else:
        to[0] = MP_BIN16
        to[1] = <uint8_t>(size >> 8)
        to[2] = <uint8_t>size
        to += 3
    copy(to, data, size)
    return to + size


cdef inline uint8_t* msgpack_name(uint8_t* to, Cursor* cursor, Element* element) except NULL:
    """Check and write a name."""
    cdef Py_ssize_t size = element.name_size
    cdef Chunk chunk
    if has_chunk(cursor, element.name, size):
        chunk = load_chunk(element.name)
        to[0] = <uint8_t>(MP_FIXSTR | size)
        store_chunk(to + 1, chunk)
        if is_printable_chunk(chunk, size):
            return to + 1 + size
    check_name(cursor, element)
    return msgpack_text(to, element.name, size)


cdef uint8_t* msgpack_keys(uint8_t* to, Cursor* cursor, Py_ssize_t* count) except NULL:
    """Write a run of keys."""
    cdef Element element
    cdef const uint8_t* here = cursor.pos
    cdef const uint8_t* after = next_key(here, cursor.end, &element)
    cdef Py_ssize_t seen = 0
    while after:
        to = msgpack_name(to, cursor, &element)
        to = msgpack_value(to, cursor, &element, False)
        seen += 1
        here = after
        after = next_key(here, cursor.end, &element)
    cursor.pos = here
    count[0] += seen
    return to


cdef inline uint8_t* msgpack_value(uint8_t* to, Cursor* cursor, Element* element, bint blob) noexcept:
    cdef Py_ssize_t size = element.value_size
    cdef Chunk chunk
    if not blob and has_chunk(cursor, element.value, size):
        chunk = load_chunk(element.value)
        to[0] = <uint8_t>(MP_FIXSTR | size)
        store_chunk(to + 1, chunk)
        if is_ascii_chunk(chunk, size):
            return to + 1 + size
    if blob or not is_utf8(element.value, size):
        return msgpack_binary(to, element.value, size)
    return msgpack_text(to, element.value, size)


cdef inline uint8_t* msgpack_open(uint8_t* to, Container* container) noexcept:
    container.header = to
    container.count = 0
    return to + 1


cdef inline uint8_t* msgpack_close(uint8_t* to, Container* container, bint is_map) noexcept:
    """Write the header of a container into the byte reserved for it; a longer header moves the content."""
    cdef uint8_t* header = container.header
    cdef Py_ssize_t count = container.count
    cdef Py_ssize_t more = 0 if count < 16 else 2 if count < 65536 else 4
    if not more:
        header[0] = <uint8_t>((MP_FIXMAP if is_map else MP_FIXARRAY) | count)
        return to
    memmove(header + 1 + more, header + 1, to - header - 1)
    header[0] = <uint8_t>((MP_MAP16 if is_map else MP_ARRAY16) + (more == 4))
    if more == 4:
        header[1] = <uint8_t>(count >> 24)
        header[2] = <uint8_t>(count >> 16)
    header[more - 1] = <uint8_t>(count >> 8)
    header[more] = <uint8_t>count
    return to + more


cdef int write_msgpack(Writer* out, const uint8_t* data, Py_ssize_t size, tuple binary) except -1:
    cdef Cursor cursor
    cdef Element element
    cdef Container[MAX_DEPTH + 2] opened
    cdef uint8_t* to
    cdef int top = 0, kind
    cdef bint has_binary = bool(binary), blob = False, list_blob = False
    begin(&cursor, data, size)
    # msgpack is longer than VICI only for lengths from 32 or 256, and for containers from 16 elements.
    reserve(out, size + size // 8 + 64 + CHUNK)
    to = msgpack_open(out.data + out.used, &opened[0])
    while True:
        if not cursor.in_list and (cursor.depth or not has_binary):
            to = msgpack_keys(to, &cursor, &opened[top].count)
        kind = any_element(&cursor, &element)
        if kind == SECTION_END or kind == LIST_END:
            to = msgpack_close(to, &opened[top], kind == SECTION_END)
            top -= 1
            continue
        if kind == END:
            out.used = msgpack_close(to, &opened[0], True) - out.data
            return 0
        opened[top].count += 1
        if kind == LIST_ITEM:
            to = msgpack_value(to, &cursor, &element, list_blob)
            continue
        to = msgpack_name(to, &cursor, &element)
        if has_binary:
            blob = not cursor.depth and is_one_of(binary, element.name, element.name_size)
        if kind == KEY_VALUE:
            to = msgpack_value(to, &cursor, &element, blob)
        else:
            list_blob = blob
            top += 1
            to = msgpack_open(to, &opened[top])
