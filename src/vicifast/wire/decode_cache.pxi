# Reader, Raw and Decoder. A Decoder caches names, values and section shapes between messages.

cdef struct Known:
    # A text seen before, and the object made from it, owned. The size is -1 when there is none.
    PyObject* made
    const uint8_t* text
    Py_ssize_t size


cdef struct Slot:
    # A name, its last value, and the slot of the name that followed it.
    Known name
    Known value
    Slot* next


cdef struct Entry:
    # A key or list item that was read; a name without a value is a section or list still open. Both are borrowed.
    PyObject* name
    PyObject* value


cdef struct Work:
    # Working memory for a message of up to `size` bytes: the entries of the open sections, and the objects kept alive
    # for them, owned. Most values are owned by their slot, and need no reference counting here.
    Py_ssize_t size
    Entry* entries
    Py_ssize_t used
    PyObject** owned
    Py_ssize_t owned_used


cdef struct Shape:
    # A section seen before: its names in order, and a dict of them with their values at that time.
    uint64_t names_hash
    Py_ssize_t count
    PyObject* example
    (PyObject*)[KNOWN_KEYS] names
    (PyObject*)[KNOWN_KEYS] values


cdef bint are_bytes(values) except -1:
    """Whether `values` is bytes and not str."""
    if values is not str and values is not bytes:
        raise TypeError(f"values must be str or bytes, not {values!r}")
    return values is bytes


cdef class Reader:
    """Base class for how a `Framer` returns messages: decoded, transcoded or raw. Not instantiated directly.

    When a reader returns None for the message of an event, the framer omits that packet.
    """

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        raise TypeError("use Raw, Decoder or Transcoder")


@cython.final
cdef class Raw(Reader):
    """Returns the bytes of a message, unchecked."""

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        return data[:size]


@cython.final
cdef class Decoder(Reader):
    """Decodes messages into dicts, and caches names and values between messages.

    `values` is `str` (UTF-8, with surrogateescape for other bytes) or `bytes`; `binary` names root keys whose values
    are always `bytes`; with `ordered`, sections are OrderedDicts, which takes 2.5 times as long. Use one decoder
    per connection; several threads may use it, one at a time. Its memory is bounded for any input.
    """

    cdef Slot* slots
    cdef Slot[MAX_DEPTH + 1] sections
    cdef Known[KNOWN_TITLES] titles
    cdef Shape* shapes
    cdef (Shape*)[MAX_DEPTH + 1] last_shapes
    cdef Work work
    cdef unsigned int turn
    cdef bint busy
    cdef bint as_bytes
    cdef bint ordered
    cdef tuple binary

    def __cinit__(self):
        self.slots = <Slot*>calloc(KNOWN_NAMES, sizeof(Slot))
        self.shapes = <Shape*>calloc(KNOWN_SHAPES, sizeof(Shape))
        if not self.slots or not self.shapes:
            raise MemoryError

    @cython.critical_section
    def __init__(self, *, values=str, binary=(), ordered=False):
        as_bytes, names, in_order = are_bytes(values), root_names(binary), bool(ordered)
        if self.busy:
            raise RuntimeError("a Decoder was initialized again while it was decoding")
        self.as_bytes = as_bytes
        self.binary = names
        self.ordered = in_order
        self.forget()

    def __dealloc__(self):
        self.forget()
        free(self.slots)
        free(self.shapes)
        free_work(&self.work)

    cdef void forget(self) noexcept:
        cdef int i
        for i in range(KNOWN_SHAPES if self.shapes else 0):
            replace(&self.shapes[i].example, NULL)
            self.shapes[i].names_hash = 0
        for i in range(KNOWN_NAMES if self.slots else 0):
            forget_slot(&self.slots[i])
        for i in range(MAX_DEPTH + 1):
            forget_slot(&self.sections[i])
        for i in range(KNOWN_TITLES):
            forget_known(&self.titles[i])

    def decode(self, data, /):
        """Return the message in `data`, a bytes-like object, as a dict: section = dict, list = list, value = text.

        When a section contains a key twice, the last one wins, as in strongSwan's Python module. Raises `DecodeError`.
        """
        return read_buffer(self, data)

    @cython.critical_section
    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        # Creating a dict can run the garbage collector, which can run any code, also a second decode on this decoder.
        if self.busy:
            return decode_alone(data, size, self.as_bytes, self.binary, self.ordered)
        self.busy = True
        try:
            return decode_message(self, &self.work, data, size, self.as_bytes, self.binary, self.ordered)
        finally:
            clear_work(&self.work)
            self.busy = False

    cdef Slot* keys(self, Cursor* cursor, Slot* last) except NULL:
        """Read a run of keys into the message's entries; return the slot of the last name."""
        cdef Work* work = &self.work
        cdef Element element
        cdef Entry* entry
        cdef const uint8_t* here = cursor.pos
        cdef const uint8_t* after = next_key(here, cursor.end, &element)
        cdef bint has_end
        while after:
            has_end = has_end_chunk(cursor, element.name)
            entry = &work.entries[work.used]
            last = self.known(cursor, &element, last, has_end)
            entry.name = last.name.made
            entry.value = self.value(&element, last, has_end)
            work.used += 1
            here = after
            after = next_key(here, cursor.end, &element)
        cursor.pos = here
        return last

    cdef inline Slot* known(self, Cursor* cursor, Element* element, Slot* last, bint has_end) except NULL:
        """The slot of a name; usually the one that followed last time, so that no hash is needed."""
        cdef Slot* slot = last.next
        if not (slot and is_known(&slot.name, element.name, element.name_size, has_end)):
            slot = self.find(cursor, element)
            last.next = slot
        return slot

    cdef Slot* find(self, Cursor* cursor, Element* element) except NULL:
        # The depth is part of the hash: an IKE_SA and its CHILD_SAs share key names, but not values and order.
        cdef uint64_t place = (hash_name(element.name, element.name_size) + 37 * cursor.depth) % KNOWN_NAMES
        cdef Slot* slot = &self.slots[place]
        if is_known(&slot.name, element.name, element.name_size, False):
            return slot
        slot = &self.slots[place ^ 1]
        if is_known(&slot.name, element.name, element.name_size, False):
            return slot
        check_name(cursor, element)
        # New names alternate between two places, so that unique names cannot fill the table permanently.
        self.turn += 1
        if not self.slots[place].name.made or self.turn & 1:
            slot = &self.slots[place]
        keep_text(&self.work, &slot.name, new_text(element.name, element.name_size))
        return slot

    cdef inline Slot* section(self, Cursor* cursor, Element* element) except NULL:
        """The slot for sections of this depth, renamed to this section: sibling sections often have the same keys."""
        cdef Slot* slot = &self.sections[cursor.depth]
        if not is_known(&slot.name, element.name, element.name_size, False):
            name = <object>self.title(cursor, element)
            Py_INCREF(name)
            keep_text(&self.work, &slot.name, <PyObject*>name)
        return slot

    cdef PyObject* title(self, Cursor* cursor, Element* element) except NULL:
        """The name of a section. Many are unique, and in the table of the keys they would replace those that repeat."""
        cdef Known* known = &self.titles[hash_name(element.name, element.name_size) % KNOWN_TITLES]
        if not is_known(known, element.name, element.name_size, False):
            check_name(cursor, element)
            keep_text(&self.work, known, new_text(element.name, element.name_size))
        return known.made

    cdef inline PyObject* value(self, Element* element, Slot* slot, bint has_end) except NULL:
        """The value, borrowed; reuses the key's previous object when the bytes are equal."""
        cdef Py_ssize_t size = element.value_size
        if is_known(&slot.value, element.value, size, has_end):
            return slot.value.made
        cdef PyObject* made
        if has_end and 1 < size <= CHUNK and is_ascii_end(load_chunk(element.value + size - CHUNK), size):
            if not self.as_bytes:
                made = new_ascii(element.value, size)
                keep(&self.work, &slot.value, made, plain_text(<object>made), size)
                return made
        return self.any_value(element, slot)

    cdef PyObject* any_value(self, Element* element, Slot* slot) except NULL:
        cdef PyObject* made = new_value(element, self.as_bytes)
        if element.value_size > KNOWN_VALUE:
            own(&self.work, made)
        elif self.as_bytes:
            keep(&self.work, &slot.value, made, PyBytes_AS_STRING(made), element.value_size)
        elif PyUnicode_IS_COMPACT_ASCII(made):
            keep_text(&self.work, &slot.value, made)
        else:
            own(&self.work, made)
        return made


cdef inline bint is_known(Known* known, const uint8_t* text, Py_ssize_t size, bint has_end) noexcept:
    """`has_end`: whether a chunk that ends with the text lies within the message. It does within the known object."""
    if known.size != size:
        return False
    if has_end and size <= CHUNK:
        return is_same_end(load_chunk(known.text + size - CHUNK), load_chunk(text + size - CHUNK), size)
    return is_same(known.text, text, size)


cdef inline void keep_text(Work* work, Known* known, PyObject* text) noexcept:
    keep(work, known, text, PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text))


cdef inline void keep(Work* work, Known* known, PyObject* made, const void* text, Py_ssize_t size) noexcept:
    """Give an object to a slot; the previous one may be part of the message and stays alive until the message ends."""
    if known.made:
        own(work, known.made)
    known.made = made
    known.text = <const uint8_t*>text
    known.size = size


cdef inline void own(Work* work, PyObject* made) noexcept:
    """Give an object to the message, at most one for each of its bytes and one for the message itself."""
    work.owned[work.owned_used] = made
    work.owned_used += 1


cdef inline void replace(PyObject** place, PyObject* made) noexcept:
    cdef PyObject* old = place[0]
    place[0] = made
    if old:
        Py_DECREF(<object>old)


cdef inline void forget_slot(Slot* slot) noexcept:
    forget_known(&slot.name)
    forget_known(&slot.value)
    slot.next = NULL


cdef inline void forget_known(Known* known) noexcept:
    replace(&known.made, NULL)
    known.size = -1


cdef inline PyObject* new_value(Element* element, bint as_bytes) except NULL:
    if as_bytes:
        return PyBytes_FromStringAndSize(<const char*>element.value, element.value_size)
    return new_text(element.value, element.value_size)


cdef PyObject* new_name(Work* work, Cursor* cursor, Element* element) except NULL:
    check_name(cursor, element)
    cdef PyObject* made = new_text(element.name, element.name_size)
    own(work, made)
    return made


cdef int grow_work(Work* work, Py_ssize_t size) except -1:
    """Make room for a message of `size` bytes, so that nothing has to be checked while it is read.

    An element that adds an entry has two bytes at least. The start of a section has two, and can evict two names; an
    end has one, and creates one object; all others have more bytes than objects.
    """
    free_work(work)
    work.entries = <Entry*>malloc((size // 2 + 1) * sizeof(Entry))
    work.owned = <PyObject**>malloc((size + 1) * sizeof(PyObject*))
    if not work.entries or not work.owned:
        raise MemoryError
    work.size = size
    return 0


cdef void clear_work(Work* work) noexcept:
    """Release the objects of a finished or failed message, and memory that only a huge one needs."""
    cdef Py_ssize_t i
    for i in range(work.owned_used):
        Py_DECREF(<object>work.owned[i])
    work.used = work.owned_used = 0
    if work.size > KEPT_WORK:
        free_work(work)


cdef void free_work(Work* work) noexcept:
    free(work.entries)
    free(work.owned)
    work.entries = NULL
    work.owned = NULL
    work.size = 0
