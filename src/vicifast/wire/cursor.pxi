# Reads the elements of a message in order. Only this file computes pointers into unchecked messages.

cdef struct Cursor:
    const uint8_t* start
    const uint8_t* pos
    const uint8_t* end
    int depth
    bint in_list


cdef struct Element:
    const uint8_t* name
    Py_ssize_t name_size
    const uint8_t* value
    Py_ssize_t value_size


cdef int fail(Cursor* cursor, const uint8_t* where, str reason) except -1:
    raise DecodeError(reason, where - cursor.start)


cdef int short_read(Cursor* cursor, Py_ssize_t wanted, const char* part) except -1:
    left = cursor.end - cursor.pos
    raise DecodeError(f"{part.decode()} needs {wanted} bytes, but only {left} are left", cursor.pos - cursor.start)


cdef inline const uint8_t* take(Cursor* cursor, Py_ssize_t size, const char* part) except NULL:
    """Return the next `size` bytes. Lengths are compared first, so that no pointer past the end is ever formed."""
    # `part` is not a str: a Python constant would have to be looked up in the module state.
    cdef const uint8_t* here = cursor.pos
    if <size_t>(cursor.end - here) < <size_t>size:  # unsigned, as a 32-bit length may be negative
        short_read(cursor, size, part)
    cursor.pos = here + size
    return here


cdef inline int take_name(Cursor* cursor, Element* element) except -1:
    element.name_size = take(cursor, 1, b"the length of a name")[0]
    element.name = take(cursor, element.name_size, b"a name")
    return 0


cdef inline int take_value(Cursor* cursor, Element* element) except -1:
    cdef const uint8_t* size = take(cursor, 2, b"the length of a value")
    element.value_size = (size[0] << 8) | size[1]
    element.value = take(cursor, element.value_size, b"a value")
    return 0


cdef int misplaced(Cursor* cursor, int kind) except -1:
    cdef const uint8_t* where = cursor.pos - 1
    if kind < SECTION_START or kind > LIST_END:
        return fail(cursor, where, f"unknown element type {kind}")
    if kind == SECTION_START and not cursor.in_list:
        return fail(cursor, where, f"sections nested deeper than {MAX_DEPTH}")
    if kind == SECTION_END and not cursor.in_list:
        return fail(cursor, where, "the end of a section that was not started")
    name = ("", "a section", "the end of a section", "a key", "a list", "a list item", "the end of a list")[kind]
    return fail(cursor, where, f"{name} {'inside' if cursor.in_list else 'outside'} a list")


cdef int unfinished(Cursor* cursor) except -1:
    return fail(cursor, cursor.end, f"the message ends inside a {'list' if cursor.in_list else 'section'}")


cdef inline const uint8_t* next_key(const uint8_t* here, const uint8_t* end, Element* element) noexcept:
    """Read a key and value and return the position after it; NULL at any other element (see `next_element`).

    Most elements are keys, in runs: a loop over a run can keep `here` in a register, unlike a `Cursor`.
    """
    cdef Py_ssize_t left = end - here
    cdef Py_ssize_t size
    if left < 4 or here[0] != KEY_VALUE:
        return NULL
    size = here[1]
    if left < size + 4:
        return NULL
    element.name = here + 2
    element.name_size = size
    here += size + 2
    element.value_size = (here[0] << 8) | here[1]
    if left - size - 4 < element.value_size:
        return NULL
    element.value = here + 2
    return here + 2 + element.value_size


cdef inline int next_element(Cursor* cursor, Element* element) except -1:
    """Read one element and check that it is allowed here; END at the end. Names are not checked (see `check_name`)."""
    cdef const uint8_t* after = next_key(cursor.pos, cursor.end, element)
    if not after or cursor.in_list:
        return any_element(cursor, element)
    cursor.pos = after
    return KEY_VALUE


cdef int any_element(Cursor* cursor, Element* element) except -1:
    if cursor.pos == cursor.end:
        return unfinished(cursor) if cursor.depth or cursor.in_list else END
    cdef int kind = cursor.pos[0]
    cursor.pos += 1
    if kind == KEY_VALUE and not cursor.in_list:
        take_name(cursor, element)
        take_value(cursor, element)
    elif kind == LIST_ITEM and cursor.in_list:
        take_value(cursor, element)
    elif kind == SECTION_START and not cursor.in_list and cursor.depth < MAX_DEPTH:
        take_name(cursor, element)
        cursor.depth += 1
    elif kind == SECTION_END and not cursor.in_list and cursor.depth:
        cursor.depth -= 1
    elif kind == LIST_START and not cursor.in_list:
        take_name(cursor, element)
        cursor.in_list = True
    elif kind == LIST_END and cursor.in_list:
        cursor.in_list = False
    else:
        misplaced(cursor, kind)
    return kind


cdef int begin(Cursor* cursor, const uint8_t* data, Py_ssize_t size) except -1:
    cursor.start = cursor.pos = data
    cursor.end = data + size
    cursor.depth = 0
    cursor.in_list = False
    if size > MAX_PACKET:
        fail(cursor, data + MAX_PACKET, f"a message of {size} bytes is longer than {MAX_PACKET}")
    return 0


cdef inline bint has_chunk(Cursor* cursor, const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether the text fits in a chunk and a whole chunk can be read at it within the message."""
    return size <= CHUNK and cursor.end - text >= CHUNK


cdef inline bint has_end_chunk(Cursor* cursor, const uint8_t* text) noexcept:
    """Whether the message has a chunk that ends where this text does, whatever its size up to `CHUNK`."""
    return text - cursor.start >= CHUNK


cdef inline int check_name(Cursor* cursor, Element* element) except -1:
    if has_chunk(cursor, element.name, element.name_size):
        if is_printable_chunk(load_chunk(element.name), element.name_size):
            return 0
    if not is_printable(element.name, element.name_size):
        fail(cursor, element.name, "a name is not printable ASCII")
    return 0
