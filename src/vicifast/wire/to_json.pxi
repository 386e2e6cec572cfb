# Transcodes messages to JSON.

cdef inline bint needs_escape(uint64_t eight) noexcept:
    """Whether one of eight bytes is a control character, a quote or a backslash; false positives are rare."""
    cdef uint64_t quote = eight ^ 0x2222222222222222ULL
    cdef uint64_t backslash = eight ^ 0x5C5C5C5C5C5C5C5CULL
    cdef uint64_t found = (eight - 0x2020202020202020ULL) & ~eight
    found |= (quote - 0x0101010101010101ULL) & ~quote
    found |= (backslash - 0x0101010101010101ULL) & ~backslash
    return (found & 0x8080808080808080ULL) != 0


cdef uint8_t* json_byte(uint8_t* to, uint8_t byte) noexcept:
    cdef const char* control = b"btn-fr"  # for 8 to 13; JSON has no short form for 11
    cdef const char* digits = b"0123456789abcdef"
    cdef uint8_t short = 0
    if byte >= c' ' and byte != c'"' and byte != c'\\':
        to[0] = byte
        return to + 1
    if byte == c'"' or byte == c'\\':
        short = byte
    elif byte >= 8 and byte <= 13 and byte != 11:
        short = <uint8_t>control[byte - 8]
    to[0] = c'\\'
    if short:
        to[1] = short
        return to + 2
    memcpy(to + 1, b"u00", 3)
    to[4] = digits[byte >> 4]
    to[5] = digits[byte & 15]
    return to + 6


cdef inline uint8_t* json_text(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Write a UTF-8 text, for which there must be room: six times its size, and the quotes."""
    cdef uint64_t eight
    cdef Py_ssize_t i = 0, stop
    to[0] = c'"'
    to += 1
    while i < size:
        stop = size
        if size - i >= 8:
            eight = eight_at(text + i)
            stop = i + 8
            if not needs_escape(eight):
                memcpy(to, &eight, 8)
                to += 8
                i = stop
        while i < stop:
            to = json_byte(to, text[i])
            i += 1
    to[0] = c'"'
    return to + 1


cdef uint8_t* json_base64(uint8_t* to, const uint8_t* data, Py_ssize_t size) noexcept:
    cdef const char* digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    cdef Py_ssize_t i = 0, left
    cdef uint32_t three
    memcpy(to, b'{"$base64":"', 12)
    to += 12
    while i < size:
        left = size - i
        three = data[i] << 16 | (data[i + 1] << 8 if left > 1 else 0) | (data[i + 2] if left > 2 else 0)
        to[0] = digits[three >> 18]
        to[1] = digits[three >> 12 & 63]
        to[2] = digits[three >> 6 & 63] if left > 1 else c'='
        to[3] = digits[three & 63] if left > 2 else c'='
        to += 4
        i += 3
    memcpy(to, b'"}', 2)
    return to + 2


cdef inline uint8_t* json_name(uint8_t* to, Cursor* cursor, Element* element) except NULL:
    """Check and write a name."""
    cdef Py_ssize_t size = element.name_size
    cdef Chunk chunk
    if has_chunk(cursor, element.name, size):
        chunk = load_chunk(element.name)
        to[0] = c'"'
        store_chunk(to + 1, chunk)
        if is_printable_chunk(chunk, size) and is_plain_chunk(chunk, size):
            to[size + 1] = c'"'
            return to + size + 2
    check_name(cursor, element)
    return json_text(to, element.name, size)


cdef inline uint8_t* json_value(uint8_t* to, Cursor* cursor, Element* element, bint blob) noexcept:
    cdef Py_ssize_t size = element.value_size
    cdef Chunk chunk
    if not blob and has_chunk(cursor, element.value, size):
        chunk = load_chunk(element.value)
        to[0] = c'"'
        store_chunk(to + 1, chunk)
        if is_plain_chunk(chunk, size):
            to[size + 1] = c'"'
            return to + size + 2
    if blob or not is_utf8(element.value, size):
        return json_base64(to, element.value, size)
    return json_text(to, element.value, size)


cdef uint8_t* json_keys(uint8_t* to, Cursor* cursor) except NULL:
    """Write a run of keys, each followed by a comma."""
    cdef Element element
    cdef const uint8_t* here = cursor.pos
    cdef const uint8_t* after = next_key(here, cursor.end, &element)
    while after:
        to = json_name(to, cursor, &element)
        to[0] = c':'
        to = json_value(to + 1, cursor, &element, False)
        to[0] = c','
        to += 1
        here = after
        after = next_key(here, cursor.end, &element)
    cursor.pos = here
    return to


cdef inline uint8_t* json_close(uint8_t* to, uint8_t bracket) noexcept:
    """End a container; the bracket replaces the comma after its last element, if it has one."""
    if (to - 1)[0] == c',':
        to -= 1
    to[0] = bracket
    return to + 1


cdef int write_json(Writer* out, const uint8_t* data, Py_ssize_t size, tuple binary) except -1:
    cdef Cursor cursor
    cdef Element element
    cdef uint8_t* to
    cdef int kind
    cdef bint has_binary = bool(binary), blob = False, list_blob = False
    begin(&cursor, data, size)
    # Worst cases: a control character takes six bytes; base64 of one byte takes 22 for a key and value of 5.
    reserve(out, 6 * size + 64 + CHUNK)
    to = out.data + out.used
    to[0] = c'{'
    to += 1
    while True:
        if not cursor.in_list and (cursor.depth or not has_binary):
            to = json_keys(to, &cursor)
        kind = any_element(&cursor, &element)
        if kind == END:
            out.used = json_close(to, c'}') - out.data
            return 0
        if kind == SECTION_END or kind == LIST_END:
            to = json_close(to, c'}' if kind == SECTION_END else c']')
        elif kind == LIST_ITEM:
            to = json_value(to, &cursor, &element, list_blob)
        else:
            to = json_name(to, &cursor, &element)
            to[0] = c':'
            to += 1
            if has_binary:
                blob = not cursor.depth and is_one_of(binary, element.name, element.name_size)
            if kind != KEY_VALUE:
                list_blob = blob
                to[0] = c'{' if kind == SECTION_START else c'['
                to += 1
                continue
            to = json_value(to, &cursor, &element, blob)
        to[0] = c','
        to += 1
