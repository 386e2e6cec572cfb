# Outliner: the few parts of an event that decide what to do with it.

@cython.final
cdef class Outliner(Reader):
    """Reduces messages to sections and a few values, so that similar messages become the same bytes.

    The outline is a message, too. It has the sections down to the third level, and of the values those of `keys` down
    to the second. A section of the third level that has a value `name` keeps that instead of its own name, to which
    charon appends a number.
    """

    cdef tuple keys
    cdef Writer out

    def __init__(self, keys):
        self.keys = root_names(keys)

    def __dealloc__(self):
        free(self.out.data)

    def outline(self, data, /):
        """Return the outline of the message in `data`, a bytes-like object. Raises `DecodeError`."""
        return read_buffer(self, data)

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        with cython.critical_section(self):
            return self.write(data, size)

    cdef bytes write(self, const uint8_t* data, Py_ssize_t size):
        cdef Cursor cursor
        cdef Element element
        cdef Writer* out = &self.out
        cdef Py_ssize_t section = 0  # where the section of the third level begins
        cdef int kind
        out.used = 0
        reserve(out, size)  # what is written was read
        begin(&cursor, data, size)
        while True:
            kind = next_element(&cursor, &element)
            if kind == END:
                return out.data[:out.used]
            if kind == KEY_VALUE or kind == SECTION_START or kind == LIST_START:
                check_name(&cursor, &element)
            if kind == KEY_VALUE:
                if cursor.depth < 3:
                    if is_one_of(self.keys, element.name, element.name_size):
                        self.add(&element)
                elif cursor.depth == 3 and element.name_size == 4 and not memcmp(element.name, b"name", 4):
                    if out.data[section + 1]:
                        out.data[section + 1] = 0
                        out.used = section + 2
                    self.add(&element)
            elif kind == SECTION_START and cursor.depth <= 3:
                section = out.used
                add_bytes(out, element.name - 2, 2 + element.name_size)
            elif kind == SECTION_END and cursor.depth < 3:
                add_byte(out, SECTION_END)

    cdef int add(self, Element* element) except -1:
        add_bytes(&self.out, element.name - 2, 4 + element.name_size + element.value_size)
        return 0
