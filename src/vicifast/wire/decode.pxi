# Decodes messages to Python objects: decode_message() with the cache of a Decoder, decode() without one.

cdef inline PyObject* name_object(Decoder cache, Work* work, Cursor* cursor, Element* element, Slot** last) except NULL:
    """The name of a key or list; sets `last` to its slot."""
    if cache is None:
        return new_name(work, cursor, element)
    last[0] = cache.known(cursor, element, last[0], has_end_chunk(cursor, element.name))
    return last[0].name.made


cdef inline PyObject* section_object(
    Decoder cache, Work* work, Cursor* cursor, Element* element, Slot** last
) except NULL:
    """The name of a section; sets `last` to the slot of its depth."""
    if cache is None:
        return new_name(work, cursor, element)
    last[0] = cache.section(cursor, element)
    return last[0].name.made


cdef inline PyObject* value_object(
    Decoder cache, Work* work, Cursor* cursor, Element* element, Slot* last, bint as_bytes, bint blob
) except NULL:
    if cache is not None and not blob:
        return cache.value(element, last, has_end_chunk(cursor, element.value))
    cdef PyObject* made = new_value(element, as_bytes or blob)
    own(work, made)
    return made


cdef PyObject* make_list(Work* work, Py_ssize_t first) except NULL:
    """Make a list of the entries from `first` on, and remove them."""
    cdef Py_ssize_t i
    cdef PyObject* items = PyList_New(work.used - first)
    for i in range(work.used - first):
        Py_INCREF(<object>work.entries[first + i].value)
        PyList_SET_ITEM(items, i, work.entries[first + i].value)
    work.used = first
    own(work, items)
    return items


cdef PyObject* make_section(Decoder cache, Work* work, Py_ssize_t first, int depth, bint ordered) except NULL:
    """Make a dict of the entries from `first` on, and remove them; the root has depth 0."""
    cdef Entry* entries = work.entries + first
    cdef Py_ssize_t count = work.used - first
    cdef PyObject* section
    # The cache gains nothing below four keys, and charon sends no section above the limit.
    if ordered:
        section = ordered_section(work, entries, count)
    elif cache is None or count < 4 or count > KNOWN_KEYS:
        section = new_section(work, entries, count)
    else:
        section = alike_section(cache, work, entries, count, depth)
    work.used = first
    return section


cdef PyObject* alike_section(Decoder cache, Work* work, Entry* entries, Py_ssize_t count, int depth) except NULL:
    """Make a dict, by copying one with the same names from their third occurrence on."""
    # Usually the section has the shape of the last one at its depth, so that no hash is needed.
    cdef Shape* shape = cache.last_shapes[depth]
    cdef uint64_t names_hash
    cdef PyObject* section
    if shape and has_shape(shape, entries, count):
        return copy_example(shape, work, entries)
    names_hash = hash_names(entries, count)
    shape = cache.last_shapes[depth] = &cache.shapes[names_hash % KNOWN_SHAPES]
    if shape.names_hash == names_hash and has_shape(shape, entries, count):
        return copy_example(shape, work, entries)
    section = new_section(work, entries, count)
    if shape.names_hash == names_hash:
        learn(shape, entries, count)
    else:
        shape.names_hash = names_hash
        replace(&shape.example, NULL)
    return section


cdef inline uint64_t hash_names(Entry* entries, Py_ssize_t count) noexcept:
    cdef uint64_t mixed = count
    cdef Py_ssize_t i
    for i in range(count):
        mixed = (mixed ^ <uint64_t>entries[i].name) * 0x9E3779B97F4A7C15ULL
    return (mixed ^ mixed >> 32) | 1  # 0 marks an unused shape


cdef inline bint has_shape(Shape* shape, Entry* entries, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    if shape.count != count or not shape.example:
        return False
    for i in range(count):
        if shape.names[i] != entries[i].name:
            return False
    return True


cdef PyObject* copy_example(Shape* shape, Work* work, Entry* entries) except NULL:
    """Copy the example, which allocates the right size at once, and store only the values that differ."""
    cdef PyObject* section = PyDict_Copy(shape.example)
    cdef Py_ssize_t i
    own(work, section)
    for i in range(shape.count):
        if entries[i].value != shape.values[i]:
            PyDict_SetItem(section, entries[i].name, entries[i].value)
    return section


cdef PyObject* new_section(Work* work, Entry* entries, Py_ssize_t count) except NULL:
    cdef PyObject* section = PyDict_New()
    cdef Py_ssize_t i
    own(work, section)
    for i in range(count):
        PyDict_SetItem(section, entries[i].name, entries[i].value)
    return section


cdef PyObject* ordered_section(Work* work, Entry* entries, Py_ssize_t count) except NULL:
    cdef PyObject* section = PyODict_New()
    cdef Py_ssize_t i
    own(work, section)
    for i in range(count):
        PyODict_SetItem(section, entries[i].name, entries[i].value)
    return section


cdef int learn(Shape* shape, Entry* entries, Py_ssize_t count) except -1:
    """Cache the names of a section seen for the second time, and its values unless they are large or mutable."""
    cdef dict example = {}
    cdef PyObject* value
    cdef Py_ssize_t i
    replace(&shape.example, NULL)
    for i in range(count):
        value = entries[i].value
        is_kept = PyBytes_CheckExact(<object>value) and PyBytes_GET_SIZE(value) <= KNOWN_VALUE
        is_kept = is_kept or PyUnicode_Check(<object>value) and PyUnicode_GET_LENGTH(value) <= KNOWN_VALUE
        example[<object>entries[i].name] = <object>value if is_kept else None
        shape.names[i] = entries[i].name
        shape.values[i] = value if is_kept else NULL
    shape.count = count
    if len(example) == count:  # else a name is duplicated, and the last one must win
        Py_INCREF(example)
        shape.example = <PyObject*>example
    return 0


cdef dict decode_message(
    Decoder cache, Work* work, const uint8_t* data, Py_ssize_t size, bint as_bytes, tuple binary, bint ordered
):
    cdef Cursor cursor
    cdef Element element
    cdef Py_ssize_t[MAX_DEPTH + 2] firsts  # index of the first entry of each open section, and of an open list
    cdef Slot* last = NULL if cache is None else &cache.sections[0]
    cdef bint has_binary = bool(binary), blob = False, list_blob = False
    cdef int kind, top = 0
    cdef Entry* entry
    begin(&cursor, data, size)
    if unlikely(size >= work.size):
        grow_work(work, max(size + 1, 1024))
    firsts[0] = 0
    while True:
        if cache is not None and not cursor.in_list and (cursor.depth or not has_binary):
            last = cache.keys(&cursor, last)
        entry = &work.entries[work.used]
        kind = next_element(&cursor, &element)
        if kind == KEY_VALUE:
            entry.name = name_object(cache, work, &cursor, &element, &last)
            if has_binary:
                blob = not cursor.depth and is_one_of(binary, element.name, element.name_size)
            entry.value = value_object(cache, work, &cursor, &element, last, as_bytes, blob)
            work.used += 1
        elif kind == LIST_ITEM:
            entry.value = value_object(cache, work, &cursor, &element, last, as_bytes, list_blob)
            work.used += 1
        elif kind == LIST_START:
            entry.name = name_object(cache, work, &cursor, &element, &last)
            list_blob = has_binary and not cursor.depth and is_one_of(binary, element.name, element.name_size)
            work.used += 1
            top += 1
            firsts[top] = work.used
        elif kind == SECTION_START:
            entry.name = section_object(cache, work, &cursor, &element, &last)
            work.used += 1
            top += 1
            firsts[top] = work.used
        elif kind == LIST_END:
            work.entries[firsts[top] - 1].value = make_list(work, firsts[top])
            top -= 1
        elif kind == SECTION_END:
            work.entries[firsts[top] - 1].value = make_section(cache, work, firsts[top], cursor.depth + 1, ordered)
            top -= 1
        else:
            return <dict>make_section(cache, work, 0, 0, ordered)


cdef dict decode_alone(const uint8_t* data, Py_ssize_t size, bint as_bytes, tuple binary, bint ordered):
    """Decode without a cache."""
    cdef Work work = Work(0, NULL, 0, NULL, 0)
    try:
        return decode_message(None, &work, data, size, as_bytes, binary, ordered)
    finally:
        clear_work(&work)
        free_work(&work)


cdef object read_buffer(Reader reader, data):
    """Pass the bytes of any object with the buffer protocol to `reader`."""
    cdef Py_buffer view
    if PyBytes_CheckExact(data):
        return reader.read(<const uint8_t*>PyBytes_AS_STRING(<PyObject*>data), PyBytes_GET_SIZE(<PyObject*>data))
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return reader.read(<const uint8_t*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


@cython.final
cdef class Forgetful(Reader):
    """Decodes without a cache."""

    cdef bint as_bytes
    cdef tuple binary

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        return decode_alone(data, size, self.as_bytes, self.binary, False)


def decode(data, *, values=str, binary=()):
    """Return the message in `data`, a bytes-like object, as a dict: section = dict, list = list, value = `values`.

    Stateless; a `Decoder` is faster for several messages. `values` is `str` (UTF-8, surrogateescape) or `bytes`;
    `binary` names root keys whose values are always `bytes`. Raises `DecodeError` with the offset.
    """
    cdef Forgetful reader = Forgetful.__new__(Forgetful)
    reader.as_bytes = are_bytes(values)
    reader.binary = root_names(binary)
    return read_buffer(reader, data)
