# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: freethreading_compatible=True, subinterpreters_compatible=own_gil
# cython: autotestdict=False, auto_pickle=False, binding=True, embedsignature=False
"""VICI on the wire: messages to Python objects, msgpack and JSON and back, and packets cut from a byte stream.

The only file that looks at a byte or a length. Layout of the elements of a message (strongSwan, vici README):

    SECTION_START  01 nlen name              LIST_START  04 nlen name
    SECTION_END    02                        LIST_ITEM   05 vlen vlen value
    KEY_VALUE      03 nlen name vlen vlen value    LIST_END    06

A packet is a big-endian u32 length, a type byte, for some types nlen and name, and for some types a message.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromObject
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.unicode cimport PyUnicode_AsEncodedString
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from collections.abc import Mapping
from time import time_ns

from .errors import DecodeError, EncodeError, ProtocolError

cdef extern from "Python.h":
    enum: PY_BIG_ENDIAN
    # Declared on PyObject* where Cython's own declarations would count references that we need not take.
    PyObject* PyDict_New() except NULL
    int PyDict_SetItem(PyObject* section, PyObject* key, PyObject* value) except -1
    PyObject* PyDict_Copy(PyObject* section) except NULL
    int PyDict_Next(PyObject* section, Py_ssize_t* position, PyObject** key, PyObject** value)
    bint PyDict_CheckExact(object value)
    PyObject* PyList_New(Py_ssize_t size) except NULL
    bint PyList_CheckExact(object value)
    Py_ssize_t PyList_GET_SIZE(object items)
    PyObject* PyList_GET_ITEM(object items, Py_ssize_t index)  # borrowed
    void PyList_SET_ITEM(PyObject* items, Py_ssize_t index, PyObject* item)  # takes over the reference
    PyObject* PyUnicode_New(Py_ssize_t size, Py_UCS4 maximum) except NULL
    PyObject* PyUnicode_DecodeUTF8(const char* text, Py_ssize_t size, const char* errors) except NULL
    void* PyUnicode_DATA(PyObject* text)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject* text)
    ctypedef struct PyASCIIObject:
        pass
    bint PyUnicode_Check(object value)
    bint PyUnicode_CheckExact(object value)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject* text)
    PyObject* PyBytes_FromStringAndSize(const char* data, Py_ssize_t size) except NULL
    char* PyBytes_AS_STRING(PyObject* data)
    Py_ssize_t PyBytes_GET_SIZE(PyObject* data)
    bint PyBytes_CheckExact(object value)
    Py_ssize_t PyVectorcall_NARGS(size_t flagged)
    ctypedef object (*vectorcallfunc)(PyObject*, PyObject* const*, size_t, PyObject*)
    ctypedef struct PyTypeObject:
        vectorcallfunc tp_vectorcall
    bint PyLong_Check(object value)
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1

cdef extern from *:
    """
    /* Chunks: 16 bytes, in which nearly all names and most values fit, copied and looked at without a branch on their
       size. The questions are asked of the first `size` bytes, 1 to 16. */
    #define CHUNK 16
    #if (defined(__SSE2__) || defined(_M_X64)) && !defined(VICIFAST_PORTABLE)
    #include <emmintrin.h>
    typedef __m128i Chunk;

    static inline Chunk load_chunk(const uint8_t *text) { return _mm_loadu_si128((const __m128i *)text); }
    static inline void store_chunk(uint8_t *to, Chunk chunk) { _mm_storeu_si128((__m128i *)to, chunk); }
    /* Of bytes in which the sign bit says whether they are wanted: are those of the text? */
    static inline int are_signed(__m128i bytes, size_t size) {
        return !((~(unsigned)_mm_movemask_epi8(bytes) & 0xffff) << (16 - size) & 0xffff);
    }
    static inline int is_ascii_chunk(Chunk chunk, size_t size) {
        return !((unsigned)_mm_movemask_epi8(chunk) << (16 - size) & 0xffff);
    }
    static inline int is_printable_chunk(Chunk chunk, size_t size) {  /* 0x20 to 0x7e */
        __m128i next = _mm_add_epi8(chunk, _mm_set1_epi8(1));
        return are_signed(_mm_cmpgt_epi8(next, _mm_set1_epi8(0x20)), size);
    }
    static inline int is_plain_chunk(Chunk chunk, size_t size) {  /* ASCII that JSON does not escape */
        __m128i escaped = _mm_or_si128(_mm_cmpeq_epi8(chunk, _mm_set1_epi8('"')),
                                       _mm_cmpeq_epi8(chunk, _mm_set1_epi8('\\\\')));
        return are_signed(_mm_andnot_si128(escaped, _mm_cmpgt_epi8(chunk, _mm_set1_epi8(0x1f))), size);
    }
    #else
    typedef struct { uint64_t low, high; } Chunk;

    static inline Chunk load_chunk(const uint8_t *text) {
        Chunk chunk;
        memcpy(&chunk, text, CHUNK);
        return chunk;
    }
    static inline void store_chunk(uint8_t *to, Chunk chunk) { memcpy(to, &chunk, CHUNK); }
    /* The text alone: "@" for all that is behind it. */
    static inline Chunk text_of_chunk(Chunk chunk, size_t size) {
        static const uint8_t masks[2 * CHUNK] = {
            255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
        const uint64_t fill = 0x4040404040404040u;
        Chunk mask = load_chunk(masks + CHUNK - size);
        chunk.low = (chunk.low & mask.low) | (fill & ~mask.low);
        chunk.high = (chunk.high & mask.high) | (fill & ~mask.high);
        return chunk;
    }
    static inline uint64_t below(uint64_t eight, uint64_t limit) { return eight - limit & ~eight; }
    static inline uint64_t not_printable(uint64_t x) {
        return x | (x + 0x0101010101010101u) | below(x, 0x2020202020202020u);
    }
    static inline uint64_t not_plain(uint64_t x) {
        const uint64_t one = 0x0101010101010101u;
        return x | below(x, 0x20 * one) | below(x ^ 0x22 * one, one) | below(x ^ 0x5c * one, one);
    }
    static inline int is_ascii_chunk(Chunk chunk, size_t size) {
        chunk = text_of_chunk(chunk, size);
        return !((chunk.low | chunk.high) & 0x8080808080808080u);
    }
    static inline int is_printable_chunk(Chunk chunk, size_t size) {
        chunk = text_of_chunk(chunk, size);
        return !((not_printable(chunk.low) | not_printable(chunk.high)) & 0x8080808080808080u);
    }
    static inline int is_plain_chunk(Chunk chunk, size_t size) {
        chunk = text_of_chunk(chunk, size);
        return !((not_plain(chunk.low) | not_plain(chunk.high)) & 0x8080808080808080u);
    }
    #endif
    """
    enum: CHUNK
    ctypedef struct Chunk:
        pass
    Chunk load_chunk(const uint8_t* text) noexcept
    void store_chunk(uint8_t* to, Chunk chunk) noexcept
    bint is_ascii_chunk(Chunk chunk, size_t size) noexcept
    bint is_printable_chunk(Chunk chunk, size_t size) noexcept
    bint is_plain_chunk(Chunk chunk, size_t size) noexcept

cdef extern from *:
    bint unlikely(bint condition) noexcept  # Cython's own

cpdef enum:
    MAX_PACKET = 524288  # VICI_MESSAGE_SIZE_MAX: charon closes on a longer one, and drops its own silently
    MAX_NAME = 255
    MAX_VALUE = 65535
    MAX_DEPTH = 64  # charon itself sends four at most; a bomb of 262,000 fits in one packet

cpdef enum:
    CMD_REQUEST = 0
    CMD_RESPONSE = 1
    CMD_UNKNOWN = 2
    EVENT_REGISTER = 3
    EVENT_UNREGISTER = 4
    EVENT_CONFIRM = 5
    EVENT_UNKNOWN = 6
    EVENT = 7

cdef enum:
    END = 0
    SECTION_START = 1
    SECTION_END = 2
    KEY_VALUE = 3
    LIST_START = 4
    LIST_ITEM = 5
    LIST_END = 6

cdef enum:
    KNOWN_NAMES = 512  # slots of a decoder's cache of names; charon's own vocabulary is about 200
    KNOWN_SHAPES = 64  # sections with the same names in the same order
    KNOWN_KEYS = 64  # of such a section
    KEPT_ENTRIES = 4096
    OWNED_PER_ELEMENT = 3  # objects that one element can make or push out: two names, and a value or container
    KNOWN_VALUE = 64  # longest value kept for reuse, so that a decoder's memory stays bounded
    READ_SIZE = 65536  # least room that a read is offered
    BUFFER_SIZE = 262144
    LENT_NODES = 128
    KNOWN_TOPICS = 64  # charon has 18 groups of log, and two levels that it tells
    LENT_SIZE = 2048  # of the stack, for a message that is encoded; most fit


# --- bytes: walking over the elements ---------------------------------------------------------------------------------


cdef struct Walk:
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


cdef int fail(Walk* walk, const uint8_t* where, str reason) except -1:
    raise DecodeError(reason, where - walk.start)


cdef int short_read(Walk* walk, Py_ssize_t wanted, const char* part) except -1:
    left = walk.end - walk.pos
    raise DecodeError(f"{part.decode()} needs {wanted} bytes, but only {left} are left", walk.pos - walk.start)


cdef inline const uint8_t* take(Walk* walk, Py_ssize_t size, const char* part) except NULL:
    """The only door through which bytes are read: lengths are compared, pointers never formed past the end."""
    # `part` is no str, as a constant that is a Python object has to be looked up in the state of the module.
    cdef const uint8_t* here = walk.pos
    if <size_t>(walk.end - here) < <size_t>size:  # a length of 32 bits may be negative
        short_read(walk, size, part)
    walk.pos = here + size
    return here


cdef inline int take_name(Walk* walk, Element* element) except -1:
    element.name_size = take(walk, 1, b"the length of a name")[0]
    element.name = take(walk, element.name_size, b"a name")
    return 0


cdef inline int take_value(Walk* walk, Element* element) except -1:
    cdef const uint8_t* size = take(walk, 2, b"the length of a value")
    element.value_size = (size[0] << 8) | size[1]
    element.value = take(walk, element.value_size, b"a value")
    return 0


cdef int misplaced(Walk* walk, int kind) except -1:
    cdef const uint8_t* where = walk.pos - 1
    if kind < SECTION_START or kind > LIST_END:
        return fail(walk, where, f"unknown element type {kind}")
    if kind == SECTION_START and not walk.in_list:
        return fail(walk, where, f"sections nested deeper than {MAX_DEPTH}")
    if kind == SECTION_END and not walk.in_list:
        return fail(walk, where, "the end of a section that was not started")
    name = ("", "a section", "the end of a section", "a key", "a list", "a list item", "the end of a list")[kind]
    return fail(walk, where, f"{name} {'inside' if walk.in_list else 'outside'} a list")


cdef int unfinished(Walk* walk) except -1:
    return fail(walk, walk.end, f"the message ends inside a {'list' if walk.in_list else 'section'}")


cdef inline const uint8_t* next_key(const uint8_t* here, const uint8_t* end, Element* element) noexcept:
    """Read a key and value and return what follows; NULL when there is none, or something is odd: see `next_element`.

    Most elements are keys, in runs: whoever reads a run keeps `here` in a register, which a `Walk` is not.
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


cdef inline int next_element(Walk* walk, Element* element) except -1:
    """Read one element and check that it may stand here; END at the end. Names are left to `check_name`."""
    cdef const uint8_t* after = next_key(walk.pos, walk.end, element)
    if not after or walk.in_list:
        return any_element(walk, element)
    walk.pos = after
    return KEY_VALUE


cdef int any_element(Walk* walk, Element* element) except -1:
    if walk.pos == walk.end:
        return unfinished(walk) if walk.depth or walk.in_list else END
    cdef int kind = walk.pos[0]
    walk.pos += 1
    if kind == KEY_VALUE and not walk.in_list:
        take_name(walk, element)
        take_value(walk, element)
    elif kind == LIST_ITEM and walk.in_list:
        take_value(walk, element)
    elif kind == SECTION_START and not walk.in_list and walk.depth < MAX_DEPTH:
        take_name(walk, element)
        walk.depth += 1
    elif kind == SECTION_END and not walk.in_list and walk.depth:
        walk.depth -= 1
    elif kind == LIST_START and not walk.in_list:
        take_name(walk, element)
        walk.in_list = True
    elif kind == LIST_END and walk.in_list:
        walk.in_list = False
    else:
        misplaced(walk, kind)
    return kind


cdef int begin(Walk* walk, const uint8_t* data, Py_ssize_t size) except -1:
    walk.start = walk.pos = data
    walk.end = data + size
    walk.depth = 0
    walk.in_list = False
    if size > MAX_PACKET:
        fail(walk, data + MAX_PACKET, f"a message of {size} bytes is longer than {MAX_PACKET}")
    return 0


cdef inline uint64_t eight_at(const uint8_t* text) noexcept:
    cdef uint64_t eight
    memcpy(&eight, text, 8)
    return eight


cdef inline uint64_t some_at(const uint8_t* text, Py_ssize_t size) noexcept:
    """One to seven bytes in eight lanes, some of them twice; the reads stay within the text."""
    cdef uint32_t first, last
    if size >= 4:
        memcpy(&first, text, 4)
        memcpy(&last, text + size - 4, 4)
        return <uint64_t>first << 32 | last
    # The other lanes hold "@", which no test of ours finds.
    return 0x4040404040000000ULL | text[0] << 16 | text[size >> 1] << 8 | text[size - 1]


cdef inline uint64_t odd_in(uint64_t eight) noexcept:
    """Non-zero when one of eight bytes is not 0x20 to 0x7e."""
    return (eight | (eight + 0x0101010101010101ULL) | (eight - 0x2020202020202020ULL)) & 0x8080808080808080ULL


cdef inline bint is_printable(const uint8_t* text, Py_ssize_t size) noexcept:
    cdef uint64_t odd = 0
    cdef Py_ssize_t i = 0
    if size < 8:
        return not size or not odd_in(some_at(text, size))
    while i < size - 8:
        odd |= odd_in(eight_at(text + i))
        i += 8
    return not (odd | odd_in(eight_at(text + size - 8)))


cdef inline bint copy_printable(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Copy a name and say whether it is printable, in one pass."""
    cdef uint64_t eight, last, odd = 0
    cdef Py_ssize_t i = 0
    if size < 8:
        copy(to, text, size)
        return not size or not odd_in(some_at(text, size))
    if size <= 16:
        eight = eight_at(text)
        last = eight_at(text + size - 8)
        memcpy(to, &eight, 8)
        memcpy(to + size - 8, &last, 8)
        return not (odd_in(eight) | odd_in(last))
    while i < size - 8:
        eight = eight_at(text + i)
        odd |= odd_in(eight)
        memcpy(to + i, &eight, 8)
        i += 8
    eight = eight_at(text + size - 8)
    memcpy(to + size - 8, &eight, 8)
    return not (odd | odd_in(eight))


cdef inline bint has_chunk(Walk* walk, const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether a text fits in a chunk and a whole one can be read there without leaving the message."""
    return size <= CHUNK and walk.end - text >= CHUNK


cdef inline bint is_same(const uint8_t* one, const uint8_t* other, Py_ssize_t size) noexcept:
    """Whether two texts of one length are equal; most are short, so that a call would cost more than the work."""
    cdef uint64_t differs = 0
    cdef Py_ssize_t i = 0
    if size < 8:
        return not size or some_at(one, size) == some_at(other, size)
    if size > 64:
        return not memcmp(one, other, size)
    while i < size - 8:
        differs |= eight_at(one + i) ^ eight_at(other + i)
        i += 8
    return not (differs | (eight_at(one + size - 8) ^ eight_at(other + size - 8)))


cdef inline void copy(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """memcpy for texts that are short as a rule; nothing is written past `size`."""
    cdef Py_ssize_t i = 0
    if size > 64:
        memcpy(to, text, size)
    elif size > 16:
        while i < size - 8:
            memcpy(to + i, text + i, 8)
            i += 8
        memcpy(to + size - 8, text + size - 8, 8)
    elif size >= 8:
        memcpy(to, text, 8)
        memcpy(to + size - 8, text + size - 8, 8)
    elif size >= 4:
        memcpy(to, text, 4)
        memcpy(to + size - 4, text + size - 4, 4)
    elif size:
        to[0] = text[0]
        to[size >> 1] = text[size >> 1]
        to[size - 1] = text[size - 1]


cdef inline void copy_text(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Copy the text of a plain str to where there is room for `CHUNK` bytes.

    Up to 16 bytes without a branch on the size, whose wrong guess would have to wait for the size to come from memory.
    Of less than 8 bytes the end of the object's header, which stands before the text, is read too and shifted out.
    """
    cdef Py_ssize_t absent, behind
    cdef uint64_t first, last
    if unlikely(size > CHUNK):
        copy(to, text, size)
        return
    absent = 8 - size if size < 8 else 0
    behind = size - 8 if size > 8 else 0
    first = eight_at(text - absent)
    first = first << 4 * absent << 4 * absent if PY_BIG_ENDIAN else first >> 4 * absent >> 4 * absent
    last = eight_at(text + size - 8) if size > 8 else first
    memcpy(to, &first, 8)
    memcpy(to + behind, &last, 8)


cdef inline int check_name(Walk* walk, Element* element) except -1:
    if has_chunk(walk, element.name, element.name_size):
        if is_printable_chunk(load_chunk(element.name), element.name_size):
            return 0
    if not is_printable(element.name, element.name_size):
        fail(walk, element.name, "a name is not printable ASCII")
    return 0


cdef inline bint is_ascii(const uint8_t* text, Py_ssize_t size) noexcept:
    cdef uint64_t all = 0
    cdef Py_ssize_t i = 0
    if size < 8:
        return not size or not some_at(text, size) & 0x8080808080808080ULL
    while i < size - 8:
        all |= eight_at(text + i)
        i += 8
    return not (all | eight_at(text + size - 8)) & 0x8080808080808080ULL


cdef inline bint continues(const uint8_t* text, Py_ssize_t size, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    if size <= count:
        return False
    for i in range(1, count + 1):
        if text[i] & 0xC0 != 0x80:
            return False
    return True


cdef bint is_utf8(const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether Python's own decoder would take it: shortest forms only, no surrogates, nothing past U+10FFFF."""
    cdef Py_ssize_t i = 0, count
    cdef uint8_t lead, second
    if is_ascii(text, size):
        return True
    while i < size:
        lead = text[i]
        if lead < 0x80:
            i += 1
            continue
        count = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        if lead < 0xC2 or lead > 0xF4 or not continues(text + i, size - i, count):
            return False
        second = text[i + 1]
        if (
            (lead == 0xE0 and second < 0xA0)
            or (lead == 0xED and second > 0x9F)
            or (lead == 0xF0 and second < 0x90)
            or (lead == 0xF4 and second > 0x8F)
        ):
            return False
        i += count + 1
    return True


cdef tuple root_names(names):
    """The names of root keys whose values are binary, as bytes."""
    if isinstance(names, str):
        raise TypeError("binary must be several names, not one str")
    return tuple([text_of(name, "a name in binary") for name in names])


cdef bytes text_of(text, str what):
    """The bytes of a str that is to stand beside messages."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    encoded = str.encode(text, "utf-8")
    if len(encoded) > MAX_NAME:
        raise ValueError(f"{what} has {len(encoded)} bytes, {MAX_NAME} at most")
    return encoded


cdef bint is_one_of(tuple names, const uint8_t* name, Py_ssize_t size) noexcept:
    for known in names:
        if same_bytes(<PyObject*>known, name, size):
            return True
    return False


# --- messages to Python objects ---------------------------------------------------------------------------------------


cdef struct Known:
    # A text seen before and the object that was made of it, owned.
    PyObject* made
    const uint8_t* text
    Py_ssize_t size


cdef struct Slot:
    # A name, the last value that it had, and the slot of the name that came after it.
    Known name
    Known value
    Slot* next


cdef struct Entry:
    # A key or list item that was read; a name without value is a section or list that is still open. Both are borrowed.
    PyObject* name
    PyObject* value


cdef struct Work:
    # What one message needs until it is complete: the entries of the sections that are open, and the objects that are
    # kept alive for them, owned. Of most values the slot is the owner, and nothing needs to be counted.
    Entry* entries
    Py_ssize_t used
    Py_ssize_t size
    PyObject** owned
    Py_ssize_t owned_used
    Py_ssize_t owned_size


cdef struct Shape:
    # A section seen before: its names in order, and a dict of them with the values that it had then.
    uint64_t names_hash
    Py_ssize_t count
    PyObject* example
    (PyObject*)[KNOWN_KEYS] names
    (PyObject*)[KNOWN_KEYS] values


cdef inline PyObject* new_text(const uint8_t* text, Py_ssize_t size) except NULL:
    cdef PyObject* made
    # One character and none are left to CPython, which shares those objects.
    if size > 1 and is_ascii(text, size):
        made = PyUnicode_New(size, 127)
        copy(<uint8_t*>PyUnicode_DATA(made), text, size)
        return made
    return PyUnicode_DecodeUTF8(<const char*>text, size, "surrogateescape")


cdef inline bint same_text(PyObject* known, const uint8_t* text, Py_ssize_t size) noexcept:
    return PyUnicode_GET_LENGTH(known) == size and is_same(<const uint8_t*>PyUnicode_DATA(known), text, size)


cdef inline bint same_bytes(PyObject* known, const uint8_t* data, Py_ssize_t size) noexcept:
    return PyBytes_GET_SIZE(known) == size and is_same(<const uint8_t*>PyBytes_AS_STRING(known), data, size)


cdef inline uint64_t mix(uint64_t so_far, uint64_t more) noexcept:
    so_far = (so_far ^ more) * 0x9E3779B97F4A7C15ULL
    return so_far ^ so_far >> 29


cdef inline uint64_t hash_name(const uint8_t* name, Py_ssize_t size) noexcept:
    cdef uint64_t mixed = mix(size, some_at(name, size) if size and size < 8 else 0)
    if size >= 8:
        mixed = mix(mix(mixed, eight_at(name)), eight_at(name + size - 8))
    return mixed


cdef bint are_bytes(values) except -1:
    """What `values` asks for: bytes, or str."""
    if values is not str and values is not bytes:
        raise TypeError(f"values must be str or bytes, not {values!r}")
    return values is bytes


cdef class Reader:
    """How a `Framer` hands out the message of a packet: as objects, transcoded or as it came. Not made directly.

    A reader that keeps a message to itself gives None for it, and the framer goes on to the next packet.
    """

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        raise TypeError("use Raw, Decoder or Transcoder")


@cython.final
cdef class Raw(Reader):
    """Reads a message as the bytes of it, unchecked."""

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        return data[:size]


@cython.final
cdef class Decoder(Reader):
    """Decodes messages into dicts and remembers names and values from one message to the next.

    `values` is `str` (UTF-8, with surrogateescape for other bytes) or `bytes`; `binary` names keys of the root whose
    values are `bytes` whatever `values` says. One decoder belongs to one connection; it may be used from several
    threads, one at a time. Its memory is bounded, whatever it is fed.
    """

    cdef Slot* slots
    cdef Slot[MAX_DEPTH + 1] sections
    cdef Shape* shapes
    cdef Work work
    cdef unsigned int turn
    cdef bint busy
    cdef bint as_bytes
    cdef tuple binary

    def __cinit__(self):
        self.slots = <Slot*>calloc(KNOWN_NAMES, sizeof(Slot))
        self.shapes = <Shape*>calloc(KNOWN_SHAPES, sizeof(Shape))
        if not self.slots or not self.shapes:
            raise MemoryError

    @cython.critical_section
    def __init__(self, *, values=str, binary=()):
        as_bytes, names = are_bytes(values), root_names(binary)
        if self.busy:
            raise RuntimeError("a Decoder is made anew while it decodes")
        self.as_bytes = as_bytes
        self.binary = names
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

    def decode(self, data, /):
        """Return the message in `data`, a bytes-like object, as a dict: section = dict, list = list, value = text.

        Of keys that occur twice in a section the last counts, as in strongSwan's own module. Raises `DecodeError`.
        """
        return read_buffer(self, data)

    @cython.critical_section
    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        # Making a dict can run the garbage collector, and that anything: also a second message on this decoder.
        if self.busy:
            return decode_alone(data, size, self.as_bytes, self.binary)
        self.busy = True
        try:
            return decode_message(self, &self.work, data, size, self.as_bytes, self.binary)
        finally:
            clear_work(&self.work)
            self.busy = False

    cdef Slot* keys(self, Walk* walk, Slot* last) except NULL:
        """Read the keys that come next into the message's entries; return the slot of the last name."""
        cdef Work* work = &self.work
        cdef Element element
        cdef Entry* entry
        cdef const uint8_t* here = walk.pos
        cdef const uint8_t* after = next_key(here, walk.end, &element)
        while after:
            if work.used == work.size or work.owned_used + OWNED_PER_ELEMENT > work.owned_size:
                grow_work(work)
            entry = &work.entries[work.used]
            last = self.known(walk, &element, last)
            entry.name = last.name.made
            entry.value = self.value(&element, last)
            work.used += 1
            here = after
            after = next_key(here, walk.end, &element)
        walk.pos = here
        return last

    cdef inline Slot* known(self, Walk* walk, Element* element, Slot* last) except NULL:
        """The slot of a name; most often it is the one that followed last time, and no hash is needed."""
        cdef Slot* slot = last.next
        if not (slot and is_known(&slot.name, element.name, element.name_size)):
            slot = self.find(walk, element)
            last.next = slot
        return slot

    cdef Slot* find(self, Walk* walk, Element* element) except NULL:
        # An IKE_SA and its CHILD_SAs have keys of the same names, and values and followers of their own.
        cdef uint64_t place = (hash_name(element.name, element.name_size) + 37 * walk.depth) % KNOWN_NAMES
        cdef Slot* slot = &self.slots[place]
        if is_known(&slot.name, element.name, element.name_size):
            return slot
        slot = &self.slots[place ^ 1]
        if is_known(&slot.name, element.name, element.name_size):
            return slot
        check_name(walk, element)
        # A name that is new takes one of two places, in turns, so that unique names cannot spoil the table for good.
        self.turn += 1
        if not self.slots[place].name.made or self.turn & 1:
            slot = &self.slots[place]
        keep_text(&self.work, &slot.name, new_text(element.name, element.name_size))
        return slot

    cdef inline Slot* section(self, Walk* walk, Element* element) except NULL:
        """The slot of the last section of this depth, with its name made this one's: what follows is often alike."""
        cdef Slot* slot = &self.sections[walk.depth]
        if not is_known(&slot.name, element.name, element.name_size):
            name = <object>self.find(walk, element).name.made
            Py_INCREF(name)
            keep_text(&self.work, &slot.name, <PyObject*>name)
        return slot

    cdef inline PyObject* value(self, Element* element, Slot* slot) except NULL:
        """The value, borrowed; the object that the key had last time when the bytes are equal."""
        if is_known(&slot.value, element.value, element.value_size):
            return slot.value.made
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


cdef inline bint is_known(Known* known, const uint8_t* text, Py_ssize_t size) noexcept:
    return known.made and known.size == size and is_same(known.text, text, size)


cdef inline void keep_text(Work* work, Known* known, PyObject* text) noexcept:
    keep(work, known, text, PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text))


cdef inline void keep(Work* work, Known* known, PyObject* made, const void* text, Py_ssize_t size) noexcept:
    """Hand an object over to a slot; the one before may be part of the message, and lives on until its end."""
    if known.made:
        own(work, known.made)
    known.made = made
    known.text = <const uint8_t*>text
    known.size = size


cdef inline void own(Work* work, PyObject* made) noexcept:
    """Hand an object over to the message, which has room for `OWNED_PER_ELEMENT` more."""
    work.owned[work.owned_used] = made
    work.owned_used += 1


cdef inline void replace(PyObject** place, PyObject* made) noexcept:
    cdef PyObject* old = place[0]
    place[0] = made
    if old:
        Py_DECREF(<object>old)


cdef inline void forget_slot(Slot* slot) noexcept:
    replace(&slot.name.made, NULL)
    replace(&slot.value.made, NULL)
    slot.next = NULL


cdef inline PyObject* new_value(Element* element, bint as_bytes) except NULL:
    if as_bytes:
        return PyBytes_FromStringAndSize(<const char*>element.value, element.value_size)
    return new_text(element.value, element.value_size)


cdef inline PyObject* name_object(Decoder cache, Work* work, Walk* walk, Element* element, Slot** last) except NULL:
    """The name of a key or list; `last` moves on to its slot."""
    if cache is None:
        return new_name(work, walk, element)
    last[0] = cache.known(walk, element, last[0])
    return last[0].name.made


cdef inline PyObject* section_object(Decoder cache, Work* work, Walk* walk, Element* element, Slot** last) except NULL:
    """The name of a section; `last` moves on to the slot of its depth."""
    if cache is None:
        return new_name(work, walk, element)
    last[0] = cache.section(walk, element)
    return last[0].name.made


cdef PyObject* new_name(Work* work, Walk* walk, Element* element) except NULL:
    check_name(walk, element)
    cdef PyObject* made = new_text(element.name, element.name_size)
    own(work, made)
    return made


cdef inline PyObject* value_object(
    Decoder cache, Work* work, Element* element, Slot* last, bint as_bytes, bint blob
) except NULL:
    if cache is not None and not blob:
        return cache.value(element, last)
    cdef PyObject* made = new_value(element, as_bytes or blob)
    own(work, made)
    return made


cdef int grow_work(Work* work) except -1:
    cdef Py_ssize_t size = 2 * work.size or 128
    cdef void* data = realloc(work.entries, size * sizeof(Entry))
    if not data:
        raise MemoryError
    work.entries = <Entry*>data
    work.size = size
    data = realloc(work.owned, size * OWNED_PER_ELEMENT * sizeof(PyObject*))
    if not data:
        raise MemoryError
    work.owned = <PyObject**>data
    work.owned_size = size * OWNED_PER_ELEMENT
    return 0


cdef void clear_work(Work* work) noexcept:
    """Let go of a message that is complete or given up, and of memory that only a huge one needs."""
    cdef Py_ssize_t i
    for i in range(work.owned_used):
        Py_DECREF(<object>work.owned[i])
    work.used = work.owned_used = 0
    if work.size > KEPT_ENTRIES:
        free_work(work)


cdef void free_work(Work* work) noexcept:
    free(work.entries)
    free(work.owned)
    work.entries = NULL
    work.owned = NULL
    work.size = work.owned_size = 0


cdef PyObject* make_list(Work* work, Py_ssize_t first) except NULL:
    """Make a list of the entries from `first` on, and take them off."""
    cdef Py_ssize_t i
    cdef PyObject* items = PyList_New(work.used - first)
    for i in range(work.used - first):
        Py_INCREF(<object>work.entries[first + i].value)
        PyList_SET_ITEM(items, i, work.entries[first + i].value)
    work.used = first
    own(work, items)
    return items


cdef PyObject* make_section(Decoder cache, Work* work, Py_ssize_t first) except NULL:
    """Make a dict of the entries from `first` on, and take them off."""
    cdef Entry* entries = work.entries + first
    cdef Py_ssize_t count = work.used - first
    cdef PyObject* section
    # Below four keys there is nothing to gain; above the limit there is nothing that charon sends.
    if cache is None or count < 4 or count > KNOWN_KEYS:
        section = new_section(work, entries, count)
    else:
        section = alike_section(cache, work, entries, count)
    work.used = first
    return section


cdef PyObject* alike_section(Decoder cache, Work* work, Entry* entries, Py_ssize_t count) except NULL:
    """Make a dict by copying one that had the same names, or be ready to do so the third time."""
    cdef uint64_t names_hash = hash_names(entries, count)
    cdef Shape* shape = &cache.shapes[names_hash % KNOWN_SHAPES]
    cdef PyObject* section
    if shape.names_hash == names_hash and shape.example and has_shape(shape, entries, count):
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
    return (mixed ^ mixed >> 32) | 1  # 0 is a shape never used


cdef inline bint has_shape(Shape* shape, Entry* entries, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    if shape.count != count:
        return False
    for i in range(count):
        if shape.names[i] != entries[i].name:
            return False
    return True


cdef PyObject* copy_example(Shape* shape, Work* work, Entry* entries) except NULL:
    """A copy is made at once and in the right size; only the values that differ are stored one by one."""
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


cdef int learn(Shape* shape, Entry* entries, Py_ssize_t count) except -1:
    """Keep the names of a section that came for the second time, and its values unless large or open to change."""
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
    if len(example) == count:  # else a name stands twice, and the last must count
        Py_INCREF(example)
        shape.example = <PyObject*>example
    return 0


cdef dict decode_message(Decoder cache, Work* work, const uint8_t* data, Py_ssize_t size, bint as_bytes, tuple binary):
    cdef Walk walk
    cdef Element element
    cdef Py_ssize_t[MAX_DEPTH + 2] firsts  # where the entries of each open section, and of a list in it, begin
    cdef Slot* last = NULL if cache is None else &cache.sections[0]
    cdef bint has_binary = bool(binary), blob = False, list_blob = False
    cdef int kind, top = 0
    cdef Entry* entry
    begin(&walk, data, size)
    firsts[0] = 0
    while True:
        if cache is not None and not walk.in_list and (walk.depth or not has_binary):
            last = cache.keys(&walk, last)
        if work.used == work.size or work.owned_used + OWNED_PER_ELEMENT > work.owned_size:
            grow_work(work)
        entry = &work.entries[work.used]
        kind = next_element(&walk, &element)
        if kind == KEY_VALUE:
            entry.name = name_object(cache, work, &walk, &element, &last)
            if has_binary:
                blob = not walk.depth and is_one_of(binary, element.name, element.name_size)
            entry.value = value_object(cache, work, &element, last, as_bytes, blob)
            work.used += 1
        elif kind == LIST_ITEM:
            entry.value = value_object(cache, work, &element, last, as_bytes, list_blob)
            work.used += 1
        elif kind == LIST_START:
            entry.name = name_object(cache, work, &walk, &element, &last)
            list_blob = has_binary and not walk.depth and is_one_of(binary, element.name, element.name_size)
            work.used += 1
            top += 1
            firsts[top] = work.used
        elif kind == SECTION_START:
            entry.name = section_object(cache, work, &walk, &element, &last)
            work.used += 1
            top += 1
            firsts[top] = work.used
        elif kind == LIST_END:
            work.entries[firsts[top] - 1].value = make_list(work, firsts[top])
            top -= 1
        elif kind == SECTION_END:
            work.entries[firsts[top] - 1].value = make_section(cache, work, firsts[top])
            top -= 1
        else:
            return <dict>make_section(cache, work, 0)


cdef dict decode_alone(const uint8_t* data, Py_ssize_t size, bint as_bytes, tuple binary):
    """Decode without remembering anything."""
    cdef Work work = Work(NULL, 0, 0, NULL, 0, 0)
    try:
        return decode_message(None, &work, data, size, as_bytes, binary)
    finally:
        clear_work(&work)
        free_work(&work)


cdef object read_buffer(Reader reader, data):
    """Have `reader` read the bytes of any object with the buffer protocol."""
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
    """Decodes without remembering anything, so that one call stands alone."""

    cdef bint as_bytes
    cdef tuple binary

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        return decode_alone(data, size, self.as_bytes, self.binary)


def decode(data, *, values=str, binary=()):
    """Return the message in `data`, a bytes-like object, as a dict: section = dict, list = list, value = `values`.

    Stateless; a `Decoder` is faster for more than one message. `values` is `str` (UTF-8, surrogateescape) or `bytes`;
    `binary` names keys of the root whose values are always `bytes`. Raises `DecodeError` with the offset.
    """
    cdef Forgetful reader = Forgetful.__new__(Forgetful)
    reader.as_bytes = are_bytes(values)
    reader.binary = root_names(binary)
    return read_buffer(reader, data)


# --- growing output ---------------------------------------------------------------------------------------------------


cdef struct Writer:
    uint8_t* data
    Py_ssize_t used
    Py_ssize_t size
    uint8_t* lent  # memory to begin with that is not the writer's, or NULL


cdef int grow(Writer* out, Py_ssize_t more) except -1:
    cdef Py_ssize_t size = max(out.used + more, 2 * out.size, 1024)
    cdef uint8_t* data = <uint8_t*>realloc(NULL if out.data == out.lent else out.data, size)
    if not data:
        raise MemoryError
    if out.lent and out.data == out.lent:
        memcpy(data, out.lent, out.used)
    out.data = data
    out.size = size
    return 0


cdef inline void lend(Writer* out, uint8_t* memory) noexcept:
    """Begin to write into memory of the caller, `LENT_SIZE` bytes."""
    out.data = out.lent = memory
    out.used = 0
    out.size = LENT_SIZE


cdef inline void free_writer(Writer* out) noexcept:
    if out.data != out.lent:
        free(out.data)


cdef inline int reserve(Writer* out, Py_ssize_t more) except -1:
    return grow(out, more) if unlikely(out.size - out.used < more) else 0


cdef inline void add_byte(Writer* out, uint8_t byte) noexcept:
    out.data[out.used] = byte
    out.used += 1


cdef inline void add_bytes(Writer* out, const void* data, Py_ssize_t size) noexcept:
    copy(out.data + out.used, <const uint8_t*>data, size)
    out.used += size


cdef inline void add_u16(Writer* out, Py_ssize_t number) noexcept:
    add_byte(out, <uint8_t>(number >> 8))
    add_byte(out, <uint8_t>number)


# --- messages to msgpack ----------------------------------------------------------------------------------------------


cdef struct Container:
    # A map or array that is being written: where its header goes, and how many elements it has so far.
    uint8_t* header
    Py_ssize_t count


cdef inline uint8_t* msgpack_text(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Write a text whose bytes are checked, for which there must be room; return where the next thing goes."""
    if size < 32:
        to[0] = <uint8_t>(0xA0 | size)
        to += 1
    elif size < 256:
        to[0] = 0xD9
        to[1] = <uint8_t>size
        to += 2
    else:
        to[0] = 0xDA
        to[1] = <uint8_t>(size >> 8)
        to[2] = <uint8_t>size
        to += 3
    copy(to, text, size)
    return to + size


cdef inline uint8_t* msgpack_binary(uint8_t* to, const uint8_t* data, Py_ssize_t size) noexcept:
    if size < 256:
        to[0] = 0xC4
        to[1] = <uint8_t>size
        to += 2
    else:
        to[0] = 0xC5
        to[1] = <uint8_t>(size >> 8)
        to[2] = <uint8_t>size
        to += 3
    copy(to, data, size)
    return to + size


cdef inline uint8_t* msgpack_name(uint8_t* to, Walk* walk, Element* element) except NULL:
    """Check a name and write it."""
    cdef Py_ssize_t size = element.name_size
    cdef Chunk chunk
    if has_chunk(walk, element.name, size):
        chunk = load_chunk(element.name)
        to[0] = <uint8_t>(0xA0 | size)
        store_chunk(to + 1, chunk)
        if is_printable_chunk(chunk, size):
            return to + 1 + size
    check_name(walk, element)
    return msgpack_text(to, element.name, size)


cdef uint8_t* msgpack_keys(uint8_t* to, Walk* walk, Py_ssize_t* count) except NULL:
    """Write the keys that come next."""
    cdef Element element
    cdef const uint8_t* here = walk.pos
    cdef const uint8_t* after = next_key(here, walk.end, &element)
    cdef Py_ssize_t seen = 0
    while after:
        to = msgpack_name(to, walk, &element)
        to = msgpack_value(to, walk, &element, False)
        seen += 1
        here = after
        after = next_key(here, walk.end, &element)
    walk.pos = here
    count[0] += seen
    return to


cdef inline uint8_t* msgpack_value(uint8_t* to, Walk* walk, Element* element, bint blob) noexcept:
    cdef Py_ssize_t size = element.value_size
    cdef Chunk chunk
    if not blob and has_chunk(walk, element.value, size):
        chunk = load_chunk(element.value)
        to[0] = <uint8_t>(0xA0 | size)
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
    """Write the header of a container, for which one byte was left; a longer one moves the content."""
    cdef uint8_t* header = container.header
    cdef Py_ssize_t count = container.count
    cdef Py_ssize_t more = 0 if count < 16 else 2 if count < 65536 else 4
    if not more:
        header[0] = <uint8_t>((0x80 if is_map else 0x90) | count)
        return to
    memmove(header + 1 + more, header + 1, to - header - 1)
    header[0] = <uint8_t>((0xDE if is_map else 0xDC) + (more == 4))
    if more == 4:
        header[1] = <uint8_t>(count >> 24)
        header[2] = <uint8_t>(count >> 16)
    header[more - 1] = <uint8_t>(count >> 8)
    header[more] = <uint8_t>count
    return to + more


cdef int write_msgpack(Writer* out, const uint8_t* data, Py_ssize_t size, tuple binary) except -1:
    cdef Walk walk
    cdef Element element
    cdef Container[MAX_DEPTH + 2] opened
    cdef uint8_t* to
    cdef int top = 0, kind
    cdef bint has_binary = bool(binary), blob = False, list_blob = False
    begin(&walk, data, size)
    # msgpack is longer than VICI only where lengths reach 32 or 256, or a container 16 elements.
    reserve(out, size + size // 8 + 64 + CHUNK)
    to = msgpack_open(out.data + out.used, &opened[0])
    while True:
        if not walk.in_list and (walk.depth or not has_binary):
            to = msgpack_keys(to, &walk, &opened[top].count)
        kind = any_element(&walk, &element)
        if kind == SECTION_END or kind == LIST_END:
            to = msgpack_close(to, &opened[top], kind == SECTION_END)
            top -= 1
            continue
        if kind == END:
            out.used = msgpack_close(to, &opened[0], True) - out.data
            return 0
        opened[top].count += 1
        if kind == LIST_ITEM:
            to = msgpack_value(to, &walk, &element, list_blob)
            continue
        to = msgpack_name(to, &walk, &element)
        if has_binary:
            blob = not walk.depth and is_one_of(binary, element.name, element.name_size)
        if kind == KEY_VALUE:
            to = msgpack_value(to, &walk, &element, blob)
        else:
            list_blob = blob
            top += 1
            to = msgpack_open(to, &opened[top])


# --- messages to JSON -------------------------------------------------------------------------------------------------


cdef inline bint needs_escape(uint64_t eight) noexcept:
    """Whether one of eight bytes is a control character, a quote or a backslash (rarely true without need)."""
    cdef uint64_t quote = eight ^ 0x2222222222222222ULL
    cdef uint64_t backslash = eight ^ 0x5C5C5C5C5C5C5C5CULL
    cdef uint64_t found = (eight - 0x2020202020202020ULL) & ~eight
    found |= (quote - 0x0101010101010101ULL) & ~quote
    found |= (backslash - 0x0101010101010101ULL) & ~backslash
    return (found & 0x8080808080808080ULL) != 0


cdef uint8_t* json_byte(uint8_t* to, uint8_t byte) noexcept:
    cdef const char* control = b"btn-fr"  # from 8 on; JSON has no short form of 11
    cdef const char* digits = b"0123456789abcdef"
    cdef uint8_t short = 0
    if byte >= 0x20 and byte != 0x22 and byte != 0x5C:
        to[0] = byte
        return to + 1
    if byte == 0x22 or byte == 0x5C:
        short = byte
    elif byte >= 8 and byte <= 13 and byte != 11:
        short = <uint8_t>control[byte - 8]
    to[0] = 0x5C
    if short:
        to[1] = short
        return to + 2
    memcpy(to + 1, b"u00", 3)
    to[4] = digits[byte >> 4]
    to[5] = digits[byte & 15]
    return to + 6


cdef inline uint8_t* json_text(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Write a text that is UTF-8, for which there must be room: six times its size, and its quotes."""
    cdef uint64_t eight
    cdef Py_ssize_t i = 0, stop
    to[0] = 0x22
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
    to[0] = 0x22
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
        to[2] = digits[three >> 6 & 63] if left > 1 else 0x3D
        to[3] = digits[three & 63] if left > 2 else 0x3D
        to += 4
        i += 3
    memcpy(to, b'"}', 2)
    return to + 2


cdef inline uint8_t* json_name(uint8_t* to, Walk* walk, Element* element) except NULL:
    """Check a name and write it."""
    cdef Py_ssize_t size = element.name_size
    cdef Chunk chunk
    if has_chunk(walk, element.name, size):
        chunk = load_chunk(element.name)
        to[0] = 0x22
        store_chunk(to + 1, chunk)
        if is_printable_chunk(chunk, size) and is_plain_chunk(chunk, size):
            to[size + 1] = 0x22
            return to + size + 2
    check_name(walk, element)
    return json_text(to, element.name, size)


cdef inline uint8_t* json_value(uint8_t* to, Walk* walk, Element* element, bint blob) noexcept:
    cdef Py_ssize_t size = element.value_size
    cdef Chunk chunk
    if not blob and has_chunk(walk, element.value, size):
        chunk = load_chunk(element.value)
        to[0] = 0x22
        store_chunk(to + 1, chunk)
        if is_plain_chunk(chunk, size):
            to[size + 1] = 0x22
            return to + size + 2
    if blob or not is_utf8(element.value, size):
        return json_base64(to, element.value, size)
    return json_text(to, element.value, size)


cdef uint8_t* json_keys(uint8_t* to, Walk* walk) except NULL:
    """Write the keys that come next, each with a comma behind it."""
    cdef Element element
    cdef const uint8_t* here = walk.pos
    cdef const uint8_t* after = next_key(here, walk.end, &element)
    while after:
        to = json_name(to, walk, &element)
        to[0] = 0x3A
        to = json_value(to + 1, walk, &element, False)
        to[0] = 0x2C
        to += 1
        here = after
        after = next_key(here, walk.end, &element)
    walk.pos = here
    return to


cdef inline uint8_t* json_close(uint8_t* to, uint8_t bracket) noexcept:
    """End a container; the comma after its last element, when it has one, gives way to the bracket."""
    if (to - 1)[0] == 0x2C:
        to -= 1
    to[0] = bracket
    return to + 1


cdef int write_json(Writer* out, const uint8_t* data, Py_ssize_t size, tuple binary) except -1:
    cdef Walk walk
    cdef Element element
    cdef uint8_t* to
    cdef int kind
    cdef bint has_binary = bool(binary), blob = False, list_blob = False
    begin(&walk, data, size)
    # The worst are control characters, six bytes each, and base64 of one byte, 22 for a key and value of 5.
    reserve(out, 6 * size + 64 + CHUNK)
    to = out.data + out.used
    to[0] = 0x7B
    to += 1
    while True:
        if not walk.in_list and (walk.depth or not has_binary):
            to = json_keys(to, &walk)
        kind = any_element(&walk, &element)
        if kind == END:
            out.used = json_close(to, 0x7D) - out.data
            return 0
        if kind == SECTION_END or kind == LIST_END:
            to = json_close(to, 0x7D if kind == SECTION_END else 0x5D)
        elif kind == LIST_ITEM:
            to = json_value(to, &walk, &element, list_blob)
        else:
            to = json_name(to, &walk, &element)
            to[0] = 0x3A
            to += 1
            if has_binary:
                blob = not walk.depth and is_one_of(binary, element.name, element.name_size)
            if kind != KEY_VALUE:
                list_blob = blob
                to[0] = 0x7B if kind == SECTION_START else 0x5B
                to += 1
                continue
            to = json_value(to, &walk, &element, blob)
        to[0] = 0x2C
        to += 1


cdef void add_u64(Writer* out, uint64_t number) noexcept:
    cdef int shift = 56
    while shift >= 0:
        add_byte(out, <uint8_t>(number >> shift))
        shift -= 8


cdef void add_decimal(Writer* out, uint64_t number) noexcept:
    cdef uint8_t[24] digits
    cdef int at = 24
    while True:
        at -= 1
        digits[at] = <uint8_t>(0x30 + number % 10)
        number //= 10
        if not number:
            break
    add_bytes(out, &digits[at], 24 - at)


cdef void add_string(Writer* out, bint json, bytes text) noexcept:
    cdef uint8_t* to = out.data + out.used
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(<PyObject*>text)
    out.used = (json_text(to, data, size) if json else msgpack_text(to, data, size)) - out.data


cdef bint is_json(format) except -1:
    if format not in ("msgpack", "json"):
        raise ValueError(f'format must be "msgpack" or "json", not {format!r}')
    return format == "json"


cdef uint64_t whole(number) except? 0:
    if not PyLong_Check(number):
        raise TypeError(f"a whole number is needed, not {type(number).__name__}")
    return number


@cython.final
cdef class Envelope:
    """What a `Transcoder` puts around messages: the map `v` (1), `node`, `boot`, `seq`, `time`, `event`, `data`.

    `seq` is the number of the last envelope, counted from 1; `time` goes into those to come, in nanoseconds since the
    epoch. Both are unsigned 64-bit integers and always 8 bytes in msgpack. A JSON envelope ends with a newline.
    """

    cdef uint64_t last
    cdef uint64_t now
    cdef bint json
    cdef Writer head

    def __init__(self, format, node, boot):
        if self.head.data:
            raise TypeError("the form of an Envelope cannot be changed")
        self.json = is_json(format)
        node = text_of(node, "node")
        boot = text_of(boot, "boot")
        reserve(&self.head, 6 * (len(node) + len(boot)) + 64)
        add_bytes(&self.head, b'{"v":1,"node":' if self.json else b"\x87\xa1v\x01\xa4node", 14 if self.json else 9)
        add_string(&self.head, self.json, node)
        add_bytes(&self.head, b',"boot":' if self.json else b"\xa4boot", 8 if self.json else 5)
        add_string(&self.head, self.json, boot)
        add_bytes(&self.head, b',"seq":' if self.json else b"\xa3seq\xcf", 7 if self.json else 5)

    def __dealloc__(self):
        free(self.head.data)

    @property
    def seq(self):
        """The number of the last envelope."""
        return self.last

    @seq.setter
    def seq(self, number):
        self.last = whole(number)

    @property
    def time(self):
        """Nanoseconds since the epoch."""
        return self.now

    @time.setter
    def time(self, number):
        self.now = whole(number)

    cdef int begin(self, Writer* out, bytes event) except -1:
        """Write everything up to the data, with the next number; `end` counts it."""
        if self.last + 1 == 0:
            raise OverflowError("an envelope's seq has 64 bits")
        reserve(out, self.head.used + 6 * PyBytes_GET_SIZE(<PyObject*>event) + 96)
        add_bytes(out, self.head.data, self.head.used)
        if self.json:
            add_decimal(out, self.last + 1)
            add_bytes(out, b',"time":', 8)
            add_decimal(out, self.now)
            add_bytes(out, b',"event":', 9)
        else:
            add_u64(out, self.last + 1)
            add_bytes(out, b"\xa4time\xcf", 6)
            add_u64(out, self.now)
            add_bytes(out, b"\xa5event", 6)
        add_string(out, self.json, event)
        add_bytes(out, b',"data":' if self.json else b"\xa4data", 8 if self.json else 5)
        return 0

    cdef int end(self, Writer* out) except -1:
        if self.json:
            reserve(out, 2)
            add_bytes(out, b"}\n", 2)
        self.last += 1
        return 0


@cython.final
cdef class Transcoder(Reader):
    """Rewrites messages as msgpack or JSON in one pass, without Python objects between.

    `format` is "msgpack" or "json"; `binary` names keys of the root whose values are always msgpack `bin` or base64.
    Text is UTF-8; other values become msgpack `bin` or, in JSON, `{"$base64": "..."}`. Keys that occur twice in a
    section stay twice, in order. With an `envelope`, of the same format, each message is put into one as its `data`,
    with `event` as its event; a message that is malformed uses up no number.
    """

    cdef Writer out
    cdef bint json
    cdef tuple binary
    cdef Envelope envelope
    cdef bytes event

    def __init__(self, format, *, binary=(), Envelope envelope=None, event=""):
        json, names, text = is_json(format), root_names(binary), text_of(event, "event")
        if envelope is not None and envelope.json != json:
            raise ValueError("the envelope has another format than the transcoder")
        self.json = json
        self.binary = names
        self.envelope = envelope
        self.event = text

    def __dealloc__(self):
        free(self.out.data)

    def transcode(self, data, /):
        """Return the message in `data`, a bytes-like object, in the other format. Raises `DecodeError`."""
        return read_buffer(self, data)

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        # Both at once: a lock taken within another lets go of that while it waits.
        with cython.critical_section(self, self if self.envelope is None else self.envelope):
            return self.write(data, size)

    cdef bytes write(self, const uint8_t* data, Py_ssize_t size):
        self.out.used = 0
        if self.envelope is not None:
            self.envelope.begin(&self.out, self.event)
        if self.json:
            write_json(&self.out, data, size, self.binary)
        else:
            write_msgpack(&self.out, data, size, self.binary)
        if self.envelope is not None:
            self.envelope.end(&self.out)
        result = self.out.data[:self.out.used]
        if self.out.size > BUFFER_SIZE:
            free(self.out.data)
            self.out.data = NULL
            self.out.size = 0
        return result


cdef struct Topic:
    # The messages that have the same two values, one envelope after the other, and under which name they are handed
    # out: a str, or None for those nobody wants. All three objects are owned.
    PyObject* one
    PyObject* other
    PyObject* name
    Writer out
    uint64_t count
    uint64_t first
    uint64_t last


cdef struct Tally:
    # Messages that were given a number and dropped.
    uint64_t count
    uint64_t first
    uint64_t last


@cython.final
cdef class Gatherer(Reader):
    """Puts the messages of an event that come in one read into envelopes, one after the other, sorted by two values.

    `keys` names two root keys. `topic` is called with the values (bytes, empty when missing) that come for the first
    time, and returns the name under which `take` hands out these messages, or None to leave them out. `limit` is the
    most bytes that envelopes are gathered to. A read gives one packet with the gatherer itself as message, however many
    came, so that there is no Python object per message.

    `every` keeps one of so many messages of a topic; `rate` is the most to keep in a second, 0 for no limit; `wanted`,
    when not None, is called with the value of `text_key` (bytes) and says whether to keep the message. What `topic` and
    `wanted` leave out has no number; what the other two drop has one, and `dropped` tells. While it is `silent` a read
    gives no packet at all.
    """

    cdef Envelope envelope
    cdef bytes event
    cdef tuple keys
    cdef object topic
    cdef Py_ssize_t limit
    cdef Topic* topics
    cdef list complete
    cdef bint is_waiting
    cdef bint is_adding
    cdef uint64_t passed
    cdef double tokens
    cdef Tally sampled
    cdef Tally limited
    cdef readonly uint64_t left_out
    cdef public uint64_t every
    cdef public double rate
    cdef public object wanted
    cdef public bint silent
    cdef bytes text_key

    def __cinit__(self):
        self.topics = <Topic*>calloc(KNOWN_TOPICS, sizeof(Topic))
        if not self.topics:
            raise MemoryError
        self.complete = []
        self.every = 1

    def __init__(self, Envelope envelope not None, event, keys, topic, *, Py_ssize_t limit=65536, text_key="msg"):
        name, names, text_name = text_of(event, "event"), root_names(keys), text_of(text_key, "text_key")
        if len(names) != 2:
            raise ValueError("two keys are needed")
        self.envelope = envelope
        self.event = name
        self.keys = names
        self.topic = topic
        self.limit = limit
        self.text_key = text_name

    def __dealloc__(self):
        cdef int i
        if self.topics:
            for i in range(KNOWN_TOPICS):
                forget_topic(&self.topics[i])
                free(self.topics[i].out.data)
            free(self.topics)

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        with cython.critical_section(self, self.envelope):
            return self.gather(data, size)

    cdef object gather(self, const uint8_t* data, Py_ssize_t size):
        cdef Element one, other, text
        cdef Topic* topic
        cdef bint is_wanted = True
        self.check_whole()
        if not self.is_waiting:
            self.begin_read()
        root_value(data, size, <bytes>self.keys[0], &one)
        root_value(data, size, <bytes>self.keys[1], &other)
        topic = self.find(&one, &other)
        if self.wanted is not None and topic.name != <PyObject*>None:
            is_wanted = self.is_wanted(data, size, &text)
            topic = self.find(&one, &other)  # again, as `wanted` may have called `forget`
        if not is_wanted or topic.name == <PyObject*>None:
            self.left_out += 1
            return None
        self.is_adding = True
        try:
            self.add(topic, data, size)
        finally:
            self.is_adding = False
        return self.waiting()

    cdef int check_whole(self) except -1:
        # Objects that are made within C code can run the garbage collector, and that anything.
        if self.is_adding:
            raise RuntimeError("a Gatherer is used while it adds a message")
        return 0

    cdef int add(self, Topic* topic, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t start = topic.out.used
        self.write(topic, data, size)
        if self.is_dropped():
            topic.out.used = start
            return 0
        if start and topic.out.used > self.limit:
            self.split(topic, start)
        topic.last = self.envelope.last
        if not topic.count:
            topic.first = topic.last
        topic.count += 1
        return 0

    cdef object waiting(self):
        """The gatherer for the first message of a read, to be told of; None for those after."""
        if self.is_waiting or self.silent:
            return None
        self.is_waiting = True
        return self

    cdef int begin_read(self) except -1:
        cdef uint64_t now = time_ns()
        if self.rate:
            self.tokens = min(max(self.rate, 1.0), self.tokens + (now - self.envelope.now) * self.rate / 1e9)
        self.envelope.now = now
        return 0

    cdef bint is_wanted(self, const uint8_t* data, Py_ssize_t size, Element* text) except -1:
        root_value(data, size, self.text_key, text)
        return self.wanted(text.value[:text.value_size])

    cdef bint is_dropped(self) noexcept:
        """Whether the message that has just been given a number goes no further."""
        self.passed += 1
        if self.every > 1 and self.passed % self.every:
            tally(&self.sampled, self.envelope.last)
            return True
        if not self.rate:
            return False
        if self.tokens < 1:
            tally(&self.limited, self.envelope.last)
            return True
        self.tokens -= 1
        return False

    cdef int write(self, Topic* topic, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t start = topic.out.used
        try:
            self.envelope.begin(&topic.out, self.event)
            if self.envelope.json:
                write_json(&topic.out, data, size, ())
            else:
                write_msgpack(&topic.out, data, size, ())
            self.envelope.end(&topic.out)
        except BaseException:
            topic.out.used = start
            raise
        return 0

    cdef Topic* find(self, Element* one, Element* other) except NULL:
        cdef uint64_t place = hash_name(one.value, one.value_size) * 3 + hash_name(other.value, other.value_size)
        cdef Topic* topic = &self.topics[place % KNOWN_TOPICS]
        if topic.name and is_value(topic.one, one) and is_value(topic.other, other):
            return topic
        first = one.value[:one.value_size]
        second = other.value[:other.value_size]
        name = self.topic(first, second)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a topic's name must be a str, not {type(name).__name__}")
        self.split(topic, topic.out.used)
        forget_topic(topic)
        Py_INCREF(first)
        Py_INCREF(second)
        Py_INCREF(name)
        topic.one = <PyObject*>first
        topic.other = <PyObject*>second
        topic.name = <PyObject*>name
        return topic

    cdef int split(self, Topic* topic, Py_ssize_t size) except -1:
        """Complete the first `size` bytes, all the messages counted so far; what is behind them stays."""
        cdef uint64_t count = topic.count
        if count:
            name, gathered = <object>topic.name, topic.out.data[:size]
            topic.count = 0
            topic.out.used -= size
            memmove(topic.out.data, topic.out.data + size, topic.out.used)
            # Last, as making a tuple can run the garbage collector, and that `take`.
            batch = (name, gathered, count, topic.first, topic.last)
            self.complete.append(batch)
        if not topic.out.used and topic.out.size > BUFFER_SIZE:
            free(topic.out.data)
            topic.out.data = NULL
            topic.out.size = 0
        return 0

    @cython.critical_section
    def take(self):
        """Return what was gathered since the last call: (name, envelopes, count, first and last number), in order."""
        cdef int i
        cdef list complete, empty = []
        self.check_whole()
        for i in range(KNOWN_TOPICS):
            self.split(&self.topics[i], self.topics[i].out.used)
        complete = self.complete
        self.complete = empty
        self.is_waiting = False
        return complete

    @cython.critical_section
    def dropped(self):
        """Return (why, count, first and last number) of what `every` and `rate` dropped since the last call."""
        cdef list told = []
        if self.sampled.count:
            told.append(("sampled", self.sampled.count, self.sampled.first, self.sampled.last))
        if self.limited.count:
            told.append(("over the rate limit", self.limited.count, self.limited.first, self.limited.last))
        self.sampled.count = self.limited.count = 0
        return told

    @cython.critical_section
    def forget(self):
        """Ask `topic` again for every name, as its answers have changed."""
        cdef int i
        self.check_whole()
        for i in range(KNOWN_TOPICS):
            self.split(&self.topics[i], self.topics[i].out.used)
            forget_topic(&self.topics[i])


cdef inline bint is_value(PyObject* known, Element* element) noexcept:
    return same_bytes(known, element.value, element.value_size)


cdef void forget_topic(Topic* topic) noexcept:
    replace(&topic.one, NULL)
    replace(&topic.other, NULL)
    replace(&topic.name, NULL)


cdef void tally(Tally* dropped, uint64_t number) noexcept:
    if not dropped.count:
        dropped.first = number
    dropped.last = number
    dropped.count += 1


cdef void root_value(const uint8_t* data, Py_ssize_t size, bytes name, Element* element) noexcept:
    """The value of the first such key before any section or list, empty when there is none."""
    cdef const uint8_t* end = data + size
    cdef const uint8_t* here = next_key(data, end, element)
    while here:
        if same_bytes(<PyObject*>name, element.name, element.name_size):
            return
        here = next_key(here, end, element)
    element.value = data
    element.value_size = 0


def to_msgpack(data, *, binary=()):
    """Return the message in `data`, a bytes-like object, as msgpack: what `packb(decode(data))` would give.

    Values that are not UTF-8, and those of the root keys named in `binary`, are `bin`. Raises `DecodeError`.
    """
    return read_buffer(Transcoder("msgpack", binary=binary), data)


def to_json(data, *, binary=()):
    """Return the message in `data`, a bytes-like object, as compact UTF-8 JSON: what `json.dumps` would give.

    Values that are not UTF-8, and those of the root keys named in `binary`, are `{"$base64": "..."}`.
    Raises `DecodeError`.
    """
    return read_buffer(Transcoder("json", binary=binary), data)


# --- Python objects to messages ---------------------------------------------------------------------------------------


cdef struct Frame:
    # A section that is being written, and the name under which it stands in the one around it; both are owned.
    PyObject* section
    PyObject* name
    Py_ssize_t position


cdef struct Place:
    # Where in the message the encoder is, also for the text of an error. Both objects are owned: a mapping's own code
    # may take them out of the message at any time.
    PyObject* name
    PyObject* value
    Py_ssize_t index


cdef int refuse(str reason) except -1:
    raise EncodeError(reason)


cdef inline int add_name(Writer* out, int kind, const uint8_t* text, Py_ssize_t size) except -1:
    """Write the kind of an element and its name, which has been checked."""
    reserve(out, size + 2)
    add_byte(out, <uint8_t>kind)
    add_byte(out, <uint8_t>size)
    add_bytes(out, text, size)
    return 0


cdef inline int put_name(Writer* out, int kind, object name) except -1:
    cdef Py_ssize_t size
    cdef const uint8_t* text
    if not PyUnicode_Check(name):
        return refuse(f"a name must be str, not {type(name).__name__}")
    if PyUnicode_IS_COMPACT_ASCII(<PyObject*>name):
        text = <const uint8_t*>PyUnicode_DATA(<PyObject*>name)
        size = PyUnicode_GET_LENGTH(<PyObject*>name)
    else:
        encoded = PyUnicode_AsEncodedString(name, b"utf-8", b"surrogatepass")  # a subclass may have its own encode
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
        add_byte(out, 0x2D)
    add_decimal(out, <uint64_t>number if number >= 0 else -<uint64_t>number)
    out.data[start - 1] = <uint8_t>(out.used - start)
    return 0


cdef int put_other(Writer* out, object value) except -1:
    """The scalars that are neither plain ASCII str nor bytes."""
    if PyUnicode_Check(value):
        try:
            return put_buffer(out, PyUnicode_AsEncodedString(value, b"utf-8", b"surrogateescape"))
        except UnicodeEncodeError:
            return refuse("a str has a surrogate that stands for no byte")
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
    return refuse(f"{type(value).__name__} is no value of VICI")


cdef inline bint is_plain(object value) noexcept:
    """Whether it is a str as nearly all are: no subclass, and ASCII, so that its bytes are at hand."""
    return PyUnicode_CheckExact(value) and PyUnicode_IS_COMPACT_ASCII(<PyObject*>value)


cdef inline const uint8_t* plain_text(object text) noexcept:
    """The bytes of a plain str, without the questions of PyUnicode_DATA."""
    return <const uint8_t*>(<PyASCIIObject*><PyObject*>text + 1)


cdef inline int put_value(Writer* out, object value) except -1:
    if is_plain(value):
        return put_bytes(out, PyUnicode_DATA(<PyObject*>value), PyUnicode_GET_LENGTH(<PyObject*>value))
    if PyBytes_CheckExact(value):
        return put_bytes(out, PyBytes_AS_STRING(<PyObject*>value), PyBytes_GET_SIZE(<PyObject*>value))
    return put_other(out, value)


cdef inline bint put_plain(Writer* out, object name, object value) except -1:
    """Write a key and value when both are plain str and within bounds; else nothing, and the slow way says why."""
    if unlikely(not is_plain(name) or not is_plain(value)):
        return False
    cdef const uint8_t* text = plain_text(name)
    cdef Py_ssize_t name_size = PyUnicode_GET_LENGTH(<PyObject*>name)
    cdef Py_ssize_t size = PyUnicode_GET_LENGTH(<PyObject*>value)
    if unlikely(name_size > MAX_NAME or size > MAX_VALUE):
        return False
    reserve(out, name_size + size + 4 + CHUNK)
    cdef uint8_t* to = out.data + out.used
    to[0] = KEY_VALUE
    to[1] = <uint8_t>name_size
    if unlikely(not copy_printable(to + 2, text, name_size)):
        return False
    to[name_size + 2] = <uint8_t>(size >> 8)
    to[name_size + 3] = <uint8_t>size
    copy_text(to + name_size + 4, plain_text(value), size)
    out.used += name_size + size + 4
    return True


cdef inline bint put_plain_list(Writer* out, object name, object items, Py_ssize_t limit) except -1:
    """Write a list when its items are plain str and all is within bounds; else nothing, as `put_plain`."""
    cdef Py_ssize_t start = out.used
    cdef Py_ssize_t i, size
    cdef PyObject* item
    put_name(out, LIST_START, name)
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
    return refuse(f"the message is longer than {MAX_PACKET} bytes, the most that VICI carries")


cdef int open_frame(Frame* frame, object section, object name) except -1:
    # A mapping that is no plain dict is copied: its own code may do anything while we walk.
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
    """Write the items of a section up to one that is not plain, which `place` owns then; 0 at the end."""
    cdef PyObject* name
    cdef PyObject* value
    replace(&place.name, NULL)
    replace(&place.value, NULL)
    # Nothing in here runs other code, so that names and values can be borrowed.
    with cython.critical_section(<object>frame.section):
        while PyDict_Next(frame.section, &frame.position, &name, &value):
            if not put_plain(out, <object>name, <object>value):
                Py_INCREF(<object>name)
                Py_INCREF(<object>value)
                place.name = name
                place.value = value
                return 1
            if out.used > limit:
                too_long()
    return 0


cdef int put_sections(Writer* out, Frame* frames, int* depth, Place* place, Py_ssize_t limit) except -1:
    """Write the sections of `frames` until all are closed; `depth` is -1 then."""
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
    if PyList_CheckExact(value) and put_plain_list(out, name, value, limit):
        return 0
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
    """Write a section that is valid already, with the names that stand twice in it."""
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

    A mapping is a section, a list or tuple a list, all else a value: str (UTF-8, surrogateescape), bytes, bytearray,
    memoryview, bool (yes or no) or int (decimal). Names are printable ASCII of 255 bytes at most, values 65535 bytes,
    the message 512 KiB, sections nested 64 deep. Raises `EncodeError` that names the path; nothing is truncated.
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
    """Return a whole packet, its length before it, of one of the types `CMD_REQUEST` to `EVENT`.

    Requests, registrations and events have a name (printable ASCII, 255 bytes at most); requests, responses and events
    have a message, empty when it is None. Raises `EncodeError` for anything else, and for more than 512 KiB.
    """
    cdef uint8_t[LENT_SIZE] lent
    cdef Writer out
    cdef int type_ = kind
    lend(&out, &lent[0])
    if not CMD_REQUEST <= type_ <= EVENT:
        refuse(f"there is no packet type {kind}")
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


# --- msgpack and JSON to messages -------------------------------------------------------------------------------------


cdef int fail_at(Walk* walk, str reason) except -1:
    return fail(walk, walk.pos, reason)


cdef uint64_t take_number(Walk* walk, int size) except? 0xFFFFFFFF:
    cdef const uint8_t* data = take(walk, size, b"a number of msgpack")
    cdef uint64_t number = 0
    cdef int i
    for i in range(size):
        number = number << 8 | data[i]
    return number


cdef object take_text(Walk* walk, Py_ssize_t size):
    cdef const uint8_t* text = take(walk, size, b"a string of msgpack")
    made = <object>new_text(text, size)
    Py_DECREF(made)
    return made


cdef object take_integer(Walk* walk, int kind):
    cdef int size = 1 << (kind & 3)
    cdef uint64_t number = take_number(walk, size)
    if kind < 0xD0:
        return number
    return <long long>(number << (64 - 8 * size)) >> (64 - 8 * size)


cdef object take_scalar(Walk* walk, int kind):
    """Read what follows the first byte of anything but a map or an array."""
    if kind <= 0x7F:
        return kind
    if kind >= 0xE0:
        return kind - 256
    if 0xA0 <= kind <= 0xBF:
        return take_text(walk, kind & 31)
    if 0xD9 <= kind <= 0xDB:
        return take_text(walk, take_number(walk, 1 << (kind - 0xD9)))
    if 0xC4 <= kind <= 0xC6:
        size = take_number(walk, 1 << (kind - 0xC4))
        return take(walk, size, b"binary data of msgpack")[:<Py_ssize_t>size]
    if 0xCC <= kind <= 0xD3:
        return take_integer(walk, kind)
    if kind == 0xC2 or kind == 0xC3:
        return kind == 0xC3
    if kind == 0xC0:
        return None
    walk.pos -= 1
    fail_at(walk, "a float" if kind in (0xCA, 0xCB) else f"type 0x{kind:02x} of msgpack, which VICI has no value for")


cdef object take_key(Walk* walk, dict section):
    cdef const uint8_t* start = walk.pos
    cdef int kind = take(walk, 1, b"a key")[0]
    if not (0xA0 <= kind <= 0xBF or 0xD9 <= kind <= 0xDB):
        walk.pos = start
        fail_at(walk, "a key that is no string")
    key = take_scalar(walk, kind)
    if key in section:
        walk.pos = start
        fail_at(walk, f"the key {key[:MAX_NAME]!r} stands twice")
    return key


@cython.wraparound(True)
cdef object unpack(Walk* walk):
    """Read one msgpack object; iterative, and counts are only believed as far as there are bytes."""
    cdef list containers = [], lefts = [], keys = []
    cdef const uint8_t* first
    while True:
        if containers and isinstance(containers[-1], dict) and lefts[-1]:
            keys[-1] = take_key(walk, containers[-1])
        if not containers or lefts[-1]:
            first = walk.pos
            made, left = unpack_one(walk)
            if left >= 0:
                if len(containers) > MAX_DEPTH + 1:
                    fail(walk, first, f"maps and arrays nested deeper than {MAX_DEPTH}")
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


cdef tuple unpack_one(Walk* walk):
    """Read a scalar, or the head of a container: (object, how many items follow; -1 for a scalar)."""
    cdef int kind = take(walk, 1, b"a value of msgpack")[0]
    if 0x80 <= kind <= 0x8F:
        return {}, kind & 15
    if 0x90 <= kind <= 0x9F:
        return [], kind & 15
    if kind == 0xDE or kind == 0xDF:
        return {}, take_number(walk, 2 << (kind - 0xDE))
    if kind == 0xDC or kind == 0xDD:
        return [], take_number(walk, 2 << (kind - 0xDC))
    return take_scalar(walk, kind), -1


cdef struct Token:
    # The head of a plain object: text, or how many items a map or an array of msgpack has; -1 for those of JSON.
    int kind
    const uint8_t* text
    Py_ssize_t size


cdef enum:
    PLAIN_END = 0  # of a map or an array
    PLAIN_MAP = 1
    PLAIN_ARRAY = 2
    PLAIN_STRING = 3
    PLAIN_BYTES = 4  # binary data, and what a bool or a number of JSON stands for
    PLAIN_NAMES = 64  # in a map, and a power of two
    PLAIN_DEPTH = 8


cdef const uint8_t* msgpack_token(const uint8_t* at, const uint8_t* end, Token* token) noexcept:
    """Read strings, binary data, bools and the heads of containers; NULL for all else, and where bytes are missing."""
    cdef int kind
    cdef Py_ssize_t wide = 0
    if at == end:
        return NULL
    kind = at[0]
    at += 1
    token.size = 0
    token.kind = PLAIN_STRING
    if 0xA0 <= kind <= 0xBF:
        token.size = kind & 31
    elif 0x80 <= kind <= 0x9F:
        token.kind = PLAIN_MAP if kind < 0x90 else PLAIN_ARRAY
        token.size = kind & 15
        return at
    elif kind == 0xC2 or kind == 0xC3:
        token.kind = PLAIN_BYTES
        token.text = b"yes" if kind == 0xC3 else b"no"
        token.size = 3 if kind == 0xC3 else 2
        return at
    elif kind == 0xD9 or kind == 0xDA:
        wide = kind - 0xD8
    elif kind == 0xC4 or kind == 0xC5:
        token.kind = PLAIN_BYTES
        wide = kind - 0xC3
    elif kind == 0xDE or kind == 0xDC:
        token.kind = PLAIN_MAP if kind == 0xDE else PLAIN_ARRAY
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


cdef inline const uint8_t* skip_space(const uint8_t* at, const uint8_t* end) noexcept:
    while at < end and at[0] <= 0x20 and at[0] in (0x20, 0x09, 0x0A, 0x0D):
        at += 1
    return at


cdef inline const uint8_t* json_token(const uint8_t* at, const uint8_t* end, Token* token) noexcept:
    """As `msgpack_token`: strings without escapes, bools, integers and the opening brackets of containers."""
    token.kind = PLAIN_BYTES
    token.text = at
    if at == end:
        return NULL
    if at[0] == 0x22:
        token.kind = PLAIN_STRING
        token.text = at = at + 1
        while end - at >= 8 and not needs_escape(eight_at(at)):
            at += 8
        while at < end and at[0] != 0x22:
            if at[0] < 0x20 or at[0] == 0x5C:
                return NULL
            at += 1
        token.size = at - token.text
        return at + 1 if at < end and is_utf8(token.text, token.size) else NULL
    if at[0] == 0x7B or at[0] == 0x5B:
        token.kind = PLAIN_MAP if at[0] == 0x7B else PLAIN_ARRAY
        token.size = -1
        return at + 1
    if end - at >= 5 and (not memcmp(at, b"true", 4) or not memcmp(at, b"false", 5)):
        token.size = 3 if at[0] == 0x74 else 2
        token.text = b"yes" if at[0] == 0x74 else b"no"
        return at + (4 if at[0] == 0x74 else 5)
    if at[0] == 0x30:
        token.size = 1
        return at + 1
    if at[0] == 0x2D:
        at += 1
    if at == end or not 0x31 <= at[0] <= 0x39:
        return NULL
    while at < end and 0x30 <= at[0] <= 0x39:
        at += 1
    token.size = at - token.text
    return at


cdef inline const uint8_t* next_item(
    const uint8_t* at, const uint8_t* end, Py_ssize_t left, uint8_t bracket, Token* item
) noexcept:
    """Read what comes next in a map or an array. `left` is how many items are; in JSON -1 and less after each."""
    if left > 0:
        return msgpack_token(at, end, item)
    item.kind = PLAIN_END
    if not left:
        return at
    at = skip_space(at, end)
    if at < end and at[0] == bracket:
        return at + 1
    return json_token(at, end, item) if left == -1 else json_after(at, end, 0x2C, item)


cdef inline const uint8_t* json_after(const uint8_t* at, const uint8_t* end, uint8_t mark, Token* token) noexcept:
    """Read what follows a comma or a colon."""
    at = skip_space(at, end)
    return json_token(skip_space(at + 1, end), end, token) if at < end and at[0] == mark else NULL


cdef inline bint is_new_name(uint64_t* seen, Token* name) noexcept:
    """Note a name; False when it or one with the same hash is there already."""
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
        at = next_item(at, end, count, 0x5D, &item)
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
    """Write the items of a map when all is plain and within bounds; else NULL, and the slow way says why."""
    cdef Token name, value
    cdef uint64_t[2 * PLAIN_NAMES] seen
    cdef bint json = count < 0
    if count > PLAIN_NAMES or depth > PLAIN_DEPTH:
        return NULL
    memset(seen, 0, sizeof(seen))
    while True:
        at = next_item(at, end, count, 0x7D, &name)
        if not at or name.kind == PLAIN_END:
            return at
        if name.kind != PLAIN_STRING or not 0 < name.size <= MAX_NAME or out.used > MAX_PACKET:
            return NULL
        if not is_printable(name.text, name.size) or not is_new_name(seen, &name):
            return NULL
        count -= 1
        if json and (count < -PLAIN_NAMES or name.size == 7 and not memcmp(name.text, b"$base64", 7)):
            return NULL
        at = json_after(at, end, 0x3A, &value) if json else msgpack_token(at, end, &value)
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
    """The message in msgpack or JSON of the kind that we write ourselves, rewritten in one pass; else None."""
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
    """Return the VICI bytes of a message in msgpack: map = section, array = list, all else as `encode` takes it.

    `from_msgpack(to_msgpack(x)) == x` for every message without duplicates. Raises `DecodeError` with the offset for
    what is no msgpack, a float, an extension, a key that is no string or stands twice, and `EncodeError` with the path
    for what VICI cannot carry.
    """
    cdef Walk walk
    held = bytes_of(data)
    walk.start = walk.pos = <const uint8_t*>PyBytes_AS_STRING(<PyObject*>held)
    walk.end = walk.start + PyBytes_GET_SIZE(<PyObject*>held)
    walk.depth = walk.in_list = 0
    cdef bytes plain = from_plain(held, False)
    if plain is not None:
        return plain
    message = unpack(&walk)
    if walk.pos != walk.end:
        fail_at(&walk, "more bytes after the message")
    return encode(message)


@cython.final
cdef class Refused:
    """Stands in a message for what JSON said there, until the encoder comes by and knows the path."""

    cdef str reason


cdef Refused refused(str reason):
    cdef Refused made = Refused.__new__(Refused)
    made.reason = reason
    return made


def _json_section(pairs):
    """Make a section of the names and values of a JSON object, or bytes of `{"$base64": "..."}`."""
    section = dict(pairs)
    if len(section) != len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        return refused(f"the name {twice[:MAX_NAME]!r} stands twice")
    if len(section) == 1 and isinstance(section.get("$base64"), str):
        from base64 import b64decode

        try:
            return b64decode(section["$base64"], validate=True)
        except ValueError as error:
            return refused(f"no base64: {error}")
    return section


def _json_integer(digits):
    """Keep an integer as it is written, of any length; "-0" is the one that has two ways to be."""
    return "0" if digits == "-0" else digits


cdef bytes bytes_of(data):
    cdef Py_buffer view
    if PyBytes_CheckExact(data):
        return data
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return (<const uint8_t*>view.buf)[:view.len]
    finally:
        PyBuffer_Release(&view)


def from_json(data, /):
    """Return the VICI bytes of a message in JSON: object = section, array = list, `{"$base64": "..."}` = any bytes.

    `data` is UTF-8 bytes or a str. `from_json(to_json(x)) == x` for every message without duplicates (and without a
    section that is itself like `$base64`). Raises `DecodeError` with the offset for what is no JSON, and `EncodeError`
    with the path for what VICI cannot carry: null, numbers that are no integers, names that stand twice.
    """
    cdef bytes held
    if PyUnicode_Check(data):
        held = PyUnicode_AsEncodedString(data, b"utf-8", b"surrogatepass")
    else:
        held = bytes_of(data)
    cdef bytes plain = from_plain(held, True)
    if plain is not None:
        return plain
    # Only who needs it pays for importing it.
    from json import JSONDecodeError, loads

    text = data
    if not isinstance(data, str):
        try:
            text = held.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DecodeError("no UTF-8", error.start) from None
    try:
        message = loads(text, object_pairs_hook=_json_section, parse_int=_json_integer)
    except JSONDecodeError as error:
        raise DecodeError(f"no JSON: {error.msg}", len(text[:error.pos].encode("utf-8", "surrogatepass"))) from None
    except RecursionError:
        raise EncodeError(f"sections nested deeper than {MAX_DEPTH}") from None
    return encode(message)


# --- messages read lazily ---------------------------------------------------------------------------------------------


cdef enum:
    IS_SECTION = 0x80000000  # in the tag of a node


cdef struct Node:
    # A key, list or section of a message: where it begins, and a tag that differs for most names. A section has a
    # second node: where its content ends, and in `tag` which node comes after all that is in it.
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


cdef inline int add_node(Nodes* nodes, Walk* walk, const uint8_t* first, Element* element) except -1:
    """Check the name of an element and note it."""
    check_name(walk, element)
    if nodes.used == nodes.size:
        grow_nodes(nodes)
    cdef Node* node = &nodes.data[nodes.used]
    node.first = <uint32_t>(first - walk.start)
    node.tag = tag_of(element.name, element.name_size)
    nodes.used += 1
    return 0


cdef int add_keys(Nodes* nodes, Walk* walk) except -1:
    """Note the keys that come next."""
    cdef Element element
    cdef const uint8_t* here = walk.pos
    cdef const uint8_t* after = next_key(here, walk.end, &element)
    while after:
        add_node(nodes, walk, here, &element)
        here = after
        after = next_key(here, walk.end, &element)
    walk.pos = here
    return 0


cdef Node* index_of(const uint8_t* data, Py_ssize_t size, uint32_t* count) except? NULL:
    """Check a message and return its nodes, in memory of just that size; NULL without an error for none."""
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
    """Check a whole message and note where its elements are; what a list holds is left out."""
    cdef Walk walk
    cdef Element element
    cdef Py_ssize_t[MAX_DEPTH + 1] opened
    cdef const uint8_t* first
    cdef int kind
    begin(&walk, data, size)
    while True:
        if not walk.in_list:
            add_keys(nodes, &walk)
        first = walk.pos
        kind = any_element(&walk, &element)
        if kind == SECTION_START or kind == LIST_START:
            add_node(nodes, &walk, first, &element)
            if kind == SECTION_START:
                nodes.data[nodes.used - 1].tag |= IS_SECTION
                opened[walk.depth] = nodes.used
                if nodes.used == nodes.size:
                    grow_nodes(nodes)
                nodes.used += 1
        elif kind == SECTION_END:
            nodes.data[opened[walk.depth + 1]].first = <uint32_t>(first - data)
            nodes.data[opened[walk.depth + 1]].tag = <uint32_t>nodes.used
        elif kind == END:
            return 0


@cython.final
@cython.no_gc  # what a Message refers to cannot refer back
cdef class Message:
    """One message, or a section of it, read only where it is asked: validated once, immutable, safe to keep.

    `data` is a bytes-like object (bytes are kept, all else is copied); `values` and `binary` are as for `Decoder`.
    Raises `DecodeError`. Names that stand twice are all there in iteration and `get_all`; `get` and `[]` give the last,
    as `decode` does. A value is a str (or bytes), a list of them, or for a section a Message.
    """

    cdef bytes data
    cdef Node* nodes
    cdef Message whole  # the message whose bytes and nodes these are; None for the whole itself
    cdef uint32_t first  # of this section's bytes
    cdef uint32_t end
    cdef uint32_t from_node
    cdef uint32_t to_node
    cdef bint as_bytes
    cdef tuple binary

    def __init__(self, data, *, values=str, binary=()):
        if self.data is not None:
            raise TypeError("a Message cannot be changed")
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
        """How many sections deep this one goes."""
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
            raise TypeError(f"a name is a str, not {type(name).__name__}")
        if not PyUnicode_IS_COMPACT_ASCII(<PyObject*>name):
            # A subclass may have its own __str__; what str makes of it is no subclass.
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
        """The node after this one in the same section."""
        # A branch that is guessed, where the compiler would make the next load wait for this one.
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

    @cython.binding(False)  # else Cython's function object makes another tuple of the path at every call
    def get(self, *path, default=None):
        """Return what stands under the last of the names, each in the section of the one before; else `default`."""
        cdef uint32_t node = self.from_node
        cdef uint32_t to_node = self.to_node
        cdef int64_t found = -1
        cdef Py_ssize_t i
        cdef Py_ssize_t last = len(path) - 1
        if last < 0:
            raise TypeError("get needs a name")
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
        return decode_alone(self.at(self.first), self.end - self.first, self.as_bytes, self.binary)

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
    """`Message(...)`; of bytes and no more it is made without the tuple and the parsing that calls of classes need."""
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
    """Reads a message as a `Message`; `values` and `binary` are as for `Decoder`."""

    cdef bint as_bytes
    cdef tuple binary

    def __init__(self, *, values=str, binary=()):
        self.as_bytes = are_bytes(values)
        self.binary = root_names(binary)

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        cdef Message made = Message.__new__(Message)
        made.open(data[:size], self.as_bytes, self.binary)
        return made


# --- packets ----------------------------------------------------------------------------------------------------------


@cython.final
cdef class Framer:
    """Cuts the packets that a daemon sends from reads of any size, each message read in place.

    `default` reads the messages of responses and events, `events` maps names of events to readers of their own.
    Bytes come in by `feed`, or without a copy: the framer is itself a writable buffer of at least 64 KiB, and
    `received` says how much of it was filled. `error` is None, or the `ProtocolError` after which nothing follows.
    """

    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t first
    cdef Py_ssize_t last
    cdef int views
    cdef bint busy
    cdef Reader default
    cdef dict events
    cdef str event
    cdef Reader event_reader
    cdef readonly object error

    def __cinit__(self):
        self.default = Raw.__new__(Raw)
        self.events = {}
        self.size = BUFFER_SIZE
        self.data = <uint8_t*>malloc(self.size)
        if not self.data:
            raise MemoryError

    def __init__(self, Reader default not None, events=()):
        self.default = default
        self.events = dict(events)
        for name, reader in self.events.items():
            if not isinstance(reader, Reader):
                raise TypeError(f"the reader of {name} is a {type(reader).__name__}")

    def __dealloc__(self):
        free(self.data)

    @cython.critical_section
    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.views:
            raise BufferError("the free space of the framer is in use")
        self.make_room(READ_SIZE)
        PyBuffer_FillInfo(view, self, self.data + self.last, self.size - self.last, 0, flags)
        self.views += 1

    @cython.critical_section
    def __releasebuffer__(self, Py_buffer* view):
        self.views -= 1

    @property
    def pending(self):
        """How many bytes of a packet that is not complete yet are waiting; 0 between two packets."""
        return self.last - self.first

    @cython.critical_section
    def received(self, Py_ssize_t count):
        """Say that `count` bytes were written into the framer's buffer."""
        if not 0 <= count <= self.size - self.last:
            raise ValueError(f"{count} bytes were not received: the buffer has {self.size - self.last}")
        self.last += count

    @cython.critical_section
    def feed(self, data, /):
        """Take a copy of `data`, a bytes-like object; after an `error` nothing."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.views:  # asked now, as `data` may be the framer itself
                raise BufferError("the free space of the framer is in use")
            if self.error is not None:
                return
            self.make_room(view.len)
            memcpy(self.data + self.last, view.buf, view.len)
            self.last += view.len
        finally:
            PyBuffer_Release(&view)

    @cython.critical_section
    def packets(self):
        """Return all complete packets as (type, name or None, message), in the order in which they came.

        The message is what the reader made of it, None for a type without one, and a `DecodeError` when it is
        malformed: the stream itself is still in step then. A packet that breaks the rules ends the list and sets
        `error` (vici.h: 512 KiB at most; a peer that is no daemon, or out of step, cannot be followed).
        """
        cdef list found = []
        # Reading a message can run the garbage collector, and that anything: nothing may move the buffer meanwhile.
        if self.busy:
            raise RuntimeError("packets() is called while it runs")
        self.busy = True
        self.views += 1
        try:
            self.cut_all(found)
        finally:
            self.views -= 1
            self.busy = False
        return found

    cdef int cut_all(self, list found) except -1:
        cdef uint32_t length
        cdef const uint8_t* head
        while self.error is None and self.last - self.first >= 4:
            head = self.data + self.first
            length = <uint32_t>head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3]
            if length == 0 or length > MAX_PACKET:
                self.error = ProtocolError(f"a packet of {length} bytes: a packet has 1 to {MAX_PACKET}")
                break
            if self.last - self.first - 4 < <Py_ssize_t>length:
                break
            try:
                packet = self.cut(head + 4, length)
                if packet is not None:
                    found.append(packet)
            except ProtocolError as error:
                self.error = error
                break
            self.first += 4 + length
        return 0

    cdef tuple cut(self, const uint8_t* data, Py_ssize_t size):
        cdef int kind = data[0]
        cdef Py_ssize_t name_size
        if kind == EVENT:
            name_size = data[1] if size > 1 else 0
            if size < 2 or size - 2 < name_size:
                raise ProtocolError("an event whose name is longer than its packet")
            self.recall(data + 2, name_size)
            message = self.message(self.event_reader, data + 2 + name_size, size - 2 - name_size)
            return None if message is None else (kind, self.event, message)
        if kind == CMD_RESPONSE:
            return (kind, None, self.message(self.default, data + 1, size - 1))
        if kind != CMD_UNKNOWN and kind != EVENT_CONFIRM and kind != EVENT_UNKNOWN:
            raise ProtocolError(f"a packet of type {kind}, which no daemon sends")
        if size != 1:
            raise ProtocolError(f"{size - 1} bytes after a packet of type {kind}, which has no content")
        return (kind, None, None)

    cdef int recall(self, const uint8_t* name, Py_ssize_t size) except -1:
        """Make `event` and its reader those of `name`; mostly they are, from the event before."""
        if self.event is not None and same_text(<PyObject*>self.event, name, size):
            return 0
        if not is_printable(name, size):
            raise ProtocolError("an event whose name is not printable ASCII")
        self.event = name[:size].decode("ascii")
        self.event_reader = self.events.get(self.event, self.default)
        return 0

    cdef object message(self, Reader reader, const uint8_t* data, Py_ssize_t size):
        try:
            return reader.read(data, size)
        except DecodeError as error:
            return error

    cdef int make_room(self, Py_ssize_t wanted) except -1:
        """Have room for `wanted` more bytes: a partial packet moves to the front, and the buffer grows for it."""
        cdef Py_ssize_t kept = self.last - self.first
        cdef uint8_t* data
        if kept and self.size - self.last >= wanted:
            return 0
        if kept and self.first:
            memmove(self.data, self.data + self.first, kept)
        self.first = 0
        self.last = kept
        if self.size - kept < wanted:
            data = <uint8_t*>realloc(self.data, kept + wanted + BUFFER_SIZE)
            if not data:
                raise MemoryError
            self.data = data
            self.size = kept + wanted + BUFFER_SIZE
        return 0
