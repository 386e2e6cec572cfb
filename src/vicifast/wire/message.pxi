# Message: indexed once, values decoded only when read.

cdef enum:
    IS_SECTION = 0x80000000  # in the tag of a node


cdef struct Node:
    # A key, list or section of a message: its offset, and a tag that differs for most names. A section has a second
    # node: `first` is the offset of the end of its content, `tag` the index of the node after the section.
    uint32_t first
    uint32_t tag


cdef struct Nodes:
    Node* data
    Py_ssize_t used
    Py_ssize_t size


cdef inline uint32_t tag_of(const uint8_t* name, Py_ssize_t size) noexcept:
    if not size:
        return 0
    return <uint32_t>size | name[0] << 8 | <uint32_t>name[size - 1] << 16


cdef int grow_nodes(Nodes* nodes) except -1:
    cdef Node* data = <Node*>realloc(nodes.data if nodes.size > LENT_NODES else NULL, 2 * nodes.size * sizeof(Node))
    if not data:
        raise MemoryError
    if nodes.size == LENT_NODES:
        memcpy(data, nodes.data, LENT_NODES * sizeof(Node))
    nodes.data = data
    nodes.size *= 2
    return 0


cdef inline int add_node(Nodes* nodes, Cursor* cursor, const uint8_t* first, Element* element) except -1:
    """Check the name of an element and add a node for it."""
    check_name(cursor, element)
    if nodes.used == nodes.size:
        grow_nodes(nodes)
    cdef Node* node = &nodes.data[nodes.used]
    node.first = <uint32_t>(first - cursor.start)
    node.tag = tag_of(element.name, element.name_size)
    nodes.used += 1
    return 0


cdef int add_keys(Nodes* nodes, Cursor* cursor) except -1:
    """Add nodes for a run of keys."""
    cdef Element element
    cdef const uint8_t* here = cursor.pos
    cdef const uint8_t* after = next_key(here, cursor.end, &element)
    while after:
        add_node(nodes, cursor, here, &element)
        here = after
        after = next_key(here, cursor.end, &element)
    cursor.pos = here
    return 0


cdef Node* index_of(const uint8_t* data, Py_ssize_t size, uint32_t* count) except? NULL:
    """Check a message and return its nodes, in memory of exactly their size; NULL without an error if it has none."""
    cdef Node[LENT_NODES] lent
    cdef Nodes nodes
    cdef Node* kept = NULL
    nodes.data = &lent[0]
    nodes.used = 0
    nodes.size = LENT_NODES
    try:
        index_message(&nodes, data, size)
        if nodes.used:
            kept = <Node*>malloc(nodes.used * sizeof(Node))
            if not kept:
                raise MemoryError
            memcpy(kept, nodes.data, nodes.used * sizeof(Node))
    finally:
        if nodes.size > LENT_NODES:
            free(nodes.data)
    count[0] = <uint32_t>nodes.used
    return kept


cdef int index_message(Nodes* nodes, const uint8_t* data, Py_ssize_t size) except -1:
    """Check a whole message and add a node for each element except list items."""
    cdef Cursor cursor
    cdef Element element
    cdef Py_ssize_t[MAX_DEPTH + 1] opened
    cdef const uint8_t* first
    cdef int kind
    begin(&cursor, data, size)
    while True:
        if not cursor.in_list:
            add_keys(nodes, &cursor)
        first = cursor.pos
        kind = any_element(&cursor, &element)
        if kind == SECTION_START or kind == LIST_START:
            add_node(nodes, &cursor, first, &element)
            if kind == SECTION_START:
                nodes.data[nodes.used - 1].tag |= IS_SECTION
                opened[cursor.depth] = nodes.used
                if nodes.used == nodes.size:
                    grow_nodes(nodes)
                nodes.used += 1
        elif kind == SECTION_END:
            nodes.data[opened[cursor.depth + 1]].first = <uint32_t>(first - data)
            nodes.data[opened[cursor.depth + 1]].tag = <uint32_t>nodes.used
        elif kind == END:
            return 0


@cython.final
@cython.no_gc  # no object that a Message refers to can refer back
cdef class Message:
    """One message, or a section of it: validated once, immutable, and decoded only where it is read.

    `data` is a bytes-like object (bytes are kept, others copied); `values` and `binary` are as for `Decoder`. Raises
    `DecodeError`. Iteration and `get_all` return every element of a duplicate name; `get` and `[]` return the last, as
    `decode` does. A value is a str (or bytes), a list of them, or a Message for a section.
    """

    cdef bytes data
    cdef Node* nodes
    cdef Message whole  # the message that owns the bytes and nodes; None for the whole itself
    cdef uint32_t first  # offset of this section's content
    cdef uint32_t end
    cdef uint32_t from_node
    cdef uint32_t to_node
    cdef bint as_bytes
    cdef tuple binary

    def __init__(self, data, *, values=str, binary=()):
        if self.data is not None:
            raise TypeError("a Message cannot be initialized twice")
        self.open(
            bytes_of(data),
            are_bytes(values),
            root_names(binary) if binary else None,
        )

    def __dealloc__(self):
        if self.whole is None:
            free(self.nodes)

    cdef int open(self, bytes data, bint as_bytes, tuple binary) except -1:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(<PyObject*>data)
        self.nodes = index_of(<const uint8_t*>PyBytes_AS_STRING(<PyObject*>data), size, &self.to_node)
        self.data = data
        self.end = <uint32_t>size
        self.as_bytes = as_bytes
        self.binary = binary
        return 0

    cdef int nested(self) noexcept:
        """The maximum depth of nested sections in this one."""
        cdef int depth = 0, deepest = 0
        cdef uint32_t node = self.from_node
        cdef uint32_t[MAX_DEPTH + 1] ends
        while node < self.to_node:
            while depth and node >= ends[depth]:
                depth -= 1
            if self.is_section(node):
                depth += 1
                ends[depth] = self.next(node)
                deepest = max(deepest, depth)
                node += 1
            node += 1
        return deepest

    cdef inline const uint8_t* at(self, uint32_t offset) noexcept:
        return <const uint8_t*>PyBytes_AS_STRING(<PyObject*>self.data) + offset

    cdef Message section(self, uint32_t node):
        cdef Message made = Message.__new__(Message)
        cdef const uint8_t* at = self.element(node)
        made.whole = self if self.whole is None else self.whole
        made.data = self.data
        made.nodes = self.nodes
        made.first = <uint32_t>(at - self.at(0)) + 2 + at[1]
        made.end = self.nodes[node + 1].first
        made.from_node = node + 2
        made.to_node = self.nodes[node + 1].tag
        made.as_bytes = self.as_bytes
        return made

    cdef int64_t find(self, name, uint32_t node, uint32_t to_node) except -2:
        """The last node with this name from `node` to before `to_node`; -1 when there is none."""
        cdef const uint8_t* text
        cdef Py_ssize_t size
        if not PyUnicode_Check(name):
            raise TypeError(f"a name must be str, not {type(name).__name__}")
        if not PyUnicode_IS_COMPACT_ASCII(<PyObject*>name):
            # A subclass may override __str__; str.__str__ returns an exact str.
            return self.find(str.__str__(name), node, to_node) if type(name) is not str and str.isascii(name) else -1
        text = <const uint8_t*>PyUnicode_DATA(<PyObject*>name)
        size = PyUnicode_GET_LENGTH(<PyObject*>name)
        return self.last_named(text, size, node, to_node)

    cdef inline int64_t last_named(
        self, const uint8_t* text, Py_ssize_t size, uint32_t node, uint32_t to_node
    ) noexcept:
        cdef uint32_t tag = tag_of(text, size)
        cdef const Node* at = self.nodes + node
        cdef const Node* end = self.nodes + to_node
        cdef const Node* found = NULL
        while at < end:
            if unlikely(at.tag & IS_SECTION):
                if at.tag == tag | IS_SECTION and self.is_named(at, text, size):
                    found = at
                at = self.nodes + at[1].tag
            else:
                if unlikely(at.tag == tag) and self.is_named(at, text, size):
                    found = at
                at += 1
        return found - self.nodes if found else -1

    cdef inline uint32_t next(self, uint32_t node) noexcept:
        """The next node in the same section."""
        # `unlikely` keeps this a predicted branch; without it the compiler makes the next load wait for this one.
        return self.nodes[node + 1].tag if unlikely(self.is_section(node)) else node + 1

    cdef inline bint is_section(self, uint32_t node) noexcept:
        return self.nodes[node].tag & IS_SECTION != 0

    cdef inline const uint8_t* element(self, uint32_t node) noexcept:
        return self.at(self.nodes[node].first)

    cdef inline bint is_named(self, const Node* node, const uint8_t* text, Py_ssize_t size) noexcept:
        cdef const uint8_t* at = self.at(node.first)
        return at[1] == size and is_same(at + 2, text, size)

    cdef object text(self, const uint8_t* size, bint blob):
        cdef Element element
        element.value_size = (size[0] << 8) | size[1]
        element.value = size + 2
        made = <object>new_value(&element, self.as_bytes or blob)
        Py_DECREF(made)
        return made

    cdef object value(self, uint32_t node, tuple binary):
        cdef const uint8_t* at = self.element(node)
        if at[0] == SECTION_START:
            return self.section(node)
        cdef bint blob = binary is not None and is_one_of(binary, at + 2, at[1])
        if at[0] == KEY_VALUE:
            return self.text(at + 2 + at[1], blob)
        cdef list items = []
        at += 2 + at[1]
        while at[0] == LIST_ITEM:
            items.append(self.text(at + 1, blob))
            at += 3 + ((at[1] << 8) | at[2])
        return items

    cdef str name(self, uint32_t node):
        cdef const uint8_t* at = self.element(node)
        return at[2:2 + at[1]].decode("ascii")

    @cython.binding(False)  # else Cython's function object copies the tuple of the path at every call
    def get(self, *path, default=None):
        """Return the value at `path`, the names of nested sections and last of the key; `default` if there is none."""
        cdef uint32_t node = self.from_node
        cdef uint32_t to_node = self.to_node
        cdef int64_t found = -1
        cdef Py_ssize_t i
        cdef Py_ssize_t last = len(path) - 1
        if last < 0:
            raise TypeError("get() needs at least one name")
        for i in range(last + 1):
            found = self.find(path[i], node, to_node)
            if found < 0:
                return default
            if i < last:
                if not self.is_section(<uint32_t>found):
                    return default
                node = <uint32_t>found + 2
                to_node = self.nodes[found + 1].tag
        return self.value(<uint32_t>found, self.binary if not last else None)

    def get_all(self, name, /):
        """Return the values of every element with this name, in order."""
        if self.find(name, self.from_node, self.to_node) < 0:
            return []
        return [value for key, value in self.items() if key == name]

    def __getitem__(self, name):
        cdef int64_t found = self.find(name, self.from_node, self.to_node)
        if found < 0:
            raise KeyError(name)
        return self.value(<uint32_t>found, self.binary)

    def __contains__(self, name):
        return isinstance(name, str) and self.find(name, self.from_node, self.to_node) >= 0

    def __len__(self):
        return len(self.members())

    def __iter__(self):
        return iter(self.keys())

    cdef list members(self):
        """The nodes of this section's own elements."""
        cdef uint32_t node = self.from_node
        cdef list members = []
        while node < self.to_node:
            members.append(node)
            node = self.next(node)
        return members

    def keys(self):
        """Return the names as a list, in order."""
        return [self.name(node) for node in self.members()]

    def values(self):
        """Return the values as a list, in order."""
        return [self.value(node, self.binary) for node in self.members()]

    def items(self):
        """Return (name, value) pairs as a list, in order."""
        return list(zip(self.keys(), self.values(), strict=True))

    def to_dict(self):
        """Return the message as `decode` would."""
        return decode_alone(self.at(self.first), self.end - self.first, self.as_bytes, self.binary, False)

    def to_msgpack(self):
        """Return the message as the function `to_msgpack` would."""
        return self.transcode("msgpack")

    def to_json(self):
        """Return the message as the function `to_json` would."""
        return self.transcode("json")

    cdef bytes transcode(self, format):
        cdef Transcoder transcoder = Transcoder(format, binary=())
        transcoder.binary = self.binary or ()
        return transcoder.read(self.at(self.first), self.end - self.first)

    def __bytes__(self):
        return self.at(self.first)[:self.end - self.first]

    def __eq__(self, other):
        cdef Message message
        if isinstance(other, Message):
            message = other
            return bytes(self) == bytes(message)
        return self.to_dict() == other if isinstance(other, Mapping) else NotImplemented

    def __hash__(self):
        return hash(bytes(self))

    def __repr__(self):
        return f"Message({self.to_dict()!r})"

    def __reduce__(self):
        values = bytes if self.as_bytes else str
        return _restore, (bytes(self), values, [name.decode() for name in self.binary or ()])


def _restore(data, values, binary):
    return Message(data, values=values, binary=binary)


cdef object call_message(PyObject* kind, PyObject* const* arguments, size_t flagged, PyObject* names):
    """`Message(...)`; for a single bytes argument it skips the argument tuple and parsing of a normal class call."""
    cdef Py_ssize_t i
    cdef Py_ssize_t count = PyVectorcall_NARGS(flagged)
    cdef Message made
    if count == 1 and not names and PyBytes_CheckExact(<object>arguments[0]):
        made = Message.__new__(Message)
        made.open(<bytes>arguments[0], False, None)
        return made
    given = [<object>arguments[i] for i in range(count)]
    options = {name: <object>arguments[count + i] for i, name in enumerate(<tuple>names)} if names else {}
    return type.__call__(<object>kind, *given, **options)


(<PyTypeObject*>Message).tp_vectorcall = call_message


@cython.final
cdef class MessageReader(Reader):
    """Returns each message as a `Message`; `values` and `binary` are as for `Decoder`."""

    cdef bint as_bytes
    cdef tuple binary

    def __init__(self, *, values=str, binary=()):
        self.as_bytes = are_bytes(values)
        self.binary = root_names(binary)

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        cdef Message made = Message.__new__(Message)
        made.open(data[:size], self.as_bytes, self.binary)
        return made
